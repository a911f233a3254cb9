"""How the tokens of a picture lie: functions that a :class:`~ficoco_ext.models.families.Family` names.

Each takes the inner model, the arguments of the call by name, the modality, and the number of tokens of each picture,
and returns one :class:`Layout` for each picture. All of it is known on the host.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..stages import Crops
from . import transformers_api as api
from .crop_pictures import picture_sizes
from .modalities import Modality


class Layout(NamedTuple):
    """How the tokens of one picture lie.

    Attributes:
        grid: (rows, columns) of the tokens that may leave, line by line; None: they are no whole grid, or unknown.
        line_ends: indices of tokens that are no part of the picture, such as ends of lines: they always stay.
        appended: tokens that the model itself adds after those that the projector gives.
        frames: of a video: the tokens that may leave are those of so many frames, one frame after the other, equally
            many each. They are frames as the language model gets them: a tower may have joined pairs before.
        crops: of a picture of a thumbnail and several crops, where they are.
    """

    grid: tuple[int, int] | None = None
    line_ends: tuple[int, ...] = ()
    appended: int = 0
    frames: int = 1
    crops: Crops | None = None


LayoutRule = Callable[[Any, Mapping[str, Any], Modality, Sequence[int]], list[Layout]]


def unknown(inner: Any, options: Mapping[str, Any], modality: Modality, counts: Sequence[int]) -> list[Layout]:
    """Nothing is known."""
    return [Layout()] * len(counts)


def square(inner: Any, options: Mapping[str, Any], modality: Modality, counts: Sequence[int]) -> list[Layout]:
    """Squares; a picture of another number of tokens has no known grid."""
    return [Layout(side(count)) for count in counts]


def side(count: int) -> tuple[int, int] | None:
    """(s, s) if ``count`` is s * s."""
    root = int(count**0.5 + 0.5)
    return (root, root) if root * root == count else None


def merged_blocks(inner: Any, options: Mapping[str, Any], modality: Modality, counts: Sequence[int]) -> list[Layout]:
    """Grids of merged blocks, from ``image_grid_thw`` or ``video_grid_thw``; a video's frames are one above the other.

    Reads the grids, as the model itself does.
    """
    grids = options.get(f"{modality.name}_grid_thw")
    if grids is None:
        return unknown(inner, options, modality, counts)
    merge = int(inner.config.vision_config.spatial_merge_size)
    laid = [(t, (t * (h // merge), w // merge)) for t, h, w in grids.tolist()]
    if len(laid) != len(counts):
        return unknown(inner, options, modality, counts)
    return [
        Layout((rows, columns), frames=frames) if rows * columns == count else Layout()
        for (frames, (rows, columns)), count in zip(laid, counts, strict=True)
    ]


def pixel_shuffled(inner: Any) -> int:
    """Tokens of a picture whose patches are joined in blocks of ``scale_factor`` on each side."""
    vision = inner.config.vision_config
    return int((vision.image_size // vision.patch_size // inner.config.scale_factor) ** 2)


def packed_crops(inner: Any, options: Mapping[str, Any], modality: Modality, counts: Sequence[int]) -> list[Layout]:
    """Pictures of several crops in one grid with line ends, found by the model's own packing; videos as below."""
    if modality.name == "video":
        return pooled_videos(inner, options, modality, counts)
    sizes = picture_sizes(options.get("image_sizes"), len(counts))
    return [_of_crops(inner, options, size, count) for size, count in zip(sizes, counts, strict=True)]


def _of_crops(inner: Any, options: Mapping[str, Any], size: tuple[int, int], count: int) -> Layout:
    """The picture of one size (height, width) in pixels."""
    vision = inner.config.vision_config
    root = vision.image_size // vision.patch_size
    if count == root * root + 1:
        return Layout((root, root), line_ends=(root * root,))
    crops = torch.zeros(1 + api.crops_of(inner, size), root * root, 1)
    named = {"vision_feature_select_strategy": None, "vision_aspect_ratio": options.get("vision_aspect_ratio")}
    if named["vision_aspect_ratio"] is None:
        named["vision_aspect_ratio"] = getattr(inner.config, "vision_aspect_ratio", None)
    taken = inspect.signature(inner.pack_image_features).parameters
    packed, _ = inner.pack_image_features(
        [crops], [size], image_newline=torch.ones(1), **{name: named[name] for name in named if name in taken}
    )
    ends = tuple(packed[0].flatten().nonzero().flatten().tolist())
    if len(packed[0]) != count:
        return Layout()
    known = _known_crops(inner, size)
    fits = known is not None and (known.before, known.line_ends) == (count, ends)
    return Layout(line_ends=ends, crops=known if fits else None)


def _known_crops(inner: Any, size: tuple[int, int]) -> Crops | None:
    """The crops of a picture that is packed as LLaVA-NeXT does it; None if a canvas is no whole number of crops."""
    vision, pinpoints = inner.config.vision_config, inner.config.image_grid_pinpoints
    pixels = vision.image_size
    if any(height % pixels or width % pixels for height, width in pinpoints):
        return None
    return Crops.of(size, [tuple(one) for one in pinpoints], pixels // vision.patch_size, pixels)


def pooled_videos(inner: Any, options: Mapping[str, Any], modality: Modality, counts: Sequence[int]) -> list[Layout]:
    """Videos whose frames are halved on each side and one end of line for all, which older releases add themselves."""
    videos = options.get(modality.pixels)
    if videos is None:
        return unknown(inner, options, modality, counts)
    vision = inner.config.vision_config
    half = -(-(vision.image_size // vision.patch_size) // 2)
    frames = int(videos.shape[1])
    grid, tokens = (frames * half, half), frames * half * half
    outside, inside = Layout(grid, appended=1, frames=frames), Layout(grid, line_ends=(tokens,), frames=frames)
    laid = {tokens: outside, tokens + 1: inside}
    return [laid.get(count, Layout()) for count in counts]
