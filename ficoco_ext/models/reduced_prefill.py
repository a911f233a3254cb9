"""One prefill of a reduced language model: rows that have equally many visual tokens are reduced together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..methods import LanguageMethod
from ..ops import QueryKey, checks
from ..reduction import Reduction
from ..schedule import Schedule
from ..stages import Layout
from ..stages.needs import GRID
from .positions import HeldPositions


@dataclass
class RowGroup:
    """Rows with equally many visual tokens.

    Attributes:
        rows: (rows,) their indices in the batch; None: all.
        schedule: what they lose; None: nothing, they are text.
        visual: (rows, n) indices of their visual tokens in the current sequence.
        after: the most positions that any of them has after its visual tokens; None: unknown.
        pictured: the most placeholders that any of them has, including those that a mask hides.
        left: for every row how many positions it needs now.
    """

    rows: Tensor | None
    schedule: Schedule | None
    visual: Tensor
    after: int | None
    pictured: int
    left: list[int]

    def of(self, tensor: Tensor) -> Tensor:
        """The group's rows of ``tensor``."""
        return tensor if self.rows is None else tensor.index_select(0, self.rows.to(tensor.device))

    def removes(self, step: int) -> int:
        """Tokens that each row loses in the ``step``-th reduction."""
        return 0 if self.schedule is None else self.schedule.r[step]


class GroupRecord(NamedTuple):
    """What one layer did with a group: the reduction without its tokens, and how the survivors moved afterwards.

    ``reduction`` is None where the group only moved, because others lost tokens. ``shift`` empty positions were put
    before the survivors, or removed there if it is negative.
    """

    layer: int
    rows: Tensor | None
    reduction: Reduction | None
    shift: int


class _Part(NamedTuple):
    """What a group's rows hold; the first dimension is its rows. ``indices``: as of :class:`HeldPositions`."""

    tokens: Tensor
    indices: Tensor
    real: Tensor | None
    size: Tensor

    def shifted(self, by: int) -> _Part:
        """With ``by`` empty positions before it, or without the first ``-by``, which are not needed."""
        tokens, indices, real, size = self
        if by < 0:
            real = None if real is None else real[:, -by:]
            return _Part(tokens[:, -by:], indices[:, -by:], real, size[:, -by:])
        if by > 0:
            assert real is not None
            tokens, size = F.pad(tokens, (0, 0, by, 0)), F.pad(size, (0, 0, by, 0), value=1.0)
            return _Part(tokens, F.pad(indices, (by, 0)), F.pad(real, (by, 0)), size)
        return self


def visual_positions(visual: Tensor, count: int) -> Tensor:
    """(B, count) positions of the True ones of ``visual`` (B, L), ascending."""
    return visual.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]


class ReducedPrefill:
    """One pass through the layers, from the full prompt to the positions that are left.

    Args:
        visual: (B, L) bool, the placeholders.
        real: (B, L) bool, False for padding; None: all are real.
        groups: the rows.
        picture: grid of one image, for a local penalty; None: unknown.
    """

    def __init__(
        self, visual: Tensor, real: Tensor | None, groups: list[RowGroup], picture: tuple[int, int] | None = None
    ) -> None:
        b, self.length = visual.shape
        self.visual, self.groups, self.picture = visual, groups, picture
        indices = torch.arange(self.length, device=visual.device).expand(b, -1)
        self.held = HeldPositions(indices, real, False)
        self.size: Tensor | None = None
        self.stages = [self.held]
        self.records: list[GroupRecord] = []

    def reduce(self, tokens: Tensor, attn: QueryKey, method: LanguageMethod, layer: int, step: int) -> Tensor:
        """The ``step``-th reduction, in ``layer``: (B, W, C) -> (B, W', C).

        W' is what the longest row needs. A shorter one begins with empty positions, which the mask hides.
        """
        self.held = self.held.to(tokens.device)
        if any(group.removes(step) for group in self.groups):
            for group in self.groups:
                group.left = [count - group.removes(step) for count in group.left]
            left = [count for group in self.groups for count in group.left]
            width, holes = max(left), min(left) < max(left)
            parts = []
            for group in self.groups:
                part = self._part(tokens, group, holes)
                shift = width - (tokens.shape[1] - group.removes(step))
                if group.removes(step):
                    part, visual = self._reduce(part, attn, method, group, layer, step, shift)
                else:
                    visual = group.visual
                    self.records.append(GroupRecord(layer, group.rows, None, shift))
                group.visual = visual + shift
                parts.append(part.shifted(shift))
            tokens, indices, real, self.size = self._together(parts)
            self.held = HeldPositions(indices, real, holes)
        self.stages.append(self.held)
        return tokens

    def _part(self, tokens: Tensor, group: RowGroup, holes: bool) -> _Part:
        held = self.held
        indices, tokens = group.of(held.indices), group.of(tokens)
        real = None if held.real is None else group.of(held.real)
        if real is None and holes:
            real = torch.ones_like(indices, dtype=torch.bool)
        if self.size is None:
            size = tokens.new_ones(*tokens.shape[:2], 1, dtype=torch.float32)
        else:
            size = group.of(self.size.to(tokens.device))
        return _Part(tokens, indices, real, size)

    def _reduce(
        self, part: _Part, attn: QueryKey, method: LanguageMethod, group: RowGroup, layer: int, step: int, shift: int
    ) -> tuple[_Part, Tensor]:
        visual = group.visual.to(part.indices.device)
        own = QueryKey(group.of(attn.query), group.of(attn.key), attn.scale)
        ids, grid = self._grid(method, part, visual, group)
        layout = Layout.of(visual, part.indices.shape[1], part.real, after=group.after, ids=ids, grid=grid)
        reduction, visual = method(part.tokens, own, group.removes(step), layout, size=part.size)
        assert reduction.tokens is not None
        indices = part.indices.gather(1, reduction.kept)
        real = None if part.real is None else part.real.gather(1, reduction.kept)
        self.records.append(GroupRecord(layer, group.rows, reduction.without_tokens(), shift))
        return _Part(reduction.tokens, indices, real, reduction.size), visual

    def _grid(
        self, method: LanguageMethod, part: _Part, visual: Tensor, group: RowGroup
    ) -> tuple[Tensor | None, tuple[int, int] | None]:
        """Cells of the visual tokens on one grid of all the row's images, one below the other."""
        if GRID not in method.needs or self.picture is None:
            return None, None
        height, width = self.picture
        pictures = -(-group.pictured // (height * width))
        if pictures > 1 and height % method.window:
            need, got = f"a divisor of the images' height {height}", f"{method.window} with {pictures} images in a row"
            checks.fail("forward", "window", need, got, f"or windows would span two images; {method.remedy(GRID)}")
        rank = group.of(self.visual).to(visual.device).cumsum(1) - 1
        return rank.gather(1, part.indices.gather(1, visual)), (pictures * height, width)

    def _together(self, parts: list[_Part]) -> _Part:
        """The groups' rows as one batch again."""
        if self.groups[0].rows is None:
            return parts[0]
        order = torch.cat([group.rows for group in self.groups if group.rows is not None])
        back = order.argsort().to(parts[0].tokens.device)
        real = [part.real for part in parts if part.real is not None]
        return _Part(
            torch.cat([part.tokens for part in parts]).index_select(0, back),
            torch.cat([part.indices for part in parts]).index_select(0, back),
            torch.cat(real).index_select(0, back) if real else None,
            torch.cat([part.size for part in parts]).index_select(0, back),
        )


def group_rows(
    visual: Tensor, schedules: dict[int, Schedule], counts: list[list[int]], needs: list[int]
) -> list[RowGroup]:
    """Groups of rows with equally many visual tokens.

    Args:
        visual: (B, L) bool.
        schedules: for every number of visual tokens but 0.
        counts: for each row: visual tokens, positions after them, placeholders, and more.
        needs: for each row: positions that it needs.
    """
    members: dict[int, list[int]] = {}
    for row, count in enumerate(counts):
        members.setdefault(count[0], []).append(row)
    numbers = sorted(members)
    groups, order = [], [row for number in numbers for row in members[number]]
    # One copy to the device, right after the read of the counts, and none where all rows are alike.
    parts = (
        torch.tensor(order, device=visual.device).split([len(members[n]) for n in numbers]) if numbers[1:] else [None]
    )
    for number, rows in zip(numbers, parts, strict=True):
        chosen = visual if rows is None else visual.index_select(0, rows)
        after = max(counts[row][1] for row in members[number])
        pictured = max(counts[row][2] for row in members[number])
        left = [needs[row] for row in members[number]]
        groups.append(RowGroup(rows, schedules.get(number), visual_positions(chosen, number), after, pictured, left))
    return groups
