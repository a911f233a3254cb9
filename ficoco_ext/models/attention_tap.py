"""Shows query and key of each attention call of one module to a listener; its own kernel (SDPA, flash, eager) runs.

Unlike :mod:`~ficoco_ext.models.qk_capture` it keeps nothing, and a module that attends several times in one call, to
one picture after the other, shows each of them. On a module that has a capture already it goes on top of that one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..ops import QueryKey
from . import transformers_api as api
from .model_changes import ModelChanges

_NAME = "ficoco_tap"  # in transformers' table of attention implementations

Listener = Callable[[QueryKey], None]


class AttentionTap:
    """What the attention of one module runs, and who listens.

    Args:
        config: the configuration that the module had; names the kernel to run, read at every call.
        view: the module that its kernel gets: a shallow copy that has that configuration.
        listener: gets query (B, H, N, d) and key (B, Hk, N, d) of each call, after the kernel ran.
    """

    def __init__(self, config: Any, view: nn.Module, listener: Listener) -> None:
        self.config, self.view, self.listener = config, view, listener


def _attention(module: nn.Module, query: Tensor, key: Tensor, *others: Any, **kwargs: Any) -> Any:
    """The module's own attention, which is shown to the listener."""
    tap: AttentionTap = module._ficoco_tap  # type: ignore[assignment]
    kernel = api.attention_kernel(module, api.attention_name(tap.config))
    if tap.view.training != module.training:
        tap.view.training = module.training
    output = kernel(tap.view, query, key, *others, **kwargs)
    tap.listener(QueryKey(query, key, kwargs.get("scaling")))
    return output


def install(module: nn.Module, changes: ModelChanges, listener: Listener) -> None:
    """Tap one attention module, by a private shallow copy of its config. The model's config is not written."""
    api.register_attention(_NAME, _attention)
    tap = AttentionTap(module.config, copy.copy(module), listener)
    changes.set(module, "config", api.with_attention(tap.config, _NAME))
    changes.set(module, "_ficoco_tap", tap)
