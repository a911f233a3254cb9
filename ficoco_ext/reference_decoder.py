"""The specification, continued: what methods inside a language model read of its attention.

As :mod:`ficoco_ext.reference`: plain PyTorch, any floating dtype. Here tokens are places in the sequence of keys, T of
them; the queries are those of the last Tq tokens, fewer than T after a prefix that is cached already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .reference import _accumulate, _best_targets, _rows


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


def attention_block(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    columns: Tensor,
    key_mask: Tensor | None,
    scale: float,
    probs: bool,
    causal: bool,
) -> Tensor:
    """(B, R, C): mean over heads of the attention of ``rows`` (B, R) to ``columns`` (B, C), one head at a time."""
    h = query.shape[1]
    out = _accumulate(query).new_zeros(query.shape[0], rows.shape[1], columns.shape[1])
    for head in range(h):
        q = _rows(_accumulate(query[:, head]), rows - (key.shape[2] - query.shape[2]))
        values = q @ _accumulate(key[:, head * key.shape[1] // h]).mT * scale
        out += _places(probabilities(values, rows, key_mask, causal) if probs else values, columns)
    return out / h


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
    rows, columns = (others, tokens) if column else (tokens, others)
    block = attention_block(query, key, rows, columns, key_mask, scale, probs, causal)
    return _accumulate(weights).to(block.dtype) @ (block if column else block.mT)


def correlate_tokens(
    query: Tensor,
    key: Tensor,
    sources: Tensor,
    candidates: Tensor,
    others: Tensor,
    weights: Tensor,
    key_mask: Tensor | None,
    k: int,
    scale: float,
    gamma: float,
    alpha: str,
    probs: bool,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Targets (B, r, k), as places in ``candidates``, and weights (B, r, k), directly and by way of other tokens.

    C_ij = gamma A_ij + (1 - gamma) sum_t weights_t A_it A_tj for sources i, candidates j and others t (FiCoCo eq. 4).
    """
    checks.correlate_tokens(query, key, sources, candidates, others, weights, key_mask, k, gamma, alpha, probs)
    how = (key_mask, scale, probs, causal)
    scores = gamma * attention_block(query, key, sources, candidates, *how)
    if gamma < 1:
        way = attention_block(query, key, sources, others, *how) * _accumulate(weights).to(scores.dtype).unsqueeze(1)
        scores = scores + (1 - gamma) * (way @ attention_block(query, key, others, candidates, *how))
    return _best_targets(scores, k, alpha, 0)
