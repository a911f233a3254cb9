"""Reads query and key of chosen attention modules while their own kernel (SDPA, flash, eager) keeps running.

A tap can also weigh keys: a bias on their logits, handed to that kernel as its mask.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..ops import QueryKey, checks
from . import transformers_api as api
from .patches import Patches
from .threads import PerThread

_NAME = "ficoco_tap"  # in transformers' table of attention implementations
_TAKE_A_BIAS = ("sdpa", "eager")  # kernels that add a mask of numbers to the logits

KeyBias = Callable[[Tensor], Tensor | None]  # key (B, Hk, N, d) to an addend of the logits, (B, 1, 1, N)


class Tap(PerThread):
    """What one attention module saw in its last call, in this thread.

    Args:
        config: the configuration that the module shares with its model; names the kernel to run, read at every call so
            that ``model.set_attn_implementation`` goes on working.
        view: the module as its kernel shall see it: a shallow copy that has that configuration.
        bias: what to add to the logits of each key, or None. What is seen is without it.
        reads: query and key are wanted; False for a tap that only adds the bias.
        attends: False while nothing but query and key is wanted, and no kernel is to run.
    """

    def __init__(self, config: Any, view: nn.Module, bias: KeyBias | None = None, reads: bool = True) -> None:
        super().__init__(config, view, bias, reads)
        self.config, self.view, self.bias, self.reads = config, view, bias, reads
        self.attends = True
        self._seen: QueryKey | None = None

    def put(self, query: Tensor, key: Tensor, scale: float | None) -> None:
        """Keep query (B, H, N, d) and key (B, Hk, N, d) until they are taken."""
        self._seen = QueryKey(query, key, scale)

    def drop(self) -> None:
        """Forget what was seen: a call was cut off by an exception."""
        self._seen = None

    def take(self) -> QueryKey:
        """What was seen, once: nothing outlives the layer that asked for it."""
        seen, self._seen = self._seen, None
        if seen is None:
            raise RuntimeError(
                "ficoco::forward: the attention of a reducing layer ran without its tap; something replaced its config "
                "or its forward after attach, so detach, undo that, and attach again"
            )
        return seen


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    """The module's own attention, then its query and key into the tap."""
    tap: Tap = module._ficoco_tap  # type: ignore[assignment]
    if not tap.attends:
        tap.put(query, key, kwargs.get("scaling"))
        return query.transpose(1, 2), None
    kernel = api.attention_kernel(module, api.attention_name(tap.config))
    bias = None if tap.bias is None else tap.bias(key)
    if bias is not None:
        check_bias("forward", tap.config)
        mask = bias if mask is None else mask + bias
    view = tap.view
    if view.training != module.training:
        view.training = module.training
    output = kernel(view, query, key, value, mask, **kwargs)  # flash looks up which flash it is in its config
    if tap.reads:
        tap.put(query, key, kwargs.get("scaling"))
    return output


def check_bias(op: str, config: Any) -> None:
    """Raise NotImplementedError if the model's attention kernel has no room for a bias on the keys."""
    name = api.attention_name(config)
    if name not in _TAKE_A_BIAS:
        remedy = 'call model.set_attn_implementation("sdpa"), or pass proportional_attention=False'
        wanted = "sdpa or eager for proportional attention"
        checks.fail(op, "attention implementation", wanted, repr(name), remedy, NotImplementedError)


def install(module: nn.Module, patches: Patches, bias: KeyBias | None = None, reads: bool = True) -> Tap:
    """Tap one attention module, by a private shallow copy of its config. The model's own config is not written."""
    api.register_attention(_NAME, _attention)
    view = copy.copy(module)
    tap = Tap(module.config, view, bias, reads)
    patches.set(module, "config", api.with_attention(tap.config, _NAME))
    patches.set(module, "_ficoco_tap", tap)
    return tap
