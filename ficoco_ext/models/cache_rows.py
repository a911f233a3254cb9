"""What is stored on a KV cache about the rows that it holds, and moves with them when the cache moves its rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

_OWNER = "_ficoco_rows"
_METHODS = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave", "reset")


class Held(Protocol):
    """Something about every row of a cache."""

    @property
    def rows(self) -> int:
        """Rows of the batch."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows, indices that may repeat."""


class _Rows:
    """Replaces the methods of a cache that move or remove rows, and does the same to what is stored on it.

    Attributes:
        stored: what is stored, by its name.
    """

    def __init__(self, cache: Any) -> None:
        self.stored: dict[str, Held] = {}
        self._cache: Callable[[], Any] | None = weakref.ref(cache)
        for name in _METHODS:
            setattr(cache, name, getattr(self, name))

    @property
    def cache(self) -> Any:
        """The cache that holds this. A weak reference: a cycle would keep the cache after its last user."""
        return None if self._cache is None else self._cache()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_cache": self.cache}  # copied or pickled together

    def __setstate__(self, state: dict[str, Any]) -> None:
        cache = state.pop("_cache")
        vars(self).update(state, _cache=None if cache is None else weakref.ref(cache))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """``Cache.reorder_cache``."""
        type(self.cache).reorder_cache(self.cache, beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """``Cache.batch_select_indices``."""
        type(self.cache).batch_select_indices(self.cache, indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """``Cache.batch_repeat_interleave``."""
        type(self.cache).batch_repeat_interleave(self.cache, repeats)
        for held in self.stored.values():
            held.select(torch.arange(held.rows).repeat_interleave(repeats))

    def reset(self) -> None:
        """``Cache.reset``: the cache is empty, so what is stored goes too."""
        type(self.cache).reset(self.cache)
        for name in list(self.stored):
            forget(self.cache, name)

    def _select(self, rows: Tensor) -> None:
        for held in self.stored.values():
            held.select(rows)


class _Graph:
    """What is stored on a cache inside a graph, which cannot give an object methods: its rows are not moved."""

    def __init__(self) -> None:
        self.stored: dict[str, Held] = {}


def store(cache: Any, name: str, held: Held) -> None:
    """Store ``held`` on ``cache`` by ``name``, in place of what had that name."""
    owner = getattr(cache, _OWNER, None)
    if owner is None:
        owner = _Graph() if torch.compiler.is_compiling() else _Rows(cache)
        setattr(cache, _OWNER, owner)
    owner.stored[name] = held


def stored(cache: Any, name: str) -> Any:
    """What is stored on ``cache`` by ``name``; None: nothing."""
    owner = getattr(cache, _OWNER, None)
    return None if owner is None else owner.stored.get(name)


def forget(cache: Any, name: str) -> None:
    """Remove what is stored on ``cache`` by ``name``; after the last one, the cache is as it was."""
    owner = getattr(cache, _OWNER, None)
    if owner is None:
        return
    owner.stored.pop(name, None)
    if not owner.stored:
        for attribute in (_OWNER, *_METHODS):
            vars(cache).pop(attribute, None)
