"""The application: one command a module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from ..io.printable import printable
from . import cost, data, demo, env, evaluate, methods, plan, reduce, show


@contextlib.contextmanager
def _printable_errors() -> Iterator[None]:
    """What a wrong call is told quotes the call."""
    try:
        yield
    except Exception as error:
        if isinstance(getattr(error, "message", None), str):
            error.message = printable(error.message)  # type: ignore[attr-defined]
        raise


class _Group(TyperGroup):
    def parse_args(self, *given: Any) -> Any:
        with _printable_errors():
            return super().parse_args(*given)

    def invoke(self, *given: Any) -> Any:
        with _printable_errors():
            return super().invoke(*given)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Training-free reduction of visual tokens. Every command gives one JSON document with --json.",
)
app.command("env")(env.command)
app.command("methods")(methods.command)
app.command("reduce")(reduce.command)
app.command("demo")(demo.command)
app.command("cost")(cost.command)
app.command("plan")(plan.command)
app.command("data")(data.command)
app.command("eval")(evaluate.command)
app.command("show")(show.command)
