"""Frozen dataclasses that torch can follow the making of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

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
