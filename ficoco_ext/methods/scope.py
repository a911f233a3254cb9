"""SCOPE, saliency times coverage (arXiv 2510.24214)."""

from __future__ import annotations

import math

from ..stages import GreedyFilter, GreedySelect
from ..stages.frozen import require_number
from .base import AnyMethod
from .parts import in_part
from .registry import register


@register("scope", rank=150)
def scope(*, alpha: float = 1.0, part: str = "projector", merge: bool = False, saliency: str = "auto") -> AnyMethod:
    """SCOPE: keep the tokens that together cover all others best, salient ones first.

    Token j covers token i by max(0, cos(x_i, x_j)). One token after the other is picked, each the one with the largest
    saliency^alpha times what it adds to what is covered. Where all saliency is 0, coverage alone decides.

    Args:
        alpha: power of saliency, at least 0. At 0 coverage alone decides, and no saliency is needed.
        part: ``"projector"``: after it, by the projected features, with saliency from the vision tower. ``"tower"``: in
            layers of the vision tower, by keys, with class attention.
        merge: merge each token that leaves into the most similar one that stays, in means weighted by size; in the
            tower with proportional attention. False drops it, as published.
        saliency: after the projector, in a model: ``"class"``, attention of the class token; ``"column"``, attention
            that a patch receives; ``"keys"``, 1 - cosine of its key with the mean key; ``"auto"``, ``"class"`` where
            the tower has a class token that was trained, else ``"column"``.

    Raises:
        ValueError: an alpha below 0, another part, or a ``merge`` that is neither True nor False.

    Cost an image: N^2 D FLOPs for the cosines of N tokens, then at most 2 N^2 for each that stays, nearly always far
    fewer.
    """
    require_number("scope", "alpha", alpha, 0, math.inf)
    return in_part(
        "scope",
        part,
        select=GreedySelect("coverage", weigh=alpha),
        filter=GreedyFilter("coverage", weigh=alpha),
        merge=merge,
        source="SCOPE, arXiv 2510.24214",
        saliency=saliency,
    )
