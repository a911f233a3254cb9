"""``ficoco::token_attention``: sums of the attention between chosen tokens of a decoder (FiCoCo eq. 3).

In a decoder tokens are positions among the T keys; the queries are those of the last Tq tokens, fewer than T after a
prefix that is cached already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .attention import QueryKey, accumulate, rows
from .library import define, fake, operator, result_dtype


def _columns(matrix: Tensor, index: Tensor) -> Tensor:
    """Columns ``index`` (B, C) of ``matrix`` (B, R, X): (B, R, C)."""
    return matrix.gather(2, index.unsqueeze(1).expand(-1, matrix.shape[1], -1))


def probabilities(logits: Tensor, query_token: Tensor, key_mask: Tensor | None, causal: bool) -> Tensor:
    """Softmax of ``logits`` (B, R, T) over the keys that the queries ``query_token`` (B, R) may attend to.

    A query that may attend to no key has probability 0 everywhere.
    """
    allowed = torch.ones_like(logits, dtype=torch.bool)
    if causal:
        allowed = torch.arange(logits.shape[-1], device=logits.device) <= query_token.unsqueeze(-1)
    if key_mask is not None:
        allowed = allowed & key_mask.unsqueeze(1)
    return logits.masked_fill(~allowed, float("-inf")).softmax(-1).masked_fill(~allowed, 0)


def attention_block(
    query: Tensor,
    key: Tensor,
    row_tokens: Tensor,
    column_tokens: Tensor,
    key_mask: Tensor | None,
    scale: float,
    probs: bool,
    causal: bool,
) -> Tensor:
    """(B, R, C): the attention of ``row_tokens`` (B, R) to ``column_tokens`` (B, C), mean over heads, head by head."""
    h = query.shape[1]
    out = accumulate(query).new_zeros(query.shape[0], row_tokens.shape[1], column_tokens.shape[1])
    for head in range(h):
        q = rows(accumulate(query[:, head]), row_tokens - (key.shape[2] - query.shape[2]))
        values = q @ accumulate(key[:, head * key.shape[1] // h]).mT * scale
        out += _columns(probabilities(values, row_tokens, key_mask, causal) if probs else values, column_tokens)
    return out / h


def check(query: Tensor, key: Tensor, tokens: Tensor, others: Tensor, weights: Tensor, key_mask: Tensor | None) -> None:
    """The arguments of ``ficoco::token_attention`` fit together (shapes and types only)."""
    op = "token_attention"
    checks.chosen_tokens(op, query, key, key_mask, tokens=tokens, others=others)
    checks.floating(op, "weights", weights)
    checks.same_device(op, "query", query, weights=weights)
    b, r = others.shape
    fits = weights.dim() == 3 and weights.shape[0] == b and weights.shape[2] == r
    checks.shape(op, "weights", weights, lambda: f"({b}, W, {r})", fits, "one weight for each of others")


def specification(
    query: Tensor,
    key: Tensor,
    tokens: Tensor,
    others: Tensor,
    weights: Tensor,
    key_mask: Tensor | None,
    scale: float,
    probs: bool,
    column: bool,
    causal: bool,
) -> Tensor:
    """(B, W, N): weighted sums of the attention between ``tokens`` (B, N) and ``others`` (B, R).

    out[w, i] = sum_r weights[w, r] A[tokens_i, others_r], with ``column`` A[others_r, tokens_i]; A is the mean over
    heads of the logits, which know no mask, or of their softmax over the keys that a query may attend to.
    """
    check(query, key, tokens, others, weights, key_mask)
    row_tokens, column_tokens = (others, tokens) if column else (tokens, others)
    block = attention_block(query, key, row_tokens, column_tokens, key_mask, scale, probs, causal)
    return accumulate(weights).to(block.dtype) @ (block if column else block.mT)


define(
    "token_attention",
    "(Tensor query, Tensor key, Tensor tokens, Tensor others, Tensor weights, Tensor? key_mask,"
    " float scale, bool probs, bool column, bool causal) -> Tensor",
    specification,
)


@fake("token_attention")
def _(query, key, tokens, others, weights, key_mask, scale, probs, column, causal):
    check(query, key, tokens, others, weights, key_mask)
    return query.new_empty(query.shape[0], weights.shape[1], tokens.shape[1], dtype=result_dtype(query))


def token_attention(
    attn: QueryKey,
    tokens: Tensor,
    others: Tensor,
    weights: Tensor,
    *,
    probs: bool,
    column: bool,
    causal: bool = False,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Weighted sums of the attention between ``tokens`` and ``others``, W of them at once.

    ``out[w, i] = sum_r weights[w, r] A[tokens_i, others_r]``, or with ``column`` ``A[others_r, tokens_i]``. With the
    visual tokens as ``tokens`` this is FiCoCo-L's redundancy (others: the visual ones) and text relevance (others: the
    text), FastV's score (others: the last token, column), PyramidDrop's likewise.

    Args:
        attn: post-rotary query (B, H, Tq, d) and key (B, Hk, T, d), T >= Tq: the queries are those of the last tokens.
        tokens: (B, N) int64, positions among the T keys.
        others: (B, R) int64, likewise; a row of the batch that has fewer repeats one with weight 0.
        weights: (B, W, R), any floating dtype: W sums, such as 1 / R for a mean.
        probs: softmax of the logits over the keys that a query may attend to, by ``causal`` and ``key_mask``; without
            ``probs`` the logits themselves, which know no mask.
        column: what ``tokens`` receive from ``others`` instead of what they give.
        causal: a query attends to no later token.
        key_mask: (B, T) bool, False for padding.

    Returns:
        (B, W, N) float32 (float64 for float64).

    Raises:
        ValueError, TypeError: wrong rank, shape, dtype or device; an index out of range (checked on the CPU). A token
        whose query is asked for must be among the last Tq.

    Cost: logits 2 B W (N + R) H d FLOPs, no map; probabilities 2 B Q T H d with Q = N, or R with ``column``, no map of
    all tokens in the CPU and CUDA kernels. Deterministic. Source: FiCoCo eq. 3, FastV (arXiv 2403.06764).

    Example:
        >>> import torch
        >>> from ficoco_ext import QueryKey
        >>> from ficoco_ext.ops import token_attention
        >>> q, k = torch.randn(2, 1, 4, 10, 8)
        >>> visual, last = torch.arange(2, 8)[None], torch.tensor([[9]])
        >>> scores = token_attention(QueryKey(q[None, 0], k[None, 0]), visual, last, torch.ones(1, 1, 1), probs=True,
        ...     column=True, causal=True)
        >>> scores.shape
        torch.Size([1, 1, 6])
    """
    return operator("token_attention", attn.query)(
        attn.query, attn.key, tokens, others, weights, key_mask, attn.logit_scale, probs, column, causal
    )
