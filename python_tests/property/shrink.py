"""Makes a case that fails smaller, as long as it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from property.cases import Case

PLAIN = {  # the simplest value of each
    "dtype": "float32",
    "use": "forward",
    "cache": "dynamic",
    "padding": "left",
    "attention": "sdpa",
    "holes": False,
    "tied": False,
    "video": False,
    "chunk": 1,
    "strategy": "default",
    "text": "llama",
    "hyperparameters": {},
    "heads": 1,
    "kv_heads": 1,
    "tower_heads": 1,
    "steps": 2,
}
LESS = {"layers": 2, "tower_layers": 2, "side": 2, "steps": 2}  # down to


def smaller(case: Case) -> Iterator[Case]:
    """Cases that are one step simpler, the largest steps first."""
    for at in range(len(case.rows)):
        if len(case.rows) > 1:
            yield replace(case, rows=case.rows[:at] + case.rows[at + 1 :])
    for at, row in enumerate(case.rows):
        for place, one in enumerate(row):
            if len(row) > 1 and isinstance(one, tuple):
                yield with_row(case, at, row[:place] + row[place + 1 :])
    for name, value in PLAIN.items():
        if getattr(case, name) != value:
            simple = replace(case, **{name: value})
            yield replace(simple, width=simple.heads * simple.head_dim) if name == "heads" else simple
    for option in ("static_counts", "cache"):
        if option in case.amount:
            yield replace(case, amount={name: value for name, value in case.amount.items() if name != option})
    for name, least in LESS.items():
        if getattr(case, name) > least:
            fewer = replace(case, **{name: getattr(case, name) - 1})
            yield with_side(fewer) if name == "side" else fewer
    for at, row in enumerate(case.rows):
        for place, one in enumerate(row):
            if len(row) > 1 and not isinstance(one, tuple):
                yield with_row(case, at, row[:place] + row[place + 1 :])


def with_row(case: Case, at: int, row: tuple) -> Case:
    """The case with another row there."""
    return replace(case, rows=(*case.rows[:at], row, *case.rows[at + 1 :]))


def with_side(case: Case) -> Case:
    """The case with its pictures as large as its side says, where that matters."""
    if case.family != "LLaVA-1.5":
        return case
    size = (case.side, case.side)
    return replace(case, rows=tuple(tuple(size if isinstance(one, tuple) else one for one in row) for row in case.rows))


def shrink(case: Case, fails: Callable[[Case], bool], tries: int = 150) -> Case:
    """The smallest case found in so many ``tries``. ``fails``: whether a case fails as the first one did."""
    left = tries
    while True:
        for one in smaller(case):
            left -= 1
            if left < 0:
                return case
            if fails(one):
                case = one
                break
        else:
            return case
