"""Reads query and key of chosen attention modules while their own kernel (SDPA, flash, eager) keeps running."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..ops import QueryKey
from .patches import Patches

_NAME = "ficoco_tap"  # in transformers' table of attention implementations


class Tap:
    """What one attention module saw in its last call.

    Args:
        config: the configuration that the module shares with its model; names the kernel to run, read at every call so
            that ``model.set_attn_implementation`` goes on working.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self._seen: QueryKey | None = None

    def put(self, query: Tensor, key: Tensor, scale: float | None) -> None:
        """Keep query (B, H, N, d) and key (B, Hk, N, d) until they are taken."""
        self._seen = QueryKey(query, key, scale)

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
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    tap: Tap = module._ficoco_tap  # type: ignore[assignment]
    eager = sys.modules[type(module).__module__].eager_attention_forward  # not in the table of implementations
    kernel: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(tap.config._attn_implementation, eager)
    ours, module.config = module.config, tap.config  # flash looks up which flash it is in module.config
    try:
        output = kernel(module, query, key, value, mask, **kwargs)
    finally:
        module.config = ours
    tap.put(query, key, kwargs.get("scaling"))
    return output


def install(module: nn.Module, patches: Patches) -> Tap:
    """Tap one attention module, by a private shallow copy of its config. The model's own config is not written."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attention)
    tap = Tap(module.config)
    config = copy.copy(tap.config)
    config._attn_implementation_internal = _NAME
    patches.set(module, "config", config)
    patches.set(module, "_ficoco_tap", tap)
    return tap
