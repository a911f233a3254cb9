"""DART, the tokens that repeat a few pivots least (arXiv 2502.11494)."""

from __future__ import annotations

from ..stages import Compress, PivotFilter, PivotSelect
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
    words among the pivots what stays suits one question; ``text_pivots=0`` reads none after the projector.

    Inside the language model lengths are those of the keys of the block before ``layer``, words are the text after the
    picture, and cosines are of hidden states after the model's last norm. They leave between that block's attention
    and its MLP, so hidden states are those before its MLP, where the released code has those after it.

    Args:
        part: ``"projector"``: after it, by what the language model gets for tokens and words; ``"language_model"``:
            inside it, as published.
        image_pivots: how many pivots are of the picture, at least 1.
        text_pivots: how many are words, at least 0. A prompt with fewer words has fewer.
        layer: of ``"language_model"``: first block, counted from 0, that sees fewer tokens; at least 1.

    Raises:
        ValueError: another part, numbers of pivots that are no integers or too small, or a layer that is none >= 1.

    Cost an image: 2 N P D FLOPs for the cosines of N tokens of width D with P pivots.
    """
    require_one_of("dart", "part", part, ("projector", "language_model"))
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 1:
        raise ValueError(f"dart: layer must be an integer >= 1, got {layer!r}; block 0 needs all tokens")
    pivots = (image_pivots, text_pivots)
    if part == "projector":
        return after_projector("dart", PivotSelect(pivots), merge=False, source=f"{_SOURCE}, on input embeddings")
    return DecoderMethod(
        name="dart",
        filter=PivotFilter(pivots),
        correlate=None,
        compress=Compress(),
        layers=LayerBefore(layer),
        source=_SOURCE,
    )
