"""FitPrune: a recipe for every layer, found on a few prompts without any training (arXiv 2409.10197)."""

from __future__ import annotations

import itertools

from ..stages import Compress, StrongestHeadFilter
from ..stages.frozen import reject
from .decoder_method import DecoderMethod
from .registry import register

_TOKENS, _LAYERS = 576, 32  # of LLaVA-1.5-7B, for which the recipes were published
_RECIPES = {  # by the share of the language model's FLOPs that they save: what leaves in each layer, from the first
    0.6: (14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4, 26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1),
    0.9: (262, 153, 80, 19, 13, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 1, 2, 0, 1, 0, 0, 0, 0, 0, 1),
}


def _every_layer(layers: int) -> tuple[int, ...]:
    return tuple(range(layers))


@register("fitprune", rank=150)
def fitprune(*, recipe: float | None = None) -> DecoderMethod:
    """FitPrune: in every layer those visual tokens leave that picture and text together attend to least.

    What a token counts is the mean of what visual tokens pay it times the sum of what the text after the picture pays
    it, of each query by its strongest head. How many leave in each layer is a recipe: one that was published, or your
    own ``r=[...]``, as :func:`ficoco_ext.apps.fitting.fit` finds it for a model and some prompts of it. Positions stay
    the original ones. What stays is tied to one question: for another about the same picture, start a new prompt.

    Args:
        recipe: 0.6 or 0.9, the share of FLOPs saved: the published recipe for the 576 visual tokens and 32 layers of
            LLaVA-1.5-7B is the amount that attach takes if it is given none. Prompts with more or fewer visual tokens
            lose the same share of them in each layer; models of another depth are refused. None: there is no such
            amount.

    Raises:
        ValueError: a recipe that was not published.
    """
    if recipe is not None and (isinstance(recipe, bool) or recipe not in _RECIPES):
        reject("fitprune", "recipe", "0.6, 0.9 or None", recipe)
    return DecoderMethod(
        name="fitprune",
        filter=StrongestHeadFilter(),
        correlate=None,
        compress=Compress(),
        layers=_every_layer,
        amount=() if recipe is None else (("keep_ratio", _ratios(_RECIPES[recipe])),),
        source="FitPrune, arXiv 2409.10197",
    )


def _ratios(gone: tuple[int, ...]) -> tuple[float, ...]:
    """The share of the visual tokens that is left after each layer."""
    each = (*gone, *(0,) * (_LAYERS - len(gone)))
    return tuple((_TOKENS - left) / _TOKENS for left in itertools.accumulate(each))
