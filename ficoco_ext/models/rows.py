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
    shift = 0
    for record in prefill.records:
        place = _place(record, row)
        if place is None:
            continue
        step = _moved(_only(record.reduction, place), shift)
        told.append(step if not told else step.after(told[-1]))
        shift = max(shift, 0) + record.shift  # empty columns stay in front; what was given up is told already
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


def _moved(step: Reduction, shift: int) -> Reduction:
    """A reduction of columns that the one before had moved, told in the columns that it had left.

    ``shift`` > 0: empty ones had come in front, which survive here and are taken out of the story. ``shift`` < 0: the
    first ones, padding, had been given up, so here they end.
    """
    if shift > 0:
        return replace(
            step,
            size=step.size[:, shift:],
            kept=step.kept[:, shift:] - shift,
            sources=step.sources - shift,
            source_map=_less(step.source_map[:, shift:], shift),
            targets=step.targets - shift,
        )
    if shift < 0:
        ended = torch.full_like(step.source_map[:, :1], -1).expand(-1, -shift)
        return replace(
            step,
            kept=step.kept - shift,
            sources=step.sources - shift,
            source_map=torch.cat([ended, step.source_map], 1),
        )
    return step


def _less(source_map: Tensor, by: int) -> Tensor:
    return torch.where(source_map < 0, source_map, source_map - by)
