"""Pictures that are made smaller before the vision tower, which reads them with interpolated positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..reduction import Reduction
from .model_changes import ModelChanges
from .per_thread import PerThread

Grid = tuple[int, int]


class _Now:
    """State of a thread: whether it encodes smaller pictures."""

    def __init__(self) -> None:
        self.running = False


class SmallerPictures:
    """Lets one vision tower read pictures of other sizes than its own.

    Args:
        tower: of transformers, with ``interpolate_pos_encoding`` among its arguments.
    """

    def __init__(self, tower: Any) -> None:
        self.tower, self.patch = tower, int(tower.config.patch_size)
        self._now = PerThread(_Now)

    def install(self, changes: ModelChanges) -> None:
        """Hook the tower."""
        changes.hook(self.tower.register_forward_pre_hook(self._interpolated, with_kwargs=True))

    def _interpolated(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (args, kwargs | {"interpolate_pos_encoding": True}) if self._now.here.running else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """The tower's calls inside, in this thread, are of smaller pictures."""
        now = self._now.here
        now.running = True
        try:
            yield
        finally:
            now.running = False

    def resized(self, pixels: Tensor, grid: Grid) -> Tensor:
        """(I, 3, rows * patch, columns * patch) the pictures ``pixels`` (I, 3, H, W), in their dtype.

        Bicubic with antialiasing, as processors resize, of the normalized pixels.
        """
        size = [side * self.patch for side in grid]
        smaller = F.interpolate(pixels.float(), size, mode="bicubic", antialias=True, align_corners=False)
        return smaller.to(pixels.dtype)


def as_reduction(grid: Grid, smaller: Grid, device: torch.device) -> Reduction:
    """What a resize from ``grid`` to ``smaller`` is in terms of tokens (1, ...): who stays, and where the others went.

    The patch in the middle of a cell stays and stands for its cell; another one went into the nearest of these.
    """
    (rows, up), (columns, left) = (_side(n, m, device) for n, m in zip(grid, smaller, strict=True))
    kept = (rows[:, None] * grid[1] + columns[None, :]).reshape(1, -1)
    cell = (up[:, None] * smaller[1] + left[None, :]).reshape(1, -1)
    stays = torch.zeros_like(cell, dtype=torch.uint8).scatter(1, kept, 1)
    sources = stays.sort(dim=1, stable=True).indices[:, : cell.shape[1] - kept.shape[1]]
    targets = cell.gather(1, sources).unsqueeze(-1)
    size = torch.zeros(kept.shape, device=device).scatter_add(1, cell, torch.ones(cell.shape, device=device))
    return Reduction(
        tokens=None,
        size=size.unsqueeze(-1),
        kept=kept,
        sources=sources,
        source_map=cell,
        targets=targets,
        weights=torch.ones(targets.shape, device=device),
        class_token=False,
        grid=grid,
    )


def _side(cells: int, fewer: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(fewer,) the cells in the middle of as many equal parts, and (cells,) which of these is nearest to each cell."""
    middle = (2 * torch.arange(fewer, device=device) + 1) * cells // (2 * fewer)
    away = (torch.arange(cells, device=device)[:, None] - middle[None, :]).abs()
    return middle, away.argmin(1)
