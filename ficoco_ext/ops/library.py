"""The operators of namespace ``ficoco``: schemas, specification as the composite kernel, fake kernels, typed wrappers.

A schema is defined here and nowhere else. :mod:`ficoco_ext.ops.reference` is registered as the implementation for every
device; the compiled module adds faster kernels for the devices it knows. A profiler shows the calls as
``ficoco::<op>``. Public wrappers take a map or a :class:`QueryKey` and pick the overload.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import (
    backend,  # noqa: F401  (loads the compiled kernels before anything is called)
    reference,
    reference_decoder,
)


class QueryKey(NamedTuple):
    """Query and key of one attention layer, in place of the map they would make.

    Args:
        query: (B, H, N, d), after any rotary embedding; any strides.
        key: (B, Hk, N, d) with Hk dividing H; same dtype and device.
        scale: factor on the logits; None means d ** -0.5.
    """

    query: Tensor
    key: Tensor
    scale: float | None = None

    @property
    def logit_scale(self) -> float:
        """The factor on the logits."""
        return self.query.shape[-1] ** -0.5 if self.scale is None else float(self.scale)


Attention = Tensor | QueryKey

LIBRARY = torch.library.Library("ficoco", "DEF")

SCHEMAS = {
    "attention_stats": "(Tensor query, Tensor key, float scale, bool class_token, bool probs, bool column,"
    " bool patches) -> (Tensor, Tensor)",
    "attention_stats.map": "(Tensor attn, bool class_token, bool column, bool patches) -> (Tensor, Tensor)",
    "filter": "(Tensor patch_attention, Tensor class_attention, Tensor? ids, SymInt r, float lam, bool normalize,"
    " float penalty, int window, int grid_height, int grid_width, bool class_token) -> (Tensor, Tensor, Tensor)",
    "correlate": "(Tensor query, Tensor key, Tensor sources, Tensor kept, SymInt k, float scale, str alpha,"
    " bool class_token, bool probs) -> (Tensor, Tensor)",
    "correlate.map": "(Tensor attn, Tensor sources, Tensor kept, SymInt k, str alpha, bool class_token)"
    " -> (Tensor, Tensor)",
    "correlate.key": "(Tensor key, Tensor sources, Tensor kept, SymInt k, str alpha, bool class_token)"
    " -> (Tensor, Tensor)",
    "compress": "(Tensor tokens, Tensor sources, Tensor kept, Tensor targets, Tensor weights, Tensor? size,"
    " bool size_weighted) -> (Tensor, Tensor, Tensor)",
}

for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(_name, getattr(reference, _name.replace(".", "_")), "CompositeExplicitAutograd")


def result_dtype(tensor: Tensor) -> torch.dtype:
    """Precision of statistics and weights computed from ``tensor``."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@torch.library.register_fake("ficoco::attention_stats")
def _(query, key, scale, class_token, probs, column, patches):
    reference.checks.query_key("attention_stats", query, key)
    out = query.new_empty(query.shape[0], query.shape[2] - int(class_token), dtype=result_dtype(query))
    return out, torch.empty_like(out)


@torch.library.register_fake("ficoco::attention_stats.map")
def _(attn, class_token, column, patches):
    reference.checks.attention_map("attention_stats", attn)
    out = attn.new_empty(attn.shape[0], attn.shape[-1] - int(class_token), dtype=result_dtype(attn))
    return out, torch.empty_like(out)


@torch.library.register_fake("ficoco::filter")
def _(patch_attention, class_attention, ids, r, lam, normalize, penalty, window, grid_height, grid_width, class_token):
    if penalty != 1:
        reference.checks.grid(grid_height, grid_width)
    b, p = patch_attention.shape
    redundancy = patch_attention.new_empty(b, p, dtype=result_dtype(patch_attention))
    index = {"dtype": torch.int64}
    return redundancy, redundancy.new_empty(b, r, **index), redundancy.new_empty(b, p + int(class_token) - r, **index)


def _fake_links(like: Tensor, sources: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*sources.shape, k)
    return sources.new_empty(shape), like.new_empty(shape, dtype=result_dtype(like))


@torch.library.register_fake("ficoco::correlate")
def _(query, key, sources, kept, k, scale, alpha, class_token, probs):
    return _fake_links(query, sources, k)


@torch.library.register_fake("ficoco::correlate.map")
def _(attn, sources, kept, k, alpha, class_token):
    return _fake_links(attn, sources, k)


@torch.library.register_fake("ficoco::correlate.key")
def _(key, sources, kept, k, alpha, class_token):
    return _fake_links(key, sources, k)


@torch.library.register_fake("ficoco::compress")
def _(tokens, sources, kept, targets, weights, size, size_weighted):
    b, n, c = tokens.shape
    out = tokens.new_empty(b, kept.shape[1], c)
    return out, out.new_empty(b, kept.shape[1], 1, dtype=result_dtype(tokens)), kept.new_empty(b, n)


def _save_for_compress(ctx, inputs, output):
    tokens, sources, kept, targets, weights, size, ctx.size_weighted = inputs
    ctx.save_for_backward(sources, kept, targets, weights, size)
    ctx.tokens = tokens.shape[1]
    ctx.mark_non_differentiable(output[1], output[2])


def _compress_backward(ctx, grad, grad_size, grad_map):
    sources, kept, targets, weights, size = ctx.saved_tensors
    grad = reference.compress_backward(grad, sources, kept, targets, weights, size, ctx.size_weighted, ctx.tokens)
    return grad, None, None, None, None, None, None


torch.library.register_autograd("ficoco::compress", _compress_backward, setup_context=_save_for_compress)


def _operator(name: str, tensor: Tensor) -> Callable[..., Any]:
    """The operator ``name``; for float64, which the fp32-accumulating kernels would truncate, the specification."""
    if tensor.dtype == torch.float64:
        name = name.replace(".", "_")
        return getattr(reference, name, None) or getattr(reference_decoder, name)
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.ficoco, packet), overload or "default")


def attention_stats(
    attn: Attention, *, class_token: bool, probs: bool, column: bool, patches: bool = True
) -> tuple[Tensor, Tensor]:
    """Class attention and patch attention, both (B, P), from a map or from query and key (eq. 1).

    Args:
        attn: (B, H, N, N) or (B, N, N), used as it is, or a :class:`QueryKey`.
        class_token: token 0 is a class token. Without one, a ``QueryKey`` gives -cos(mean key, key) in its place
            (eq. 9-13) and a map gives zeros.
        probs: with a ``QueryKey``, softmax the logits; a map is what it is.
        column: patch attention is what a patch receives (column mean) instead of what it gives (row mean).
        patches: False leaves patch attention out (zeros): with probs that is O(N) work instead of O(N^2).

    Returns:
        class_attention (B, P) and patch_attention (B, P), float32 (float64 for float64).

    Raises:
        ValueError, TypeError: wrong rank, shape, dtype or device.

    Cost: logits 4 B H N d FLOPs, q and k read once, no N x N map; probs 2 B H N^2 d FLOPs, no N x N map in the CPU
    kernel. Deterministic: fixed summation order, whatever the number of threads.

    Example:
        >>> import torch
        >>> from ficoco_ext import QueryKey, ops
        >>> q, k = torch.randn(2, 1, 4, 17, 8)
        >>> [tuple(t.shape) for t in ops.attention_stats(QueryKey(q, k), class_token=True, probs=False, column=False)]
        [(1, 16), (1, 16)]
    """
    if isinstance(attn, QueryKey):
        return _operator("attention_stats", attn.query)(
            attn.query, attn.key, attn.logit_scale, class_token, probs, column, patches
        )
    return _operator("attention_stats.map", attn)(attn, class_token, column, patches)


def filter(
    patch_attention: Tensor,
    class_attention: Tensor,
    r: int,
    *,
    lam: float,
    normalize: bool = False,
    penalty: float = 1.0,
    window: int = 2,
    ids: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    class_token: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The r most redundant patches (eq. 1): redundancy (B, P), sources (B, r) and kept (B, M), ascending.

    Args:
        patch_attention, class_attention: (B, P), any floating dtype, the same for both.
        r: tokens to remove, 0 <= r <= P - 1.
        lam: weight of patch attention; class attention has -(1 - lam). A term of weight 0 is not read.
        normalize: scale both terms to unit L2 norm over the patches first.
        penalty, window: see :func:`ficoco_ext.ops.reference.local_penalty`; penalty 1 is off.
        ids: (B, P) int64, place on the grid of each patch; None: all P places in order.
        grid: (height, width) of the original grid; needed unless penalty is 1.
        class_token: prepend token 0 to ``kept``; indices count it.

    Raises:
        ValueError: r out of range, a grid that does not fit, non-finite scores (checked on the CPU, where reading
            them costs nothing). TypeError: wrong dtype.

    Ties: the lowest index is removed first. Deterministic. Cost O(P log P) per image.

    Example:
        >>> import torch
        >>> from ficoco_ext import ops
        >>> ops.filter(torch.tensor([[3., 1., 2.]]), torch.zeros(1, 3), 1, lam=1.0, class_token=True)[1:]
        (tensor([[1]]), tensor([[0, 2, 3]]))
    """
    height, width = grid or (0, 0)
    return _operator("filter", patch_attention)(
        patch_attention, class_attention, ids, r, lam, normalize, penalty, window, height, width, class_token
    )


def correlate(
    attn: Attention, sources: Tensor, kept: Tensor, k: int, *, alpha: str, class_token: bool, probs: bool = False
) -> tuple[Tensor, Tensor]:
    """For each source the k kept patches it attends to most, and weights that sum to 1 (section 3.3, eq. 2).

    Args:
        attn: (B, H, N, N) or (B, N, N), used as it is, or a :class:`QueryKey`.
        sources: (B, r) int64; kept: (B, M) int64, both from :func:`filter`.
        k: targets per source, 0 <= k <= number of kept patches.
        alpha: ``"softmax"`` of the chosen correlations, their ``"ratio"`` (non-negative ones only; 1 / k each where
            all chosen are 0) or ``"average"``.
        class_token: ``kept[:, 0]`` is the class token, never a target.
        probs: with a ``QueryKey``, softmax the logits.

    Returns:
        targets (B, r, k) int64, places in ``kept``; weights (B, r, k) float32 (float64 for float64).

    Ties: the lowest index. Deterministic. Cost 2 B r M H d FLOPs (probs: 2 B r N H d), memory O(r N).

    Example:
        >>> import torch
        >>> from ficoco_ext import ops
        >>> attn = torch.tensor([[[0., 1., 2.], [0., 0., 0.], [0., 0., 0.]]])
        >>> ops.correlate(attn, torch.tensor([[0]]), torch.tensor([[1, 2]]), 1, alpha="softmax", class_token=False)
        (tensor([[[1]]]), tensor([[[1.]]]))
    """
    if isinstance(attn, QueryKey):
        return _operator("correlate", attn.query)(
            attn.query, attn.key, sources, kept, k, attn.logit_scale, alpha, class_token, probs
        )
    return _operator("correlate.map", attn)(attn, sources, kept, k, alpha, class_token)


def correlate_key(
    key: Tensor, sources: Tensor, kept: Tensor, k: int, *, alpha: str, class_token: bool
) -> tuple[Tensor, Tensor]:
    """:func:`correlate` by cosine of the head-mean keys, ``key`` (B, Hk, N, d). Cost 2 B r M d FLOPs.

    Example:
        >>> import torch
        >>> from ficoco_ext import ops
        >>> key = torch.tensor([[1., 0.], [0., 1.], [1., .1]]).view(1, 1, 3, 2)
        >>> sources, kept = torch.tensor([[0]]), torch.tensor([[1, 2]])
        >>> ops.correlate_key(key, sources, kept, 1, alpha="softmax", class_token=False)[0]
        tensor([[[1]]])
    """
    return _operator("correlate.key", key)(key, sources, kept, k, alpha, class_token)


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
    return _operator("compress", tokens)(tokens, sources, kept, targets, weights, size, size_weighted)
