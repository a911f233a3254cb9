"""A filter by the attention of those words of the prompt that speak of its picture (SparseVLM)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..ops import QueryKey, costs, sequence
from ..ops.attention import accumulate, rows, without_autocast
from .base import FilterStage, Selection
from .decoder import Layout
from .frozen import value
from .shape import Priced, Shape

_VISUAL = 1024  # visual tokens whose similarity with the text is held at once


@value
class TextRaters(FilterStage):
    """Drops the r visual tokens that the text raters attend to least.

    Raters are tokens of the text after the visual ones, chosen before the first layer: each visual token spreads a
    softmax of its dot products with the embeddings of that text over it, and those tokens rate whose mean of this over
    the visual tokens is above the mean of all of them; if none is, all do. What a visual token counts in a layer is its
    causal attention from the raters, heads and raters averaged. Without text all visual tokens count alike.
    """

    def describe(self) -> str:
        """Whose attention it ranks by."""
        return "least attention of the text most like the picture"

    def operations(self, shape: Shape) -> list[Priced]:
        """Choosing the raters, which each prompt pays once, and their rows, priced as those of all the text."""
        attention = costs.token_attention(probs=True, column=True)
        return [shape.price(costs.TEXT_RATERS, e=shape.text), shape.price(attention, o=shape.text, j=1)]

    def mark(self, embeddings: Tensor, layout: Layout) -> Tensor:
        """(B, N) bool, True for raters."""
        columns, is_text = layout.text_after
        visual, text = rows(embeddings, layout.visual), accumulate(rows(embeddings, columns))
        total = text.new_zeros(is_text.shape)
        for part in visual.split(_VISUAL, 1):
            with without_autocast(text):
                similar = accumulate(part) @ text.mT
            total += similar.masked_fill(~is_text.unsqueeze(1), -torch.inf).softmax(-1).sum(1)
        share = torch.where(is_text, total, 0) / visual.shape[1]
        above = is_text & (share > share.sum(1, keepdim=True) / is_text.sum(1, keepdim=True).clamp(min=1))
        chosen = torch.where(above.any(1, keepdim=True), above, is_text)
        marks = torch.zeros(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        return marks.scatter(1, columns, chosen)

    def __call__(self, attn: QueryKey, r: int, layout: Layout, *, given: bool = False) -> Selection:
        """Select r sources."""
        layout.require(r)
        assert layout.marks is not None, "a method asks for the marks first"
        columns, is_text = layout.text_after
        rating = layout.marks.gather(1, columns) & is_text
        received = ops.token_attention(
            attn,
            layout.visual,
            columns,
            sequence.shares(rating, "mean", ops.result_dtype(attn.query)).unsqueeze(1),
            probs=not given,
            column=True,
            causal=not given,
            key_mask=layout.real,
        )[:, 0]
        return Selection(*ops.filter(torch.zeros_like(received), received, r, lam=0.0, class_token=False))
