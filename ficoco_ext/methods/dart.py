"""DART, the tokens that repeat a few pivots least (arXiv 2502.11494)."""

from __future__ import annotations

from ..stages import PivotSelect
from ..stages.frozen import require_one_of
from .base import AnyMethod
from .parts import after_projector
from .registry import register


@register("dart", rank=159)
def dart(*, part: str = "projector", image_pivots: int = 4, text_pivots: int = 4) -> AnyMethod:
    """DART: keep the longest visual tokens, and those that are least like them and the longest words of the prompt.

    A token's length is its L1 norm. Each pivot in turn picks its part of the tokens that are missing, those with the
    lowest cosine to it: first the pivots of the picture, longest first, then the words. It reads no attention. With
    words among the pivots what stays suits one question; ``text_pivots=0`` reads none.

    Args:
        part: ``"projector"``: after it, by what the language model gets for tokens and words.
        image_pivots: how many pivots are of the picture, at least 1.
        text_pivots: how many are words, at least 0. A prompt with fewer words has fewer.

    Raises:
        ValueError: another part, or numbers of pivots that are no integers or too small.

    Cost an image: 2 N P D FLOPs for the cosines of N tokens of width D with P pivots.
    """
    require_one_of("dart", "part", part, ("projector",))
    select = PivotSelect((image_pivots, text_pivots))
    return after_projector("dart", select, merge=False, source="DART, arXiv 2502.11494, on input embeddings")
