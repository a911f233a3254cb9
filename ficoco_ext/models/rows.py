"""What a prefill did to each of its rows, told in the columns of the prompt."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ..reduction import Reduction
from .prefill import Prefill, Record


def row_reductions(prefill: Prefill, row: int) -> tuple[Reduction, ...]:
    """The reductions of one row, batch of 1, one for every layer that removed something from it.

    Columns are those of the prompt as the language model got it, padding included.
    """
    told: list[Reduction] = []
    empty = ended = 0  # columns in front that the story does not know, and columns of the story that are given up
    for record in prefill.records:
        place = _place(record, row)
        if place is None:
            continue
        if record.reduction is not None:
            step = _moved(_only(record.reduction, place), empty, ended)
            told.append(step if not told else step.after(told[-1]))
            ended = 0
        given_up = max(-record.shift, 0)
        ended += max(given_up - empty, 0)
        empty = max(empty - given_up, 0) + max(record.shift, 0)
    return tuple(told)


def _place(record: Record, row: int) -> int | None:
    """Where in the record's group the row is."""
    if record.rows is None:
        return row
    members = record.rows.tolist()
    return members.index(row) if row in members else None


def _only(reduction: Reduction, row: int) -> Reduction:
    held = {field.name: getattr(reduction, field.name) for field in fields(reduction)}
    one: dict[str, Any] = {name: t[row : row + 1] for name, t in held.items() if isinstance(t, Tensor)}
    return replace(reduction, **one)


def _moved(step: Reduction, empty: int, ended: int) -> Reduction:
    """A reduction of columns that had moved since the one before, told in the columns that that one had left.

    ``empty`` columns had come in front, which survive here and are taken out of the story. The first ``ended`` columns,
    padding, had been given up, so here they end.
    """
    dropped = torch.full_like(step.source_map[:, :1], -1).expand(-1, ended)
    return replace(
        step,
        size=step.size[:, empty:],
        kept=step.kept[:, empty:] + (ended - empty),
        sources=step.sources + (ended - empty),
        source_map=torch.cat([dropped, _less(step.source_map[:, empty:], empty)], 1),
        targets=step.targets - empty,
    )


def _less(source_map: Tensor, by: int) -> Tensor:
    return torch.where(source_map < 0, source_map, source_map - by)
