"""The loss of a prompt that became shorter in the language model, computed as the model computes its own."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..ops import checks
from . import transformers_api as api
from .reduced_prefill import ReducedPrefill


def added(model: Any, options: dict[str, Any], labels: Tensor, prefill: ReducedPrefill | None, output: Any) -> Any:
    """``output`` with the loss of its logits.

    The model was called without labels, because only its inner part finds out which positions are left.

    Args:
        model: the whole model. options: of its call, by name.
        labels: (B, L) of the prompt; or (B, n) of its last ones where ``logits_to_keep`` is n.
        prefill: what was removed; None: nothing.
        output: what the model returned, as an object or a tuple, without a loss.

    Raises:
        ValueError: labels of another shape.
    """
    as_tuple = isinstance(output, tuple)
    logits = output[0] if as_tuple else output.logits
    if prefill is not None:
        labels = _of_what_is_left(labels, prefill, options.get("logits_to_keep") or 0, logits.shape[1])
    arguments = api.loss_arguments(type(model).forward, options)
    size = model.config.text_config.vocab_size
    loss = model.loss_function(logits=logits, labels=labels, vocab_size=size, **arguments)
    return (loss, *output) if as_tuple else type(output)(loss=loss, **output)


def _of_what_is_left(labels: Tensor, prefill: ReducedPrefill, keep: int, width: int) -> Tensor:
    """(B, width) the labels of the last positions that are left."""
    b, length = prefill.visual.shape
    last = min(keep or length, length)
    if tuple(labels.shape) not in ((b, length), (b, last)):
        wanted = f"({b}, {length}), one for each token" + (f", or ({b}, {last}) for the last ones" if keep else "")
        checks.fail("forward", "labels", wanted, labels, "pass those of the whole prompt")
    labels = F.pad(labels, (length - labels.shape[1], 0), value=-100)
    return prefill.labels(labels)[:, -width:]
