"""``ficoco::correlate.tokens``: correlate among the tokens of a decoder, directly and by way of others (FiCoCo eq. 4).

In a decoder tokens are positions among the T keys; the queries are those of the last Tq tokens, fewer than T after a
prefix that is cached already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from ._correlate import best_targets
from ._token_attention import attention_block
from .attention import QueryKey, accumulate
from .library import define, fake, operator, result_dtype


def check(
    query: Tensor,
    key: Tensor,
    sources: Tensor,
    candidates: Tensor,
    others: Tensor,
    weights: Tensor,
    key_mask: Tensor | None,
    k: int,
    gamma: float,
    alpha: str,
    probs: bool,
) -> None:
    """The arguments of ``ficoco::correlate.tokens`` fit together (shapes and types only)."""
    op = "correlate"
    checks.chosen_tokens(op, query, key, key_mask, sources=sources, candidates=candidates, others=others)
    checks.floating(op, "weights", weights)
    checks.same_device(op, "query", query, weights=weights)
    fits = weights.shape == others.shape
    checks.shape(
        op, "weights", weights, lambda: f"{tuple(others.shape)} like others", fits, "one weight for each of others"
    )
    checks.target_count(op, k, candidates.shape[1], alpha)
    if not 0 <= gamma <= 1:
        checks.fail(op, "gamma", "in [0, 1]", gamma, "1 is direct attention alone")


def specification(
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
    column: bool,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Targets (B, r, k), as indices into ``candidates``, and weights (B, r, k), directly and by way of other tokens.

    C_ij = gamma A_ij + (1 - gamma) sum_t weights_t A_it A_tj for sources i, candidates j and others t (FiCoCo eq. 4).
    With ``column`` it is A_ti A_tj, the others that read both: under a causal mask A_it of a later t is exactly 0.
    """
    check(query, key, sources, candidates, others, weights, key_mask, k, gamma, alpha, probs)
    how = (key_mask, scale, probs, causal)
    scores = gamma * attention_block(query, key, sources, candidates, *how)
    if gamma < 1:
        if column:  # the same rows for both ends: their softmax is computed once
            ends = attention_block(query, key, others, torch.cat([sources, candidates], dim=1), *how)
            way, onward = ends[..., : sources.shape[1]].mT, ends[..., sources.shape[1] :]
        else:
            way = attention_block(query, key, sources, others, *how)
            onward = attention_block(query, key, others, candidates, *how)
        scores = scores + (1 - gamma) * (way * accumulate(weights).to(scores.dtype).unsqueeze(1) @ onward)
    return best_targets(scores, k, alpha, 0)


define(
    "correlate.tokens",
    "(Tensor query, Tensor key, Tensor sources, Tensor candidates, Tensor others, Tensor weights,"
    " Tensor? key_mask, SymInt k, float scale, float gamma, str alpha, bool probs, bool column, bool causal)"
    " -> (Tensor, Tensor)",
    specification,
)


@fake("correlate.tokens")
def _(query, key, sources, candidates, others, weights, key_mask, k, *settings):
    shape = (*sources.shape, k)
    return sources.new_empty(shape), query.new_empty(shape, dtype=result_dtype(query))


def correlate_tokens(
    attn: QueryKey,
    sources: Tensor,
    candidates: Tensor,
    others: Tensor,
    weights: Tensor,
    k: int,
    *,
    gamma: float,
    alpha: str,
    probs: bool,
    column: bool = False,
    causal: bool = False,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """For each source the k candidates it correlates with most, directly and by way of other tokens (FiCoCo eq. 4).

    ``C_ij = gamma A_ij + (1 - gamma) sum_t weights_t A_it A_tj`` for sources i, candidates j and others t, such as the
    text; with ``column`` ``A_ti A_tj`` in place of ``A_it A_tj``. Only these rows of the attention are computed.

    Args:
        attn, causal, key_mask, probs: as of :func:`token_attention`.
        sources: (B, r) int64; candidates: (B, m) int64; others: (B, R) int64, positions among the keys. The queries of
            sources and others must be there.
        weights: (B, R): 1 for a sum over the others, 1 / R for their mean, 0 for one that is not meant.
        k: targets per source, 0 <= k <= m.
        gamma: share of the direct attention in [0, 1]; 1 needs no others.
        alpha: as of :func:`ficoco_ext.ops.correlate`.
        column: by way of others that attend to source and candidate, instead of others that the source attends to.
            With ``causal`` and ``probs`` a source attends to no later token, so of later others only this says
            anything. The direct attention is that of the source to the candidate either way.

    Returns:
        targets (B, r, k) int64, indices into ``candidates``; weights (B, r, k) float32 (float64 for float64).

    Raises:
        ValueError, TypeError: wrong rank, shape, dtype or device; on the CPU also an index out of range and values
        that are not finite.

    Ties: the lowest index. Deterministic. Cost: logits 2 B H d (r m + r R + R m) FLOPs, probabilities
    2 B (r + R) T H d, then 2 B r R m, with ``column`` the same; memory O(r m + (r + m) R).

    Example:
        >>> import torch
        >>> from ficoco_ext import QueryKey
        >>> from ficoco_ext.ops import correlate_tokens
        >>> q, k = torch.randn(2, 1, 4, 10, 8)
        >>> sources, kept, text = torch.tensor([[2, 5]]), torch.tensor([[3, 4, 6]]), torch.tensor([[7, 8, 9]])
        >>> attn = QueryKey(q[None, 0], k[None, 0])
        >>> targets, _ = correlate_tokens(attn, sources, kept, text, torch.ones(1, 3), 2, gamma=0.6, alpha="softmax",
        ...     probs=False)
        >>> targets.shape
        torch.Size([1, 2, 2])
    """
    scale = attn.logit_scale
    return operator("correlate.tokens", attn.query)(
        attn.query,
        attn.key,
        sources,
        candidates,
        others,
        weights,
        key_mask,
        k,
        scale,
        gamma,
        alpha,
        probs,
        column,
        causal,
    )
