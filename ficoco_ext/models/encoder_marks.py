"""What is known of each picture in what an encoder returned, written on that output: a caller may pass it on later.

A caller may also cut it, reorder it, or put other features into it. A mark therefore knows the tensors that it is of.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Mark(NamedTuple):
    """``known``: of each picture. ``entries``: the tensors of the output, each a picture, or several."""

    known: tuple[Any, ...]
    entries: tuple[Tensor, ...]


def put(output: Any, name: str, known: tuple[Any, ...]) -> None:
    """Write ``known``, one entry for each picture, on ``output`` as its attribute ``name``; not in a traced call."""
    if not torch.compiler.is_compiling():
        setattr(output, name, _Mark(known, _entries(output)))


def has(output: Any, name: str) -> bool:
    """Whether ``output`` is a marked one, whatever it holds now."""
    return getattr(output, name, None) is not None


def as_put(output: Any, name: str) -> tuple[Any, ...] | None:
    """What was put on ``output``, whatever it holds now; None: nothing was."""
    mark: _Mark | None = getattr(output, name, None)
    return None if mark is None else mark.known


def read(output: Any, name: str) -> tuple[Any, ...] | None:
    """What is known of the pictures that ``output`` holds now.

    None if it has no mark, or holds a tensor that it did not hold when it was marked. Where each picture is a tensor
    of its own, some of them, or the same ones in another order, are known too.
    """
    mark: _Mark | None = getattr(output, name, None)
    if mark is None:
        return None
    now = _entries(output)
    if len(now) == len(mark.entries) and all(one is other for one, other in zip(now, mark.entries, strict=True)):
        return mark.known
    if len(mark.entries) != len(mark.known):
        return None
    known = {id(entry): one for entry, one in zip(mark.entries, mark.known, strict=True)}
    return tuple(known[id(entry)] for entry in now) if all(id(entry) in known for entry in now) else None


def _entries(output: Any) -> tuple[Tensor, ...]:
    held = output.pooler_output
    return (held,) if isinstance(held, Tensor) else tuple(held)
