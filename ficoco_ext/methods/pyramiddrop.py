"""PyramidDrop: pruning in stages by the attention of the last prompt token (arXiv 2410.17247)."""

from __future__ import annotations

from ..stages import Compress, LastTokenFilter
from .decoder_method import DecoderMethod
from .registry import register


def _quarters(layers: int) -> tuple[int, ...]:
    """A quarter, half and three quarters through: 8, 16, 24 of 32."""
    return tuple(sorted({max(1, layers * part // 4) for part in (1, 2, 3)}))


@register("pyramiddrop", rank=130)
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
