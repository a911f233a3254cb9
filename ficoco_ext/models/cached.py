"""What a cache holds of a reduced prompt, written on the cache itself, so that it goes where the cache goes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from ..schedule import Plan
from . import transformers_api as api
from .columns import Columns

_STATE = "_ficoco_columns"
_METHODS = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave", "reset")


class CacheColumns:
    """Which columns of the prompt each layer of a cache holds.

    It takes the place of the cache's methods that move or take away rows, and moves its columns alike.

    Args:
        plan: what reduced it; a cache goes on only under the same.
        length: columns of the prompt.
        stages: the different sets of columns.
        of_layer: for each layer which of them it holds.
    """

    def __init__(self, plan: Plan, length: int, stages: list[Columns], of_layer: tuple[int, ...]) -> None:
        self.plan, self.length, self.stages, self.of_layer = plan, length, stages, of_layer
        self._cache: Callable[[], Any] | None = None

    @property
    def cache(self) -> Any:
        """The cache that this is written on. It holds this and is not held by it: a cycle would outlive its users."""
        return None if self._cache is None else self._cache()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_cache": self.cache}  # copied or pickled together

    def __setstate__(self, state: dict[str, Any]) -> None:
        cache = state.pop("_cache")
        vars(self).update(state, _cache=None if cache is None else weakref.ref(cache))

    def put_on(self, cache: Any) -> None:
        """Write this on ``cache``."""
        setattr(cache, _STATE, self)
        if torch.compiler.is_compiling():
            return  # a graph cannot give an object methods; rows of such a cache stay where they are
        self._cache = weakref.ref(cache)
        for name in _METHODS:
            setattr(cache, name, getattr(self, name))

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
        rows = torch.arange(self.rows, device=self.stages[0].places.device)
        self._select(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        """``Cache.reset``: nothing is cached, so nothing is told."""
        type(self.cache).reset(self.cache)
        forget(self.cache)

    def _select(self, rows: Tensor) -> None:
        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows.to(tensor.device)]

        self.stages = [
            Columns(held.places[rows.to(held.places.device)], of(held.real), held.holes) for held in self.stages
        ]

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return int(self.stages[-1].places.shape[0])

    def check(self, plan: Plan, of_layer: tuple[int, ...], cache: Any, rows: int) -> None:
        """Raise unless the cache is as the prefill left it, with new tokens behind."""
        if self.plan != plan or self.of_layer != of_layer:
            remedy = "go on with the reduction that made it, or pass the whole conversation anew"
            checks.fail("forward", api.CACHE, "a cache of this reduction", "one of another", remedy)
        if self.rows != rows:
            remedy = "change rows by the cache's own methods"
            checks.fail("forward", "input_ids", f"{self.rows} rows, as the cache has", f"{rows}", remedy)
        if api.is_static(cache):
            return  # its lengths are on the device
        new = int(cache.get_seq_length()) - self.length
        for layer, stage in enumerate(self.of_layer):
            left = self.stages[stage].places.shape[1]
            if new < 0 or int(cache.get_seq_length(layer)) != left + new:
                remedy = "crop no more than the generated tokens, the same number in every layer"
                got = f"{int(cache.get_seq_length(layer))} in layer {layer}"
                wanted = f"{left} columns, as the prefill left them, and the new ones"
                checks.fail("forward", api.CACHE, wanted, got, remedy)


def on(cache: Any) -> CacheColumns | None:
    """What is written on ``cache``, if anything."""
    return getattr(cache, _STATE, None)


def forget(cache: Any) -> None:
    """Take away what is written on ``cache``."""
    for name in (_STATE, *_METHODS):
        if name in getattr(cache, "__dict__", {}):
            delattr(cache, name)
