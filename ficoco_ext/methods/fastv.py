"""FastV: pruning in the language model by the attention of the last prompt token (arXiv 2403.06764)."""

from __future__ import annotations

from ..stages import Compress, LastTokenFilter
from .decoder_method import DecoderMethod
from .layers import LayerBefore
from .registry import register


@register("fastv", rank=120)
def fastv(*, layer: int = 2) -> DecoderMethod:
    """FastV: block ``layer`` and all after it see only the visual tokens that the last token attends to most.

    The attention is that of the block before, heads averaged. Tokens leave between that block's attention and its MLP:
    what survives is the same as if they left after its MLP, which treats every token alone, and costs less.
    ``attach`` keeps half of them if it is given no amount.

    Args:
        layer: first block, counted from 0, that sees fewer tokens; at least 1.

    Raises:
        ValueError: a layer that is no integer >= 1.
    """
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 1:
        raise ValueError(f"fastv: layer must be an integer >= 1, got {layer!r}; block 0 needs all tokens")
    return DecoderMethod(
        name="fastv",
        filter=LastTokenFilter(),
        correlate=None,
        compress=Compress(),
        layers=LayerBefore(layer),
        amount=(("keep_ratio", 0.5),),
        source="FastV, arXiv 2403.06764",
    )
