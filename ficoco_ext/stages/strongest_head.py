"""A filter that multiplies what the picture and what the text pay a visual token, by its strongest head (FitPrune)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .. import ops
from ..ops import QueryKey, costs
from ..ops.strongest_head import strongest_head
from .base import FilterStage, Selection
from .decoder import Layout
from .frozen import value
from .shape import Priced, Shape


def self_and_cross(attn: QueryKey, layout: Layout, *, given: bool = False) -> tuple[Tensor, Tensor]:
    """What each visual token receives (B, n) from the visual tokens, a mean, and from the text after them, a sum.

    Of each query the head counts that pays the token most. ``given``: the attention is used as it is.
    """
    visual, (text, is_text) = layout.visual, layout.text_after
    (b, n), others = visual.shape, torch.cat([visual, text], 1)
    weights = torch.zeros(b, 2, others.shape[1], dtype=ops.result_dtype(attn.query), device=visual.device)
    weights[:, 0, :n] = 1 / n
    weights[:, 1, n:] = is_text
    among, cross = strongest_head(attn, visual, others, weights, given=given, key_mask=layout.real).unbind(1)
    return among, cross


@value
class StrongestHeadFilter(FilterStage):
    """Drops the r visual tokens with the smallest product of what the picture and what the text attend to them.

    A_ij is the largest causal attention that any head pays from i to j. A token counts the mean of A_ij over visual i,
    times the sum of A_ij over the text i after the picture; without such text the first factor alone.
    """

    heads: ClassVar[str] = "max"

    def describe(self) -> str:
        """What it multiplies."""
        return "least attention of the picture times that of the text, of the strongest head"

    def operations(self, shape: Shape) -> list[Priced]:
        """The rows of all visual tokens and of the text."""
        return [shape.price(costs.STRONGEST_HEAD, o=shape.visual + shape.text, j=2)]

    def __call__(self, attn: QueryKey, r: int, layout: Layout, *, given: bool = False) -> Selection:
        """Select r sources."""
        layout.require(r)
        among, text = self_and_cross(attn, layout, given=given)
        product = torch.where(layout.is_text.any(1, keepdim=True), among * text, among)
        return Selection(*ops.filter(torch.zeros_like(product), product, r, lam=0.0, class_token=False))
