"""Several settings as one row: random dropping with three seeds, its mean and its spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .statistics import Bootstrap, Spread, Tally
from .summary import Line


class Run(Protocol):
    """What is asked here of the :class:`ficoco_ext.evaluation.Results` of a run."""

    document: dict[str, Any]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of questions that were asked."""

    @property
    def bootstrap(self) -> Bootstrap:
        """The resamples of its scenes."""

    def cells(self, setting: int) -> list[dict[str, Any]]:
        """What a setting answered."""

    def tally(self, setting: int) -> Tally:
        """Right answers of a setting."""


def with_groups(results: Run, chosen: list[int], lines: Sequence[Line]) -> list[Line]:
    """The lines of all settings, with one more after the last of each group and budget.

    Args:
        results: of the run. chosen: kinds in the mean. lines: one a setting, in order.
    """
    members: dict[tuple[str, str], list[int]] = {}
    for number, setting in enumerate(results.document["settings"]):
        if setting.get("group"):
            members.setdefault((setting["group"], setting["budget"]), []).append(number)
    last = {of[-1]: (group, of) for (group, _), of in members.items() if len(of) > 1}
    found: list[Line] = []
    for number, line in enumerate(lines):
        found.append(line)
        if number in last:
            group, of = last[number]
            found.append(_together(results, chosen, group, of, [lines[one] for one in of]))
    return found


def _together(results: Run, chosen: list[int], group: str, of: list[int], lines: list[Line]) -> Line:
    name, members = f"{group}, {len(of)} seeds", tuple(line.name for line in lines)
    budget = lines[0].budget
    if missing := [line for line in lines if line.mean is None]:
        why = f"{missing[0].name}: {missing[0].remark}"
        return Line(name, budget, None, {}, None, None, None, None, None, None, why, members=members)
    draw = results.bootstrap
    tally = _mean([results.tally(number) for number in of])
    each = Spread.of([draw.mean_value(results.tally(number), chosen) for number in of])
    difference = None
    if results.cells(0):  # the unreduced model draws nothing: the spread is the same
        difference = draw.difference(tally, results.tally(0), chosen).at_least(each.error)
    seconds = sum(line.seconds or 0.0 for line in lines)
    asked = sum(len(cell["right"]) for number in of for cell in results.cells(number))
    undecided = [line.undecided for line in lines if line.undecided is not None]
    agreed = [line.agreement for line in lines if line.agreement is not None]
    costs = [line.cost for line in lines]
    return Line(
        name,
        budget,
        draw.mean(tally, chosen).at_least(each.error),
        dict(zip(results.kinds, draw.kinds(tally), strict=True)),
        difference,
        sum(agreed) / len(agreed) if agreed else None,
        each,
        costs[0] if all(cost == costs[0] for cost in costs) else None,
        seconds,
        asked / seconds if seconds else None,
        None,
        sum(undecided) if undecided else None,
        members=members,
    )


def _mean(tallies: Sequence[Tally]) -> Tally:
    """Right answers in the mean over the settings, which were asked the same."""
    return Tally(np.mean([one.right for one in tallies], axis=0), tallies[0].asked)
