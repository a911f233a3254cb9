"""What the vision tower left of pictures of several crops, packed in the order in which LLaVA-NeXT packs all of it.

The model lays crops out as grids, unpads them and puts a line end after each row of the picture. Crops that lost
patches are no grids any more, so every patch that stayed gets the index that it has in the model's own order, and a
sort by these indices packs them. Padding gets an index after all others. Shapes are numbers of the host, and no device
is read, unless the data decide how many patches of the picture stay.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from ..stages import Crops
from . import tracing
from .crop_pictures import CropPictures, picture_sizes
from .model_changes import ModelChanges
from .per_thread import PerThread
from .vision_tower import TowerReductions

_METHOD = "pack_image_features"


def packed_indices(patch_ids: Tensor, crops: Crops) -> Tensor:
    """The index that each token has where nothing leaves, in the order of the language model.

    Args:
        patch_ids: (1 + n, M) int64, the patches that stay of the thumbnail and of each of n crops, as indices into
            their side * side. crops: of the picture.

    Returns:
        ((1 + n) M + lines,) int64: of the thumbnail's patches, of those of one crop after the other, and of the line
        ends. Padding has ``crops.before``, which is no token's.
    """
    top, bottom, left, right = crops.rectangle
    side, across = crops.side, crops.grid[1]
    crop = torch.arange(crops.count, device=patch_ids.device).unsqueeze(1)
    row = crop // across * side + patch_ids[1:] // side
    column = crop % across * side + patch_ids[1:] % side
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    length = crops.columns + 1  # of a row, with its line end
    canvas = crops.patches + (row - top) * length + column - left
    ends = crops.patches + torch.arange(crops.lines, device=patch_ids.device) * length + crops.columns
    return torch.cat([patch_ids[0], canvas.where(inside, crops.before).flatten(), ends])


def pack(features: Tensor, patch_ids: Tensor, newline: Tensor, crops: Crops, count: int) -> tuple[Tensor, Tensor]:
    """One picture as the language model gets it: the thumbnail, then the rows of the picture with their line ends.

    Args:
        features: (1 + n, M, D) of the patches that stay, in the order of ``patch_ids``.
        patch_ids: (1 + n, M) int64, see :func:`packed_indices`.
        newline: (D,) the line end. crops: of the picture.
        count: T, how many of them are no padding, line ends included; such as ``crops.after(M)`` where padding leaves
            first.

    Returns:
        packed (T, D), and kept (T,) int64, ascending: which of the ``crops.before`` tokens these are.

    Cost: one sort of (1 + n) M + lines indices and one gather; no device read. Deterministic: indices differ.
    """
    order = packed_indices(patch_ids, crops).sort(stable=True)
    ends = newline.to(features).expand(crops.lines, -1)
    tokens = torch.cat([features.flatten(0, 1), ends])
    return tokens.index_select(0, order.indices[:count]), order.values[:count]


class _Now:
    """State of a thread: the pictures that it packed last, and what was kept of each."""

    def __init__(self) -> None:
        self.pictures: tuple[Crops, ...] = ()
        self.kept: list[Tensor] = []


class CropPacking:
    """Stands in for ``pack_image_features`` of the inner model while patches leave in its tower.

    Args:
        inner: the inner model. pictures: of the call of the tower. tower: its reductions.
        count: tokens that a picture keeps, line ends included; None for one of which the data decide. The numbers of
            these are read from the device, once a call.
    """

    def __init__(
        self, inner: Any, pictures: CropPictures, tower: TowerReductions, count: Callable[[Crops], int | None]
    ) -> None:
        self.inner, self.pictures, self.tower, self.count = inner, pictures, tower, count
        self.function = getattr(type(inner), _METHOD)
        signature = inspect.signature(self.function)
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
        self.__name__ = _METHOD
        self._now = PerThread(_Now)

    def install(self, changes: ModelChanges) -> None:
        """Take the place of the model's own method."""
        changes.set(self.inner, _METHOD, self)

    def encoded(self, function: Callable[..., Any], pixels: Tensor, options: Mapping[str, Any]) -> Any:
        """What the model's own encoder ``function`` returns, packed. The sizes are read once, if a device has them."""
        sizes = picture_sizes(options.get("image_sizes"), len(pixels) if pixels.dim() == 5 else None)
        pictures = [self.crops_of(size) for size in sizes]
        self.take()  # what a call left that an exception ended
        with self.pictures.entered(pictures):
            return function(self.inner, pixels, **{**options, "image_sizes": sizes})

    def crops_of(self, size: tuple[int, int]) -> Crops:
        """The crops of a picture of ``size`` (height, width) in pixels."""
        vision = self.inner.config.vision_config
        side = vision.image_size // vision.patch_size
        return Crops.of(size, self.inner.config.image_grid_pinpoints, side, vision.image_size)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[list[Tensor], Tensor]:
        """As the model's own: (features of each picture (T, D), how many those are)."""
        given = self.__signature__.bind(*args, **kwargs).arguments
        features, newline = given["image_features"], given.get("image_newline")
        if all(self._is_whole(one) for one in features):
            whole: tuple[list[Tensor], Tensor] = self.function(self.inner, *args, **kwargs)
            return whole
        if newline is None:
            remedy = "patches left in the vision tower, and line ends separate the rows"
            checks.fail(_METHOD, "image_newline", "the line end of the model", "None", remedy)
        pictures = self.pictures.of_batch(sum(len(one) for one in features))
        left = self.tower.of_this_thread()[-1].patch_ids.split([len(one) for one in features])
        self._require_left(features, left)
        left = [ids.to(one.device) for ids, one in zip(left, features, strict=True)]
        counts = self._counts(left, pictures)
        packed = [pack(*one) for one in zip(features, left, [newline] * len(left), pictures, counts, strict=True)]
        self._now.here.pictures, self._now.here.kept = pictures, [kept for _, kept in packed]
        lengths = torch.stack([torch.full((), count, device=features[0].device) for count in counts])
        return [tokens for tokens, _ in packed], lengths

    def _is_whole(self, features: Tensor) -> bool:
        vision = self.inner.config.vision_config
        return bool(features.shape[1] == (vision.image_size // vision.patch_size) ** 2)

    def _require_left(self, features: Sequence[Tensor], left: Sequence[Tensor]) -> None:
        """Raise unless every crop has as many ``features`` as patches are ``left`` of it, their ``patch_ids``."""
        for each, ids in zip(features, left, strict=True):
            if each.shape[1] != ids.shape[1]:
                wanted = f"{ids.shape[1]} of every crop, as many as patches are left after the vision tower"
                remedy = "pass what the projector makes of the layer that the model's config names"
                checks.fail(_METHOD, "image_features", wanted, f"{each.shape[1]}", remedy)

    def _counts(self, left: Sequence[Tensor], pictures: Sequence[Crops]) -> list[int]:
        """Tokens that each picture keeps. ``left``: its ``patch_ids``."""
        counts = {number: self.count(one) for number, one in enumerate(pictures)}
        unknown = [number for number, count in counts.items() if count is None]
        if unknown:
            remedy = "attach with padding='first', where no number depends on the data"
            tracing.require_counts("forward", left[unknown[0]], remedy)
            stays = [(packed_indices(left[at], pictures[at]) < pictures[at].before).sum() for at in unknown]
            counts |= dict(zip(unknown, torch.stack(stays).tolist(), strict=True))
        return [count for count in counts.values() if count is not None]

    def take(self) -> tuple[tuple[Crops, ...], list[Tensor]]:
        """The pictures of this thread's last call and what it kept of each: (T,) int64, indices into its tokens."""
        now = self._now.here
        taken, self._now.here.pictures, self._now.here.kept = (now.pictures, now.kept), (), []
        return taken
