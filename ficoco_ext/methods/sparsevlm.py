"""SparseVLM: pruning in stages by the text that speaks of the picture, and recycling (arXiv 2410.04417)."""

from __future__ import annotations

from ..stages import Compress, Recycle, RecycledMean, TextRaters
from ..stages.frozen import require_one_of
from .decoder_method import DecoderMethod
from .registry import register

_TOKENS, _LAYERS, _BLOCKS = 576, 32, (2, 6, 15)  # of LLaVA-1.5-7B
_KEPT = {  # by version and the mean over layers that they are called by: tokens that the filter keeps in each block
    "1.5": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "2.0": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
_RECYCLE = Recycle(TextRaters())


def _in_proportion(layers: int) -> tuple[int, ...]:
    """Blocks 2, 6 and 15 of 32; of another number at the same shares of the depth, at least one block apart."""
    chosen: list[int] = []
    for block in _BLOCKS:
        chosen.append(max(block * layers // _LAYERS, chosen[-1] + 1 if chosen else 0))
    return tuple(layer for layer in chosen if layer < layers)


@register("sparsevlm", rank=140)
def sparsevlm(*, version: str = "1.5", average_tokens: int = 192) -> DecoderMethod:
    """SparseVLM: in three blocks those visual tokens leave that the text about the picture attends to least.

    The text that rates is chosen before the first layer, by its likeness to the picture. Of what leaves, version 1.5
    recycles the best: 30 % are clustered by density peaks of their hidden states, ten to a cluster, and each cluster's
    mean stays at the position of its centre. All tokens keep their original positions; the released code moves clusters
    after the kept tokens and counts anew. It also acts on a block's output: here tokens leave between attention and
    MLP of the same block. That is the same for what is kept, and cheaper; clusters are those of the hidden states
    before the MLP, which then reads their means.

    Amounts count what is left, clusters included. What stays is tied to one question: for another about the same
    picture, start a new prompt.

    Args:
        version: ``"1.5"``, or ``"2.0"`` without recycling. Version 2.0 as released also divides attention by what
            rotary positions alone would give and takes 14 of the heads; here it is the attention, all heads averaged.
        average_tokens: 192, 128, 96 or 64: the published amounts of this name, the mean over the 32 layers of
            LLaVA-1.5-7B, are what attach takes if it is given none. They were published for 576 visual tokens; prompts
            with more or fewer keep the same shares, and so do blocks of a model of another depth.

    Raises:
        ValueError: a version or an average that was not published.
    """
    require_one_of("sparsevlm", "version", version, tuple(_KEPT))
    require_one_of("sparsevlm", "average_tokens", average_tokens, tuple(_KEPT[version]))
    recycles = version == "1.5"
    left = _left(_KEPT[version][average_tokens], recycles)
    return DecoderMethod(
        name="sparsevlm",
        filter=_RECYCLE if recycles else TextRaters(),
        correlate=None,
        compress=RecycledMean() if recycles else Compress(),
        layers=_in_proportion,
        amount=(("keep_ratio", tuple(count / _TOKENS for count in left)),),
        source="SparseVLM, arXiv 2410.04417",
    )


def _left(kept: tuple[int, ...], recycles: bool) -> list[int]:
    """Tokens after each block, clusters included, of which the filter keeps at most all but one that enter."""
    left, tokens = [], _TOKENS
    for count in kept:
        stay = min(count, tokens - 1)
        tokens = stay + (_RECYCLE.clusters(tokens - stay) if recycles else 0)
        left.append(tokens)
    return left
