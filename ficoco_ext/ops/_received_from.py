"""``ficoco::received_from``: what visual tokens receive from chosen rows of text, the sum and the largest of them.

MustDrop (arXiv 2411.10803) keeps what the text as a whole attends to, or what one word of it attends to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from ._token_attention import attention_block
from .attention import QueryKey, accumulate
from .library import define, fake, operator, result_dtype

OP = "received_from"
_CELLS = 2**22  # of a head's attention that the specification holds at once


class Received(NamedTuple):
    """What each visual token receives from the chosen rows: ``total`` (B, n) their sum, ``peak`` (B, n) the largest."""

    total: Tensor
    peak: Tensor


def _check(query: Tensor, key: Tensor, visual: Tensor, text: Tensor, chosen: Tensor, key_mask: Tensor | None) -> None:
    checks.chosen_tokens(OP, query, key, key_mask, visual=visual, text=text)
    checks.same_device(OP, "query", query, chosen=chosen)
    b, r = text.shape
    if chosen.dtype != torch.bool:
        checks.fail(OP, "chosen", f"({b}, {r}) bool", chosen, "True where a row of text counts", TypeError)
    fits = tuple(chosen.shape) == (b, r)
    checks.shape(OP, "chosen", chosen, lambda: f"({b}, {r})", fits, "one flag for each of text")


def specification(
    query: Tensor,
    key: Tensor,
    visual: Tensor,
    text: Tensor,
    chosen: Tensor,
    key_mask: Tensor | None,
    scale: float,
    probs: bool,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """total and peak (B, n) over the rows r of ``text`` (B, R) that are ``chosen`` (B, R) of A[text_r, visual_i].

    A is the mean over heads of the softmax over the keys that a query may attend to, or, without ``probs``, of the
    logits, which know no mask. Without a chosen row both are 0. Rows that are not chosen have no influence, whatever
    they hold.
    """
    _check(query, key, visual, text, chosen, key_mask)
    total = accumulate(query).new_zeros(visual.shape)
    peak = torch.full_like(total, float("-inf"))
    step = max(_CELLS // max(key.shape[0] * key.shape[2], 1), 1)
    for start in range(0, text.shape[1], step):
        part = text[:, start : start + step]
        block = attention_block(query, key, part, visual, key_mask, scale, probs, causal)
        hidden = ~chosen[:, start : start + step].unsqueeze(2)
        total = total + block.masked_fill(hidden, 0).sum(1)
        peak = torch.maximum(peak, block.masked_fill(hidden, float("-inf")).amax(1))  # NaN stays NaN
    return total, peak.masked_fill(~chosen.any(1, keepdim=True), 0)


define(
    "received_from",
    "(Tensor query, Tensor key, Tensor visual, Tensor text, Tensor chosen, Tensor? key_mask, float scale, bool probs,"
    " bool causal) -> (Tensor, Tensor)",
    specification,
)


@fake("received_from")
def _(query, key, visual, text, chosen, key_mask, scale, probs, causal):
    _check(query, key, visual, text, chosen, key_mask)
    total = query.new_empty(visual.shape, dtype=result_dtype(query))
    return total, torch.empty_like(total)


def received_from(
    attn: QueryKey,
    visual: Tensor,
    text: Tensor,
    chosen: Tensor,
    *,
    probs: bool = True,
    causal: bool = True,
    key_mask: Tensor | None = None,
) -> Received:
    """The attention that each visual token receives from the chosen rows of text: all of it, and the most of one row.

    ``total[i] = sum_r A[text_r, visual_i]`` and ``peak[i] = max_r A[text_r, visual_i]`` over the rows r with
    ``chosen``; A is the mean over heads, which is taken before the maximum.

    Args:
        attn: post-rotary query (B, H, Tq, d) and key (B, Hk, T, d), T >= Tq: the queries are those of the last tokens.
        visual: (B, n) int64, positions among the T keys.
        text: (B, R) int64, likewise, each among the last Tq. A row of the batch that has fewer repeats one that is not
            ``chosen``.
        chosen: (B, R) bool, False for a row of text that does not count. Its attention is not read.
        probs: softmax of the logits over the keys that a query may attend to, by ``causal`` and ``key_mask``; without
            ``probs`` the logits themselves, which know no mask.
        causal: a query attends to no later token.
        key_mask: (B, T) bool, False for padding.

    Returns:
        total and peak, (B, n) float32 each (float64 for float64); both 0 for a row of the batch without a chosen row.
        Where a query or key that counts is not finite, NaN.

    Raises:
        ValueError, TypeError: wrong rank, shape, dtype or device; an index out of range (checked on the CPU).

    Cost: 2 B R H d T FLOPs for R rows, by logits 2 B R H d n. No map of all tokens: rows are taken in blocks.
    Deterministic: rows are added in one order, in float32. Source: MustDrop, arXiv 2411.10803.

    Example:
        >>> import torch
        >>> from ficoco_ext import QueryKey
        >>> from ficoco_ext.ops import received_from
        >>> q, k = torch.randn(2, 1, 4, 10, 8)
        >>> visual, text = torch.arange(2, 8)[None], torch.tensor([[8, 9]])
        >>> got = received_from(QueryKey(q[None, 0], k[None, 0]), visual, text, torch.tensor([[True, False]]))
        >>> got.total.shape, bool((got.total == got.peak).all())
        (torch.Size([1, 6]), True)
    """
    return Received(
        *operator("received_from", attn.query)(
            attn.query, attn.key, visual, text, chosen, key_mask, attn.logit_scale, probs, causal
        )
    )
