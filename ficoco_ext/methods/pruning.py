"""Pruning inside a language model by the attention of the last prompt token: FastV and PyramidDrop. Filter alone."""

from __future__ import annotations

from ..stages import Compress, LastTokenFilter
from ..stages.frozen import value
from .decoder import DecoderMethod


@value
class LayerBefore:
    """The one layer before ``layer``."""

    layer: int

    def __call__(self, layers: int) -> tuple[int, ...]:
        return (self.layer - 1,)


def fastv(*, layer: int = 2) -> DecoderMethod:
    """FastV: block ``layer`` and all behind it see only the visual tokens that the last token attends to most.

    The attention is that of the block before, heads averaged. Tokens leave between that block's attention and its MLP:
    what survives is the same as if they left behind its MLP, which treats every token alone, and costs less.
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


def _quarters(layers: int) -> tuple[int, ...]:
    """A quarter, half and three quarters through: 8, 16, 24 of 32."""
    return tuple(sorted({max(1, layers * part // 4) for part in (1, 2, 3)}))


def pyramiddrop() -> DecoderMethod:
    """PyramidDrop: in stages, before chosen blocks, those visual tokens leave that the last token would read least.

    ``attach`` takes the ratios kept after each stage, as shares of all visual tokens rounded down:
    ``keep_ratio=(0.5, 0.25, 0.125)`` (if it is given no amount) in ``layers=(8, 16, 24)`` of 32. Positions stay the
    original ones, where the released code counts anew.

    Cost besides the filter: one more query, key, value and output projection in every reducing layer.
    """
    return DecoderMethod(
        name="pyramiddrop",
        filter=LastTokenFilter(),
        correlate=None,
        compress=Compress(),
        layers=_quarters,
        amount=(("keep_ratio", (0.5, 0.25, 0.125)),),
        rounding="floor",
        before_attention=True,
        source="PyramidDrop, arXiv 2410.17247",
    )
