"""Rows of a prompt that lose equally many visual tokens, and so are reduced together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..schedule import Schedule


class RowGroup(NamedTuple):
    """Rows with equally many visual tokens.

    Attributes:
        rows: (rows,) their indices in the batch; None: all.
        schedule: what they lose; None: nothing, they are text, or the data decide it.
        visual: (rows, n) indices of their visual tokens in the prompt.
        after: the most positions that any of them has after its visual tokens; None: unknown.
        pictured: the most placeholders that any of them has, including those that a mask hides.
        left: for every row how many positions of the prompt it needs.
    """

    rows: Tensor | None
    schedule: Schedule | None
    visual: Tensor
    after: int | None
    pictured: int
    left: list[int]

    @property
    def is_text(self) -> bool:
        """They have no visual tokens."""
        return self.visual.shape[1] == 0

    def of(self, tensor: Tensor) -> Tensor:
        """The group's rows of ``tensor``."""
        return tensor if self.rows is None else tensor.index_select(0, self.rows.to(tensor.device))

    def removes(self, step: int) -> int:
        """Tokens that each row loses in the ``step``-th reduction."""
        return 0 if self.schedule is None else self.schedule.r[step]


class Held(NamedTuple):
    """A group in the middle of a prefill.

    Attributes:
        group: of the prompt.
        visual: (rows, n) indices of the visual tokens that are left, in the sequence that is held now.
        left: how many positions each row needs.
    """

    group: RowGroup
    visual: Tensor
    left: list[int]

    def divided(self, counts: list[int]) -> list[tuple[Held, int]]:
        """Groups of rows that lose equally many, each with how many that is.

        Args:
            counts: what each row loses, in [0, n - 1], as a method has decided.

        Raises:
            ValueError: another number.
        """
        most = self.visual.shape[1] - 1
        wrong = next((count for count in counts if not 0 <= count <= most), None)
        if wrong is not None:
            wanted = f"in [0, {most}] for each row of {most + 1} visual tokens"
            checks.fail("forward", "leaving", wanted, str(wrong), "correct the method: at least one token stays")
        numbers = sorted(set(counts))
        if len(numbers) == 1:
            return [(self, numbers[0])]
        members = [[row for row, count in enumerate(counts) if count == number] for number in numbers]
        order = torch.tensor([row for rows in members for row in rows], device=self.visual.device)
        parts = order.split([len(rows) for rows in members])
        return [(self._only(rows, at), number) for number, rows, at in zip(numbers, members, parts, strict=True)]

    def _only(self, rows: list[int], at: Tensor) -> Held:
        group = self.group
        of_batch = at if group.rows is None else group.rows.index_select(0, at.to(group.rows.device))
        visual = group.visual.index_select(0, at.to(group.visual.device))
        needed = [group.left[row] for row in rows]
        part = group._replace(rows=of_batch, visual=visual, left=needed)
        return Held(part, self.visual.index_select(0, at), [self.left[row] for row in rows])


def visual_positions(visual: Tensor, count: int) -> Tensor:
    """(B, count) positions of the True ones of ``visual`` (B, L), ascending."""
    return visual.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]


def group_rows(
    visual: Tensor, schedules: dict[int, Schedule], counts: list[list[int]], needs: list[int]
) -> list[RowGroup]:
    """Groups of rows with equally many visual tokens.

    Args:
        visual: (B, L) bool.
        schedules: for every number of visual tokens but 0; empty where the data decide what leaves.
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
