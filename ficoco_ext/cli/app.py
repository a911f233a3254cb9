"""The application: one command a module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..io.printable import printable
from ..version import __version__
from . import bench, common, cost, data, demo, doctor, env, evaluate, fit, methods, plan, reduce, show


@contextlib.contextmanager
def _printable_errors() -> Iterator[None]:
    """The message about a wrong call quotes the call; a reader who has seen enough of a help text is no error."""
    try:
        yield
    except BrokenPipeError:
        common.closed_pipe()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Rich, which prints help, exits with code 1
            common.closed_pipe()
        raise
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


class _Command(TyperCommand):
    """A command that says its name and its options to what it runs: errors and JSON documents name them."""

    def invoke(self, ctx: Any) -> Any:
        options = {
            str(one.name).rstrip("_"): max(one.opts, key=len) for one in self.params if one.opts[0].startswith("-")
        }
        with common.running(str(self.name), options):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Training-free reduction of visual tokens. Every command prints one JSON document with --json.",
)


def _print_version(asked: bool) -> None:
    if asked:
        common.console().print(f"ficoco_ext {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command; Typer shows the application's own help."""


for _name, _module in {
    "demo": demo,
    "show": show,
    "bench": bench,
    "eval": evaluate,
    "cost": cost,
    "plan": plan,
    "fit": fit,
    "methods": methods,
    "reduce": reduce,
    "data": data,
    "env": env,
    "doctor": doctor,
}.items():
    app.command(_name, cls=_Command)(_module.command)
