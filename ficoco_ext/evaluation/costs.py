"""What a setting costs by the cost model: counted on the shapes, nothing is timed."""

from __future__ import annotations

from typing import Any

import torch

from .. import cost
from ..models import AttachPlan
from .asking import Prompts

_BITS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


PARTS = {"tower": ("tower", "projector"), "language_model": ("decoder", "head"), "selection": ("reduction",)}


def prefill(prompts: Prompts, plan: AttachPlan | None, method: Any) -> cost.Cost:
    """One prefill with a picture and a text of mean length: all that runs, the reduction's own cost included.

    Args:
        prompts: of the questions.
        plan: of what is attached; None: nothing.
        method: whose own operators are counted; None: nothing reduces.

    Raises:
        ValueError: something that the cost model does not describe.
    """
    if plan is None:
        return _prefill(prompts)
    vision, decoder, projector = plan.schedule, plan.plan, plan.projector if plan.changes_features else None
    if vision is not None and vision.final == vision.patches:
        vision = None
    if decoder is not None and not decoder.removes:
        decoder = None
    if vision is None and projector is None and decoder is None:
        return _prefill(prompts)
    leaves = {"vision": vision, "projector": projector, "decoder": decoder}
    return _prefill(prompts, **leaves, cache=plan.cache, method=method)


def chosen_free(prompts: Prompts, tokens: int) -> cost.Cost:
    """One prefill in which ``tokens`` stay after the projector, if choosing them costs nothing."""
    return _prefill(prompts, projector=tokens)


def _prefill(prompts: Prompts, **reduction: Any) -> cost.Cost:
    model = prompts.checkpoint.model
    text, after = prompts.text_tokens
    return cost.prefill(
        cost.architecture(model.config),
        text_tokens=text,
        text_after=after,
        precision=_BITS.get(model.dtype, "fp32"),
        **reduction,
    )


def columns(found: cost.Cost, full: cost.Cost) -> dict[str, Any]:
    """The numbers that stand beside an accuracy, as plain values.

    ``flops`` of one prefill and their ratio to the unreduced one, from pixels to the first token; ``flops_parts``: of
    these the vision tower with the projector, the language model with its head, and choosing and merging;
    ``kv_bytes`` that the cache holds after it; visual tokens that enter the language model, their mean over its
    layers, and those that leave its last layer.
    """
    parts = {name: sum(found.parts[one].operations for one in of if one in found.parts) for name, of in PARTS.items()}
    return {
        "flops": found.total.operations,
        "flops_ratio": found.total.operations / full.total.operations,
        "flops_parts": parts,
        "kv_bytes": found.kv_bytes,
        "kv_ratio": found.kv_bytes / full.kv_bytes,
        "visual_tokens": {name: float(value) for name, value in found.tokens._asdict().items()},
    }
