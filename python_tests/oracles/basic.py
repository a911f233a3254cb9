"""What several references need: cosines, ranges, and picks with ties by lowest index."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

ROUNDING = 1e-12  # scores that are equal on paper are no farther apart than this, of the largest
SMALLEST_NORM = 1e-12  # a zero vector is a direction of length 0, so its cosine with everything is 0


def unit(vectors: Tensor) -> Tensor:
    """Each row of (N, D) at length 1, in float64; zero rows stay zero."""
    vectors = vectors.double()
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=SMALLEST_NORM)


def cosines(rows: Tensor, columns: Tensor | None = None) -> Tensor:
    """(N, M) cosine of every row with every column, or of all rows; exactly 1 where both are the same vector.

    Equal pairs of vectors give equal bits, wherever they stand.
    """
    rows = unit(rows)
    others = rows if columns is None else unit(columns)
    found = torch.zeros(len(rows), len(others), dtype=torch.float64)
    for i, row in enumerate(rows):
        found[i] = (row * others).sum(-1)
        found[i, (row == others).all(-1) & bool((row != 0).any())] = 1.0
    return found


def first_largest(
    values: Sequence[float] | Mapping[int, float], among: Iterable[int], either: Collection[int] = ()
) -> int:
    """The index in ``among`` with the largest value; of equal ones the lowest.

    ``either``: of values that differ from the largest by rounding alone, the first of these is taken if there is one.
    """
    found = max(among := list(among), key=lambda index: (float(values[index]), -index))
    floor = float(values[found]) - ROUNDING * max(1.0, abs(float(values[found])))
    return next((index for index in sorted(among) if index in either and float(values[index]) >= floor), found)


def first_smallest(
    values: Sequence[float] | Mapping[int, float], among: Iterable[int], either: Collection[int] = ()
) -> int:
    """The index in ``among`` with the smallest value, as :func:`first_largest` finds the largest."""
    among = list(among)
    return first_largest({index: -float(values[index]) for index in among}, among, either)


def descending(values: Sequence[float], among: Iterable[int]) -> list[int]:
    """``among`` from the largest value to the smallest; equal ones by index."""
    return sorted(among, key=lambda index: (-float(values[index]), index))


def without_smallest(values: Sequence[float], count: int) -> list[int]:
    """The ``count`` indices that are left, ascending, once the smallest have left; of equal ones the lower leaves."""
    everyone = range(len(values))
    leave = sorted(everyone, key=lambda index: (float(values[index]), index))[: len(values) - count]
    return [index for index in everyone if index not in leave]


def between_0_and_1(values: Tensor, eps: float = 0.0) -> Tensor:
    """(x - min + eps) / (max - min); all 1 where every value is the same."""
    values = values.double()
    low, high = values.min(), values.max()
    return torch.ones_like(values) if high == low else (values - low + eps) / (high - low)


def shared_out(claims: Sequence[float], total: int, most: Sequence[int], either: Sequence[int] = ()) -> list[int]:
    """Integers near ``claims`` that sum to ``total``, each at least 1 and at most its ``most``.

    One for everybody; each further one to whoever has most left of its claim, the first of equal ones, as long as
    there is room. Of claims that sum to ``total``, all between 1 and ``most``, this is the largest remainder.

    ``either``: counts to be judged: where what is left of claims differs by rounding alone, one goes to who has more
    there.
    """
    counts = [1] * len(claims)
    while sum(counts) < total:
        room = [index for index in range(len(claims)) if counts[index] < most[index]]
        left = [claim - count for claim, count in zip(claims, counts, strict=True)]
        counts[first_largest(left, room, [index for index in range(len(either)) if counts[index] < either[index]])] += 1
    return counts
