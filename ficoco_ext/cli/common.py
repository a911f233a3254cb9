"""What all commands share: parsing values, reporting errors, and printing."""

from __future__ import annotations

import ast
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..io.printable import printable

# What a user can cause. Anything else is a defect of ours and exits with 1.
_EXPECTED = (ValueError, TypeError, OSError, ImportError, NotImplementedError, MemoryError)
_WIDTH = 110  # of output that is not read on a terminal
_MOST_INTEGERS = 10_000  # of a range: more layers or seeds than anybody has
_MOST_THREADS = 1024  # OpenMP crashes the process where the system has no room for more

JsonOption = typer.Option("--json", help="Print one JSON document instead of tables.")
DebugOption = typer.Option("--debug", help="Show the traceback of an error.")
SetOption = typer.Option("--set", metavar="KEY=VALUE", help="Hyperparameter of the method; repeatable.")


@contextlib.contextmanager
def reported(debug: bool) -> Iterator[None]:
    """An error and its causes, whole, go to stderr; exit code 2, or 1 if it is our defect; ``debug`` raises it."""
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if debug:
            raise
        expected = isinstance(error, _EXPECTED)
        hint = "" if expected else f" ({type(error).__name__}; this should not happen, --debug shows where)"
        typer.echo(printable(f"ficoco: error: {whole(error)}{hint}", keep="\n"), err=True)
        raise typer.Exit(2 if expected else 1) from error


def whole(error: BaseException) -> str:
    """What an error says, every line of it, and behind it each cause that says something else.

    Example:
        >>> try:
        ...     raise ValueError("no tokenizer") from OSError("no such file")
        ... except ValueError as error:
        ...     print(whole(error))
        no tokenizer
          because of OSError: no such file
    """
    told, met = str(error).strip() or type(error).__name__, {id(error)}
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    while cause is not None and id(cause) not in met:
        met.add(id(cause))
        text = str(cause).strip()
        if not text or text not in told:
            told += f"\nbecause of {type(cause).__name__}" + (f": {text}" if text else "")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return told.replace("\n", "\n  ")  # what others wrote begins no line of ours


def notice(text: str) -> None:
    """One sentence on stderr."""
    typer.echo(printable(f"ficoco: note: {text}"), err=True)


def assignments(given: list[str] | None) -> dict[str, Any]:
    """``["lam=0.5", "variant=paper"]`` as a dictionary; values are Python literals, or else strings.

    Raises:
        ValueError: not of the form key=value, or a key twice.

    Example:
        >>> assignments(["lam=0.5", "variant=paper", "class_attention=False"])
        {'lam': 0.5, 'variant': 'paper', 'class_attention': False}
    """
    found: dict[str, Any] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier():
            raise ValueError(f"--set must be key=value, got {text!r}")
        if key in found:
            raise ValueError(f"--set {key} is given twice")
        try:
            found[key] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            found[key] = value.strip()
    return found


def integers(option: str, text: str, count: int | None = None) -> tuple[int, ...]:
    """``"12,13"`` as integers; with ``count`` exactly so many. ``12-22`` names a range.

    Example:
        >>> integers("--layers", "3,12-14")
        (3, 12, 13, 14)
    """
    found: list[int] = []
    try:
        for part in text.split(","):
            low, dash, high = part.strip().partition("-")
            named = range(int(low), int(high) + 1) if dash else range(int(low), int(low) + 1)
            if named.stop - named.start > _MOST_INTEGERS:
                raise ValueError
            found += named
    except ValueError:
        raise ValueError(
            f"{option} must be integers separated by commas, or ranges of at most {_MOST_INTEGERS}, got {text!r}"
        ) from None
    if not found or (count is not None and len(found) != count):
        raise ValueError(f"{option} must be {count or 'some'} integers separated by commas, got {text!r}")
    return tuple(found)


def ratios(option: str, text: str) -> tuple[float, ...]:
    """``"0.5,0.25"`` as numbers.

    Example:
        >>> ratios("--keep-ratio", "0.5,0.25")
        (0.5, 0.25)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be numbers separated by commas, got {text!r}") from None


def print_json(document: Any) -> None:
    """The only thing on stdout of a command with ``--json``."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


class _Console(Console):
    """Prints strings as they are: brackets and colons are no markup, and what would steer the terminal is escaped.

    So are line ends: a string is a line or a cell, and what others wrote begins no line of ours.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Rich's own place for every string that is printed or stands in a table."""
        return super().render_str(printable(text), **options)


def console(width: int = _WIDTH, *, stderr: bool = False) -> Console:
    """For tables on stdout, or what goes on on stderr; ``width`` where nobody's terminal sets a limit."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return _Console(stderr=stderr) if terminal else _Console(stderr=stderr, width=width)


def text(value: str, style: str = "") -> Text:
    """A piece of text in one style, to be printed or to stand in a table; the only way to make one from a string."""
    return Text(printable(value), style=style)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table; a column whose name begins with ``>`` is set to the right."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    return made


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Torch's CPU threads set to ``count`` inside; None leaves them alone.

    Raises:
        ValueError: not in 1 ... 1024.
    """
    if count is not None and not 1 <= count <= _MOST_THREADS:
        raise ValueError(f"--threads must be in 1 ... {_MOST_THREADS}, got {count}")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before if count is None else count)
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Gives a function that shows what is being done, where stderr is a terminal; elsewhere it is silent."""
    stderr = console(stderr=True)
    if not stderr.is_terminal:
        yield lambda words: None
        return
    with stderr.status("starting") as status:
        yield lambda words: status.update(text(words))


def seconds(value: float) -> str:
    """``12.3 ms``."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def amount(value: float, unit: str) -> str:
    """``1.23 GFLOP``, in powers of ten."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:g} {unit}"
