"""Every page's cost commands work; the cost model's table is what the code says. test_pages.py runs the examples."""

from __future__ import annotations

import re

import pytest
import typer.testing
from helpers.paths import DOCS, ROOT

from ficoco_ext.cli.app import app
from ficoco_ext.cost import reproduce

PAGE = DOCS / "cost_model.md"
PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))


def _commands():
    text = "".join(page.read_text() for page in PAGES)
    return sorted(set(re.findall(r"^(?:    )?(ficoco (?:cost|plan) .*)$", text, flags=re.MULTILINE)))


@pytest.mark.parametrize("command", _commands())
def test_commands(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    result = typer.testing.CliRunner().invoke(app, command.split()[1:])
    assert result.exit_code == 0, result.stderr


def test_there_are_commands():
    assert len(_commands()) >= 6


def test_the_table_of_discrepancies_is_complete():
    rows = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if re.match(r"\| [89] \|", line)]
    said = {tuple(cell.strip() for cell in row[:5]) for row in rows}
    cells = [cell for cell in reproduce.reproduce() if cell.note]
    wanted = {
        (
            cell.table,
            f"{cell.method}, {cell.precision}",
            reproduce.QUANTITIES[cell.quantity],
            f"{cell.printed:g}",
            f"{cell.ours:.4g}",
        )
        for cell in cells
    }
    assert len(cells) == 6
    assert said == wanted
