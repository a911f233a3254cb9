"""References of the baseline that shrinks the picture instead of selecting: grids of m x m from n x n."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def centres(size: int, wanted: int) -> list[int]:
    """Of ``size`` cells in a row, those in which the centres of ``wanted`` equal parts lie.

    Choices: a centre on the border of two cells lies in the later one.
    """
    return [((2 * i + 1) * size) // (2 * wanted) for i in range(wanted)]


def grid_centres(grid: tuple[int, int], wanted: tuple[int, int]) -> list[int]:
    """Indices of the cells of ``grid`` in which the centres of a grid of ``wanted`` cells lie, row by row."""
    columns = centres(grid[1], wanted[1])
    return [row * grid[1] + column for row in centres(grid[0], wanted[0]) for column in columns]


def smaller_grid(grid: tuple[int, int], count: int, stretch: float = 4 / 3) -> tuple[int, int]:
    """The grid of most cells, at most ``count`` and no side longer than that of ``grid``, in nearly its proportion.

    Choices: the ratio of the sides may change by up to the factor ``stretch``; if none fits, any may; of equally many
    cells the one nearest in proportion, then that of fewer rows.
    """

    def stretched(one: tuple[int, int]) -> float:
        return round(abs(math.log(one[0] * grid[1] / (one[1] * grid[0]))), 9)

    every = [(r, c) for r in range(1, grid[0] + 1) for c in range(1, grid[1] + 1) if r * c <= count]
    fit = [one for one in every if stretched(one) <= math.log(stretch) + 1e-9]
    return max(fit or every, key=lambda one: (one[0] * one[1], -stretched(one), -one[0]))


def overlap(size: int, wanted: int) -> Tensor:
    """(wanted, size) share of each old cell in each new one; rows sum to 1."""
    rows = torch.zeros(wanted, size, dtype=torch.float64)
    width = size / wanted
    for i in range(wanted):
        for j in range(math.floor(i * width), min(size, math.ceil((i + 1) * width))):
            rows[i, j] = max(0.0, min(j + 1, (i + 1) * width) - max(j, i * width)) / width
    return rows


def linear(size: int, wanted: int) -> Tensor:
    """(wanted, size) weights of linear interpolation at the centres, the ends held; rows sum to 1."""
    rows = torch.zeros(wanted, size, dtype=torch.float64)
    for i in range(wanted):
        where = min(max((i + 0.5) * size / wanted - 0.5, 0.0), size - 1.0)
        low = math.floor(where)
        rows[i, low] += 1 - (where - low)
        rows[i, min(low + 1, size - 1)] += where - low
    return rows


def downsample(features: Tensor, grid: tuple[int, int], wanted: tuple[int, int], how: str = "area") -> Tensor:
    """(rows * columns wanted, D): ``features`` (N, D) of ``grid``, averaged over ``"area"`` or ``"bilinear"``."""
    weights = overlap if how == "area" else linear
    vertical, horizontal = weights(grid[0], wanted[0]), weights(grid[1], wanted[1])
    picture = features.double().view(*grid, -1)
    return torch.einsum("ay,bx,yxd->abd", vertical, horizontal, picture).reshape(wanted[0] * wanted[1], -1)
