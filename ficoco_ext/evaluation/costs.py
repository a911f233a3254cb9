"""What a setting costs by the cost model: counted on the shapes, nothing is timed."""

from __future__ import annotations

from typing import Any

import torch

from .. import cost
from ..models import Handle
from .asking import Prompts

_BITS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def prefill(prompts: Prompts, handle: Handle | None, method: Any) -> cost.Cost:
    """One prefill with a picture and a text of mean length: all that runs, the reduction's own cost included.

    Args:
        prompts: of the questions.
        handle: what is attached; None: nothing.
        method: whose own operators are counted; None: nothing reduces.

    Raises:
        ValueError: something that the cost model does not describe.
    """
    model = prompts.checkpoint.model
    text, after = prompts.text_tokens
    vision = None if handle is None else handle.schedule
    decoder = None if handle is None else handle.plan
    projector = None if handle is None or not handle.attach_plan.changes_features else handle.attach_plan.projector
    if vision is not None and vision.final == vision.patches:
        vision = None
    if decoder is not None and not decoder.removes:
        decoder = None
    return cost.prefill(
        cost.architecture(model.config),
        vision=vision,
        decoder=decoder,
        projector=projector,
        text_tokens=text,
        text_after=after,
        precision=_BITS.get(model.dtype, "fp32"),
        method=None if vision is None and projector is None and decoder is None else method,
    )


def columns(found: cost.Cost, full: cost.Cost) -> dict[str, Any]:
    """The numbers that stand beside an accuracy, as plain values.

    ``flops`` of one prefill and their ratio to the unreduced one, from pixels to the first token; ``kv_bytes`` that the
    cache holds after it; visual tokens that enter the language model, their mean over its layers, and those that leave
    its last layer.
    """
    return {
        "flops": found.total.operations,
        "flops_ratio": found.total.operations / full.total.operations,
        "kv_bytes": found.kv_bytes,
        "kv_ratio": found.kv_bytes / full.kv_bytes,
        "visual_tokens": {name: float(value) for name, value in found.tokens._asdict().items()},
    }
