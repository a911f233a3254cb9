"""Pruning by class attention: the Filter of FiCoCo-V alone."""

from __future__ import annotations

from ..stages import Compress, Correlate, Filter
from .method import Method
from .registry import register


@register("topk", rank=40)
def topk(*, attention: str = "probs") -> Method:
    """Keep the patches that the class token attends to most, drop the others: Filter alone.

    Args:
        attention: ``"probs"`` or ``"logits"``: after or before softmax.
    """
    return Method(
        name="topk",
        filter=Filter(lam=0.0, attention=attention, normalize=False, penalty=1.0),
        correlate=Correlate(targets=0),
        compress=Compress(),
        source="class-attention pruning, as in EViT (arXiv 2202.07800) without its fused token",
    )
