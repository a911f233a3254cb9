"""A summary as a page of tables."""

from __future__ import annotations

import re

from ..io.printable import printable
from . import first_token, hard_kinds, price
from .goal import WHERE
from .results import Results
from .statistics import Estimate
from .summary import Line, Summary


def percent(value: float | None, digits: int = 1) -> str:
    """``81.2``; a dash for what is not known.

    Example:
        >>> from ficoco_ext.evaluation.markdown import percent
        >>> percent(0.8123), percent(None)
        ('81.2', '-')
    """
    return "-" if value is None or value != value else f"{100 * value:.{digits}f}"


def interval(found: Estimate | None) -> str:
    """``81.2 [78.0, 84.1]``."""
    return "-" if found is None else f"{percent(found.value)} [{percent(found.low)}, {percent(found.high)}]"


def budgets(summary: Summary) -> dict[str, list[Line]]:
    """The settings of each budget, in order; the unreduced model's is the first."""
    found: dict[str, list[Line]] = {}
    for line in summary.lines:
        found.setdefault(line.budget, []).append(line)
    return found


def headings(summary: Summary) -> list[str]:
    """Of the columns of :func:`row`."""
    return [
        "method",
        "mean [95 %]",
        "less unreduced",
        *(["undecided"] if _leaves_undecided(summary) else []),
        *summary.kinds,
        "same answer",
    ]


def _leaves_undecided(summary: Summary) -> bool:
    return any(line.undecided is not None for line in summary.lines)


def row(summary: Summary, line: Line) -> list[str]:
    """One setting's answers; percent but for the number of those that could not be judged."""
    return [
        line.name,
        interval(line.mean),
        interval(line.difference),
        *(["-" if line.undecided is None else str(line.undecided)] if _leaves_undecided(summary) else []),
        *(percent(line.kinds[kind].value if kind in line.kinds else None) for kind in summary.kinds),
        percent(line.agreement),
    ]


def legend(results: Results, summary: Summary) -> list[str]:
    """What the numbers are, in sentences."""
    document = results.document
    at, run = document["platform"], document["run"]
    threads = sorted({cell["threads"] for cell in document["cells"]})
    grid = run["data"].get("gridvqa")
    data = f"grid scenes of the split {grid['split']!r}" if grid else "rows of a file or a program"
    seeds = ", ".join(map(str, run["seeds"]))
    commit = f"commit {at['commit']}" if at.get("commit") else "commit not known"
    said = [
        f"{document['model']}, {at['dtype']} on {at['device']} ({at.get('processor') or 'processor not known'}), "
        f"{'/'.join(map(str, threads))} threads, torch {at['torch']}, {commit}. {summary.questions} questions about "
        f"{summary.scenes} scenes: {data}, seeds {seeds}. Answers judged {run['asking']['judge']}.",
        f"mean: of {', '.join(summary.mean_of)}, each counting the same, in percent, with the 95 % interval of "
        "resampled scenes; less unreduced: the difference, drawn together.",
        "same answer: as the unreduced model's, in percent. FLOPs of a prefill and KV cache after it: in percent of "
        "the unreduced ones, by the cost model. tokens: visual ones into the language model, mean over its layers, and "
        "out of its last layer. s: measured, for all questions, in one run, a setting after the other: times are "
        "indicative; the tower sees a picture once for all its questions, where FLOPs count it for each.",
        *price.legend(summary),
    ]
    if _leaves_undecided(summary):
        said.append(
            'undecided: answers that say neither the truth nor anything else for certain, such as "yes and no"; they '
            "count as not right."
        )
    said.append(hard_kinds.sentence(summary.kinds))
    goals = {one.get("goal", {}).get("equal") for one in document["settings"]}
    said += [text for equal, text in WHERE.items() if equal in goals]
    if text_aware := dict.fromkeys(line.name for line in summary.lines if line.reads_text):
        said.append(
            f"{', '.join(text_aware)}: chooses by the question, so a picture is encoded and reduced again for each, "
            "and its cache serves no other question; what chooses without text may share one reduced picture among all "
            "questions about it."
        )
    said += first_token.machines(document)
    if at.get("note"):
        said.append(at["note"])
    if any(one.get("seeded") for one in document["settings"]):
        said.append(
            "A method that draws, as random does, draws once a seed: the error of its mean and difference is at least "
            "the standard deviation over seeds / sqrt(seeds), and the interval as wide as the normal one."
        )
    if summary.bad:
        said.append(f"{len(summary.bad)} rows could not be asked and are in no score; the first: {summary.bad[0]}.")
    return said


def spreads(summary: Summary) -> list[str]:
    """A line for each setting that ran with several seeds: the mean of each, and their standard deviation."""
    found = []
    for line in summary.lines:
        if line.seeds is not None and line.seeds.deviation is not None:
            values = ", ".join(map(percent, line.seeds.values))
            found.append(f"{line.name}, {line.budget}: {values}; standard deviation {percent(line.seeds.deviation)}")
    return found


def refused(summary: Summary) -> list[str]:
    """What could not be done or counted, and why."""
    return [f"{line.name}, {line.budget}: {line.remark}" for line in summary.lines if line.remark]


def page(results: Results, summary: Summary) -> str:
    """Everything as markdown; names, kinds and remarks of others stay text in it."""
    parts = ["\n\n".join(map(_literal, legend(results, summary)))]
    for budget, lines in budgets(summary).items():
        there = [line for line in lines if line.mean is not None]
        if there:
            head = [_literal(cell) if cell in summary.kinds else cell for cell in headings(summary)]
            parts.append(f"### {_literal(budget)}\n\n" + _table(head, [row(summary, line) for line in there]))
            parts.append(_table(price.headings(summary), [price.row(summary, line) for line in there]))
    for title, said in (("Spread over seeds", spreads(summary)), ("Not done", refused(summary))):
        if said:
            parts.append(f"### {title}\n\n" + "\n".join(f"- {_literal(text)}" for text in said))
    return "\n\n".join(parts) + "\n"


def _literal(text: str) -> str:
    r"""``text`` without a meaning in markdown.

    Example:
        >>> from ficoco_ext.evaluation.markdown import _literal
        >>> print(_literal("a|b <img src=x> keep_ratio"))
        a\|b \<img src=x\> keep_ratio
    """
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", printable(text))


def _table(head: list[str], rows: list[list[str]]) -> str:
    rows = [[_literal(name), *cells] for name, *cells in rows]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
