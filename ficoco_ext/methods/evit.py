"""EViT: pruning by class attention, with one token that remembers the rest (arXiv 2202.07800)."""

from __future__ import annotations

from ..stages import Correlate, Filter, Fuse
from .method import Method
from .registry import register


@register("evit", rank=70)
def evit(*, fuse: str = "sum") -> Method:
    """EViT: keep the patches that the class token attends to most, fuse all others into one token by attention.

    The fused token takes a slot of the budget: of the N tokens M = N - r stay, the M - 1 others being the class token
    and the most attended patches. It stands at the position of the next most attended patch, its host, and counts as an
    ordinary token in later layers. Survivors stay in original order (the release sorts by attention, the fused token
    last; to a tower without further positions that is the same). Published for fine-tuned ViTs. Needs a class token; a
    map's values must be probabilities.

    Args:
        fuse: ``"sum"``: f = sum a_i x_i as published, whose norm depends on the attention left; ``"mean"``: divided by
            sum a_i.

    Raises:
        ValueError: another value of ``fuse``.

    Cost: 2 B H N d + 2 B r (C + 1) FLOPs; one channel is merged twice, for the sizes; no N x N map.
    """
    if fuse not in ("sum", "mean"):
        raise ValueError(f"evit: fuse must be one of 'sum', 'mean', got {fuse!r}")
    return Method(
        name="evit",
        filter=Filter(lam=0.0, attention="probs", normalize=False, penalty=1.0),
        correlate=Correlate(by="convergent"),
        compress=Fuse(normalize=fuse == "mean"),
        source="EViT, arXiv 2202.07800, section 3",
    )
