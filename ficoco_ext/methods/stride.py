"""Every k-th token: with random dropping, what a method has to beat."""

from __future__ import annotations

from ..stages import StrideSelect
from .parts import after_projector
from .projector_method import ProjectorMethod
from .registry import register


@register("stride", rank=160)
def stride(*, merge: bool = False) -> ProjectorMethod:
    """Keep every k-th of the projected tokens, in reading order: a baseline that spreads over the picture.

    Args:
        merge: merge each token that leaves into the most similar one that stays, in means weighted by size. False drops
            it.

    Raises:
        ValueError: a ``merge`` that is neither True nor False.

    Cost: the survivors copied.
    """
    return after_projector("stride", StrideSelect(), merge=merge, source="a baseline: no method")
