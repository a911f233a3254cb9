"""The key set of a prompt: the visual tokens of each picture that the class token of the vision tower looks at most.

It goes from the tower to the language model with the features: on what an encoder returned, so that it is there when
pictures were encoded earlier, and in the state of the thread.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import checks
from ..stages import Crops
from ..stages.dual_attention import key_set
from ..stages.needs import KEY_SET, SALIENCY
from . import modalities
from .attach_plan import AttachPlan
from .families import Family
from .modalities import Modality
from .model_changes import ModelChanges
from .per_thread import PerThread
from .tower_families import TOWERS
from .tower_readings import TowerReadings
from .tower_saliency import CLASS
from .vision_tower import TowerReductions

_KEYS = "ficoco_key_set"  # on what an encoder returned: for each picture (n,) bool


class _Now:
    """What one thread knows of its call.

    Attributes:
        read: by modality, what an encoder returned last and the key set of its pictures.
        given: by modality, what the caller encoded before. called: by modality, key sets of what the model got.
        encoding: it is in an encoder, which may call another.
    """

    def __init__(self) -> None:
        self.read: dict[str, tuple[Any, tuple[Tensor, ...]]] = {}
        self.given: Mapping[str, Any] = {}
        self.called: dict[str, tuple[Any, tuple[Tensor, ...]]] = {}
        self.encoding = False


class KeyedEncoder:
    """Stands in for ``get_image_features`` or ``get_video_features`` of the inner model: its output has key sets."""

    def __init__(self, owner: KeySets, function: Callable[..., Any], modality: Modality) -> None:
        self.owner, self.function, self.modality = owner, function, modality
        self.__signature__ = inspect.signature(function)
        self.__name__ = modality.method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the encoder returns, and which of its tokens are key sets."""
        now = self.owner.now
        if now.encoding:
            return self.function(*args, **kwargs)
        now.encoding = True
        try:
            output = self.function(*args, **{**kwargs, "return_dict": True})
        finally:
            now.encoding = False
        options = dict(self.__signature__.bind(*args, **kwargs).arguments)
        keys = self.owner.mark(self.modality, output, options | options.pop("kwargs", {}))
        now.called = {**now.called, self.modality.name: (output, keys)}
        return output.to_tuple() if kwargs.get("return_dict") is False else output


class KeySets:
    """Key sets of one model, whose vision tower has a class token.

    Args:
        model: the whole model. family: of it. share: of the tokens of each picture, or of each of its crops.
        tower: the reductions of its vision tower, if patches leave there before.

    Cost: 2 H N d FLOPs for each picture of N patches, and a sort. No host reads. Source: MustDrop, arXiv 2411.10803.
    """

    def __init__(self, model: Any, family: Family, share: float, tower: TowerReductions | None = None) -> None:
        self.inner, self.family, self.share = model.model, family, share
        self.readings = TowerReadings(model, family.name, (SALIENCY,), saliency=CLASS, reductions=tower)
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

    def begin(self, options: Mapping[str, Any]) -> None:
        """A call of the inner model begins. ``options``: its arguments by name."""
        given = options.get("mm_encoder_outputs") or {}
        self.now.given = {name: output for name, output in given.items() if output is not None}
        self.now.called = {}

    def end(self) -> None:
        """The call has ended."""
        self._now.here.__init__()  # type: ignore[misc]

    def mark(
        self,
        modality: Modality,
        output: Any,
        options: Mapping[str, Any],
        source: Any = None,
        kept: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """The key set of each picture of ``output``, which from now on has them.

        Args:
            output: of an encoder. options: its arguments, by name.
            source, kept: what the encoder returned before it was reduced, and which tokens of each picture are left.
        """
        keys = self._known(modality, output)
        if keys is None:
            source = output if source is None else source
            keys = self._known(modality, source)
            keys = self._read(modality, source, options) if keys is None else keys
            if kept is not None:
                keys = tuple(one.to(index.device)[index] for one, index in zip(keys, kept, strict=True))
        self.now.read = {**self.now.read, modality.name: (output, keys)}
        if not torch.compiler.is_compiling():
            setattr(output, _KEYS, keys)
        return keys

    def knows(self, modality: Modality, output: Any) -> bool:
        """Whether it is known which tokens of what an encoder returned are key sets."""
        return self._known(modality, output) is not None

    def _known(self, modality: Modality, output: Any) -> tuple[Tensor, ...] | None:
        held: tuple[Tensor, ...] | None = getattr(output, _KEYS, None)
        read = self.now.read.get(modality.name)
        return read[1] if held is None and read is not None and read[0] is output else held

    def _read(self, modality: Modality, output: Any, options: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The key sets of an encoder's call that has just ended."""
        unit = self.family.unit and self.family.unit(self.inner)
        counts = modalities.read(output, modality, unit).counts
        looked = self.readings.take(counts)["saliency"]
        if self.family.name == "LLaVA-NeXT":
            return self._of_crops(looked, options)
        return tuple(key_set(one.unsqueeze(0), self.share)[0] for one in looked)

    def _of_crops(self, looked: Sequence[Tensor], options: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The key sets of pictures of several crops, of each crop its own. Line ends are in none."""
        sizes = options["image_sizes"]
        sizes = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        config = self.inner.config
        pixels = config.vision_config.image_size
        side = pixels // config.vision_config.patch_size
        found = []
        for one, (height, width) in zip(looked, sizes, strict=True):
            crops = Crops.of((int(height), int(width)), config.image_grid_pinpoints, side, pixels)
            found.append(_keys_of(one, crops, self.share))
        return tuple(found)

    def protected(self, visual: Mapping[str, Tensor]) -> Tensor:
        """(B, L) bool: the key set of every row of a prompt, those of all its pictures together.

        Args:
            visual: by modality (B, L) bool, its placeholders. Other than those of the features there are none.

        Raises:
            ValueError: pictures that were encoded without this reduction, or not at all.
        """
        now, found = self.now, None
        for modality in self.family.modalities:
            if modality.name in now.given:
                output = now.given[modality.name]
                keys = self._known(modality, output)
            elif modality.name in now.called:
                output, keys = now.called[modality.name]
            else:
                continue
            if keys is None:
                wanted = f"{modality.name}s encoded by get_{modality.name}_features of the attached model"
                remedy = "encode them while attached, pass pixels, or attach with keys=0"
                checks.fail("forward", "mm_encoder_outputs", wanted, "others, without a key set", remedy)
            here = _placed(keys, output, visual[modality.name])
            found = here if found is None else found | here
        if found is None:
            wanted = "given: the key set is read while the vision tower runs"
            remedy = "pass pixels or mm_encoder_outputs, or attach with keys=0"
            checks.fail("forward", "pixel_values", wanted, "embeddings of pictures alone", remedy)
        return found


def _placed(keys: Sequence[Tensor], output: Any, visual: Tensor) -> Tensor:
    """(B, L) bool: the key sets of pictures at their placeholders ``visual`` (B, L), row after row.

    ``generate`` repeats each row with its pictures for several sequences, and the features in ``output`` with them.
    """
    flat = torch.cat([one.to(visual.device) for one in keys])
    held = output.pooler_output
    features = held.shape[:-1].numel() if isinstance(held, Tensor) else sum(len(one) for one in held)
    times = features // max(len(flat), 1)
    rows = visual[::times]
    index = (rows.flatten().cumsum(0) - 1).clamp(min=0, max=len(flat) - 1)
    return (flat[index].view_as(rows) & rows).repeat_interleave(times, 0)


def _keys_of(looked: Tensor, crops: Crops, share: float) -> Tensor:
    """(n,) bool: the key sets of the crops of one picture, in the order of the language model.

    Args:
        looked: (n,) how much the class token of its crop looks at each token; line ends count as nothing.
    """
    if len(looked) != crops.before:
        wanted = f"{crops.before}, those of the whole thumbnail and crops with their line ends"
        remedy = "use a method that reduces in the language model alone, or attach with keys=0"
        checks.fail("forward", "tokens of a picture", wanted, str(len(looked)), remedy)
    ends = set(crops.line_ends)
    places = [place for place in range(crops.before) if place not in ends]
    owners = [crop for crop, _ in crops.origins]
    sizes = (crops.patches, *crops.valid)
    counts = [math.ceil(share * size - 1e-9) for size in sizes]
    device = looked.device
    free = torch.tensor(places, device=device)
    chosen = ops.top_of_segments(
        looked[free].unsqueeze(0),
        torch.tensor(owners, device=device),
        torch.tensor([counts], device=device),
        sum(counts),
    )
    return torch.zeros_like(looked, dtype=torch.bool).scatter(0, free[chosen[0]], True)


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
    known = TOWERS.get(family.name)
    tower = None if known is None else getattr(model.model, known.tower)
    bodies = () if known is None else known.bodies
    body = next((one for one in bodies if one.model == type(tower).__name__), None)
    if body is None or body.class_token is None:
        wanted = f"one without a key set, for the vision tower of {family.name} has no class token that is known"
        checks.fail("attach", "method", wanted, wanting[0].name, wanting[0].remedy(KEY_SET), NotImplementedError)
