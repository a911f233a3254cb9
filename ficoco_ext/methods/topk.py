"""Pruning by class attention: the Filter of FiCoCo-V alone."""

from __future__ import annotations

from ..stages import Filter, SaliencySelect
from ..stages.frozen import require_one_of
from .base import AnyMethod
from .parts import in_part
from .registry import register


@register("topk", rank=40)
def topk(*, attention: str = "probs", part: str = "tower") -> AnyMethod:
    """Keep the patches that the class token attends to most, drop the others: Filter alone.

    Args:
        attention: ``"probs"`` or ``"logits"``: after or before softmax. After the projector saliency is always of
            probabilities.
        part: ``"tower"``: in layers of the vision tower. ``"projector"``: after it, by the saliency of the vision
            tower, which is the attention of its class token if there is one.

    Raises:
        ValueError: another part, or other attention than the part has.
    """
    require_one_of("topk", "attention", attention, ("probs",) if part == "projector" else ("probs", "logits"))
    return in_part(
        "topk",
        part,
        select=SaliencySelect(),
        filter=Filter(lam=0.0, attention=attention, normalize=False, penalty=1.0),
        merge=False,
        source="class-attention pruning, as in EViT (arXiv 2202.07800) without its fused token",
    )
