"""``ficoco::compress``: every source is merged into its targets (FiCoCo eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .attention import accumulate, rows
from .library import define, fake, operator, result_dtype


def specification(
    tokens: Tensor,
    sources: Tensor,
    kept: Tensor,
    targets: Tensor,
    weights: Tensor,
    size: Tensor | None,
    size_weighted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, M, C), size (B, M, 1) and source_map (B, N) after every source went into its targets (eq. 2).

    x_j <- (z_j x_j + sum_i w_ij z_i x_i) / (z_j + sum_i w_ij z_i), all at once, with z = ``size`` if ``size_weighted``
    and 1 otherwise; the new size is z_j + sum_i w_ij z_i with z = ``size`` (or 1) either way. A kept token that
    receives nothing is copied. ``source_map`` is the index in ``kept`` that holds a token: its own, or the target of
    largest weight (the first among equals), or -1 if it was dropped (k = 0).
    """
    op = "compress"
    checks.floating(op, "tokens", tokens)
    checks.shape(op, "tokens", tokens, "(B, N, C)", tokens.dim() == 3, "pass hidden states")
    b, n, _ = tokens.shape
    checks.selection(op, b, n, sources, kept)
    r, m = sources.shape[1], kept.shape[1]
    checks.indices(
        op, "targets", targets, lambda: f"({b}, {r}, k)", targets.dim() == 3 and tuple(targets.shape[:2]) == (b, r)
    )
    checks.floating(op, "weights", weights)
    checks.shape(
        op,
        "weights",
        weights,
        lambda: f"{tuple(targets.shape)} like targets",
        weights.shape == targets.shape,
        "pass both",
    )
    if size is not None:
        checks.floating(op, "size", size)
        checks.shape(op, "size", size, lambda: f"({b}, {n}, 1)", tuple(size.shape) == (b, n, 1), "one count a token")
    checks.same_device(op, "tokens", tokens, sources=sources, kept=kept, targets=targets, weights=weights, size=size)
    k = targets.shape[2]
    x, w = accumulate(tokens), accumulate(weights)
    z = x.new_ones(b, n, 1) if size is None else accumulate(size).to(x.dtype)
    # Targets of one source are distinct, so the scatter writes each cell once: deterministic on every device.
    flow = x.new_zeros(b, r, m).scatter(2, targets, w.to(x.dtype)).mT  # (B, M, r)
    mass_in, mass_kept = rows(z, sources), rows(z, kept)
    size_out = mass_kept + flow @ mass_in
    if not size_weighted:
        mass_in, mass_kept = torch.ones_like(mass_in), torch.ones_like(mass_kept)
    survivors = rows(x, kept)
    leaving = rows(x, sources)
    finite = leaving.nan_to_num(0, 0, 0)  # 0 * inf of other survivors' sources is no part of the sum
    merged = (mass_kept * survivors + flow @ (mass_in * finite)) / (mass_kept + flow @ mass_in)
    edges = (flow != 0).to(x.dtype)
    for value, there in (
        (float("inf"), leaving.isposinf()),
        (-float("inf"), leaving.isneginf()),
        (float("nan"), leaving.isnan()),
    ):
        merged = torch.where(edges @ there.to(x.dtype) > 0, merged + value, merged)
    receives = torch.zeros(b, m, dtype=torch.bool, device=x.device).scatter(1, targets.flatten(1), True)
    out = torch.where(receives.unsqueeze(-1), merged, survivors).to(tokens.dtype)
    holder = targets.new_full((b, r), -1)
    if k:
        largest = w == w.amax(-1, keepdim=True)
        holder = targets.gather(2, largest.int().argmax(-1, keepdim=True)).squeeze(-1)
    indices = torch.arange(m, device=x.device).expand(b, m)
    source_map = sources.new_full((b, n), -1).scatter(1, kept, indices).scatter(1, sources, holder)
    return out.contiguous(), size_out, source_map


def backward(
    grad: Tensor,
    sources: Tensor,
    kept: Tensor,
    targets: Tensor,
    weights: Tensor,
    size: Tensor | None,
    size_weighted: bool,
    tokens: int,
) -> Tensor:
    """Gradient with respect to ``tokens`` of :func:`specification`; the selection, weights and sizes are constants."""
    b, r, _ = targets.shape
    m, g = kept.shape[1], accumulate(grad)
    z = g.new_ones(b, tokens, 1) if size is None or not size_weighted else accumulate(size).to(g.dtype)
    flow = g.new_zeros(b, r, m).scatter(2, targets, accumulate(weights).to(g.dtype))
    mass_in, mass_kept = rows(z, sources), rows(z, kept)
    g = g / (mass_kept + flow.mT @ mass_in)
    out = g.new_zeros(b, tokens, g.shape[-1])
    out.scatter_(1, kept.unsqueeze(-1).expand(-1, -1, g.shape[-1]), mass_kept * g)
    out.scatter_(1, sources.unsqueeze(-1).expand(-1, -1, g.shape[-1]), mass_in * (flow @ g))
    return out.to(grad.dtype)


define(
    "compress",
    "(Tensor tokens, Tensor sources, Tensor kept, Tensor targets, Tensor weights, Tensor? size,"
    " bool size_weighted) -> (Tensor, Tensor, Tensor)",
    specification,
)


@fake("compress")
def _(tokens, sources, kept, targets, weights, size, size_weighted):
    b, n, c = tokens.shape
    out = tokens.new_empty(b, kept.shape[1], c)
    return out, out.new_empty(b, kept.shape[1], 1, dtype=result_dtype(tokens)), kept.new_empty(b, n)


def _save_for_backward(ctx, inputs, output):
    tokens, sources, kept, targets, weights, size, ctx.size_weighted = inputs
    ctx.save_for_backward(sources, kept, targets, weights, size)
    ctx.tokens = tokens.shape[1]
    ctx.mark_non_differentiable(output[1], output[2])


def _backward(ctx, grad, grad_size, grad_map):
    sources, kept, targets, weights, size = ctx.saved_tensors
    grad = backward(grad, sources, kept, targets, weights, size, ctx.size_weighted, ctx.tokens)
    return grad, None, None, None, None, None, None


torch.library.register_autograd("ficoco::compress", _backward, setup_context=_save_for_backward)


def compress(
    tokens: Tensor,
    sources: Tensor,
    kept: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    size: Tensor | None = None,
    size_weighted: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge every source into its targets (eq. 2); see :func:`ficoco_ext.ops.reference.compress` for the formula.

    Args:
        tokens: (B, N, C) float32, float16 or bfloat16 (float64: by the specification); any strides.
        sources, kept: from :func:`filter`; targets, weights: from :func:`correlate` (k = 0 drops the sources).
        size: (B, N, 1) original tokens that each token stands for; None means 1.
        size_weighted: weigh the merge by ``size`` (ToMe) instead of counting every token as 1 (FiCoCo).

    Returns:
        tokens (B, M, C) in the input's dtype, size (B, M, 1) float32, source_map (B, N) int64 (-1: dropped).

    Differentiable with respect to ``tokens``; selection, weights and size are constants. fp32 accumulation in the
    order of the sources: deterministic. Cost: tokens read and written once, 2 B r k C FLOPs.

    Example:
        >>> import torch
        >>> from ficoco_ext import ops
        >>> one = torch.ones(1, 1, 1)
        >>> ops.compress(torch.tensor([[[1.], [3.]]]), torch.tensor([[0]]), torch.tensor([[1]]), one.long() * 0, one)[0]
        tensor([[[2.]]])
    """
    return operator("compress", tokens)(tokens, sources, kept, targets, weights, size, size_weighted)
