"""The command line in this process."""

from __future__ import annotations

import json

import typer.testing

from ficoco_ext.cli.app import app


def run(*arguments: object) -> typer.testing.Result:
    """``ficoco`` with these arguments."""
    return typer.testing.CliRunner().invoke(app, [str(argument) for argument in arguments])


def document(*arguments: object):
    """What it prints with ``--json``."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)
