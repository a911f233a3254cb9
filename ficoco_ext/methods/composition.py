"""What a filter, a correlate and a compress are together: words, needs, price, and one operator if they can be one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..stages import CompressStage, CorrelateStage, FilterStage, Priced, Shape, needs
from .base import Words

Stages = tuple[Any, Any, Any]  # of a method; the second is None if the filter settles who inherits, or all are dropped


def dropped(filter: Any, correlate: Any) -> bool:
    """Whether sources go into no other token."""
    if correlate is None:
        return not FilterStage.of(filter).inheritor
    return CorrelateStage.of(correlate).drops


def words(filter: Any, correlate: Any, compress: Any) -> Words:
    """What each of the three does."""
    chooses = FilterStage.of(filter)
    inherits = (chooses.inheritor or "none") if correlate is None else CorrelateStage.of(correlate).describe()
    merges = "dropped" if dropped(filter, correlate) else CompressStage.of(compress).describe()
    return Words(chooses.describe(), inherits, merges)


def stage_needs(filter: Any, correlate: Any, compress: Any, *own: str) -> tuple[str, ...]:
    """What the three need, and what the method needs of its own."""
    found = [*FilterStage.of(filter).needs, *CompressStage.of(compress).needs, *own]
    return needs.in_order(found if correlate is None else [*found, *CorrelateStage.of(correlate).needs])


def targets(filter: Any, correlate: Any, candidates: int) -> int | None:
    """Targets of each source when ``candidates`` tokens are kept; None: not known before it runs."""
    if correlate is None:
        return FilterStage.of(filter).count(candidates)
    return CorrelateStage.of(correlate).count(candidates)


def operations(filter: Any, correlate: Any, compress: Any, shape: Shape) -> list[Priced]:
    """What the three call for one reduction.

    Raises:
        ValueError: the cost of one of them is not known.
    """
    shape = replace(shape, targets=targets(filter, correlate, shape.kept) or 0)
    found = FilterStage.of(filter).operations(shape)
    if correlate is not None:
        links = CorrelateStage.of(correlate)
        shape = replace(shape, neighbours=links.neighbours(shape.visual))
        found = [*found, *links.operations(shape)]
    return [*found, *CompressStage.of(compress).operations(shape)]


def _together(stages: list[Any], settings_of: str) -> dict[str, Any] | None:
    """What the method ``settings_of`` of all ``stages`` says, or None if one has no settings."""
    settings: dict[str, Any] = {}
    for stage in stages:
        own = getattr(stage, settings_of)()
        if own is None:
            return None
        settings |= own
    return settings


def fused_settings(filter: Any, correlate: Any, compress: Any) -> dict[str, Any] | None:
    """Settings of :func:`ficoco_ext.ops.reduce` that do what the three do, or None if there are none."""
    if correlate is None:
        return None
    stages = [FilterStage.of(filter), CorrelateStage.of(correlate), CompressStage.of(compress)]
    return _together(stages, "fused")


def fused_in_sequence(filter: Any, correlate: Any, compress: Any) -> dict[str, Any] | None:
    """Settings of :func:`ficoco_ext.ops.reduce_sequence` that do what the three do, or None if there are none."""
    stages: list[Any] = [FilterStage.of(filter), CompressStage.of(compress)]
    if correlate is not None:
        stages.append(CorrelateStage.of(correlate))
    return _together(stages, "fused_in_sequence")
