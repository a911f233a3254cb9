"""``ficoco::reduce``: attention_stats, filter, correlate and compress in one call.

A composition of the four operators on every device, so it has no specification of its own. The compiled kernels take
each image through all stages before the next one, while its keys are in the cache. Results are the same bit for bit.
Not differentiable: with gradients, methods call the four operators.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks
from ._attention_stats import attention_stats
from ._compress import compress
from ._correlate import correlate, correlate_key
from ._filter import filter
from .attention import Attention, QueryKey
from .library import define, fake, result_dtype


class Reduced(NamedTuple):
    """What :func:`reduce` returns: the results of compress, of filter and of correlate."""

    tokens: Tensor
    size: Tensor
    source_map: Tensor
    redundancy: Tensor
    sources: Tensor
    kept: Tensor
    targets: Tensor
    weights: Tensor


def composed_map(
    tokens: Tensor,
    attn: Attention,
    ids: Tensor | None,
    size: Tensor | None,
    r: int,
    k: int,
    class_token: bool,
    lam: float,
    probs: bool,
    column: bool,
    normalize: bool,
    penalty: float,
    window: int,
    grid_height: int,
    grid_width: int,
    correlation: str,
    alpha: str,
    size_weighted: bool,
) -> Reduced:
    """The four operators in turn; ``attn`` may be a :class:`QueryKey`."""
    if correlation not in ("logits", "probs", "key"):
        checks.fail("reduce", "correlation", "one of logits, probs, key", correlation, "pick one of them")
    class_attention, patch_attention = attention_stats(
        attn, class_token=class_token, probs=probs, column=column, patches=lam != 0
    )
    redundancy, sources, kept = filter(
        patch_attention,
        class_attention,
        r,
        lam=lam,
        normalize=normalize,
        penalty=penalty,
        window=window,
        ids=ids,
        grid=(grid_height, grid_width),
        class_token=class_token,
    )
    how: dict[str, Any] = {"alpha": alpha, "class_token": class_token}
    if correlation == "key":
        assert isinstance(attn, QueryKey)
        targets, weights = correlate_key(attn.key, sources, kept, k, **how)
    else:
        targets, weights = correlate(attn, sources, kept, k, probs=correlation == "probs", **how)
    merged = compress(tokens, sources, kept, targets, weights, size=size, size_weighted=size_weighted)
    return Reduced(*merged, redundancy, sources, kept, targets, weights)


def composed(tokens: Tensor, query: Tensor, key: Tensor, scale: float, *rest: Any) -> tuple[Tensor, ...]:
    """:func:`composed_map` from query and key."""
    return composed_map(tokens, QueryKey(query, key, scale), *rest)


_SETTINGS = (
    "bool class_token, float lam, bool probs, bool column, bool normalize, float penalty, int window, int grid_height,"
    " int grid_width, str correlation, str alpha, bool size_weighted)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
define(
    "reduce",
    f"(Tensor tokens, Tensor query, Tensor key, float scale, Tensor? ids, Tensor? size, SymInt r, SymInt k,"
    f" {_SETTINGS}",
    composed,
)
define(
    "reduce.map",
    f"(Tensor tokens, Tensor attn, Tensor? ids, Tensor? size, SymInt r, SymInt k, {_SETTINGS}",
    composed_map,
)


def _fake(tokens: Tensor, like: Tensor, r: int, k: int, class_token: bool, *settings: Any) -> tuple[Tensor, ...]:
    _lam, _probs, _column, _normalize, penalty, _window, height, width, *_ = settings
    if penalty != 1:
        checks.grid(height, width)
    b, n, c = tokens.shape
    index, score = torch.int64, result_dtype(like)
    return (
        tokens.new_empty(b, n - r, c),
        tokens.new_empty(b, n - r, 1, dtype=result_dtype(tokens)),
        tokens.new_empty(b, n, dtype=index),
        tokens.new_empty(b, n - int(class_token), dtype=score),
        tokens.new_empty(b, r, dtype=index),
        tokens.new_empty(b, n - r, dtype=index),
        tokens.new_empty(b, r, k, dtype=index),
        tokens.new_empty(b, r, k, dtype=score),
    )


@fake("reduce")
def _(tokens, query, key, scale, ids, size, r, k, class_token, *settings):
    return _fake(tokens, query, r, k, class_token, *settings)


@fake("reduce.map")
def _(tokens, attn, ids, size, r, k, class_token, *settings):
    return _fake(tokens, attn, r, k, class_token, *settings)


def reduce(
    tokens: Tensor,
    attn: Attention,
    r: int,
    k: int,
    *,
    class_token: bool,
    lam: float,
    probs: bool,
    column: bool,
    normalize: bool,
    penalty: float,
    window: int,
    correlation: str,
    alpha: str,
    size_weighted: bool,
    ids: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    size: Tensor | None = None,
) -> Reduced:
    """Filter, correlate and compress in one call.

    Args: as of :func:`ops.attention_stats`, :func:`ops.filter`, :func:`ops.correlate` and :func:`ops.compress`;
    ``correlation`` is ``"logits"``, ``"probs"`` or ``"key"``. With a map, ``probs`` and ``correlation`` say nothing.

    Example:
        >>> import torch
        >>> from ficoco_ext import ops
        >>> settings = dict(class_token=False, lam=1.0, probs=False, column=False, normalize=False, penalty=1.0,
        ...     window=2, correlation="logits", alpha="softmax", size_weighted=False)
        >>> ops.reduce(torch.eye(3)[None], torch.eye(3)[None], 1, 1, **settings).tokens.shape
        torch.Size([1, 2, 3])
    """
    height, width = grid or (0, 0)
    settings = (class_token, lam, probs, column, normalize, penalty, window, height, width, correlation, alpha)
    rest = (ids, size, r, k, *settings, size_weighted)
    given = attn.query if isinstance(attn, QueryKey) else attn
    if torch.float64 in (tokens.dtype, given.dtype):  # the kernels accumulate in fp32
        return composed_map(tokens, attn, *rest)
    if isinstance(attn, QueryKey):
        return Reduced(*torch.ops.ficoco.reduce.default(tokens, attn.query, attn.key, attn.logit_scale, *rest))
    return Reduced(*torch.ops.ficoco.reduce.map(tokens, attn, *rest))
