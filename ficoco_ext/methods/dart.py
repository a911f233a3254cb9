"""DART, the tokens that repeat a few pivots least (arXiv 2502.11494)."""

from __future__ import annotations

from ..stages import Compress, PivotSelect
from ..stages.decoder_pivots import PivotFilter
from ..stages.frozen import require_one_of
from .base import AnyMethod
from .decoder_method import DecoderMethod
from .layers import LayerBefore
from .parts import after_projector
from .registry import register

_SOURCE = "DART, arXiv 2502.11494"


@register("dart", rank=159)
def dart(*, part: str = "projector", image_pivots: int = 4, text_pivots: int = 4, layer: int = 2) -> AnyMethod:
    """DART: keep the longest visual tokens, and those that are least like them and the longest words of the prompt.

    A token's length is its L1 norm. Each pivot in turn picks its part of the tokens that are missing, those with the
    lowest cosine to it: first the pivots of the picture, longest first, then the words. It reads no attention. With
    words among the pivots what stays suits one question; ``text_pivots=0`` reads none.

    Args:
        part: ``"projector"``: after it, by what the language model gets for tokens and words, as TensorRT-Edge-LLM has
            it. ``"language_model"``: in it, as published: length is that of keys, and words are those after the
            picture.
        image_pivots: how many pivots are of the picture, at least 1.
        text_pivots: how many are words, at least 0. A prompt with fewer words has fewer.
        layer: in the language model, the first block, counted from 0, that sees fewer tokens; at least 1. Keys are
            those of the block before, and features its hidden states between attention and MLP, after the norm of the
            last layer; the release takes them after the MLP.

    Raises:
        ValueError: another part, numbers of pivots that are no integers or too small, or a layer that is no
            integer >= 1.

    Cost an image: 2 N P D FLOPs for the cosines of N tokens of width D with P pivots.
    """
    require_one_of("dart", "part", part, ("projector", "language_model"))
    pivots = (image_pivots, text_pivots)
    if part == "projector":
        return after_projector("dart", PivotSelect(pivots), merge=False, source=f"{_SOURCE}, on input embeddings")
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 1:
        raise ValueError(f"dart: layer must be an integer >= 1, got {layer!r}; block 0 needs all tokens")
    return DecoderMethod("dart", PivotFilter(pivots), None, Compress(), LayerBefore(layer), source=_SOURCE)
