"""Captures query and key of chosen attention modules while their own kernel (SDPA, flash, eager) keeps running.

It can also add a bias to the logits of the keys, which it passes to that kernel as part of the mask.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..ops import QueryKey, checks
from . import transformers_api as api
from .model_changes import ModelChanges
from .per_thread import PerThread

_NAME = "ficoco_capture"  # in transformers' table of attention implementations
_TAKE_A_BIAS = ("sdpa", "eager")  # kernels that add a mask of numbers to the logits

# The argument with the pass that runs, from a tower to its layers and their attention. A layer that a backward pass
# computes again (gradient checkpointing) gets it with its other arguments.
PASS = "ficoco_pass"

KeyBias = Callable[[Tensor, Any], Tensor]  # key (B, Hk, N, d) and the pass to an addend of the logits, (B, 1, 1, N)


class _Call:
    """What one thread wants and has of the attention module."""

    def __init__(self, reads: bool) -> None:
        self.reads, self.attends = reads, True
        self.captured: QueryKey | None = None


class QueryKeyCapture:
    """Query and key of the last call of one attention module, in this thread.

    Args:
        config: the configuration that the module shares with its model; names the kernel to run, read at every call so
            that ``model.set_attn_implementation`` keeps working.
        view: the module that its kernel gets: a shallow copy that has that configuration.
        bias: what to add to the logits of each key, or None. The captured query and key are without it.
        reads: query and key are wanted; False if only the bias is. Every thread starts with this and may change it.
    """

    def __init__(self, config: Any, view: nn.Module, bias: KeyBias | None = None, reads: bool = True) -> None:
        self.config, self.view, self.bias = config, view, bias
        self._call = PerThread(_Call, reads)

    @property
    def reads(self) -> bool:
        """Whether query and key are wanted."""
        return self._call.here.reads

    @reads.setter
    def reads(self, reads: bool) -> None:
        self._call.here.reads = reads

    @property
    def attends(self) -> bool:
        """False while only query and key are wanted, and no kernel has to run."""
        return self._call.here.attends

    @attends.setter
    def attends(self, attends: bool) -> None:
        self._call.here.attends = attends

    @property
    def _captured(self) -> QueryKey | None:
        return self._call.here.captured

    def put(self, query: Tensor, key: Tensor, scale: float | None) -> None:
        """Keep query (B, H, N, d) and key (B, Hk, N, d) until they are taken."""
        self._call.here.captured = QueryKey(query, key, scale)

    def drop(self) -> None:
        """Forget them: an exception ended the call."""
        self._call.here.captured = None

    def take(self) -> QueryKey:
        """Return them once and forget them: they do not outlive the layer that needs them."""
        captured = self._captured
        self.drop()
        if captured is None:
            raise RuntimeError(
                "ficoco::forward: the attention of a reducing layer ran without giving its query and key; its config "
                "or its forward was replaced after attach, so detach, undo that, and attach again"
            )
        return captured


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    """The module's own attention; its query and key are captured."""
    capture: QueryKeyCapture = module._ficoco_capture  # type: ignore[assignment]
    running = kwargs.pop(PASS, None)
    if not capture.attends:
        capture.put(query, key, kwargs.get("scaling"))
        return query.transpose(1, 2), None
    kernel = api.attention_kernel(module, api.attention_name(capture.config))
    bias = None if capture.bias is None else capture.bias(key, running)
    if bias is not None:
        check_bias("forward", api.attention_name(capture.config))
        mask = bias if mask is None else mask + bias
    view = capture.view
    if view.training != module.training:
        view.training = module.training
    output = kernel(view, query, key, value, mask, **kwargs)  # flash reads its exact variant from the view's config
    if capture.reads:
        capture.put(query, key, kwargs.get("scaling"))
    return output


def check_bias(op: str, kernel: str) -> None:
    """Raise NotImplementedError if the attention kernel of this name cannot add a bias to the logits of the keys."""
    if kernel not in _TAKE_A_BIAS:
        remedy = 'call model.set_attn_implementation("sdpa"), or pass proportional_attention=False'
        wanted = "sdpa or eager for proportional attention"
        checks.fail(op, "attention implementation", wanted, repr(kernel), remedy, NotImplementedError)


def install(
    module: nn.Module, changes: ModelChanges, bias: KeyBias | None = None, reads: bool = True
) -> QueryKeyCapture:
    """Capture in one attention module, by a private shallow copy of its config. The model's config is not written."""
    api.register_attention(_NAME, _attention)
    view = copy.copy(module)
    capture = QueryKeyCapture(module.config, view, bias, reads)
    changes.set(module, "config", api.with_attention(capture.config, _NAME))
    changes.set(module, "_ficoco_capture", capture)
    return capture
