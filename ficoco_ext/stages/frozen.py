"""Stages and methods as values: frozen dataclasses that torch can follow the making of, and checks of their fields."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeVar

from typing_extensions import dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """A frozen dataclass, such as a stage or a method.

    ``torch.compile`` of torch 2.11 hashes an object that is made within the trace before its fields are there, and
    understands no answer but a TypeError, which anything unhashable gives.
    """
    made = dataclass(frozen=True)(cls)
    of_fields: Any = made.__hash__

    def hash_of(self: T) -> int:
        if missing := [one.name for one in fields(self) if not hasattr(self, one.name)]:  # type: ignore[arg-type]
            raise TypeError(f"unhashable: a {cls.__name__} without its fields {', '.join(missing)}")
        return int(of_fields(self))

    made.__hash__ = hash_of  # type: ignore[method-assign, assignment]
    return made


def reject(stage: str, field: str, wanted: str, got: object) -> NoReturn:
    """Raise: a field of a stage or method holds what it cannot be."""
    raise ValueError(f"{stage}: {field} must be {wanted}, got {got!r}")


def require_one_of(stage: str, field: str, got: object, choices: tuple[object, ...]) -> None:
    """Raise unless the field is one of the choices."""
    if got not in choices:
        reject(stage, field, f"one of {', '.join(map(repr, choices))}", got)


def require_number(stage: str, field: str, got: object, low: float, high: float) -> None:
    """Raise unless the field is a finite number in [low, high]."""
    if isinstance(got, bool) or not isinstance(got, (int, float)) or not low <= got <= high:
        reject(stage, field, f"a number in [{low}, {high}]" if high < math.inf else f"a finite number >= {low}", got)
    if not math.isfinite(got):
        reject(stage, field, "finite", got)
