"""The specification, continued: what methods inside a language model read of its attention.

As :mod:`ficoco_ext.ops.reference`: plain PyTorch, any floating dtype. Here tokens are positions in the sequence of
keys, T of them; the queries are those of the last Tq tokens, fewer than T after a prefix that is cached already.
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
    column: bool,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Targets (B, r, k), as places in ``candidates``, and weights (B, r, k), directly and by way of other tokens.

    C_ij = gamma A_ij + (1 - gamma) sum_t weights_t A_it A_tj for sources i, candidates j and others t (FiCoCo eq. 4).
    With ``column`` it is A_ti A_tj, the others that read both: under a causal mask A_it of a later t is exactly 0.
    """
    checks.correlate_tokens(query, key, sources, candidates, others, weights, key_mask, k, gamma, alpha, probs)
    how = (key_mask, scale, probs, causal)
    scores = gamma * attention_block(query, key, sources, candidates, *how)
    if gamma < 1:
        if column:  # the same rows for both ends: their softmax is computed once
            ends = attention_block(query, key, others, torch.cat([sources, candidates], dim=1), *how)
            way, onward = ends[..., : sources.shape[1]].mT, ends[..., sources.shape[1] :]
        else:
            way = attention_block(query, key, sources, others, *how)
            onward = attention_block(query, key, others, candidates, *how)
        scores = scores + (1 - gamma) * (way * _accumulate(weights).to(scores.dtype).unsqueeze(1) @ onward)
    return _best_targets(scores, k, alpha, 0)


def _check_values(visual: Tensor, sources: Tensor, kept: Tensor, targets: Tensor, tokens: int) -> None:
    """What :func:`to_sequence` expects of its values; only called where reading them does not wait for a device."""
    op, (b, n) = "to_sequence", visual.shape
    inside = (visual >= 0) & (visual < tokens)
    if not (inside.all() and (visual.diff(dim=1) > 0).all()):
        checks.fail(op, "visual", "ascending columns in [0, tokens)", "others", "pass where the image tokens are")
    everyone = torch.cat([sources, kept], dim=1).sort(1).values
    ascending = (sources.diff(dim=1) > 0).all() and (kept.diff(dim=1) > 0).all()
    if not (ascending and torch.equal(everyone, torch.arange(n).expand(b, n))):
        wanted = "ascending and together every place in visual once"
        checks.fail(op, "sources and kept", wanted, "other places", "pass what filter returned")
    if not ((targets >= 0) & (targets < kept.shape[1])).all():
        checks.fail(op, "targets", f"in [0, {kept.shape[1]})", "others", "pass what correlate returned")


def to_sequence(
    visual: Tensor, sources: Tensor, kept: Tensor, targets: Tensor, tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A selection among the visual tokens of a sequence, in places of the sequence.

    ``visual`` (B, n) are their columns among ``tokens``, ascending; ``sources`` (B, r) and ``kept`` (B, n - r) are
    places in it and partition it, ``targets`` (B, r, k) are places in ``kept``. Returns the sources' columns (B, r);
    every column but those, ascending (B, tokens - r); the targets as places among these (B, r, k); and the columns of
    the surviving visual tokens in the sequence that is left (B, n - r).
    """
    checks.to_sequence(visual, sources, kept, targets, tokens)
    if visual.device.type == "cpu":  # free here, a sync elsewhere
        _check_values(visual, sources, kept, targets, tokens)
    columns = visual.gather(1, sources)
    leaves = torch.zeros(visual.shape[0], tokens, dtype=torch.bool, device=visual.device).scatter(1, columns, True)
    survivors = leaves.sort(dim=1, stable=True).indices[:, : tokens - sources.shape[1]].contiguous()
    left = ((~leaves).cumsum(1) - 1).gather(1, visual.gather(1, kept))
    return columns, survivors, left.gather(1, targets.flatten(1)).view(targets.shape), left
