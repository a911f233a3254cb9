"""What a vision tower looks at and finds in each visual token, read while it runs, without any attention map.

Query and key of one layer become one number, or one key, for each patch at once, while the layer's own kernel (SDPA,
flash, eager) keeps running; readings are then laid out as the model lays out its features. Which towers there are, and
what is known of them, is declared in :mod:`~ficoco_ext.models.tower_families`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import QueryKey, checks
from ..stages import needs
from . import attention_tap
from .generate_options import named
from .model_changes import ModelChanges
from .per_thread import PerThread
from .tower_families import TOWERS, TRAINED, TowerAttention, TowerBody
from .tower_layers import at_path, early_layer_of, layers_of, next_layer_of, read_layer_of, refuse
from .tower_layouts import TowerPass, Watcher, patch_grids
from .tower_saliency import AUTO, CLASS, COLUMN, KINDS, class_logits, saliency
from .vision_tower import TowerReductions

# What a method may need of the tower, and which field of VisualFeatures has it.
FIELDS = {
    needs.SALIENCY: "saliency",
    needs.TOWER_KEYS: "keys",
    needs.TOWER_FEATURES: "tower_features",
    needs.EARLY_SALIENCY: "early_saliency",
    needs.CLASS_LOGITS: "class_logits",
}
_SALIENCY, _KEYS, _FEATURES, _EARLY, _LOGITS = FIELDS.values()
_NUMBERS = (_SALIENCY, _EARLY, _LOGITS)  # one for each token
_WITHOUT = "use a method that reads nothing in the vision tower, such as 'divprune'"


class _State:
    """What one thread read: of the call of a tower that runs, or ran last."""

    def __init__(self) -> None:
        self.seen: TowerPass | None = None
        self.running = False


class _Watched:
    """A method of the model that also shows its arguments."""

    def __init__(self, method: Callable[..., Any], watcher: Watcher, state: PerThread[_State]) -> None:
        self.method, self.watcher, self.state = method, watcher, state
        self.__signature__ = signature(method)  # others may ask what it takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The method itself; what it does first to features of the tower is then done to what was read."""
        result = self.method(*args, **kwargs)
        seen = self.state.here.seen
        if seen is not None and seen.placed is None:
            self.watcher(seen, self.method, dict(self.__signature__.bind(*args, **kwargs).arguments))
        return result


class _Tower:
    """One vision tower, and the layers in which it is read."""

    def __init__(
        self,
        core: Any,
        tower: nn.Module,
        known: TowerAttention,
        body: TowerBody,
        kind: str,
        fields: Sequence[str],
        early: int | float | None,
        after: bool,
        state: PerThread[_State],
    ) -> None:
        self.core, self.tower, self.known, self.body = core, tower, known, body
        self.kind, self.state, self.reads_features = kind, state, _FEATURES in fields
        self.layer = read_layer_of(core, tower, body)
        self.early = early_layer_of(tower, body, early, self.layer) if _EARLY in fields else None
        reads = next_layer_of(core, tower, body)
        elsewhere = {_EARLY: self.early, _LOGITS: reads} | ({_SALIENCY: reads} if after else {})
        self.fields: dict[int, list[str]] = {}
        for field in fields:
            if field != _FEATURES:
                layer = elsewhere.get(field)
                self.fields.setdefault(self.layer if layer is None else layer, []).append(field)
        self.attentions: dict[int, nn.Module] = {}
        for layer in self.fields:
            attention = getattr(layers_of(tower, body)[layer], body.attends)
            if type(attention) is not body.classes()[1]:
                got, remedy = type(attention).__name__, "unwrap the layer before attaching"
                refuse(f"attention of vision layer {layer}", f"a {body.attention}", got, remedy)
            self.attentions[layer] = attention

    def install(self, changes: ModelChanges) -> None:
        changes.hook(self.tower.register_forward_pre_hook(self.begin, with_kwargs=True))
        changes.hook(self.tower.register_forward_hook(self.end, always_call=True))
        if self.reads_features and self.body.merger is not None:
            changes.hook(at_path(self.tower, self.body.merger).register_forward_pre_hook(self.before_merger))
        for layer, fields in self.fields.items():
            attention_tap.install(self.attentions[layer], changes, partial(self.measure, tuple(fields)))

    def begin(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call begins. A layer that a backward pass computes again is in none."""
        arguments = named(type(tower).forward, tower, args, kwargs)
        grids = patch_grids(tower, arguments) if self.body.one_sequence else []
        mask = arguments.get(self.body.padding) if self.body.padding else None
        state = self.state.here
        state.seen = TowerPass(self.core, tower, grids, mask, int(self.body.class_token is not None))
        state.running = True

    def end(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A call has ended, without an output if by an exception, of which nothing is kept."""
        state = self.state.here
        state.running = False
        if output is None:
            state.seen = None
        elif state.seen is not None and self.reads_features and self.body.merger is None:
            features = self.known.features(self.core, output).detach()
            for part in features.split(state.seen.lengths or [features.shape[1]], 1):
                state.seen.add(_FEATURES, part)

    def before_merger(self, merger: nn.Module, args: tuple[Any, ...]) -> None:
        """What the tower's merger gets: (patches, C), or merge units (T, C, rows, columns)."""
        state = self.state.here
        if state.running and state.seen is not None:
            features = args[0].detach()
            if features.dim() == 4:
                features = features.flatten(2).mT.flatten(0, 1)
            state.seen.add(_FEATURES, features.unsqueeze(0))

    def measure(self, fields: tuple[str, ...], attn: QueryKey) -> None:
        """What a call of the attention of a layer says of each patch, and of a class token that comes first."""
        state = self.state.here
        if not state.running or state.seen is None:
            return
        seen, query, key = state.seen, attn.query.detach(), attn.key.detach()
        lengths = seen.lengths or [query.shape[2]]
        mask = None if seen.mask is None else seen.mask.to(query.device)  # a tower spread over several devices
        for parts in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
            for field in fields:
                if field == _KEYS:
                    seen.add(field, parts[1].mean(1, dtype=torch.float32))
                    continue
                read = QueryKey(*parts, attn.scale)
                if field == _LOGITS:
                    numbers = class_logits(read)
                else:
                    numbers = saliency(self.kind, read, bool(seen.class_tokens), mask)
                seen.add(field, nn.functional.pad(numbers, (seen.class_tokens, 0)).unsqueeze(-1))


class TowerReadings:
    """What a method needs of a model's vision tower for each visual token, in the order of its projected features.

    Saliency and keys are read in the last layer with full attention of those whose output reaches the projector: where
    hidden_states[-2] is selected, in the last but one, whose attention is attentions[-2]. Class logits are read in the
    layer after it, which reads what is selected, or in that one if it is the last. Features are what leaves the tower
    for the projector: that selected state, after the tower's last norm only where the model reads it there, or what the
    tower's own merger gets. A projected token that stands for several patches has the mean of theirs. Padding and line
    ends have 0. A class token among the features has saliency 0, and its own key and features.

    Args:
        model: the whole model; not changed before :meth:`install`.
        family_name: a key of :data:`~ficoco_ext.models.tower_families.TOWERS`.
        wanted: what the method needs, of :data:`~ficoco_ext.stages.needs.NEEDS`; what the tower does not give is
            passed over.
        saliency: the kind of both saliencies. "class", the class token's row of the probabilities, heads averaged;
            "column", what a patch receives, the mean of the probabilities over heads and over the patches of its
            picture (or frame, or tile); "keys", 1 - cosine of its key with the mean key of its picture, heads averaged
            (FiCoCo eq. 9-13), in [0, 2]; "auto", "class" where the tower has a class token that was trained to stand
            for the picture, else "column".
        early_layer: where the early saliency is read: a layer, counted from 0, or a share of the tower's layers, above
            0 and at most 1, of which it is the last. None: as published for such a tower, 9 of 24 layers, or 16 of 32
            for Qwen2.5-VL. Where that layer attends in windows, the nearest before it that attends to whole pictures;
            without one, the first of all that does.
        after: saliency is read where class logits are instead, in the layer that reads what is selected.
        reductions: of a method that reduces inside the same tower; a token that is left has its own reading, without
            what it inherited and without the bias of proportional attention. None if there is no such method.

    Raises:
        NotImplementedError: nothing is known of the family or of its tower, or it lacks what ``saliency`` reads.
        ValueError: an unknown kind of saliency, or an early layer that the tower does not have or that comes after the
            one of ``saliency``.

    Cost: class 2 H N d FLOPs and keys 2 H N d for each picture of N patches, column 2 H N^2 d. No N x N map with the
    compiled kernels. No host reads but those of the model. Each thread has its own readings. Source: SCOPE (arXiv
    2510.24214) for the class token's row; what a method makes of the readings is its own.
    """

    def __init__(
        self,
        model: Any,
        family_name: str,
        wanted: Sequence[str] = (needs.SALIENCY,),
        *,
        saliency: str = AUTO,
        early_layer: int | float | None = None,
        after: bool = False,
        reductions: TowerReductions | None = None,
    ) -> None:
        self.fields = [field for need, field in FIELDS.items() if need in wanted]
        if saliency not in KINDS:
            checks.fail("attach", "saliency", f"one of {', '.join(KINDS)}", saliency, "pick one of them")
        known = TOWERS.get(family_name)
        if known is None:
            refuse(" and ".join(self.fields), f"of the tower of {', '.join(TOWERS)}", family_name, _WITHOUT)
        self.family_name, self.known, self.reductions = family_name, known, reductions
        self._core = model.model
        self._state = PerThread(_State)
        names = [known.tower, *([known.video_tower] if known.video_tower else [])]
        self._towers = [self._tower(getattr(self._core, name), known, saliency, early_layer, after) for name in names]

    @staticmethod
    def serve(wanted: Sequence[str]) -> bool:
        """Whether anything that is ``wanted`` is read in the tower."""
        return any(need in FIELDS for need in wanted)

    @property
    def kind(self) -> str:
        """The kind of saliency: "class", "column" or "keys"."""
        return self._towers[0].kind

    @property
    def layer(self) -> int:
        """The layer of the tower in which saliency and keys are read."""
        return self._towers[0].layer

    @property
    def early_layer(self) -> int | None:
        """The layer of the tower in which the early saliency is read, if it is."""
        return self._towers[0].early

    def _tower(
        self, tower: nn.Module, known: TowerAttention, kind: str, early_layer: int | float | None, after: bool
    ) -> _Tower:
        name = type(tower).__name__
        body = next((one for one in known.bodies if one.model == name and one.classes()[0] is type(tower)), None)
        if body is None:
            refuse("vision tower", f"one of {', '.join(one.model for one in known.bodies)}", name, _WITHOUT)
        if kind == AUTO:
            kind = CLASS if body.class_token == TRAINED else COLUMN
        if kind == CLASS and body.class_token is None:
            remedy = f"the vision tower of {self.family_name}, {name}, has no class token"
            refuse("saliency", "'column' or 'keys'", kind, remedy)
        if _LOGITS in self.fields and body.class_token != TRAINED:
            got, remedy = f"{name}, which has none", "use a method that needs none, such as 'scope' or 'divprune'"
            refuse("vision tower", f"one with a class token for the {needs.CLASS_LOGITS}", got, remedy)
        return _Tower(self._core, tower, known, body, kind, self.fields, early_layer, after, self._state)

    def install(self, changes: ModelChanges) -> None:
        """Tap layers of the tower, on top of a method that reduces inside it, if there is one."""
        for tower in self._towers:
            tower.install(changes)
        for path, watcher in self.known.watched:
            above, _, name = path.rpartition(".")
            owner = at_path(self._core, above)
            changes.set(owner, name, _Watched(getattr(owner, name), watcher, self._state))

    def take(self, counts: Sequence[int]) -> dict[str, list[Tensor]]:
        """What was read in the call of ``get_image_features`` or ``get_video_features`` that this thread made last.

        Args:
            counts: how many projected tokens each entry of its ``pooler_output`` has.

        Returns:
            For each field of :class:`~ficoco_ext.stages.VisualFeatures` that is wanted, one tensor for each entry, as
            its tokens follow one another: saliencies (n_i,) float32, finite and >= 0; class logits (n_i,) float32;
            keys (n_i, K) float32; features (n_i, C) in the tower's dtype.

        Raises:
            RuntimeError: the tower did not run since the last ``take``, or gave other numbers of tokens, as with a
                method that reduces inside the tower and is not among the arguments of this object.
        """
        seen, self._state.here.seen = self._state.here.seen, None
        if seen is None or not all(seen.parts.get(field) for field in self.fields):
            raise RuntimeError(
                "ficoco::saliency: the vision tower did not run with its attention measured since the numbers were "
                "last taken; call get_image_features or get_video_features first, and once for each take"
            )
        taken = {}
        for field in self.fields:
            if self.reductions is not None:
                _leave(seen, field, self.reductions)
            found = self.known.layout(seen, field, counts)
            if len(found) != sum(counts):
                raise RuntimeError(
                    f"ficoco::saliency: {self.family_name} projected {sum(counts)} tokens, and its tower was measured "
                    f"for {len(found)}; pass the reductions of the method that reduces inside the tower, or detach it"
                )
            taken[field] = list((found.squeeze(-1) if field in _NUMBERS else found).split(list(counts)))
        return taken

    def drop(self) -> None:
        """Forget what was read."""
        self._state.here.seen = None


def _leave(seen: TowerPass, field: str, reductions: TowerReductions) -> None:
    """Take away the readings of patches that left after they were read, in the same layer or a later one."""
    records, found = reductions.of_this_thread(), seen.whole(field)
    patches = found.shape[1] - seen.class_tokens
    if not records or records[-1].patch_ids.shape[1] == patches:
        return
    left = records[-1].patch_ids.to(found.device)
    for record in records[:-1]:
        if record.patch_ids.shape[1] == patches:  # they were read after this one
            left = torch.searchsorted(record.patch_ids.to(found.device).contiguous(), left.contiguous())
            break
    left = nn.functional.pad(left + seen.class_tokens, (seen.class_tokens, 0))
    seen.parts[field] = [found.gather(1, left.unsqueeze(-1).expand(-1, -1, found.shape[-1]))]
