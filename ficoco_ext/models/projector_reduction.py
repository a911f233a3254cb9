"""Reduction after the projector: the encoders of a model return fewer features for each picture.

The prompt must be cut before the model counts it, so the encoders run first, once a call: what they returned is kept
until the model itself asks for it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from ..reduction import Reduction
from ..stages.needs import CROPS, TEXT
from . import encoder_marks, modalities, tracing
from .attach_plan import AttachPlan
from .count_cutter import require_selection, selection_of
from .crop_packing import CropPacking
from .families import Family
from .key_sets import KeySets
from .layouts import Layout
from .modalities import Encoded, Modality
from .model_changes import ModelChanges
from .per_thread import PerThread
from .picture_groups import Alike, Groups, Pictures
from .projections import Projection, Reduced, projection
from .prompt_words import PromptWords
from .smaller_pictures import SmallerPictures, as_reduction
from .tower_readings import TowerReadings
from .vision_tower import TowerReductions

_KEPT = "ficoco_projections"  # on what an encoder returned: what was kept of it


class _Now:
    """State of a thread: what its call has encoded already, by the name of the modality, and whether it is encoding.

    ``direct``: the call is one of the model itself, which asks for nothing else than what was encoded for it.
    """

    def __init__(self) -> None:
        self.reduced: dict[str, Reduced] = {}
        self.words: PromptWords | None = None
        self.encoding = self.direct = False


class EncoderCall:
    """Stands in for ``get_image_features`` or ``get_video_features`` of the inner model."""

    def __init__(self, owner: ProjectorReduction, inner: Any, modality: Modality) -> None:
        self.owner, self.inner, self.modality = owner, inner, modality
        self.function = getattr(type(inner), modality.method)
        signature = inspect.signature(self.function)
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
        self.__name__ = modality.method
        # Releases call the pixels differently; older ones pass image_sizes on without naming it.
        self.pixels, *names = self.__signature__.parameters
        also = {"image_sizes"} & set(inspect.signature(type(inner).forward).parameters)
        self.names = {*names, *also} - {modality.pixels, modality.other_pixels}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.owner.encoding:  # some encode a video by the encoder of pictures
            return self.function(self.inner, *args, **kwargs)
        options = dict(self.__signature__.bind(*args, **kwargs).arguments)
        options |= options.pop("kwargs", {})
        self.owner.require_selection(self.modality.method, options)
        given = options.pop(self.pixels, None)
        pixels = self.modality.pixels_of(options) if given is None else given
        held = self.owner.prepared.get(self.modality.name)
        if held is None or not self.owner.are_same(held.pixels, pixels):
            held = self.run(pixels, options)
        as_tuple = kwargs.get("return_dict") is False
        return held.output.to_tuple() if as_tuple else held.output

    def run(self, pixels: Any, options: Mapping[str, Any]) -> Reduced:
        """Encode and reduce. ``options``: the other arguments."""
        if self.owner.smaller is not None:
            return self.owner.encoded_smaller(self.modality, self.function, pixels, {**options, "return_dict": True})
        output = self.owner.encoded(self.function, pixels, {**options, "return_dict": True})
        return self.owner.reduced(self.modality, output, {**options, self.modality.pixels: pixels})

    def run_for(self, options: Mapping[str, Any]) -> Reduced:
        """Encode what comes with a call of the model, whose arguments are ``options``."""
        taken = {name: options[name] for name in self.names if options.get(name) is not None}
        return self.run(self.modality.pixels_of(options), taken)


class ProjectorReduction:
    """The reduction of one model after its projector.

    Args:
        model: the whole model. family: of it. plan: what to do.
        tower: the reductions of its vision tower, if patches leave there before.
        packing: of what is left there, if pictures are several crops.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        plan: AttachPlan,
        tower: TowerReductions | None = None,
        packing: CropPacking | None = None,
    ) -> None:
        self.model, self.inner, self.family, self.plan = model, model.model, family, plan.projector
        self.tower, self.facts, self.packing = tower, plan.facts.tower, packing
        resizes = self.plan is not None and self.plan.method.resizes
        self.smaller = SmallerPictures(self.inner.vision_tower) if resizes else None
        self.readings: TowerReadings | None = None
        if self.plan is not None and TowerReadings.serve(self.plan.method.needs):
            method = self.plan.method
            self.readings = TowerReadings(
                model,
                family.name,
                method.needs,
                saliency=method.saliency,
                early_layer=method.early_layer,
                reductions=tower,
            )
        looks_inside = any(one is not None for one in (tower, self.readings, self.smaller))
        self.selection = selection_of(model) if looks_inside else {}
        self.calls = {one.name: EncoderCall(self, self.inner, one) for one in family.modalities}
        self.keys: KeySets | None = None
        self._now = PerThread(_Now)
        self.last: tuple[Projection, ...] = ()
        self._said = False

    @property
    def prepared(self) -> dict[str, Reduced]:
        """What this thread's call has encoded already."""
        return self._now.here.reduced

    def install(self, changes: ModelChanges) -> None:
        """Put our calls in front of the encoders."""
        for part in (self.smaller, self.readings, self.packing):
            if part is not None:
                part.install(changes)
        for one in self.family.modalities:
            changes.set(self.inner, one.method, self.calls[one.name])

    def require_selection(self, op: str, options: Mapping[str, Any]) -> None:
        """Raise if a call asks for another layer of the tower than was planned for, or for other tokens of it.

        Where the tower is reduced or read, its other layers hold other patches than those that are looked for.
        """
        require_selection(op, self.model, self.selection, options)

    def are_same(self, encoded: Any, pixels: Any) -> bool:
        """Whether ``pixels`` are those that were ``encoded``, or their copy on the device of the model."""
        if encoded is pixels or not self._now.here.direct or not isinstance(encoded, Tensor):
            return encoded is pixels
        return encoded.device != pixels.device and encoded.shape == pixels.shape

    def encode(
        self, options: Mapping[str, Any], *, direct: bool = False, words: PromptWords | None = None
    ) -> dict[str, Reduced]:
        """Everything visual that comes with a call, encoded and reduced, by the name of the modality.

        Args:
            options: arguments of the call. direct: it is one of the model itself, not of ``generate``.
            words: of its prompts, for a method that reads them.
        """
        found: dict[str, Reduced] = {}
        self._now.here.words = words
        given = options.get("mm_encoder_outputs") or {}
        for one in self.family.modalities:
            if given.get(one.name) is not None:
                found[one.name] = self._reduced_by_caller(one, given[one.name], options)
            elif one.pixels_of(options) is not None:
                found[one.name] = self.calls[one.name].run_for(options)
        self._now.here.reduced = found
        self._now.here.direct = direct
        self.last = tuple(projection for reduced in found.values() for projection in reduced.projections)
        return found

    def _reduced_by_caller(self, modality: Modality, output: Any, options: Mapping[str, Any]) -> Reduced:
        """What the caller encoded: by this model as it is, reduced already; or else all features, which are reduced.

        Raises:
            ValueError: all features, where something is needed that is known only while the vision tower runs; or other
            features in an output that was reduced.
        """
        projections: tuple[Projection, ...] | None = encoder_marks.read(output, _KEPT)
        if projections is not None:
            return Reduced(None, output, projections)
        if encoder_marks.has(output, _KEPT):
            given = f"{modality.name}s as {modality.method} of the attached model returned them, or some of them"
            got = "other features, put into its output: it is not known which tokens these are of"
            checks.fail("forward", "mm_encoder_outputs", given, got, "encode again while attached, or pass pixels")
        wanted = None
        if self.tower is not None:
            wanted = "None where patches leave in the vision tower and prompts are cut by which"
        elif self.smaller is not None:
            wanted = "None with a method that resizes pictures"
        elif self.keys is not None and not self.keys.knows(modality, output):
            wanted = "None with a method that has a key set, which needs what the vision tower looks at"
        elif self.readings is not None and self.plan is not None:
            wanted = f"None with {self.plan.method.name}, which needs what the vision tower looks at"
        if wanted is not None:
            asks = self.plan is not None and TEXT in self.plan.method.needs  # and so encodes nothing without a prompt
            remedy = "pass pixels" if asks else "encode with get_image_features while attached, or pass pixels"
            checks.fail("forward", "mm_encoder_outputs", wanted, f"features of the {modality.name}s", remedy)
        return self.reduced(modality, output, options)

    @property
    def encoding(self) -> bool:
        """Whether this thread is in an encoder."""
        return self._now.here.encoding

    def encoded(self, function: Callable[..., Any], pixels: Any, options: Mapping[str, Any]) -> Any:
        """What an encoder returns, not reduced."""
        now = self._now.here
        now.encoding = True
        try:
            if self.packing is not None:
                return self.packing.encoded(function, pixels, options)
            return function(self.inner, pixels, **options)
        except BaseException:
            if self.readings is not None:
                self.readings.drop()
            raise
        finally:
            now.encoding = False

    def encoded_smaller(
        self, modality: Modality, function: Callable[..., Any], pixels: Tensor, options: Mapping[str, Any]
    ) -> Reduced:
        """What an encoder returns of smaller pictures. The whole grid of every picture is that of the vision tower."""
        assert self.smaller is not None and self.plan is not None and self.facts is not None
        grid, patches = self.facts.grid, self.facts.patches
        count = self.plan.count(patches, grid)
        if count == patches:
            kept = torch.arange(patches, device=pixels.device)
            alike = (Projection(modality.name, patches, kept, grid),) * len(pixels)
            return Reduced(pixels, self.encoded(function, pixels, options), alike)
        smaller = self.plan.method.encoded_grid(grid, count)
        with self.smaller.running():
            output = self.encoded(function, self.smaller.resized(pixels, smaller), options)
        step = as_reduction(grid, smaller, pixels.device)
        projections = (Projection(modality.name, patches, step.kept[0], grid, step),) * len(pixels)
        encoder_marks.put(output, _KEPT, projections)
        return Reduced(pixels, output, projections)

    def forget(self) -> None:
        """What was encoded is not needed any more."""
        self._now.here.reduced = {}  # no dict is changed: torch.compile would not trace the encoder after that
        self._now.here.direct = False
        self._now.here.words = None

    def release(self) -> None:
        """The features before the reduction are not needed any more."""
        held = self._now.here.reduced
        self._now.here.reduced = {name: one._replace(full=None, made=None, looked=None) for name, one in held.items()}

    def reduced(self, modality: Modality, output: Any, options: Mapping[str, Any]) -> Reduced:
        """What an encoder returned, with fewer features."""
        encoded = modalities.read(output, modality, self.family.unit and self.family.unit(self.inner))
        counts = encoded.counts
        layouts = [Layout()] * len(counts)
        if self.tower is None:
            layouts = self.family.layout(self.inner, options, modality, counts)
        seen = {} if self.readings is None else self.readings.take(counts)
        pictures = Pictures(encoded.features, encoded.planes, seen)
        members: Groups = {}
        for number, (before, layout) in enumerate(zip(counts, layouts, strict=True)):
            free = before - len(layout.line_ends)
            count = free if self.plan is None else self.plan.count(free, layout.grid, layout.crops)
            if self.plan is not None:
                self._require_crops(modality, layout)
                self._say_if_too_few(free)
            if count < free:
                members.setdefault(Alike(before, layout, count), []).append(number)
        if self.plan is not None and self.plan.method.data_decides:
            tracing.require_counts(modality.method, encoded.features[0], "use a budget that the host knows")
            members = pictures.decided(members, self.plan)
        placeholders = [count + layout.appended for count, layout in zip(counts, layouts, strict=True)]
        words = self._words(modality, placeholders) if members else None
        steps: dict[int, tuple[Reduction, int]] = {}
        for alike, numbers in members.items():
            assert self.plan is not None
            step = pictures.reduce(self.plan.acting(alike.free, alike.left), numbers, alike, words)
            steps |= {number: (step, row) for row, number in enumerate(numbers)}
        made = Encoded(tuple(pictures.features), tuple(map(tuple, pictures.planes)), encoded.entries)
        source = output
        if members:
            output = modalities.written(output, modality, made)
        looked = None
        if self.keys is not None:
            looked = self.keys.looked_at(modality, source, options)
            self.keys.mark(modality, output, looked, pictures.kept if members else None)
        if self.tower is not None:
            counts, pictures.kept = self._of_the_tower(pictures.kept)
        projections = tuple(
            projection(modality, *one, *steps.get(number, (None, 0)))
            for number, one in enumerate(zip(counts, pictures.kept, layouts, strict=True))
        )
        if members or self.tower is not None:
            encoder_marks.put(output, _KEPT, projections)
        return Reduced(modality.pixels_of(options), output, projections, encoded, made, looked)

    def with_last_tokens(self, name: str, numbers: Sequence[int]) -> Reduced | None:
        """What was encoded of a modality, and the last token of some of its pictures besides.

        None if that token is not to be had: it left in the vision tower, the caller encoded the pictures before, or one
        tensor holds all pictures, which would come to differ.

        A prompt may end with a picture: the answer is read from its last token, so that one must stay.

        Args:
            name: of the modality. numbers: of pictures whose last token left.
        """
        held = self.prepared[name]
        if held.full is None or held.made is None or self.tower is not None:
            return None
        counts = {len(one.kept) + (number in numbers) for number, one in enumerate(held.projections)}
        if isinstance(held.output.pooler_output, Tensor) and len(counts) > 1:
            return None  # one tensor cannot hold pictures of unequal numbers
        features, projections = list(held.made.features), list(held.projections)
        planes = [list(plane) for plane in held.made.planes]
        for number in numbers:
            for now, before in zip((features, *planes), (held.full.features, *held.full.planes), strict=True):
                now[number] = torch.cat([now[number], before[number][-1:]])
            one = projections[number]
            projections[number] = one._replace(kept=torch.nn.functional.pad(one.kept, (0, 1), value=one.before - 1))
        made = Encoded(tuple(features), tuple(tuple(plane) for plane in planes), held.made.entries)
        modality = self.calls[name].modality
        output = modalities.written(held.output, modality, made)
        encoder_marks.put(output, _KEPT, tuple(projections))
        if self.keys is not None and held.looked is not None:
            self.keys.mark(modality, output, held.looked, [one.kept for one in projections])
        self.prepared[name] = held._replace(output=output, projections=tuple(projections), made=made)
        self.last = tuple(each for reduced in self.prepared.values() for each in reduced.projections)
        return self.prepared[name]

    def _words(self, modality: Modality, counts: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """The words of each picture's prompt, if the method reads them. ``counts``: placeholders of each picture.

        Raises:
            ValueError: the pictures come without a prompt.
        """
        if self.plan is None or TEXT not in self.plan.method.needs:
            return None
        words = self._now.here.words
        if words is None:
            wanted = f"given with the pictures: {self.plan.method.name} chooses by its words"
            checks.fail(modality.method, "prompt", wanted, "None", "call the model, or use 'divprune'")
        before = self.prepared.get(modality.name)  # ``generate`` may encode a row's pictures again for each sequence
        first = counts if before is None or not before.counts else before.counts
        return words.of(modality.name, first, max(len(counts) // len(first), 1))

    def _say_if_too_few(self, free: int) -> None:
        """Warn, once, that a picture has fewer tokens than are to stay."""
        assert self.plan is not None
        asked = self.plan.tokens
        if not self._said and isinstance(asked, int) and asked > free and not torch.compiler.is_compiling():
            self._said = True
            message = f"ficoco::forward: tokens is {asked}, but a picture has {free}; it keeps all of them"
            warnings.warn(message, stacklevel=2)

    def _require_crops(self, modality: Modality, layout: Layout) -> None:
        """Raise unless a method that acts on the crops of a picture gets such a picture."""
        assert self.plan is not None
        if CROPS in self.plan.method.needs and layout.crops is None:
            got = "a video" if modality.name == "video" else "a picture of another kind"
            wanted = f"pictures of a thumbnail and a grid of crops for {self.plan.method.name}"
            checks.fail(modality.method, modality.pixels, wanted, got, "use 'divprune' or 'scope' for it")

    def _of_the_tower(self, kept: list[Tensor]) -> tuple[tuple[int, ...], list[Tensor]]:
        """Tokens of each picture before the tower reduced, and what is left of them."""
        if self.packing is not None:
            pictures, of_pictures = self.packing.take()
            return tuple(one.before for one in pictures), of_pictures
        assert self.tower is not None and self.facts is not None
        extra = self.facts.extra
        ids = self.tower.of_this_thread()[-1].patch_ids
        left = torch.nn.functional.pad(ids + extra, (extra, 0))  # a class token, if it is passed on, is token 0
        return (self.facts.patches + extra,) * len(kept), [
            row.to(one.device)[one] for row, one in zip(left, kept, strict=True)
        ]
