"""The key set of a prompt: the visual tokens of each picture that the class token of the vision tower looks at most.

It looks in the layer that reads the features: with hidden_states[-2] selected, in the last one.

It goes from the tower to the language model with the features: on what an encoder returned, so that it is there when
pictures were encoded earlier, and in the state of the thread.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..ops import checks
from ..ops.values import free_to_read
from ..stages.dual_attention import key_count, key_set
from ..stages.needs import KEY_SET, SALIENCY
from . import encoder_marks, modalities
from .attach_plan import AttachPlan
from .count_cutter import require_selection, selection_of
from .families import Family
from .layouts import Layout
from .modalities import Modality
from .model_changes import ModelChanges
from .per_thread import PerThread
from .placeholders import REMEDY
from .tower_families import TOWERS
from .tower_readings import TowerReadings
from .tower_saliency import CLASS
from .vision_tower import TowerReductions

_LOOKED = "ficoco_class_attention"  # on what an encoder returned
_ENCODE = "encode them while attached, pass pixels, or attach with keys=0"


class Looked(NamedTuple):
    """How much the class token of a picture, or of its crop, looks at each token, (n,), and how these lie."""

    values: Tensor
    layout: Layout


Pictures = tuple[Looked, ...]


class _Now:
    """What one thread knows of its call.

    Attributes:
        traced: by modality, what an encoder returned last in a traced call, which writes nothing on it, and how its
            pictures are looked at.
        called: by modality, how many features the model got and how their pictures are looked at; None: no call of
            the inner model is under way.
    """

    def __init__(self) -> None:
        self.traced: dict[str, tuple[Any, Pictures]] = {}
        self.called: dict[str, tuple[int, Pictures]] | None = None


class KeyedEncoder:
    """Stands in for ``get_image_features`` or ``get_video_features`` of the inner model: its output says more."""

    def __init__(self, owner: KeySets, function: Callable[..., Any], modality: Modality) -> None:
        self.owner, self.function, self.modality = owner, function, modality
        self.__signature__ = inspect.signature(function)
        self.__name__ = modality.method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the encoder returns, and how much is looked at each of its tokens."""
        options = dict(self.__signature__.bind(*args, **kwargs).arguments)
        options |= options.pop("kwargs", {})
        require_selection(self.modality.method, self.owner.model, self.owner.selection, options)
        output, now = self.function(*args, **{**kwargs, "return_dict": True}), self.owner.now
        looked = self.owner.looked_at(self.modality, output, options)
        self.owner.mark(self.modality, output, looked)
        if now.called is None:
            now.traced = {}  # of a direct call nothing is held
        else:
            now.called = {**now.called, self.modality.name: (_features(output), looked)}
        return output.to_tuple() if kwargs.get("return_dict") is False else output


class KeySets:
    """Key sets of one model, whose vision tower has a class token.

    Args:
        model: the whole model. family: of it. share: of the tokens of each picture, or of each of its crops.
        tower: the reductions of its vision tower, if patches leave there before.

    Cost: 2 H N d FLOPs for each picture of N patches, and a sort. No host reads. Source: MustDrop, arXiv 2411.10803.
    """

    def __init__(self, model: Any, family: Family, share: float, tower: TowerReductions | None = None) -> None:
        self.model, self.inner, self.family, self.share = model, model.model, family, share
        self.selection = selection_of(model)
        self.readings = TowerReadings(model, family.name, (SALIENCY,), saliency=CLASS, after=True, reductions=tower)
        self._now = PerThread(_Now)

    @property
    def now(self) -> _Now:
        """What this thread knows of its call."""
        return self._now.here

    def install(self, changes: ModelChanges) -> None:
        """Read the class token's attention, and put our calls in front of the encoders. Last of all changes."""
        self.readings.install(changes)
        for one in self.family.modalities:
            encoder = KeyedEncoder(self, getattr(self.inner, one.method), one)
            changes.set(self.inner, one.method, encoder)
        changes.hook(self.inner.register_forward_hook(self.after, always_call=True))

    def handed(self, op: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """``mm_encoder_outputs`` for ``generate``, if a caller passes them: it repeats features in the output itself.

        Raises:
            ValueError: see :meth:`_given`.
        """
        outputs = dict(options.get("mm_encoder_outputs") or {})
        found = self._given(op, outputs)
        for name, looked in found.items():
            outputs[name] = copy.copy(outputs[name])
            encoder_marks.put(outputs[name], _LOOKED, looked)
        return {"mm_encoder_outputs": outputs} if found else {}

    def begin(self, options: Mapping[str, Any], repeated: bool) -> None:
        """A call of the inner model begins.

        Args:
            options: its arguments by name.
            repeated: ``generate`` makes it, which may have repeated the features that it was handed.

        Raises:
            ValueError: pictures that were encoded without this reduction.
        """
        outputs = options.get("mm_encoder_outputs") or {}
        found = self._given("forward", outputs, repeated)
        self.now.called = {name: (_features(outputs[name]), looked) for name, looked in found.items()}

    def after(self, module: Any, args: Any, output: Any) -> None:
        """A call of the inner model has returned, or has failed."""
        self.end()

    def end(self) -> None:
        """The call needs no key sets any more: nothing of it is held."""
        self.now.traced, self.now.called = {}, None

    def _given(self, op: str, outputs: Mapping[str, Any], repeated: bool = False) -> dict[str, Pictures]:
        """By modality, how the pictures are looked at that the caller encoded before.

        Raises:
            ValueError: they were encoded without this reduction, or are not what the encoder returned any more.
        """
        found = {}
        for modality in self.family.modalities:
            output = outputs.get(modality.name)
            if output is None:
                continue
            looked = encoder_marks.as_put(output, _LOOKED) if repeated else None
            looked = self._known(modality, output) if looked is None else looked
            if looked is None:
                wanted = f"{modality.name}s encoded by get_{modality.name}_features of the attached model"
                got = "others, without a key set"
                if encoder_marks.has(output, _LOOKED):
                    got += ", put into its output"
                checks.fail(op, "mm_encoder_outputs", wanted, got, _ENCODE)
            found[modality.name] = looked
        return found

    def looked_at(self, modality: Modality, output: Any, options: Mapping[str, Any]) -> Pictures:
        """How the pictures of ``output`` are looked at: as it says, or else as read while it was made.

        Args:
            output: of an encoder, not reduced. options: the arguments of its call, by name.
        """
        known = self._known(modality, output)
        return self._read(modality, output, options) if known is None else known

    def mark(self, modality: Modality, output: Any, looked: Pictures, kept: Sequence[Tensor] | None = None) -> None:
        """Let ``output`` say how its pictures are looked at.

        Args:
            output: of an encoder. looked: at the tokens before a reduction of it, if there was one.
            kept: (T,) int64 each, which of these tokens are left of each picture; None: all.
        """
        if kept is not None:
            pairs = zip(looked, kept, strict=True)
            looked = tuple(Looked(one.values.to(index.device)[index], Layout()) for one, index in pairs)
        if torch.compiler.is_compiling():
            self.now.traced = {**self.now.traced, modality.name: (output, looked)}
        encoder_marks.put(output, _LOOKED, looked)

    def knows(self, modality: Modality, output: Any) -> bool:
        """Whether it is known how the pictures of what an encoder returned are looked at."""
        return self._known(modality, output) is not None

    def _known(self, modality: Modality, output: Any) -> Pictures | None:
        traced = self.now.traced.get(modality.name)
        if traced is not None and traced[0] is output:
            return traced[1]
        return encoder_marks.read(output, _LOOKED)

    def _read(self, modality: Modality, output: Any, options: Mapping[str, Any]) -> Pictures:
        """Of an encoder's call that has just ended."""
        unit = self.family.unit and self.family.unit(self.inner)
        counts = modalities.read(output, modality, unit).counts
        found = self.readings.take(counts)["saliency"]
        layouts = self.family.layout(self.inner, options, modality, counts)
        return tuple(Looked(*one) for one in zip(found, layouts, strict=True))

    def protected(self, visual: Mapping[str, Tensor]) -> Tensor:
        """(B, L) bool: the key set of every row of a prompt, those of all its pictures together.

        Args:
            visual: by modality (B, L) bool, its placeholders. Other than those of the features there are none.

        Raises:
            ValueError: pictures that were not encoded, or key sets of other numbers of tokens.
        """
        called, found = self.now.called or {}, None
        for name, (features, looked) in called.items():
            keys = [_keys_of(one, self.share) for one in looked]
            here = _placed(keys, features, visual[name])
            found = here if found is None else found | here
        if found is None:
            wanted = "given: the key set is read while the vision tower runs"
            remedy = "pass pixels or mm_encoder_outputs, or attach with keys=0"
            checks.fail("forward", "pixel_values", wanted, "embeddings of pictures alone", remedy)
        return found


def _features(output: Any) -> int:
    """How many features there are in what an encoder returned."""
    held = output.pooler_output
    return held.shape[:-1].numel() if isinstance(held, Tensor) else sum(len(one) for one in held)


def _placed(keys: Sequence[Tensor], features: int, visual: Tensor) -> Tensor:
    """(B, L) bool: the key sets of pictures at their placeholders ``visual`` (B, L), row after row.

    ``generate`` repeats each row with its pictures for several sequences, and the ``features`` with them.

    Raises:
        ValueError: key sets of other numbers of tokens than there are features or, where values are free to read,
            placeholders. Elsewhere the model itself compares features with placeholders.
    """
    flat = torch.cat([one.to(visual.device) for one in keys])
    times = features // max(len(flat), 1)
    if not times or times * len(flat) != features or len(visual) % times:
        got = f"{features} features in {len(visual)} rows, and key sets of {len(flat)}"
        checks.fail("forward", "mm_encoder_outputs", "of pictures with a key set each", got, _ENCODE)
    rows = visual[::times]
    if free_to_read(rows) and (placeholders := int(rows.sum())) != len(flat):
        got = f"{placeholders} placeholders, and key sets of {len(flat)} tokens"
        checks.fail("forward", "input_ids", "prompts with a placeholder for each feature", got, REMEDY)
    index = (rows.flatten().cumsum(0) - 1).clamp(min=0)  # columns before the first placeholder are in no set
    return (flat[index].view_as(rows) & rows).repeat_interleave(times, 0)


def _keys_of(looked: Looked, share: float) -> Tensor:
    """(n,) bool: the key set of one picture, of several crops that of each. Line ends are in none."""
    values, layout = looked
    if not layout.line_ends:
        return key_set(values.unsqueeze(0), share)[0]
    ends = set(layout.line_ends)
    free = [place for place in range(len(values)) if place not in ends]
    owners: Sequence[int] = [0] * len(free)
    sizes: Sequence[int] = [len(free)]
    if layout.crops is not None:
        owners, sizes = [crop for crop, _ in layout.crops.origins], (layout.crops.patches, *layout.crops.valid)
    counts = [key_count(share, size) for size in sizes]
    there, segments, each = (torch.tensor(one, device=values.device) for one in (free, owners, [counts]))
    chosen = ops.top_of_segments(values[there].unsqueeze(0), segments, each, sum(counts))
    return torch.zeros_like(values, dtype=torch.bool).scatter(0, there[chosen[0]], True)


def share_of(plan: AttachPlan) -> float:
    """The share of each picture's tokens that is its key set; 0: the plan's methods have none."""
    if not plan.changes_language_model:
        return 0.0
    return max((one.key_share for one in plan.decoder_methods), default=0.0)


def check(model: Any, family: Family, plan: AttachPlan) -> None:
    """Raise unless the key sets that ``plan`` needs can be read in ``model``.

    Raises:
        NotImplementedError: a vision tower without a class token. ValueError: methods with different shares.
    """
    wanting = [one for one in plan.decoder_methods if KEY_SET in one.needs] if share_of(plan) else []
    if not wanting:
        return
    shares = sorted({one.key_share for one in wanting})
    if len(shares) > 1:
        got = " and ".join(f"{one:g}" for one in shares)
        checks.fail("attach", "keys", "the same for all methods with a key set", got, "pass one share, or 0")
    if plan.facts.crops is not None and (plan.removed or plan.changes_features):
        wanted = f"one without a key set where patches of {family.name} leave before its language model"
        checks.fail("attach", "method", wanted, wanting[0].name, wanting[0].remedy(KEY_SET), NotImplementedError)
    known = TOWERS.get(family.name)
    tower = None if known is None else getattr(model.model, known.tower)
    bodies = () if known is None else known.bodies
    body = next((one for one in bodies if one.model == type(tower).__name__), None)
    if body is None or body.class_token is None:
        wanted = f"one without a key set, for the vision tower of {family.name} has no class token that is known"
        checks.fail("attach", "method", wanted, wanting[0].name, wanting[0].remedy(KEY_SET), NotImplementedError)
