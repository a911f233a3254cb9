"""Filters that look at positions alone, not at attention: random dropping, and pooling of the grid's cells.

They are what every method has to beat. Nothing here reads a device; the only numbers that decide are host integers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import Attention, QueryKey
from . import needs
from .base import FilterStage, Links, Selection
from .frozen import reject, value
from .shape import Priced, Shape


def _like(attn: Attention) -> Tensor:
    """A tensor (B, .., N, ..) of the attention: for batch, number of tokens and device."""
    return attn.query if isinstance(attn, QueryKey) else attn


def _hash(number: Any) -> Any:
    """A 32-bit integer, or a tensor of them, mixed one to one so that neighbours land far apart.

    Products stay below 2**63, so int64 gives the same on every device.
    """
    for _ in range(2):
        number = ((number ^ (number >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return number ^ (number >> 16)


def hashed(index: Tensor, seed: int) -> Tensor:
    """A float32 in [0, 2**24) for each index, of which that holds all exactly."""
    return (_hash(index ^ _hash(seed)) >> 8).to(torch.float32)


def require_seed(stage: str, seed: object) -> None:
    """Raise unless it is one."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        reject(stage, "seed", "an integer in [0, 2**32)", seed)


@value
class RandomFilter(FilterStage):
    """Names r patches by a hash of the seed and their original position.

    All images lose the same positions, and so do all batches, devices and runs with this seed; a patch that left early
    has a higher score than one that left late, so several layers remove what one layer would have.

    Args:
        seed: an integer in [0, 2**32).
    """

    seed: int = 0

    def __post_init__(self) -> None:
        require_seed("RandomFilter", self.seed)

    def describe(self) -> str:
        """What it hashes."""
        return f"a hash of the position and seed {self.seed}"

    def operations(self, shape: Shape) -> list[Priced]:
        """None: positions are arithmetic on indices."""
        return []

    def __call__(
        self, attn: Attention, r: int, *, class_token: bool, ids: Tensor | None, grid: tuple[int, int] | None
    ) -> Selection:
        """Select r sources. ``ids`` (B, P) are the patches' original positions; None means all of them in order."""
        like = _like(attn)
        if ids is None:
            ids = torch.arange(like.shape[-2] - int(class_token), device=like.device).expand(like.shape[0], -1)
        score = hashed(ids, self.seed)
        return Selection(*ops.filter(score, score, r, lam=1.0, class_token=class_token))


def bands_of(height: int, width: int, cells: int) -> int:
    """Into how many bands of rows to cut a grid so that ``cells`` near-equal cells are as square as can be.

    Of all possible numbers the one that leaves the patches nearest to their cells' centres in the mean square, the
    smallest of equal ones.

    Example:
        >>> bands_of(12, 12, 36), bands_of(24, 24, 144), bands_of(24, 24, 1), bands_of(2, 10, 5)
        (6, 12, 1, 1)
    """
    best, least = 0, -1
    for bands in range(-(-cells // width), min(height, cells) + 1):
        scatter = 0
        for band in range(bands):
            tall = -(-(band + 1) * height // bands) + (-band * height // bands)
            runs = (band + 1) * cells // bands - band * cells // bands
            for wide, count in ((width // runs, runs - width % runs), (width // runs + 1, width % runs)):
                scatter += count * tall * wide * (tall * tall + wide * wide - 2)
        if least < 0 or scatter < least:
            best, least = bands, scatter
    return best


@value
class Cells(FilterStage):
    """Filter and Correlate in one: cuts the grid into as many near-equal cells as patches are to stay.

    Bands of rows, each cut into runs of columns; :func:`bands_of` says how many bands. The first patch of a cell stays
    and inherits the others of it, so a Compress that counts every token once makes it the cell's mean. Redundancy is 1
    for those that leave. It needs the whole grid, so it is for one layer, and for the first that reduces.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """The grid, of which no patch has left."""
        return (needs.WHOLE_GRID,)

    @property
    def inheritor(self) -> str:
        """The patch that stays."""
        return "the first patch of its cell"

    def describe(self) -> str:
        """What leaves."""
        return "all but the first patch of each cell of the grid"

    def count(self, candidates: int) -> int:
        """One target for each source."""
        return 1

    def places(self, grid: tuple[int, int], count: int) -> tuple[int, ...]:
        """The first patch of each of ``count`` cells.

        Example:
            >>> Cells().places((4, 4), 4)
            (0, 2, 8, 10)
        """
        height, width = grid
        bands = bands_of(height, width, count)
        found = []
        for row in range(height):
            band = row * bands // height
            runs = (band + 1) * count // bands - band * count // bands
            if row * bands % height < bands:
                found += [row * width + column for column in range(width) if column * runs % width < runs]
        return tuple(found)

    def operations(self, shape: Shape) -> list[Priced]:
        """None: cells are arithmetic on indices."""
        return []

    def __call__(
        self, attn: Attention, r: int, *, class_token: bool, ids: Tensor | None, grid: tuple[int, int] | None
    ) -> Selection:
        """Select r sources and their targets; the same for all items."""
        like, first = _like(attn), int(class_token)
        b, patches = like.shape[0], like.shape[-2] - first
        if grid is None:
            raise ValueError(
                "Cells: pooling needs the patches' grid, and their number is not a square; pass grid=(height, width)"
            )
        height, width = grid
        if patches != height * width:
            raise ValueError(
                f"Cells: pooling needs the whole grid of {height} x {width} patches, and only {patches} are left of "
                "it; pool in one layer, before anything else reduces"
            )
        cells = patches - r
        bands = bands_of(height, width, cells)
        index = torch.arange(patches, device=like.device)
        row, column = index // width, index % width
        band = row * bands // height
        start = band * cells // bands
        runs = (band + 1) * cells // bands - start
        cell = start + column * runs // width
        leads = (row * bands % height < bands) & (column * runs % width < runs)  # row and column where a cell begins
        order = (~leads).sort(stable=True).indices
        sources, kept = order[cells:], order[:cells] + first
        if first:
            kept = torch.cat([kept.new_zeros(1), kept])
        redundancy = (~leads).to(ops.result_dtype(like)).repeat(b, 1)
        targets = (cell[sources] + first).repeat(b, 1).unsqueeze(-1)
        links = Links(targets, torch.ones_like(targets, dtype=redundancy.dtype))
        return Selection(redundancy, (sources + first).repeat(b, 1), kept.repeat(b, 1), links)
