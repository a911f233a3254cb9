"""Sums of the attention of the strongest head: of each query and key the largest probability that any head has."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import QueryKey, accumulate, without_autocast

_CELLS = 2**24  # probabilities of all heads that are held at once


def strongest_head(
    attn: QueryKey, tokens: Tensor, others: Tensor, weights: Tensor, *, given: bool, key_mask: Tensor | None = None
) -> Tensor:
    """What ``tokens`` receive from ``others``, W weighted sums of the strongest head's attention.

    ``out[w, i] = sum_r weights[w, r] max_h P_h[others_r, tokens_i]``, with P_h the softmax of one head under a causal
    mask. Rows of all heads are made in blocks, so that no map of all tokens is held.

    Args:
        attn: post-rotary query (B, H, Tq, d) and key (B, Hk, T, d): the queries are those of the last tokens.
        tokens: (B, N) int64, positions among the T keys. others: (B, R) int64, likewise.
        weights: (B, W, R).
        given: the values of the attention are used as they are, instead of their softmax.
        key_mask: (B, T) bool, False for padding.

    Returns:
        (B, W, N) float32 (float64 for float64).

    Cost: 2 B R T H d operations. Deterministic. Autocast does not apply.

    Example:
        >>> import torch
        >>> from ficoco_ext import QueryKey
        >>> from ficoco_ext.ops.strongest_head import strongest_head
        >>> q, k = torch.randn(2, 1, 4, 10, 8)
        >>> visual, text = torch.arange(2, 8)[None], torch.tensor([[8, 9]])
        >>> attn = QueryKey(q[None, 0], k[None, 0])
        >>> strongest_head(attn, visual, text, torch.ones(1, 1, 2), given=False).shape
        torch.Size([1, 1, 6])
    """
    with without_autocast(attn.query):
        return _sums(attn, tokens, others, weights, given, key_mask)


def _sums(
    attn: QueryKey, tokens: Tensor, others: Tensor, weights: Tensor, given: bool, key_mask: Tensor | None
) -> Tensor:
    """:func:`strongest_head`, in blocks of rows."""
    query, key = attn.query, accumulate(attn.key)
    (b, h, _, d), (_, hk, t, _) = query.shape, key.shape
    out = key.new_zeros(b, weights.shape[1], tokens.shape[1])
    columns = torch.arange(t, device=key.device)
    step = max(_CELLS // max(b * h * t, 1), 1)
    for start in range(0, others.shape[1], step):
        part = others[:, start : start + step]
        index = (part - (t - query.shape[2])).view(b, 1, -1, 1).expand(-1, h, -1, d)
        asking = accumulate(query.gather(2, index)).view(b, hk, h // hk, part.shape[1], d)
        values = (asking @ key.unsqueeze(2).mT * attn.logit_scale).flatten(1, 2)  # (B, H, rows, T)
        if not given:
            allowed = columns <= part.unsqueeze(-1)
            allowed = (allowed if key_mask is None else allowed & key_mask.unsqueeze(1)).unsqueeze(1)
            values = values.masked_fill(~allowed, -torch.inf).softmax(-1).masked_fill(~allowed, 0)
        strongest = values.amax(1).gather(2, tokens.unsqueeze(1).expand(-1, part.shape[1], -1))
        out += weights[:, :, start : start + step].to(out.dtype) @ strongest
    return out
