"""How what a vision tower gives for each patch becomes one number for each projected token, in the same order.

Models shuffle, pool, unpad and reorder their features. Wherever one does so in a method of its own, that very method
runs on the numbers too, as features of width 1: what it does to the features it does to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Arguments = dict[str, Any]


class TowerPass:
    """One call of a vision tower: what was measured in it, and what the model then did.

    Attributes:
        core: the module that owns ``get_image_features``.
        tower: the tower that was called.
        grids: rows and columns of patches of each picture, if it puts all pictures into one sequence.
        mask: (B, ...) bool, which patches of a batch are real, if it was given one; else None.
        parts: numbers (B, n) of patches, one tensor for each time that its attention ran.
        order: merge units in the order in which the tower kept them; None if that is their own.
        placed: the numbers after a method of the model that lays features out; None if none ran.
    """

    def __init__(self, core: Any, tower: Any, grids: list[tuple[int, int]], mask: Tensor | None) -> None:
        self.core, self.tower, self.grids, self.mask = core, tower, grids, mask
        self.parts: list[Tensor] = []
        self.order: Tensor | None = None
        self.placed: list[Tensor] | None = None

    def pictures(self) -> Tensor:
        """(B, n) numbers of a tower whose pictures are the rows of a batch."""
        return torch.cat(self.parts)

    def sequence(self) -> Tensor:
        """(n,) numbers of a tower whose pictures follow one another."""
        return torch.cat([part.flatten() for part in self.parts])


Layout = Callable[[TowerPass, Sequence[int]], Tensor]
Watcher = Callable[[TowerPass, Callable[..., Any], Arguments], None]


# Layouts: numbers of the patches of a pass, and how many tokens each picture has, to the numbers of all tokens (T,)


def patches(seen: TowerPass, counts: Sequence[int]) -> Tensor:
    """Each patch is a token. A class token that is projected too is no patch: its number is 0."""
    found, pictures = seen.sequence(), sum(len(part) for part in seen.parts)
    if sum(counts) == len(found) + pictures:
        found = nn.functional.pad(seen.pictures(), (1, 0)).flatten()
    return found


def merged(seen: TowerPass, counts: Sequence[int]) -> Tensor:
    """A token is the mean of a merge unit; its patches are neighbours in the sequence. Units return to their order."""
    size = seen.tower.config.spatial_merge_size
    units = seen.sequence().view(-1, size * size).mean(1)
    return units if seen.order is None else units[seen.order.to(units.device).argsort()]


def merged_grids(seen: TowerPass, counts: Sequence[int]) -> Tensor:
    """A token is the mean of a square of the picture's grid; a last row or column that fills no square is dropped."""
    size = seen.core.config.spatial_merge_size
    grids = [part.view(1, *grid) for part, grid in zip(seen.parts, seen.grids, strict=True)]
    return torch.cat([nn.functional.avg_pool2d(grid, size).flatten() for grid in grids])


def shuffled(seen: TowerPass, counts: Sequence[int]) -> Tensor:
    """A token is the mean of the patches that the model's pixel shuffle puts into it."""
    found = seen.pictures()
    grids = found.view(len(found), *_square(found), 1)
    return seen.core.pixel_shuffle(grids, scale_factor=seen.core.config.downsample_ratio).mean(-1).flatten()


def connected(seen: TowerPass, counts: Sequence[int]) -> Tensor:
    """A token is the mean of the patches that the connector's pixel shuffle puts into it."""
    connector = seen.core.connector
    return connector.pixel_shuffle(seen.pictures().unsqueeze(-1), connector.scale_factor).mean(-1).flatten()


def pooled(seen: TowerPass, counts: Sequence[int]) -> Tensor:
    """A token is the mean of the patches that the projector's average pool puts into it."""
    found = seen.pictures()
    return seen.core.multi_modal_projector.avg_pool(found.view(len(found), *_square(found))).flatten()


def placed(seen: TowerPass, counts: Sequence[int]) -> Tensor:
    """As the model's own method placed them, see :func:`pack` and :func:`pool_frames`; line ends have 0."""
    if seen.placed is None:
        name = type(seen.core).__name__
        raise RuntimeError(f"ficoco::saliency: {name} did not lay its features out; call its get_image_features")
    found = torch.cat(seen.placed)
    if found.dim() == 2:  # frames of videos, each video with one line end where the model adds it to the features
        found = found.reshape(len(counts), -1)
        found = nn.functional.pad(found, (0, int(sum(counts) > found.numel())))
    return found.flatten()


def _square(found: Tensor) -> tuple[int, int]:
    side = math.isqrt(found.shape[1])
    return side, side


def patch_grids(tower: Any, arguments: Arguments) -> list[tuple[int, int]]:
    """Rows and columns of patches of each picture, from the arguments of a tower that takes sizes."""
    sizes, patch = arguments.get("image_sizes"), tower.config.patch_size
    if sizes is None:
        pixels = arguments["pixel_values"]
        sizes = [pixels.shape[-2:]] * len(pixels)
    elif isinstance(sizes, Tensor):
        sizes = sizes.tolist()
    return [(height // patch, width // patch) for height, width in sizes]


# Watchers: what a method of the model does to features, seen from its arguments


def pack(seen: TowerPass, method: Callable[..., Any], arguments: Arguments) -> None:
    """Tiles laid out as one picture, unpadded, shrunk, given line ends: the same method on features of width 1."""
    tiles = arguments["image_features"]
    found = seen.pictures().unsqueeze(-1).to(tiles[0].device)
    mine = {"image_features": found.split([len(one) for one in tiles])}
    if arguments.get("image_newline") is not None:
        mine["image_newline"] = found.new_zeros(1)
    seen.placed = [one.squeeze(-1) for one in method(**arguments | mine)[0]]


def pool_frames(seen: TowerPass, method: Callable[..., Any], arguments: Arguments) -> None:
    """Frames made smaller: the same method on features of width 1."""
    seen.placed = [method(seen.pictures().unsqueeze(-1)).squeeze(-1)]


def note_order(seen: TowerPass, method: Callable[..., Any], arguments: Arguments) -> None:
    """Merge units are sorted into windows before the first layer, and back after the last."""
    seen.order = arguments["window_index"]
