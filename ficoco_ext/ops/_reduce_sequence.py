"""``ficoco::reduce_sequence``: all that a reducing layer of a language model does with its sequence, in one call.

A composition of token_attention, filter, correlate.tokens, to_sequence and compress on every device, so it has no
specification of its own. The compiled kernels need a few launches where the composition needs thirty, most of them for
small tensors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks, sequence
from ._compress import backward, compress
from ._correlate_tokens import correlate_tokens
from ._filter import filter
from ._to_sequence import to_sequence
from .attention import QueryKey
from .library import define, fake, result_dtype

RANKINGS = ("logits", "probs", "last")
CORRELATIONS = ("logits", "probs")
REDUCES = ("mean", "sum")
_OP = "reduce_sequence"


class Shortened(NamedTuple):
    """What :func:`reduce_sequence` returns: results of compress, filter, to_sequence and correlate.tokens.

    Indices are columns of the sequence, but ``targets``, which are indices into ``kept``; ``visual`` are the columns of
    the surviving visual tokens in the shorter sequence.
    """

    tokens: Tensor
    size: Tensor
    source_map: Tensor
    redundancy: Tensor
    sources: Tensor
    kept: Tensor
    targets: Tensor
    weights: Tensor
    visual: Tensor


def check(
    tokens: Tensor,
    query: Tensor,
    key: Tensor,
    visual: Tensor,
    key_mask: Tensor | None,
    size: Tensor | None,
    r: int,
    k: int,
    after: int,
    ranking: str,
    beta: float,
    visual_reduce: str,
    text_reduce: str,
    correlation: str,
    gamma: float,
    indirect_reduce: str,
    alpha: str,
) -> None:
    """The arguments of ``ficoco::reduce_sequence`` fit together (shapes and types only)."""
    checks.floating(_OP, "tokens", tokens)
    checks.shape(_OP, "tokens", tokens, "(B, N, C)", tokens.dim() == 3, "pass hidden states")
    b, n, _ = tokens.shape
    checks.chosen_tokens(_OP, query, key, key_mask, visual=visual)
    for name, given in (("query", query), ("key", key)):
        fits = (given.shape[0], given.shape[2]) == (b, n)
        checks.shape(_OP, name, given, lambda: f"of {b} rows of {n} tokens", fits, "they are those of the tokens")
    checks.same_device(_OP, "tokens", tokens, query=query, size=size)
    if size is not None:
        checks.floating(_OP, "size", size)
        fits = tuple(size.shape) == (b, n, 1)
        checks.shape(_OP, "size", size, lambda: f"({b}, {n}, 1)", fits, "one count a token")
    count = visual.shape[1]
    if not 1 <= count <= n:
        checks.fail(_OP, "visual", f"of 1 to {n} columns", visual, "pass where the visual tokens are")
    if not 0 <= r < count:
        checks.fail(_OP, "r", f"in [0, {count - 1}] for {count} visual tokens", r, "at least one stays")
    if not 0 <= after <= n - count:
        checks.fail(_OP, "after", f"in [0, {n - count}], the tokens that are not visual", after, "leave it out")
    checks.target_count(_OP, k, count - r, alpha)
    for name, value, choices in (
        ("ranking", ranking, RANKINGS),
        ("correlation", correlation, CORRELATIONS),
        ("visual_reduce", visual_reduce, REDUCES),
        ("text_reduce", text_reduce, REDUCES),
        ("indirect_reduce", indirect_reduce, REDUCES),
    ):
        if value not in choices:
            checks.fail(_OP, name, f"one of {', '.join(choices)}", value, "pick one of them")
    for name, share in (("beta", beta), ("gamma", gamma)):
        if not 0 <= share <= 1:
            checks.fail(_OP, name, "in [0, 1]", share, "it is a share")


def composed(
    tokens: Tensor,
    query: Tensor,
    key: Tensor,
    scale: float,
    visual: Tensor,
    key_mask: Tensor | None,
    ids: Tensor | None,
    size: Tensor | None,
    r: int,
    k: int,
    after: int,
    ranking: str,
    beta: float,
    visual_reduce: str,
    text_reduce: str,
    penalty: float,
    window: int,
    grid_height: int,
    grid_width: int,
    correlation: str,
    gamma: float,
    indirect_reduce: str,
    alpha: str,
    size_weighted: bool,
) -> Shortened:
    """The five operators in turn."""
    ranked = ranking, beta, visual_reduce, text_reduce
    check(tokens, query, key, visual, key_mask, size, r, k, after, *ranked, correlation, gamma, indirect_reduce, alpha)
    attn, n = QueryKey(query, key, scale), tokens.shape[1]
    with torch.no_grad():  # selection and weights are constants of the gradient
        text = sequence.text_after(visual, n, key_mask, after)
        if ranking == "last":
            beta, penalty = 0.0, 1.0
            last = sequence.last_token(visual, n, key_mask)
            with_text = sequence.last_token_scores(attn, visual, last, key_mask, given=False)
            among = torch.zeros_like(with_text)
        else:
            how: dict[str, Any] = {"visual_reduce": visual_reduce, "text_reduce": text_reduce, "given": False}
            among, with_text = sequence.visual_scores(attn, visual, text, key_mask, probs=ranking == "probs", **how)
        where: dict[str, Any] = {"ids": ids, "grid": (grid_height, grid_width), "class_token": False}
        redundancy, sources, kept = filter(
            among.contiguous(), with_text, r, lam=beta, penalty=penalty, window=window, **where
        )
        probs = correlation == "probs"
        targets, weights = correlate_tokens(
            attn,
            visual.gather(1, sources),
            visual.gather(1, kept),
            text.columns,
            sequence.shares(text.chosen, indirect_reduce, redundancy.dtype),
            k,
            gamma=gamma,
            alpha=alpha,
            probs=probs,
            column=probs,
            causal=probs,
            key_mask=key_mask,
        )
        placed = to_sequence(visual, sources, kept, targets, n)
    chosen = placed.sources, placed.kept, placed.targets, weights
    merged = compress(tokens, *chosen, size=size, size_weighted=size_weighted)
    return Shortened(*merged, redundancy, *chosen, placed.visual)


define(
    _OP,
    "(Tensor tokens, Tensor query, Tensor key, float scale, Tensor visual, Tensor? key_mask, Tensor? ids, Tensor? size,"
    " SymInt r, SymInt k, SymInt after, str ranking, float beta, str visual_reduce, str text_reduce, float penalty,"
    " int window, int grid_height, int grid_width, str correlation, float gamma, str indirect_reduce, str alpha,"
    " bool size_weighted)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    composed,
)


@fake(_OP)
def _(tokens, query, key, scale, visual, key_mask, ids, size, r, k, after, *settings):
    ranked, (penalty, _window, height, width), linked = settings[:4], settings[4:8], settings[8:-1]
    check(tokens, query, key, visual, key_mask, size, r, k, after, *ranked, *linked)
    if penalty != 1 and ranked[0] != "last":
        checks.grid(height, width)
    (b, n, c), count = tokens.shape, visual.shape[1]
    score = result_dtype(query)
    return (
        tokens.new_empty(b, n - r, c),
        tokens.new_empty(b, n - r, 1, dtype=result_dtype(tokens)),
        visual.new_empty(b, n),
        query.new_empty(b, count, dtype=score),
        visual.new_empty(b, r),
        visual.new_empty(b, n - r),
        visual.new_empty(b, r, k),
        query.new_empty(b, r, k, dtype=score),
        visual.new_empty(b, count - r),
    )


def _save_for_backward(ctx, inputs, output):
    tokens, size, ctx.size_weighted = inputs[0], inputs[7], inputs[-1]
    ctx.save_for_backward(*output[4:8], size)
    ctx.tokens, ctx.inputs = tokens.shape[1], len(inputs)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, grad, *_):
    sources, kept, targets, weights, size = ctx.saved_tensors
    grad = backward(grad, sources, kept, targets, weights, size, ctx.size_weighted, ctx.tokens)
    return (grad, *[None] * (ctx.inputs - 1))


torch.library.register_autograd(f"ficoco::{_OP}", _backward, setup_context=_save_for_backward)


def reduce_sequence(
    tokens: Tensor,
    attn: QueryKey,
    visual: Tensor,
    r: int,
    k: int,
    *,
    ranking: str,
    correlation: str = "logits",
    beta: float = 0.6,
    visual_reduce: str = "mean",
    text_reduce: str = "mean",
    penalty: float = 1.0,
    window: int = 2,
    gamma: float = 0.6,
    indirect_reduce: str = "sum",
    alpha: str = "softmax",
    size_weighted: bool = False,
    key_mask: Tensor | None = None,
    after: int | None = None,
    ids: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    size: Tensor | None = None,
) -> Shortened:
    """Remove r of the visual tokens of a language model's sequence: rank, correlate, place and merge in one call.

    Args:
        tokens: (B, N, C) hidden states, float32, float16 or bfloat16 (float64: by the composition); any strides.
        attn: post-rotary query (B, H, N, d) and key (B, Hk, N, d) of the same tokens.
        visual: (B, n) int64, ascending columns of the visual tokens; they need not be neighbours.
        r: visual tokens to remove, 0 <= r <= n - 1. k: targets of each, 0 <= k <= n - r; 0 drops them.
        ranking: by what they leave: ``"logits"`` or ``"probs"`` as :class:`ficoco_ext.stages.DecoderFilter` has it,
            ``"last"`` as :class:`ficoco_ext.stages.LastTokenFilter`, which reads neither of ``beta``,
            ``visual_reduce``, ``text_reduce``, ``penalty`` and ``window``.
        correlation: ``"logits"`` or ``"probs"``; with ``gamma``, ``indirect_reduce`` and ``alpha`` as
            :class:`ficoco_ext.stages.DecoderCorrelate` has them. Not read if k is 0.
        key_mask: (B, N) bool, False for padding; None: all are key_mask.
        after: the most columns that any row has after its visual tokens; None: as many as are not visual.
        ids, grid, penalty, window: as of :func:`filter`, for the visual tokens.
        size, size_weighted: as of :func:`compress`.

    Returns:
        A :class:`Shortened` of M = N - r tokens: tokens (B, M, C), size (B, M, 1), source_map (B, N), redundancy
        (B, n), sources (B, r), kept (B, M), targets (B, r, k), weights (B, r, k), visual (B, n - r).

    Raises:
        ValueError, TypeError: wrong rank, shape, dtype or device, or a value out of range; on the CPU also columns that
        do not ascend and scores that are not finite.

    Differentiable with respect to ``tokens``; selection, weights and sizes are constants. Deterministic; equal scores:
    the lowest index. Reads no device. On a GPU at most five launches by logits and seven by probabilities for up to
    4096 visual tokens. Cost: the sum of its parts, see :func:`token_attention`, :func:`correlate_tokens` and
    :func:`compress`.

    Example:
        >>> import torch
        >>> from ficoco_ext import QueryKey, ops
        >>> hidden, query, key = torch.randn(1, 9, 4), torch.randn(1, 2, 9, 8), torch.randn(1, 1, 9, 8)
        >>> short = ops.reduce_sequence(hidden, QueryKey(query, key), torch.arange(2, 7)[None], 2, 1, ranking="probs")
        >>> short.tokens.shape, short.visual
        (torch.Size([1, 7, 4]), tensor([[2, 3, 4]]))
    """
    height, width = grid or (0, 0)
    after = max(tokens.shape[1] - visual.shape[-1], 0) if after is None else after
    ranked = (ranking, beta, visual_reduce, text_reduce, penalty, window, height, width)
    linked = (correlation, gamma, indirect_reduce, alpha)
    args = (
        tokens,
        *attn[:2],
        attn.logit_scale,
        visual,
        key_mask,
        ids,
        size,
        r,
        k,
        after,
        *ranked,
        *linked,
        size_weighted,
    )
    if torch.float64 in (tokens.dtype, attn.query.dtype):  # the kernels accumulate in fp32
        return composed(*args)
    return Shortened(*torch.ops.ficoco.reduce_sequence.default(*args))
