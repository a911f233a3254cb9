"""A filter that keeps what is least like a few pivots, the tokens with the longest keys (DART)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..ops import QueryKey, checks, costs
from ..ops.attention import rows
from .base import FilterStage, Selection
from .decoder import Layout
from .frozen import reject, value
from .pivots import cosines_in_steps, pick_in_turn
from .shape import Priced, Shape


@value
class PivotFilter(FilterStage):
    """Keeps pivots, and the tokens that are least like them.

    Pivots are the visual tokens and the tokens of the text after them whose keys have the largest L1 norm, all heads
    together. One pivot after the other, those of the picture first, each by falling norm, picks the visual tokens of
    lowest cosine to it among those that are not picked yet. All pick equally many; the first ones one more where the
    number to keep does not divide. Visual pivots stay, text is never touched. Of equal norms and cosines the lowest
    index counts. Cosines are of the hidden states after the norm that the language model applies after its last layer;
    where that is not known, as in :func:`ficoco_ext.reduce`, of the hidden states.

    Args:
        pivots: how many of the picture, at least 1 and not more than are to stay, and of the text, at least 0; a text
            that has fewer gives what it has.
    """

    pivots: tuple[int, int] = (4, 4)

    def __post_init__(self) -> None:
        fits = isinstance(self.pivots, tuple) and len(self.pivots) == 2
        if not fits or any(type(one) is not int for one in self.pivots) or self.pivots[0] < 1 or self.pivots[1] < 0:
            reject("PivotFilter", "pivots", "two integers, at least 1 of the picture and 0 of the text", self.pivots)

    def describe(self) -> str:
        """What it compares."""
        visual, text = self.pivots
        return f"hidden states most like {visual} visual and {text} text tokens with the longest keys"

    def operations(self, shape: Shape) -> list[Priced]:
        """The cosines with the pivots."""
        return [shape.price(costs.PIVOTS, o=min(self.pivots[0], shape.kept) + min(self.pivots[1], shape.text))]

    def __call__(self, attn: QueryKey, r: int, layout: Layout, *, given: bool = False) -> Selection:
        """Select r sources."""
        layout.require(r)
        if given:
            checks.fail(
                "reduce", "attn", "QueryKey(query, key): pivots are chosen by their keys", "a map", "pass those"
            )
        if layout.hidden is None:
            checks.fail("reduce", "layout", "one with the hidden states", layout, "pass Layout(..., hidden=tokens)")
        keep = layout.visual.shape[1] - r
        norms = attn.key.double().abs().sum((1, 3)).float()  # (B, N), rounded: the order of summation has no say
        own = _largest(norms.gather(1, layout.visual), min(self.pivots[0], keep))
        text, is_text = layout.text_after
        theirs = _largest(norms.gather(1, text).masked_fill(~is_text, -1.0), min(self.pivots[1], text.shape[1]))
        columns = torch.cat([layout.visual.gather(1, own), text.gather(1, theirs)], 1)
        there = torch.cat([torch.ones_like(own, dtype=torch.bool), is_text.gather(1, theirs)], 1)
        features, pivots = (self._features(layout, rows(layout.hidden, one)) for one in (layout.visual, columns))
        free = torch.ones_like(layout.visual, dtype=torch.bool).scatter(1, own, False)
        cosines = cosines_in_steps(pivots.masked_fill(~there.unsqueeze(-1), 0), features)
        kept = pick_in_turn(cosines, there, free, keep - own.shape[1]).scatter(1, own, True).to(norms.dtype)
        return Selection(*ops.filter(torch.zeros_like(kept), kept, r, lam=0.0, class_token=False))

    @staticmethod
    def _features(layout: Layout, hidden: Tensor) -> Tensor:
        return (hidden if layout.norm is None else layout.norm(hidden)).double()


def _largest(scores: Tensor, count: int) -> Tensor:
    """(B, count) indices of the largest scores, falling; of equal ones the lowest index first."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
