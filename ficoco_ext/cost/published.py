"""What papers print of accuracy with fewer visual tokens: numbers of others, for choosing, none of them measured here.

``docs/published.md`` shows these tables; a test holds the page to them.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from .paper_rows import PaperRow, paper_rows

# Of FiCoCo's table 3: those that most of its rows have.
MEAN_OF = ("SQA", "TextVQA", "POPE", "MMB-CN", "GQA", "MMB", "VQAv2")


@dataclass(frozen=True)
class Published:
    """One table of published accuracies.

    Attributes:
        id, title, unit: what it is. amounts: the columns. sources: by the short names that rows use.
        rows: method, source, one value an amount; None where the source has none.
    """

    id: str
    title: str
    unit: str
    amounts: tuple[str, ...]
    sources: dict[str, str]
    rows: tuple[tuple[str, str, tuple[float | None, ...]], ...]


@dataclass(frozen=True)
class Spread:
    """The lowest and the highest value that papers print for one method at one amount, of the same model."""

    method: str
    amount: str
    low: float
    high: float


@functools.cache
def _data() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("data/published_accuracy.json").read_text(encoding="utf-8")
    return json.loads(text)


def tables() -> tuple[Published, ...]:
    """All tables.

    Example:
        >>> from ficoco_ext.cost import published
        >>> [one.id for one in published.tables()]
        ['kept', 'same harness', 'video', 'crops', 'flash attention']
    """
    return tuple(
        Published(
            one["id"],
            one["title"],
            one["unit"],
            tuple(one["amounts"]),
            dict(one["sources"]),
            tuple(
                (row["method"], name, tuple(row[name])) for row in one["rows"] for name in one["sources"] if name in row
            ),
        )
        for one in _data()["tables"]
    )


def spread() -> tuple[Spread, ...]:
    """How far papers are apart for one and the same method."""
    return tuple(Spread(**one) for one in _data()["spread"])


def spread_source() -> str:
    """Where the spread is from."""
    return str(_data()["spread_source"])


def retained(row: PaperRow) -> tuple[float, int] | None:
    """Of a row of FiCoCo's tables the mean of its scores / the unreduced model's, in percent, and of how many sets.

    Sets are those of :data:`MEAN_OF` that the row has; None if it has fewer than five.

    Example:
        >>> from ficoco_ext.cost import paper_rows, published
        >>> mean, sets = published.retained(paper_rows.paper_rows("3")[1])
        >>> round(mean, 1), sets
        (98.8, 7)
    """
    full = {cell.benchmark: cell.printed for cell in paper_rows(row.table)[0].accuracy}
    ratios = [
        cell.printed / whole
        for cell in row.accuracy
        if cell.benchmark in MEAN_OF and cell.printed is not None and (whole := full[cell.benchmark]) is not None
    ]
    return (100 * sum(ratios) / len(ratios), len(ratios)) if len(ratios) >= 5 else None


def markdown(table: Published) -> str:
    """The table as Markdown: a method a row; values of several sources apart, in the order of the sources.

    Example:
        >>> from ficoco_ext.cost import published
        >>> print(published.markdown(published.tables()[2]).splitlines()[2])
        | HoliTom | 100.7 | 99.1 |
    """
    several = len(table.sources) > 1
    held = [value for *_, values in table.rows for value in values if value is not None]
    digits = 1 if all(round(value, 1) == value for value in held) else 2
    methods = tuple(dict.fromkeys(method for method, *_ in table.rows))
    found = {(method, source): values for method, source, values in table.rows}
    lines = [f"| method | {' | '.join(table.amounts)} |", "|---" * (1 + len(table.amounts)) + "|"]
    for method in methods:
        cells = []
        for index in range(len(table.amounts)):
            said = [
                f"{name} {values[index]:.{digits}f}" if several else f"{values[index]:.{digits}f}"
                for name in table.sources
                if (values := found.get((method, name))) is not None and values[index] is not None
            ]
            cells.append(", ".join(said) or "-")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown_of_rows() -> str:
    """FiCoCo's table 3 as Markdown: printed TFLOPs, and what :func:`retained` gives."""
    lines = ["| TFLOPs, printed | method: percent of the unreduced model (sets, if not seven) |", "|---|---|"]
    groups: dict[float, list[str]] = {}
    for row in paper_rows("3")[1:]:
        found = retained(row)
        if found is not None:
            mean, sets = found
            of = "" if sets == len(MEAN_OF) else f" ({sets})"
            groups.setdefault(_budget(row.printed), []).append(f"{row.label.partition(' [')[0]} {mean:.1f}{of}")
    return "\n".join([*lines, *(f"| {budget:g} | {', '.join(said)} |" for budget, said in groups.items())])


def _budget(printed: float) -> float:
    """The table's heading that a row stands under."""
    return min((4.2, 3.3, 2.4, 1.5), key=lambda heading: abs(heading - printed))
