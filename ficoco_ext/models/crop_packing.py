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
from .crop_pictures import CropPictures
from .model_changes import ModelChanges
from .per_thread import PerThread
from .vision_tower import TowerReductions

_OP, METHOD = "pack_image_features", "pack_image_features"


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
    """State of a thread: what its last packing kept of each picture."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, ...] = ()


class CropPacking:
    """Stands in for ``pack_image_features`` of the inner model while patches leave in its tower.

    Args:
        inner: the inner model. pictures: of the call of the tower. tower: its reductions.
        count: tokens that a picture keeps, line ends included; None: the data decide, and of the pictures that have
            padding the numbers are read from the device, once a call.
    """

    def __init__(
        self, inner: Any, pictures: CropPictures, tower: TowerReductions, count: Callable[[Crops], int] | None
    ) -> None:
        self.inner, self.pictures, self.tower, self.count = inner, pictures, tower, count
        self.function = getattr(type(inner), METHOD)
        signature = inspect.signature(self.function)
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
        self.__name__ = METHOD
        self._now = PerThread(_Now)

    def install(self, changes: ModelChanges) -> None:
        """Take the place of the model's own method."""
        changes.set(self.inner, METHOD, self)

    def crops_of(self, options: Mapping[str, Any]) -> tuple[Crops, ...]:
        """The crops of the pictures of a call, from the ``image_sizes`` among its arguments."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[list[Tensor], Tensor]:
        """As the model's own: (features of each picture (T, D), how many those are)."""
        raise NotImplementedError

    def take(self) -> tuple[Tensor, ...]:
        """What this thread's last call kept of each picture: (T,) int64, indices into all of its tokens."""
        raise NotImplementedError

    def _counts(self, indices: Sequence[Tensor], pictures: Sequence[Crops]) -> list[int]:
        raise NotImplementedError
