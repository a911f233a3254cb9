"""Padding first: what a reducing layer of the vision tower does with crops that have padding.

Padding leaves before all other patches, lowest index first, and no patch inherits it. The method of the layer then
removes the rest of what is to leave the crop, and where it removes anything, no padding is left that it could see. How
much padding leaves is a number of the host, so how many valid patches a crop keeps never depends on the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..methods import LayerMethod
from ..methods.split import as_one, attention_among, picked
from ..ops import QueryKey
from ..reduction import Reduction, over_tensors
from ..schedule import Schedule
from ..stages import Crops

Part = tuple[int, int, int, int]  # (top, bottom, left, right) of a crop's valid patches


@dataclass(frozen=True)
class PaddingFirst:
    """How many patches of padding leave a crop first, in each reducing layer.

    Attributes:
        side: patches of a side of a crop.
        steps: for each layer that removes something: how many patches, and, for a method that needs the whole grid, so
            that no padding can leave before it, the patches that it keeps whatever the data; else None.

    Example:
        >>> from ficoco_ext.models.padding_first import PaddingFirst
        >>> rule = PaddingFirst(24, ((100, None), (100, None), (100, None)))
        >>> rule.leaving((6, 24, 0, 24)), rule.left((6, 24, 0, 24))  # 144 patches of padding
        ((100, 44, 0), 0)
    """

    side: int
    steps: tuple[tuple[int, tuple[int, ...] | None], ...]

    @classmethod
    def of(cls, grid: tuple[int, int], schedule: Schedule, methods: Sequence[LayerMethod]) -> PaddingFirst:
        """The rule for a tower with crops of ``grid`` patches, which are squares."""
        steps = (
            (step.r, method.places(grid, step.after))
            for step, method in zip(schedule.steps, methods, strict=True)
            if step.r
        )
        return cls(grid[0], tuple(steps))

    def leaving(self, part: Part) -> tuple[int, ...]:
        """In each of the layers, how many patches of padding leave first."""
        return self._walk(part)[0]

    def left(self, part: Part) -> int:
        """How many patches of padding are among those that the tower leaves."""
        return self._walk(part)[1]

    def after(self, crops: Crops) -> int:
        """Tokens of the language model of a picture, line ends included."""
        final = crops.patches - sum(r for r, _ in self.steps)
        return final + sum(final - self.left(part) for part in crops.parts) + crops.lines

    def _walk(self, part: Part) -> tuple[tuple[int, ...], int]:
        top, bottom, left, right = part
        padding = self.side * self.side - (bottom - top) * (right - left)
        found = []
        for r, places in self.steps:
            first = 0 if places is not None else min(padding, r)
            padding = padding - first if places is None else self._outside(places, part)
            found.append(first)
        return tuple(found), padding

    def _outside(self, places: Sequence[int], part: Part) -> int:
        top, bottom, left, right = part
        rows_columns = (divmod(place, self.side) for place in places)
        return sum(not (top <= row < bottom and left <= column < right) for row, column in rows_columns)


class Padding(NamedTuple):
    """The padding of the rows of a tower's batch.

    Attributes:
        patches: (B, N) bool, which patches are padding.
        leaving: for each reducing layer, how many of them leave each row first.
    """

    patches: Tensor
    leaving: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, rule: PaddingFirst, pictures: Sequence[Crops], device: torch.device) -> Padding:
        """That of the thumbnails and crops of ``pictures``. Made on the device, without a copy to it."""
        parts = [part for one in pictures for part in ((0, one.side, 0, one.side), *one.parts)]
        at = torch.arange(rule.side, device=device)
        patches, leaving = {}, {}
        for part in set(parts):
            top, bottom, left, right = part
            valid = ((at >= top) & (at < bottom)).unsqueeze(1) & (at >= left) & (at < right)
            patches[part], leaving[part] = ~valid.flatten(), rule.leaving(part)
        counts = zip(*(leaving[part] for part in parts), strict=True)
        return cls(torch.stack([patches[part] for part in parts]), tuple(counts))


def reduce_padded(
    method: LayerMethod,
    tokens: Tensor,
    attn: QueryKey,
    r: int,
    leaving: Sequence[int],
    padding: Tensor,
    *,
    class_token: bool,
    grid: tuple[int, int],
    previous: Reduction | None,
) -> Reduction:
    """Remove ``r`` tokens of each row, padding first. Rows that lose as much padding are reduced together.

    Args:
        method, tokens (B, N, C), attn, class_token, grid, previous: as of :meth:`LayerMethod.__call__`.
        leaving: for each row how many patches of padding leave first, at most as many as it has left.
        padding: (B, patches) bool, which of the original patches are padding.

    Returns:
        One reduction of all rows.

    Cost: where some rows have padding, two more copies of the tokens, and one of query and key of the rows of which
    padding and other patches leave in one layer; no device read.
    """
    groups: dict[int, list[int]] = {}
    for row, count in enumerate(leaving):
        groups.setdefault(count, []).append(row)
    parts = []
    for count, rows in groups.items():
        before = None if previous is None else over_tensors(previous, partial(_take, rows=rows))
        mine, of_mine = _take(tokens, rows), QueryKey(_take(attn.query, rows), _take(attn.key, rows), attn.scale)
        if not count:
            done = method(mine, of_mine, r, class_token=class_token, grid=grid, previous=before)
        else:
            stays, leaves = _chosen(_take(padding, rows), before, count, class_token)
            done = _dropped(mine, stays, leaves, before, class_token, grid)
            if r > count:
                assert done.tokens is not None
                among = attention_among(of_mine, stays)
                late = method(done.tokens, among, r - count, class_token=class_token, grid=grid, previous=done)
                done = as_one(done, late)
        parts.append(done)
    return parts[0] if len(parts) == 1 else _together(parts, list(groups.values()))


def _take(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """The ``rows`` of ``tensor``, by views: an index would have to be copied to the device."""
    return _laid_out([tensor], [(0, row) for row in rows])


def _laid_out(tensors: Sequence[Tensor], order: Sequence[tuple[int, int]]) -> Tensor:
    """Rows of ``tensors`` one after the other: (which tensor, which of its rows) for each. One run is not copied.

    Tensors are taken apart as a whole: of a slice for each row the backward pass would fill a gradient of all rows.
    """
    number, first = order[0]
    if list(order) == [(number, first + offset) for offset in range(len(order))]:
        return tensors[number][first : first + len(order)]
    rows = [one.unbind() for one in tensors]
    return torch.stack([rows[number][row] for number, row in order])


def _chosen(padding: Tensor, previous: Reduction | None, count: int, class_token: bool) -> tuple[Tensor, Tensor]:
    """Which tokens stay and which leave where the ``count`` lowest patches of padding leave: (G, M), (G, count)."""
    if previous is not None:
        padding = padding.gather(1, previous.patch_ids)
    leaves = padding & (padding.cumsum(1) <= count)
    order = leaves.byte().sort(dim=1, stable=True).indices + int(class_token)
    stays, leaves = order[:, : order.shape[1] - count], order[:, order.shape[1] - count :]
    return torch.nn.functional.pad(stays, (int(class_token), 0)), leaves


def _dropped(
    tokens: Tensor,
    stays: Tensor,
    leaves: Tensor,
    previous: Reduction | None,
    class_token: bool,
    grid: tuple[int, int],
) -> Reduction:
    """What is left without the tokens ``leaves`` (G, e), which no other inherits. ``stays``: (G, M) ascending."""
    (b, n), m = tokens.shape[:2], stays.shape[1]
    dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    size = tokens.new_ones(b, m, 1, dtype=dtype) if previous is None else picked(previous.size, stays)
    own = torch.arange(m, device=tokens.device).expand(b, -1)
    result = Reduction(
        tokens=picked(tokens, stays),
        size=size,
        kept=stays,
        sources=leaves,
        source_map=stays.new_full((b, n), -1).scatter(1, stays, own),
        targets=stays.new_empty(b, leaves.shape[1], 0),
        weights=size.new_empty(b, leaves.shape[1], 0),
        class_token=class_token,
        grid=grid,
    )
    return result if previous is None else result.after(previous)


def _together(parts: Sequence[Reduction], groups: Sequence[Sequence[int]]) -> Reduction:
    """The reductions of groups of rows as one. ``groups``: the rows of each."""
    width = max(part.targets.shape[2] for part in parts)
    unused = int(parts[0].class_token)  # what weights of 0 name; the class token is never a target
    parts = [
        replace(part, targets=_wide(part.targets, width, unused), weights=_wide(part.weights, width, 0))
        for part in parts
    ]
    at = {row: (number, item) for number, rows in enumerate(groups) for item, row in enumerate(rows)}
    order = [at[row] for row in range(len(at))]

    def joined(name: str) -> Tensor:
        return _laid_out([getattr(part, name) for part in parts], order)

    changed: dict[str, Any] = {
        name: joined(name) for name, value in vars(parts[0]).items() if isinstance(value, Tensor)
    }
    return replace(parts[0], **changed)


def _wide(tensor: Tensor, width: int, value: int) -> Tensor:
    """(B, r, ``width``), filled up with ``value``."""
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[2]), value=value)
