"""What all commands share: reporting errors, and printing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn

import rich.progress
import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ..io.printable import printable
from ..io.ratios import times as times  # one way to say ratios, for all commands

# What a user can cause. Anything else is a defect of ours and exits with 1.
_EXPECTED = (ValueError, TypeError, OSError, ImportError, NotImplementedError, MemoryError)
SCHEMA = 1  # of the JSON documents
WIDTH = 80  # of output that is not read on a terminal
_TEXT = 20  # columns that a column of text may be squeezed to before a table is split
_MOST_THREADS = 1024  # OpenMP crashes the process where the system has no room for more


class _Running(NamedTuple):
    """The command that runs: its name, and its options by the name of the argument that each sets."""

    name: str
    options: Mapping[str, str]


_RUNNING: ContextVar[_Running | None] = ContextVar("running", default=None)


@contextlib.contextmanager
def running(name: str, options: Mapping[str, str]) -> Iterator[None]:
    """Inside, errors name ``options`` and documents name the command."""
    token = _RUNNING.set(_Running(name, options))
    try:
        yield
    finally:
        _RUNNING.reset(token)


def in_options(text: str, options: Mapping[str, str]) -> str:
    """A message of the library in the words of the command line: what names an argument names the option that sets it.

    Example:
        >>> in_options("plan: kv_mb=3 is out of reach", {"kv_mb": "--kv-mb"})
        '--kv-mb 3 is out of reach'
        >>> in_options("Schedule: tokens must be in [1, 576], got 600", {"tokens": "--tokens"})
        '--tokens must be in [1, 576], got 600'
    """
    text = re.sub(r"^(ficoco::\w+|plan|Schedule): ", "", text)
    for name, option in options.items():
        alone = r"(?<![-.\w\"'`])" + name
        text = re.sub(rf"{alone}=(?=\S)", f"{option} ", text)
        text = re.sub(rf"{alone}\b" if "_" in name else rf"{alone}(?= must\b)", option, text)
    return text


@contextlib.contextmanager
def reported(debug: bool) -> Iterator[None]:
    """An error and its causes, whole, go to stderr; exit code 2, or 1 if it is our defect; ``debug`` raises it."""
    try:
        yield
    except typer.Exit:
        raise
    except BrokenPipeError:
        closed_pipe()
    except Exception as error:
        if debug:
            raise
        expected = isinstance(error, _EXPECTED)
        hint = "" if expected else f" ({type(error).__name__}; this should not happen, --debug shows where)"
        now = _RUNNING.get()
        said = whole(error) if now is None else in_options(whole(error), now.options)
        typer.echo(printable(f"ficoco: error: {said}{hint}", keep="\n"), err=True)
        raise typer.Exit(2 if expected else 1) from error


def closed_pipe() -> NoReturn:
    """End quietly: who reads our output has seen enough, as ``head`` has. What is still buffered goes nowhere."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    raise typer.Exit(0)


def whole(error: BaseException) -> str:
    """What an error says, every line of it, and after it each cause that says something else.

    Example:
        >>> try:
        ...     raise ValueError("no tokenizer") from OSError("no such file")
        ... except ValueError as error:
        ...     print(whole(error))
        no tokenizer
          because of OSError: no such file
    """
    said, met = str(error).strip() or type(error).__name__, {id(error)}
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    while cause is not None and id(cause) not in met:
        met.add(id(cause))
        text = str(cause).strip()
        if not text or text not in said:
            said += f"\nbecause of {type(cause).__name__}" + (f": {text}" if text else "")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return said.replace("\n", "\n  ")  # what others wrote begins no line of ours


def notice(text: str) -> None:
    """One sentence on stderr."""
    typer.echo(printable(f"ficoco: note: {text}"), err=True)


def print_json(document: Mapping[str, Any]) -> None:
    """The only thing on stdout of a command with ``--json``; its first key names command and version.

    The version rises when a key is renamed or removed or changes its meaning, not when one is added.
    """
    now = _RUNNING.get()
    schema = {} if now is None else {"schema": f"ficoco-{now.name}/{SCHEMA}"}
    typer.echo(json.dumps(schema | dict(document), indent=2, allow_nan=False))


class _Console(Console):
    """Prints strings as they are: brackets and colons are no markup, and what would steer the terminal is escaped.

    So are line ends: a string is a line or a cell, and what others wrote begins no line of ours.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """What Rich calls for every string that is printed or stands in a table."""
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """Rich would exit with code 1."""
        closed_pipe()


def console(width: int = WIDTH, *, stderr: bool = False) -> Console:
    """For tables on stdout, or progress on stderr; ``width`` where no terminal sets a limit."""
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


def fitted(console: Console, made: Table) -> list[Table]:
    """``made``, or several narrower tables with its columns, so that no number is cut.

    A column of text may be wrapped; one that is set to the right holds numbers and may not. The columns of text before
    the first numbers say what a row is about and stand in every part.
    """

    def width(index: int) -> int:
        column = made.columns[index]
        cells = [column.header, *column.cells]
        most = max(console.measure(cell).maximum for cell in cells)
        return most + 3 if column.justify == "right" else min(most, _TEXT) + 3

    each = [width(index) for index in range(len(made.columns))]
    numbers = [index for index, column in enumerate(made.columns) if column.justify == "right"]
    about = list(range(max(min(numbers, default=1), 1)))
    if sum(each[one] for one in about) > console.width // 2:
        about = [0]
    groups: list[list[int]] = [[]]
    for index in range(len(about), len(each)):
        if groups[-1] and 1 + sum(each[one] for one in (*about, *groups[-1], index)) > console.width:
            groups.append([])
        groups[-1].append(index)
    if len(groups) == 1:
        return [made]
    found = []
    for group in groups:
        part = Table(title=made.title, title_justify="left", title_style="bold", show_lines=made.show_lines)
        for index in (*about, *group):
            column = made.columns[index]
            part.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap)
        cells = [list(made.columns[index].cells) for index in (*about, *group)]
        for number, values in enumerate(zip(*cells, strict=True)):
            part.add_row(*values, end_section=made.rows[number].end_section)
        found.append(part)
    return found


def show(console: Console, *tables: Table) -> None:
    """Print tables, each split where the console is too narrow for its numbers."""
    for made in tables:
        for part in fitted(console, made):
            console.print(part)


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Torch's CPU threads set to ``count`` inside; None leaves them alone.

    Raises:
        ValueError: not in 1 ... 1024.
    """
    if count is not None and not 1 <= count <= _MOST_THREADS:
        raise ValueError(f"--threads must be in 1 ... {_MOST_THREADS}, got {count}")
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before if count is None else count)
        yield
    finally:
        torch.set_num_threads(before)


class Progress:
    """Shows what is being done and, where the number of steps is known, how much is done and the time left.

    On a terminal only, on stderr, so that stdout stays what it is. Calls from one thread.
    """

    def __init__(self, bar: rich.progress.Progress | None) -> None:
        self._bar, self._done = bar, 0
        self._task = None if bar is None else bar.add_task("starting", total=None)

    def __call__(self, words: str, done: int | None = None, total: int | None = None) -> None:
        """``words``: what is being done now. ``done`` of ``total`` steps are done; None: their number is unknown."""
        if self._bar is None or self._task is None:
            return
        if total is None or (done or 0) < self._done:  # another part: its speed is not known yet
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task("", total=total)
        self._done = done or 0
        self._bar.update(self._task, description=printable(words), completed=done, total=total)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """A :class:`Progress` for the work inside; it is gone from the terminal afterwards."""
    stderr = console(stderr=True)
    if not stderr.is_terminal:
        yield Progress(None)
        return
    columns = (
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}", markup=False),
        _WhereCounted(rich.progress.BarColumn()),
        _WhereCounted(rich.progress.MofNCompleteColumn()),
        _WhereCounted(rich.progress.TimeRemainingColumn()),
    )
    with rich.progress.Progress(*columns, console=stderr, transient=True) as bar:
        yield Progress(bar)


class _WhereCounted(rich.progress.ProgressColumn):
    """A column that is empty where the number of steps is unknown."""

    def __init__(self, column: rich.progress.ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: rich.progress.Task) -> RenderableType:
        """What Rich calls for every line."""
        return "" if task.total is None else self._column.render(task)


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
