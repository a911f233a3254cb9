"""Tables of ``ficoco cost --reproduce``: the rows of FiCoCo's tables 3 and 5, layer by layer, and their accuracies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ..cost import paper_presets, paper_rows
from ..cost.paper_rows import PaperRow, Reading
from . import common


def show(rows: Sequence[PaperRow]) -> None:
    """Schedules and TFLOPs of every row, why some are missing, what the papers print, and what would measure it."""
    console = common.console()
    for table, group in itertools.groupby(rows, key=lambda row: row.table):
        held = tuple(group)
        reasons = _schedules(table, held)
        for index, (label, reason) in enumerate(reasons, 1):
            console.print(common.text(f"({index}) {label}: {reason}"), soft_wrap=True)
        _accuracy(table, held)
    for basis, meaning in paper_presets.BASES.items():
        console.print(common.text(f"{basis.replace('_', ' ')}: {meaning}"), soft_wrap=True)
    _commands(rows)


def _schedules(table: str, rows: Sequence[PaperRow]) -> list[tuple[str, str]]:
    """One line for each reading of a row; returns the notes that its numbers point to."""
    head = ("method", ">printed", ">ours", ">error", ">tokens, mean", "basis", "visual tokens, layer by layer", "runs")
    made = common.table(*head, title=f"Table {table}, layer by layer: {rows[0].model}, TFLOPs")
    notes: list[tuple[str, str]] = []
    for row in rows:
        mark = ""
        if row.reason:
            if row.reason not in [reason for _, reason in notes]:
                notes.append((row.label, row.reason))
            mark = f" ({1 + [reason for _, reason in notes].index(row.reason)})"
        name, runs = common.text(row.label + mark), row.method or "-"
        if not row.readings:
            made.add_row(name, f"{row.printed:g}", "-", "-", "-", "-", "not known", runs)
        for index, one in enumerate(row.readings):
            printed = row.printed if one.preset.printed is None else one.preset.printed
            made.add_row(
                name if index == 0 else "",
                f"{printed:g}",
                f"{one.ours:.4g}",
                f"{one.error:+.1%}",
                f"{one.average:.4g}",
                one.preset.basis.replace("_", " "),
                common.text(_said(one)),
                runs if index == 0 else "",
            )
    common.show(common.console(), made)
    return notes


def _said(one: Reading) -> str:
    unit = "" if one.preset.unit == paper_presets.OPERATIONS else f", {one.preset.unit}"
    return f"{one.preset.said}{unit}"


def _accuracy(table: str, rows: Sequence[PaperRow]) -> None:
    made = common.table("method", *(f">{name}" for name in paper_rows.TASKS), title=f"Table {table}: accuracy, printed")
    for row in rows:
        made.add_row(
            common.text(row.label), *("-" if one.printed is None else f"{one.printed:g}" for one in row.accuracy)
        )
    console = common.console()
    common.show(console, made)
    console.print(common.text(f"Table {table}, every accuracy: {paper_rows.NOT_HERE}."), soft_wrap=True)


def _commands(rows: Sequence[PaperRow]) -> None:
    console = common.console()
    console.print(
        common.text("What measures a row where the weights are, with lmms-eval; of one cell: --json", style="bold")
    )
    for row in rows:
        command = row.command()
        if command is not None:
            console.print(
                common.text(f"table {row.table}, {row.label}, {row.printed:g} TFLOPs: {command}"), soft_wrap=True
            )
    for benchmark, (task, note) in paper_rows.TASKS.items():
        if note:
            console.print(common.text(f"{benchmark}, {task}: {note}", style="dim"), soft_wrap=True)
