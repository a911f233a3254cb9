"""Which positions of a reduced prompt a KV cache holds, stored on the cache itself, so that both move together."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from ..schedule import Plan
from . import transformers_api as api
from .positions import HeldPositions

_STATE = "_ficoco_positions"
_METHODS = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave", "reset")


class CachedPositions:
    """Which positions of the prompt each layer of a cache holds.

    It replaces the cache's methods that move or remove rows, and does the same to the rows of its positions.

    Args:
        plan: what reduced the prompt; the cache can only be continued under the same one.
        length: positions of the prompt.
        stages: the different sets of held positions.
        stage_of_layer: for each layer the index of its set in ``stages``.
    """

    def __init__(self, plan: Plan, length: int, stages: list[HeldPositions], stage_of_layer: tuple[int, ...]) -> None:
        self.plan, self.length, self.stages, self.stage_of_layer = plan, length, stages, stage_of_layer
        self._cache: Callable[[], Any] | None = None

    @property
    def cache(self) -> Any:
        """The cache that holds this. A weak reference: a cycle would keep the cache after its last user."""
        return None if self._cache is None else self._cache()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_cache": self.cache}  # copied or pickled together

    def __setstate__(self, state: dict[str, Any]) -> None:
        cache = state.pop("_cache")
        vars(self).update(state, _cache=None if cache is None else weakref.ref(cache))

    def put_on(self, cache: Any) -> None:
        """Store this on ``cache``."""
        setattr(cache, _STATE, self)
        if torch.compiler.is_compiling():
            return  # a graph cannot give an object methods; rows of such a cache are not moved
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
        rows = torch.arange(self.rows, device=self.stages[0].indices.device)
        self._select(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        """``Cache.reset``: the cache is empty, so the stored positions go too."""
        type(self.cache).reset(self.cache)
        forget(self.cache)

    def _select(self, rows: Tensor) -> None:
        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows.to(tensor.device)]

        self.stages = [
            HeldPositions(held.indices[rows.to(held.indices.device)], of(held.real), held.holes) for held in self.stages
        ]

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return int(self.stages[-1].indices.shape[0])

    def check(self, plan: Plan, stage_of_layer: tuple[int, ...], cache: Any, rows: int) -> None:
        """Raise unless the cache is as the prefill left it, with new tokens after it."""
        if self.plan != plan or self.stage_of_layer != stage_of_layer:
            remedy = "continue with the reduction that made it, or pass the whole conversation again"
            checks.fail("forward", api.CACHE, "a cache of this reduction", "one of another", remedy)
        if self.rows != rows:
            remedy = "change rows by the cache's own methods"
            checks.fail("forward", "input_ids", f"{self.rows} rows, as the cache has", f"{rows}", remedy)
        if api.is_static(cache):
            return  # its lengths are on the device
        new = int(cache.get_seq_length()) - self.length
        for layer, stage in enumerate(self.stage_of_layer):
            left = self.stages[stage].indices.shape[1]
            if new < 0 or int(cache.get_seq_length(layer)) != left + new:
                remedy = "crop no more than the generated tokens, the same number in every layer"
                got = f"{int(cache.get_seq_length(layer))} in layer {layer}"
                wanted = f"{left} positions, as the prefill left them, and the new ones"
                checks.fail("forward", api.CACHE, wanted, got, remedy)


def positions_on(cache: Any) -> CachedPositions | None:
    """The positions stored on ``cache``, None if there are none."""
    return getattr(cache, _STATE, None)


def forget(cache: Any) -> None:
    """Remove the positions stored on ``cache``."""
    for name in (_STATE, *_METHODS):
        if name in getattr(cache, "__dict__", {}):
            delattr(cache, name)
