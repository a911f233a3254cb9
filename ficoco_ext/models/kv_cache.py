"""Which positions of a reduced prompt a KV cache holds, stored on the cache itself, so that both move together."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..ops import checks
from ..schedule import Plan
from . import cache_rows
from . import transformers_api as api
from .positions import HeldPositions

_STATE = "positions"


class MadeBy(NamedTuple):
    """What reduced a prompt. Its cache can only be continued under the same.

    Attributes:
        plan: what it removes in which layers.
        stage_of_layer: for each layer how many reductions come before its attention.
        cache: ``"staircase"`` or ``"output-aware"``.
    """

    plan: Plan
    stage_of_layer: tuple[int, ...]
    cache: str


class CachedPositions:
    """Which positions of the prompt each layer of a cache holds.

    Args:
        made_by: what reduced the prompt.
        length: positions of the prompt.
        stages: the different sets of held positions.
        stage_of_layer: for each layer the index of its set in ``stages``.
    """

    def __init__(
        self, made_by: MadeBy, length: int, stages: list[HeldPositions], stage_of_layer: tuple[int, ...]
    ) -> None:
        self.made_by, self.length, self.stages, self.stage_of_layer = made_by, length, stages, stage_of_layer

    def put_on(self, cache: Any) -> None:
        """Store this on ``cache``."""
        cache_rows.store(cache, _STATE, self)

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows.to(tensor.device)]

        self.stages = [
            HeldPositions(held.indices[rows.to(held.indices.device)], of(held.real), held.holes) for held in self.stages
        ]

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return int(self.stages[-1].indices.shape[0])

    def check(self, made_by: MadeBy, cache: Any, rows: int) -> None:
        """Raise unless the cache is as the prefill left it, with new tokens after it."""
        if self.made_by != made_by:
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
    found: CachedPositions | None = cache_rows.stored(cache, _STATE)
    return found


def forget(cache: Any) -> None:
    """Remove the positions stored on ``cache``."""
    cache_rows.forget(cache, _STATE)
