"""Every ``ficoco`` command on README and pages is one that the command line knows; test_cost_model.py runs some."""

from __future__ import annotations

import re
import shlex

import pytest
from helpers.paths import ROOT

typer = pytest.importorskip("typer")

from ficoco_ext.cli.app import app  # noqa: E402

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def commands():
    """Lines of shell and indented lines that are a command, and inline code that names one with its arguments."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        found |= set(re.findall(r"^    (ficoco .*)$", text, re.MULTILINE))
        for shell in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            found |= set(re.findall(r"^(ficoco .*)$", shell, re.MULTILINE))
        found |= set(re.findall(r"`(ficoco [^`\n]+)`", text))
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_it_parses(command):
    _, name, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    if name.startswith("-"):  # an option of ficoco itself
        assert name == "--help" or any(name in parameter.opts for parameter in group.params)
    elif not name.isupper():  # ficoco COMMAND --help
        assert name in group.commands, f"ficoco has no command {name}"
        if arguments and "--help" not in arguments:
            parent = group.make_context("ficoco", [], resilient_parsing=True)
            group.commands[name].make_context(name, arguments, parent=parent)


def test_there_are_commands():
    assert len(commands()) > 20
