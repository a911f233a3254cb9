"""How much the vision tower looks at each visual token, measured while it runs: no attention map is asked for or made.

Query and key of one layer become one number for each patch at once, while the layer's own kernel (SDPA, flash, eager)
keeps running; the numbers are then laid out as the model lays out its features. Which towers there are, and what is
known of them, is declared in :mod:`~ficoco_ext.models.tower_families`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from inspect import signature
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import QueryKey, checks
from . import attention_tap
from .generate_options import named
from .model_changes import ModelChanges
from .per_thread import PerThread
from .tower_families import TOWERS, TRAINED, TowerAttention, TowerBody
from .tower_layouts import TowerPass, Watcher, patch_grids
from .vision_tower import TowerReductions

AUTO, CLASS, COLUMN, KEYS = "auto", "class", "column", "keys"
KINDS = (AUTO, CLASS, COLUMN, KEYS)


class _State:
    """What one thread measured: of the call of a tower that runs, or ran last."""

    def __init__(self) -> None:
        self.seen: TowerPass | None = None
        self.running = False


class _Watched:
    """A method of the model that also shows its arguments."""

    def __init__(self, method: Callable[..., Any], watcher: Watcher, state: PerThread[_State]) -> None:
        self.method, self.watcher, self.state = method, watcher, state
        self.__signature__ = signature(method)  # others may ask what it takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The method itself; what it does first to features of the tower is then done to what was measured."""
        result = self.method(*args, **kwargs)
        seen = self.state.here.seen
        if seen is not None and seen.placed is None:
            self.watcher(seen, self.method, dict(self.__signature__.bind(*args, **kwargs).arguments))
        return result


class _Tower:
    """One vision tower, and the layer in which it is measured."""

    def __init__(self, core: Any, tower: nn.Module, body: TowerBody, kind: str, state: PerThread[_State]) -> None:
        self.core, self.tower, self.body, self.kind, self.state = core, tower, body, kind, state
        self.layer = _layer(core, tower, body)
        layers = _at(tower, body.layers)
        self.attention: nn.Module = getattr(layers[self.layer], body.attends)
        if type(self.attention) is not body.classes()[1]:
            got, remedy = type(self.attention).__name__, "unwrap the layer before attaching"
            _refuse(f"attention of vision layer {self.layer}", f"a {body.attention}", got, remedy)

    def install(self, changes: ModelChanges) -> None:
        changes.hook(self.tower.register_forward_pre_hook(self.begin, with_kwargs=True))
        changes.hook(self.tower.register_forward_hook(self.end, always_call=True))
        attention_tap.install(self.attention, changes, self.measure)

    def begin(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call begins. A layer that a backward pass computes again is in none."""
        arguments = named(type(tower).forward, tower, args, kwargs)
        grids = patch_grids(tower, arguments) if self.body.one_sequence else []
        mask = arguments.get(self.body.padding) if self.body.padding else None
        state = self.state.here
        state.seen, state.running = TowerPass(self.core, tower, grids, mask), True

    def end(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A call has ended, without an output if by an exception, of which nothing is kept."""
        state = self.state.here
        state.running = False
        if output is None:
            state.seen = None

    def measure(self, attn: QueryKey) -> None:
        """One number for each patch of a call of the attention."""
        state = self.state.here
        if not state.running or state.seen is None:
            return
        seen, query, key = state.seen, attn.query.detach(), attn.key.detach()
        lengths = [rows * columns for rows, columns in seen.grids] or [query.shape[2]]
        mask = None if seen.mask is None else seen.mask.to(query.device)  # a tower spread over several devices
        for parts in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
            seen.parts.append(self._numbers(QueryKey(*parts, attn.scale), mask).float())

    def _numbers(self, attn: QueryKey, mask: Tensor | None) -> Tensor:
        has_class_token = self.body.class_token is not None
        if self.kind == CLASS:
            return ops.attention_stats(attn, class_token=True, probs=True, column=False, patches=False)[0]
        if self.kind == KEYS:
            return unlike_the_mean(attn, has_class_token, mask)
        return received(attn, has_class_token, mask)


class TowerSaliency:
    """How much a model's vision tower looks at each visual token, in the order of its projected features.

    Measured in the last layer with full attention of those whose output reaches the projector: where hidden_states[-2]
    is selected, in the last but one, whose attention is attentions[-2]. A projected token that stands for several
    patches has the mean of theirs. Padding, line ends and a class token among the features have 0.

    Args:
        model: the whole model; not changed before :meth:`install`.
        family_name: a key of :data:`~ficoco_ext.models.tower_families.TOWERS`.
        kind: "class", the class token's row of the probabilities, heads averaged; "column", what a patch receives, the
            mean of the probabilities over heads and over the patches of its picture (or frame, or tile); "keys", 1 -
            cosine of its key with the mean key of its picture, heads averaged (FiCoCo eq. 9-13), in [0, 2]; "auto",
            "class" where the tower has a class token that was trained to stand for the picture, else "column".
        reductions: of a method that reduces inside the same tower; a token that is left has its own number, without
            what it inherited and without the bias of proportional attention. None if there is no such method.

    Raises:
        NotImplementedError: nothing is known of the family or of its tower, or it lacks what ``kind`` reads.
        ValueError: an unknown ``kind``.

    Cost: class 2 H N d FLOPs and keys 2 H N d for each picture of N patches, column 2 H N^2 d. No N x N map with the
    compiled kernels. No host reads but those of the model. Each thread has its own numbers. Source: SCOPE (arXiv
    2510.24214) for the class token's row; what a method makes of the numbers is its own.
    """

    def __init__(
        self, model: Any, family_name: str, kind: str = AUTO, reductions: TowerReductions | None = None
    ) -> None:
        if kind not in KINDS:
            checks.fail("attach", "saliency", f"one of {', '.join(KINDS)}", kind, "pick one of them")
        known = TOWERS.get(family_name)
        if known is None:
            remedy = "use a method that needs no saliency, such as 'divprune'"
            _refuse("saliency", f"that of {', '.join(TOWERS)}", family_name, remedy)
        self.family_name, self.known, self.reductions = family_name, known, reductions
        self._core = model.model
        self._state = PerThread(_State)
        names = [known.tower, *([known.video_tower] if known.video_tower else [])]
        self._towers = [self._tower(getattr(self._core, name), known, kind) for name in names]

    @property
    def kind(self) -> str:
        """What is measured: "class", "column" or "keys"."""
        return self._towers[0].kind

    @property
    def layer(self) -> int:
        """The layer of the tower in which it is measured."""
        return self._towers[0].layer

    def _tower(self, tower: nn.Module, known: TowerAttention, kind: str) -> _Tower:
        name = type(tower).__name__
        body = next((one for one in known.bodies if one.model == name and one.classes()[0] is type(tower)), None)
        if body is None:
            wanted = f"one of {', '.join(one.model for one in known.bodies)}"
            _refuse("vision tower", wanted, name, "use a method that needs no saliency, such as 'divprune'")
        if kind == AUTO:
            kind = CLASS if body.class_token == TRAINED else COLUMN
        if kind == CLASS and body.class_token is None:
            remedy = f"the vision tower of {self.family_name}, {name}, has no class token"
            _refuse("saliency", "'column' or 'keys'", kind, remedy)
        return _Tower(self._core, tower, body, kind, self._state)

    def install(self, changes: ModelChanges) -> None:
        """Tap one layer of the tower, on top of a method that reduces inside it, if there is one."""
        for tower in self._towers:
            tower.install(changes)
        for path, watcher in self.known.watched:
            owner, name = _owner(self._core, path)
            changes.set(owner, name, _Watched(getattr(owner, name), watcher, self._state))

    def take(self, counts: Sequence[int]) -> list[Tensor]:
        """The numbers of the call of ``get_image_features`` or ``get_video_features`` that this thread made last.

        Args:
            counts: how many projected tokens each entry of its ``pooler_output`` has.

        Returns:
            For each entry (n_i,) float32, finite and >= 0, as its tokens follow one another.

        Raises:
            RuntimeError: the tower did not run since the last ``take``, or gave other numbers of tokens, as with a
                method that reduces inside the tower and is not among the arguments of this object.
        """
        seen, self._state.here.seen = self._state.here.seen, None
        if seen is None or not seen.parts:
            raise RuntimeError(
                "ficoco::saliency: the vision tower did not run with its attention measured since the numbers were "
                "last taken; call get_image_features or get_video_features first, and once for each take"
            )
        if self.reductions is not None:
            _leave(seen, self.reductions)
        found = self.known.layout(seen, counts)
        if len(found) != sum(counts):
            raise RuntimeError(
                f"ficoco::saliency: {self.family_name} projected {sum(counts)} tokens, and its tower was measured for "
                f"{len(found)}; pass the reductions of the method that reduces inside the tower, or detach it"
            )
        return list(found.split(list(counts)))

    def drop(self) -> None:
        """Forget what was measured."""
        self._state.here.seen = None


def received(attn: QueryKey, class_token: bool, mask: Tensor | None = None) -> Tensor:
    """(B, P) mean over heads and over the real patches of the probability with which they attend to each patch.

    Args:
        attn: query (B, H, N, d) and key of pictures. class_token: token 0 is one; it takes its share of each softmax.
        mask: (B, ...) bool with P entries a picture, False for patches that are padding; without a class token.
    """
    if mask is None:
        return ops.attention_stats(attn, class_token=class_token, probs=True, column=True)[1]
    real = mask.flatten(1)
    share = real.to(ops.result_dtype(attn.query))
    share = (share / share.sum(1, keepdim=True).clamp(min=1)).unsqueeze(1)
    every = torch.arange(real.shape[1], device=real.device).repeat(len(real), 1)
    return ops.token_attention(attn, every, every, share, probs=True, column=True, key_mask=real)[:, 0]


def unlike_the_mean(attn: QueryKey, class_token: bool, mask: Tensor | None = None) -> Tensor:
    """(B, P) 1 - cosine of each patch's key with the mean key of the real patches, heads averaged; 0 for padding.

    Args:
        attn, class_token, mask: as for :func:`received`. A class token's key is left out.
    """
    query, key = (one[:, :, int(class_token) :] for one in attn[:2])
    if mask is not None:  # the cosine does not see by how much zeros make the mean shorter
        real = mask.flatten(1)[:, None, :, None]
        key = key * real
    unlike, _ = ops.attention_stats(
        QueryKey(query, key, attn.scale), class_token=False, probs=False, column=False, patches=False
    )
    unlike = (1 + unlike).clamp(min=0)
    return unlike if mask is None else unlike * mask.flatten(1)


def _leave(seen: TowerPass, reductions: TowerReductions) -> None:
    """Take away the numbers of patches that left after they were measured, in the same layer."""
    records, found = reductions.of_this_thread(), seen.pictures()
    if not records or records[-1].patch_ids.shape[1] == found.shape[1]:
        return
    left = records[-1].patch_ids.to(found.device)
    if len(records) > 1:
        left = torch.searchsorted(records[-2].patch_ids.to(found.device).contiguous(), left.contiguous())
    seen.parts = [found.gather(1, left)]


def _layer(core: Any, tower: nn.Module, body: TowerBody) -> int:
    """The last layer with full attention of those whose output reaches the projector."""
    count = len(_at(tower, body.layers))
    selected = getattr(core.config, "vision_feature_layer", -1)
    chosen = selected if isinstance(selected, (list, tuple)) else [selected]
    last = max(one if one >= 0 else count + 1 + one for one in chosen) - 1  # hidden_states[0] enters the first layer
    full = range(count) if body.full_layers is None else getattr(tower.config, body.full_layers)
    usable = [layer for layer in full if layer <= last]
    if not usable:
        remedy = "use a method that needs no saliency, such as 'divprune'"
        got = f"{body.full_layers or 'vision_feature_layer'}={list(full) if body.full_layers else selected}"
        _refuse("vision tower", "one with a layer that attends to whole pictures before the projector", got, remedy)
    return max(usable)


def _at(owner: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), owner)


def _owner(core: Any, path: str) -> tuple[Any, str]:
    """The module that a path ends in, and the last name."""
    above, _, name = path.rpartition(".")
    return (_at(core, above) if above else core), name


def _refuse(argument: str, wanted: str, got: str, remedy: str) -> NoReturn:
    checks.fail("attach", argument, wanted, got, remedy, NotImplementedError)
