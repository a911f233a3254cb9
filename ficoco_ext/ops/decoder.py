"""The attention between chosen tokens, for methods inside a language model, and what they choose, in its sequence.

Tokens are named by their place among the keys. The specification is in :mod:`ficoco_ext.ops.reference_decoder`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import library, reference_decoder
from .library import QueryKey

SCHEMAS = {
    "token_attention": "(Tensor query, Tensor key, Tensor tokens, Tensor others, Tensor weights, Tensor? key_mask,"
    " float scale, bool probs, bool column, bool causal) -> Tensor",
    "correlate.tokens": "(Tensor query, Tensor key, Tensor sources, Tensor candidates, Tensor others, Tensor weights,"
    " Tensor? key_mask, SymInt k, float scale, float gamma, str alpha, bool probs, bool column, bool causal)"
    " -> (Tensor, Tensor)",
    "to_sequence": "(Tensor visual, Tensor sources, Tensor kept, Tensor targets, SymInt tokens)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
}
for _name, _schema in SCHEMAS.items():
    library.LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.LIBRARY.impl(_name, getattr(reference_decoder, _name.replace(".", "_")), "CompositeExplicitAutograd")


@torch.library.register_fake("ficoco::token_attention")
def _(query, key, tokens, others, weights, key_mask, scale, probs, column, causal):
    reference_decoder.checks.token_attention(query, key, tokens, others, weights, key_mask)
    return query.new_empty(query.shape[0], weights.shape[1], tokens.shape[1], dtype=library.result_dtype(query))


@torch.library.register_fake("ficoco::correlate.tokens")
def _(query, key, sources, candidates, others, weights, key_mask, k, *settings):
    shape = (*sources.shape, k)
    return sources.new_empty(shape), query.new_empty(shape, dtype=library.result_dtype(query))


@torch.library.register_fake("ficoco::to_sequence")
def _(visual, sources, kept, targets, tokens):
    reference_decoder.checks.to_sequence(visual, sources, kept, targets, tokens)
    b, r = sources.shape
    columns = visual.new_empty(b, tokens - r)
    return visual.new_empty(b, r), columns, visual.new_empty(targets.shape), visual.new_empty(kept.shape)


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
        tokens: (B, N) int64, places among the T keys.
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
    return library._operator("token_attention", attn.query)(
        attn.query, attn.key, tokens, others, weights, key_mask, attn.logit_scale, probs, column, causal
    )


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
        sources: (B, r) int64; candidates: (B, m) int64; others: (B, R) int64, places among the keys. The queries of
            sources and others must be there.
        weights: (B, R): 1 for a sum over the others, 1 / R for their mean, 0 for one that is not meant.
        k: targets per source, 0 <= k <= m.
        gamma: share of the direct attention in [0, 1]; 1 needs no others.
        alpha: as of :func:`ficoco_ext.ops.correlate`.
        column: by way of others that attend to source and candidate, instead of others that the source attends to.
            With ``causal`` and ``probs`` a source attends to no later token, so of later others only this says
            anything. The direct attention is that of the source to the candidate either way.

    Returns:
        targets (B, r, k) int64, places in ``candidates``; weights (B, r, k) float32 (float64 for float64).

    Raises:
        ValueError, TypeError: wrong rank, shape, dtype or device; on the CPU also an index out of range and values
        that are not finite.

    Ties: the lowest place. Deterministic. Cost: logits 2 B H d (r m + r R + R m) FLOPs, probabilities
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
    return library._operator("correlate.tokens", attn.query)(
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


class Placed(NamedTuple):
    """What :func:`to_sequence` returns."""

    sources: Tensor
    kept: Tensor
    targets: Tensor
    visual: Tensor


def to_sequence(visual: Tensor, sources: Tensor, kept: Tensor, targets: Tensor, tokens: int) -> Placed:
    """A selection among the visual tokens of a sequence, told in places of the whole sequence.

    A method chooses among the visual tokens; hidden states, mask and positions are those of all tokens. The result is
    what :func:`ficoco_ext.ops.compress` takes with the tokens of the whole sequence.

    Args:
        visual: (B, n) int64, the columns of the visual tokens in the sequence, ascending; they need not be neighbours.
        sources: (B, r) int64 and kept: (B, n - r) int64, ascending places in ``visual`` that are each of them once, as
            :func:`ficoco_ext.ops.filter` returns them without a class token.
        targets: (B, r, k) int64, places in ``kept``, as :func:`correlate_tokens` returns them when its candidates are
            the columns of ``kept``; k may be 0.
        tokens: columns of the sequence, at least n.

    Returns:
        sources (B, r), their columns; kept (B, tokens - r), all other columns, ascending; targets (B, r, k), places in
        the returned ``kept``; visual (B, n - r), the columns that the surviving visual tokens have in the shorter
        sequence. All int64.

    Raises:
        ValueError, TypeError: wrong rank, shape, dtype or device; on the CPU also values that are not as said above.

    Deterministic. Cost: no FLOPs; O(B tokens) memory read and written.

    Example:
        >>> import torch
        >>> from ficoco_ext.ops import to_sequence
        >>> visual, sources, kept = torch.tensor([[2, 3, 4]]), torch.tensor([[1]]), torch.tensor([[0, 2]])
        >>> placed = to_sequence(visual, sources, kept, torch.tensor([[[1]]]), 6)
        >>> placed.sources, placed.kept
        (tensor([[3]]), tensor([[0, 1, 2, 4, 5]]))
        >>> placed.targets, placed.visual
        (tensor([[[3]]]), tensor([[2, 3]]))
    """
    return Placed(*torch.ops.ficoco.to_sequence.default(visual, sources, kept, targets, tokens))
