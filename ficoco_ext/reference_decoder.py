"""The specification, continued: what methods inside a language model read of its attention.

As :mod:`ficoco_ext.reference`: plain PyTorch, any floating dtype. Here tokens are places in the sequence of keys, T of
them; the queries are those of the last Tq tokens, fewer than T after a prefix that is cached already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .reference import _accumulate, _rows


def _places(matrix: Tensor, index: Tensor) -> Tensor:
    """Columns ``index`` (B, C) of ``matrix`` (B, R, X): (B, R, C)."""
    return matrix.gather(2, index.unsqueeze(1).expand(-1, matrix.shape[1], -1))


def probabilities(logits: Tensor, query_token: Tensor, key_mask: Tensor | None, causal: bool) -> Tensor:
    """Softmax of ``logits`` (B, R, T) over the keys that the queries ``query_token`` (B, R) may attend to.

    A query that may attend to nobody has probability 0 everywhere.
    """
    allowed = torch.ones_like(logits, dtype=torch.bool)
    if causal:
        allowed = torch.arange(logits.shape[-1], device=logits.device) <= query_token.unsqueeze(-1)
    if key_mask is not None:
        allowed = allowed & key_mask.unsqueeze(1)
    return logits.masked_fill(~allowed, float("-inf")).softmax(-1).masked_fill(~allowed, 0)


def token_attention(
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
    checks.token_attention(query, key, tokens, others, weights, key_mask)
    h, (queries, keys) = query.shape[1], (others, tokens) if column else (tokens, others)
    w = _accumulate(weights)
    out = _accumulate(query).new_zeros(query.shape[0], weights.shape[1], tokens.shape[1])
    for head in range(h):  # one head at a time: R N at most, never all heads
        q = _rows(_accumulate(query[:, head]), queries - (key.shape[2] - query.shape[2]))
        values = q @ _accumulate(key[:, head * key.shape[1] // h]).mT * scale
        if probs:
            values = probabilities(values, queries, key_mask, causal)
        values = _places(values, keys)
        out += w.to(out.dtype) @ (values if column else values.mT)
    return out / h
