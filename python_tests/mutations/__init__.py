"""Faults that the tests must find. A module here is the list of a room; ``python python_tests/mutate.py`` tries them.

``<room>.py``, or ``<room>_<part>.py`` where one file does not suffice, has ``MUTATIONS``, a list of ``Mutation``.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

ROOMS = (
    "ops",
    "stages",
    "methods",
    "core",  # api, reduction, resolve, schedule, version, and the package's own __init__
    "models",
    "cost",
    "evaluation",
    "gridvqa",
    "judging",
    "cli",
    "viz",
    "apps",
    "io",
    "build",  # setup.py and _build
    "cpu_kernels",
    "csrc_ops",
)


@dataclass(frozen=True)
class Mutation:
    """A plausible fault: not an error of syntax, and not an equivalent change.

    Attributes:
        file: The file that it changes, relative to the checkout.
        old: Text that occurs exactly once in ``file``; may have several lines.
        new: What is written in its place.
        tests: Files of tests, or ids such as ``python_tests/ops/test_filter.py::test_ties``, one of which must fail.
            The fewest that do: they run once without the mutation, too.
        why: What goes wrong for a user, in one short sentence.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str


def room_of(name: str) -> str:
    """The room of the list ``name``.

    Raises:
        ValueError: no room has this name, nor begins it.
    """
    rooms = [room for room in ROOMS if name == room or name.startswith(f"{room}_")]
    if not rooms:
        raise ValueError(f"python_tests/mutations/{name}.py is named after no room; rooms are {', '.join(ROOMS)}")
    return max(rooms, key=len)


def load() -> dict[str, list[Mutation]]:
    """Every list by its room."""
    found: dict[str, list[Mutation]] = {}
    for module in pkgutil.iter_modules(__path__):
        listed = importlib.import_module(f"{__name__}.{module.name}").MUTATIONS
        found.setdefault(room_of(module.name), []).extend(listed)
    return found
