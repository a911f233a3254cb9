"""The body of one layer of a reduced language model, from the first layer that reduces on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from ..ops import QueryKey
from . import transformers_api as api
from .qk_capture import QueryKeyCapture

# The argument with the call of the model, from the whole model to its layers. A layer that a backward pass computes
# again (gradient checkpointing) gets it with its other arguments, after the call has ended and maybe in another thread.
CALL = "ficoco_call"


class Owner(Protocol):
    """What a layer asks of the reduction of the whole language model."""

    @property
    def methods(self) -> Sequence[Any]:
        """The method of each reducing layer."""

    @property
    def cache_name(self) -> Any:
        """What this release calls the argument that holds the cache."""

    def arguments(
        self, call: Any, layer: int, hidden_states: Tensor, kwargs: dict[str, Any], *, before: bool = False
    ) -> dict[str, Any]:
        """A layer's arguments for the positions that it holds; ``before``: before its own reduction."""


class DecoderLayer:
    """Replaces one layer's ``forward``.

    Args:
        layer: the layer. index: of the layer.
        owner: the reduction of the whole language model.
        step: which of the plan's reductions this layer does; None: none.
        capture: of the layer's query and key; None where ``step`` is.
    """

    def __init__(
        self,
        layer: Any,
        index: int,
        owner: Owner,
        step: int | None = None,
        capture: QueryKeyCapture | None = None,
    ) -> None:
        self.layer, self.index, self.owner, self.step, self.capture = layer, index, owner, step, capture

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        """The layer's own forward for the positions that it holds; during a prefill a reducing layer also reduces."""
        call, body = kwargs.pop(CALL, None), type(self.layer).forward
        kwargs["attention_mask"] = attention_mask
        if call is None:
            return body(self.layer, hidden_states, **kwargs)
        if call.prefill is None or self.step is None:
            return body(self.layer, hidden_states, **self.owner.arguments(call, self.index, hidden_states, kwargs))
        call.cache = api.cache_of(kwargs, self.owner.cache_name)  # the language model may have made it
        method = self.owner.methods[self.step]
        if method.before_attention:
            attn = self._query_key(
                hidden_states, self.owner.arguments(call, self.index, hidden_states, kwargs, before=True)
            )
            hidden_states = call.prefill.reduce(hidden_states, attn, method, self.index, self.step)
            return body(self.layer, hidden_states, **self.owner.arguments(call, self.index, hidden_states, kwargs))
        held = self.owner.arguments(call, self.index, hidden_states, kwargs)
        checkpoint = api.checkpointing(self.layer)
        if checkpoint is None:
            return self._reducing(call, held, hidden_states)
        held = api.without_cache(held, self.owner.cache_name)
        reduced: Tensor = checkpoint(partial(self._reducing, call, held), hidden_states)
        return reduced

    def _reducing(self, call: Any, kwargs: dict[str, Any], hidden_states: Tensor) -> Tensor:
        """The layer with a reduction between its attention and its MLP."""
        assert self.step is not None
        attended, attn = self._attend(hidden_states, kwargs)
        method = self.owner.methods[self.step]
        hidden_states = call.prefill.reduce(hidden_states + attended, attn, method, self.index, self.step)
        return hidden_states + self.layer.mlp(self.layer.post_attention_layernorm(hidden_states))

    def _attend(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, QueryKey]:
        """The output of the layer's attention, and the query and key of the prompt in it.

        Captured during a prefill only: during decoding they would keep old caches alive.
        """
        assert self.capture is not None
        self.capture.reads = True
        try:
            attended = self.layer.self_attn(hidden_states=self.layer.input_layernorm(hidden_states), **kwargs)[0]
            query, key, scale = self.capture.take()
        finally:
            self.capture.reads = False
            self.capture.drop()
        return attended, QueryKey(query, key[:, :, : query.shape[2]], scale)  # a static cache has empty slots after it

    def _query_key(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> QueryKey:
        """Query and key that the tokens would have here, without attention and without the cache."""
        assert self.capture is not None
        without_cache = api.without_cache(kwargs, self.owner.cache_name)
        self.capture.attends = False
        try:
            self.layer.self_attn(hidden_states=self.layer.input_layernorm(hidden_states), **without_cache)
            return self.capture.take()
        finally:
            self.capture.attends = True
            self.capture.drop()
