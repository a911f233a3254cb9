"""DivPrune, the most diverse tokens (arXiv 2503.02175)."""

from __future__ import annotations

from ..stages import GreedyFilter, GreedySelect
from .base import AnyMethod
from .parts import in_part
from .registry import register


@register("divprune", rank=140)
def divprune(*, part: str = "projector", merge: bool = False) -> AnyMethod:
    """DivPrune: keep the tokens that differ most, picked one by one, each as far as can be from those before.

    The first is the one whose nearest neighbour is farthest. It reads features alone: no attention, no text.

    Args:
        part: ``"projector"``: after it, by the projected features, as published. ``"tower"``: in layers of the vision
            tower, by keys.
        merge: merge each token that leaves into the most similar one that stays, in means weighted by size; in the
            tower with proportional attention. False drops it, as published.

    Raises:
        ValueError: another part, or a ``merge`` that is neither True nor False.

    Cost an image: N^2 D FLOPs for the cosines of N tokens, then 2 N for each that stays.
    """
    return in_part(
        "divprune",
        part,
        select=GreedySelect("max-min"),
        filter=GreedyFilter("max-min"),
        merge=merge,
        source="DivPrune, arXiv 2503.02175",
    )
