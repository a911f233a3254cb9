"""The table of all modes and families, and what is wrong with it. Knows nothing of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from foreign.outcomes import Expected, Outcome, Results, judge

UNMODIFIED = "unmodified"


@dataclass(frozen=True)
class Run:
    """All tests of one family in one mode.

    Attributes:
        attached: models that were attached.
        results: what became of the tests.
    """

    mode: str
    family: str
    attached: int
    results: Results

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.family} {self.mode}"


def report(runs: Iterable[Run], expected: Iterable[Expected], release: str) -> tuple[list[str], list[str]]:
    """Lines of the table, and a line for each thing that is wrong."""
    runs, expected = list(runs), list(expected)
    unmodified = {run.family: run for run in runs if run.mode == UNMODIFIED}
    lines, faults, explained = [_HEAD], [], {}
    for run in runs:
        if run.mode == UNMODIFIED:
            lines.append(_row(run))
            faults += [] if _count(run, "passed") else [f"{run.name}: no test passed"]
            continue
        listed = [one for one in expected if one.applies(run.mode, run.family, release)]
        verdict = judge(unmodified[run.family].results, run.results, listed)
        lines.append(_row(run, len(verdict.unexpected) + len(verdict.reasons)))
        for test, reason in verdict.reasons.items():
            explained.setdefault(reason, {}).setdefault(run.name, []).append(test)
        faults += [f"{run.name}: {test} {_said(one)}" for test, one in verdict.unexpected.items()]
        faults += [f"{run.name}: {test} is listed and does not differ; take it off the list" for test in verdict.stale]
        faults += [] if run.attached else [f"{run.name}: no model was attached"]
    return [*lines, *_reasons(explained)], faults


_HEAD = f"{'':36}{'passed':>8}{'failed':>8}{'skipped':>8}{'differ':>8}{'models attached':>17}"


def _row(run: Run, differ: int | None = None) -> str:
    row = f"{run.name:36}" + "".join(f"{_count(run, result):>8}" for result in ("passed", "failed", "skipped"))
    return row if differ is None else f"{row}{differ:>8}{run.attached:>17}"


def _count(run: Run, result: str) -> int:
    return sum(one.result == result for one in run.results.values())


def _said(outcome: Outcome) -> str:
    return f"{outcome.result}: {outcome.message}" if outcome.message else outcome.result


def _reasons(explained: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    lines = []
    for reason, where in explained.items():
        lines += ["", reason]
        lines += [f"  {name}: {', '.join(tests)}" for name, tests in where.items()]
    return lines
