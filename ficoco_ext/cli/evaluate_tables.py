"""What ``ficoco eval`` prints and writes: tables for people, one document, a page and a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..io import files
from . import common

if TYPE_CHECKING:
    from ..evaluation import Results
    from ..evaluation.summary import Summary


def show(
    results: Results, mean_of: tuple[str, ...], plot: Path | None, markdown: Path | None, *, json_: bool = False
) -> None:
    """Tables for people or one document, a picture and a page."""
    from ..evaluation import hard_kinds, price
    from ..evaluation.markdown import budgets, headings, legend, refused, row, spreads

    summary = results.summary(mean_of)
    if json_:
        written = dict(_write(results, summary, plot, markdown))
        held = {name: results.document[name] for name in ("model", "run", "platform")}
        held["where_reduction_hurts"] = hard_kinds.found(summary.kinds)
        common.print_json(held | summary.to_dict() | {what: str(file) for what, file in written.items()})
        return
    console, head = common.console(), headings(summary)
    for budget, lines in budgets(summary).items():
        there = [line for line in lines if line.mean is not None]
        if there:
            common.show(console, _table(budget, head, [row(summary, line) for line in there]))
            rows = [price.row(summary, line) for line in there]
            common.show(console, _table(f"{budget}: tokens, FLOPs and time", price.headings(summary), rows))
    for text in spreads(summary):
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    for text in refused(summary):
        console.print(common.text(text, style="yellow"), soft_wrap=True)
    for text in legend(results, summary):
        console.print(common.text(text, style="dim"), soft_wrap=True)
    for what, file in _write(results, summary, plot, markdown):
        console.print(f"{what} {file}", soft_wrap=True)


def _table(title: str, head: list[str], rows: list[list[str]]) -> common.Table:
    made = common.table(head[0], *(f">{name}" for name in head[1:]), title=title)
    for cells in rows:
        made.add_row(*cells)
    return made


def _write(results: Results, summary: Summary, plot: Path | None, markdown: Path | None) -> Iterator[tuple[str, Path]]:
    """Write a page and draw a picture where asked to; what was written."""
    from .. import viz
    from ..evaluation.markdown import page
    from ..evaluation.plot import draw

    if markdown is not None:
        files.write_text(markdown, page(results, summary))
        yield "markdown", markdown
    if plot is not None:
        viz.save(draw(results, summary), plot)
        yield "picture", plot
