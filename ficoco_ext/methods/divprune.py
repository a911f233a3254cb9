"""DivPrune, the most diverse tokens (arXiv 2503.02175)."""

from __future__ import annotations

from ..stages import Compress, Correlate, GreedyFilter, GreedySelect
from ..stages.frozen import require_one_of
from .base import AnyMethod
from .method import Method
from .projector_method import ProjectorMethod
from .registry import register

_SOURCE = "DivPrune, arXiv 2503.02175"


@register("divprune", rank=150)
def divprune(*, part: str = "projector", merge: bool = False) -> AnyMethod:
    """DivPrune: keep the tokens that differ most, picked one by one, each as far as can be from those before.

    The first is the one whose nearest neighbour is farthest. It reads features alone, no attention and no text.

    Args:
        part: ``"projector"``: after it, by the projected features, as published. ``"tower"``: in layers of the vision
            tower, by keys.
        merge: merge each token that leaves into the most similar one that stays, in means weighted by size; in the
            tower with proportional attention. False drops it, as published.

    Raises:
        ValueError: a value of neither.
    """
    require_one_of("divprune", "part", part, ("projector", "tower"))
    require_one_of("divprune", "merge", merge, (True, False))
    correlate, compress = Correlate(by="key", targets=1), Compress(size_weighted=True)
    if part == "projector":
        select = GreedySelect("max-min")
        if not merge:
            return ProjectorMethod("divprune", select, source=_SOURCE)
        return ProjectorMethod("divprune", select, correlate, compress, source=_SOURCE)
    return Method(
        name="divprune",
        filter=GreedyFilter("max-min"),
        correlate=correlate if merge else Correlate(targets=0),
        compress=compress,
        source=_SOURCE,
        proportional_attention=merge,
    )
