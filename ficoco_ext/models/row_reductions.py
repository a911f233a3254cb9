"""What a prefill did to each of its rows, in positions of the prompt."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ..reduction import Reduction
from .reduced_prefill import GroupRecord, ReducedPrefill


def row_reductions(prefill: ReducedPrefill, row: int) -> tuple[Reduction, ...]:
    """The reductions of one row, batch of 1, one for every layer that removed something from it.

    Indices are positions of the prompt as the language model got it, padding included.
    """
    found: list[Reduction] = []
    empty = ended = 0  # leading positions that were added since the last reduction, and those of it that were removed
    for record in prefill.records:
        member = _member(record, row)
        if member is None:
            continue
        if record.reduction is not None:
            step = _moved(_only(record.reduction, member), empty, ended)
            found.append(step if not found else step.after(found[-1]))
            ended = 0
        removed = max(-record.shift, 0)
        ended += max(removed - empty, 0)
        empty = max(empty - removed, 0) + max(record.shift, 0)
    return tuple(found)


def _member(record: GroupRecord, row: int) -> int | None:
    """The index of the row within the record's group; None if it is not in it."""
    if record.rows is None:
        return row
    members = record.rows.tolist()
    return members.index(row) if row in members else None


def _only(reduction: Reduction, row: int) -> Reduction:
    held = {field.name: getattr(reduction, field.name) for field in fields(reduction)}
    one: dict[str, Any] = {name: t[row : row + 1] for name, t in held.items() if isinstance(t, Tensor)}
    return replace(reduction, **one)


def _moved(step: Reduction, empty: int, ended: int) -> Reduction:
    """A reduction of tokens that had moved since the one before, with the indices that the one before had left.

    ``empty`` leading positions had been added, which survive here and are left out. The first ``ended`` positions,
    padding, had been removed, so they end here.
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
