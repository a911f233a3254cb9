"""``ficoco_ext.reduce``: one reduction of one layer's tokens."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import checks
from .methods import Method, get_method
from .ops import Attention, QueryKey
from .reduction import Reduction


def _check(
    tokens: Tensor,
    attn: Attention,
    r: int,
    class_token: bool,
    grid: tuple[int, int] | None,
    size: Tensor | None,
    previous: Reduction | None,
) -> None:
    """Raise for anything that the stages could not name as clearly. Shapes and types only: no device is read."""
    op = "reduce"
    if not isinstance(tokens, Tensor):
        checks.fail(op, "tokens", "a tensor (B, N, C)", tokens, "pass hidden states", TypeError)
    checks.floating(op, "tokens", tokens)
    checks.shape(
        op, "tokens", tokens, "(B, N, C) with N >= 1", tokens.dim() == 3 and tokens.shape[1] >= 1, "pass hidden states"
    )
    b, n, _ = tokens.shape
    if not isinstance(class_token, bool):
        checks.fail(op, "class_token", "True or False", class_token, "say whether token 0 is a class token", TypeError)
    if isinstance(attn, QueryKey):
        checks.query_key(op, attn.query, attn.key)
        first, given = "query", attn.query
        fits = given.shape[0] == b and given.shape[2] == n
        checks.shape(
            op, "attn.query", given, lambda: f"({b}, H, {n}, d) to fit tokens", fits, "pass the same layer's query"
        )
    elif isinstance(attn, Tensor):
        checks.attention_map(op, attn)
        first, given = "attn", attn
        fits = given.shape[0] == b and given.shape[-1] == n
        checks.shape(
            op, "attn", given, lambda: f"({b}, H, {n}, {n}) or ({b}, {n}, {n})", fits, "pass the same layer's attention"
        )
    else:
        checks.fail(op, "attn", "a tensor or a QueryKey", attn, "pass the layer's attention", TypeError)
    if size is not None and not isinstance(size, Tensor):
        checks.fail(op, "size", f"a tensor ({b}, {n}, 1)", size, "pass Reduction.size", TypeError)
    checks.same_device(op, "tokens", tokens, **{first: given, "size": size})
    patches = n - int(class_token)
    if isinstance(r, bool) or not isinstance(r, (int, torch.SymInt)):
        checks.fail(op, "r", "an integer", r, "pass how many tokens to remove", TypeError)
    largest = max(patches - 1, 0)
    if not 0 <= r <= largest:
        checks.fail(op, "r", f"in [0, {largest}] for {patches} patches", r, f"the largest legal r is {largest}")
    if grid is not None:
        ok = isinstance(grid, (tuple, list)) and len(grid) == 2 and all(isinstance(x, int) and x > 0 for x in grid)
        if not ok:
            checks.fail(op, "grid", "(height, width) in patches", grid, "pass two positive integers")
        if previous is not None:
            checks.fail(op, "grid", "None with previous=", grid, "the previous reduction carries the original grid")
        if grid[0] * grid[1] != patches:
            checks.fail(op, "grid", f"of {patches} cells", grid, f"tokens hold {patches} patches")
    if size is not None:
        checks.floating(op, "size", size)
        checks.shape(op, "size", size, lambda: f"({b}, {n}, 1)", tuple(size.shape) == (b, n, 1), "one count a token")
    if previous is not None:
        if not isinstance(previous, Reduction):
            checks.fail(op, "previous", "a Reduction", previous, "pass what return_reduction=True gave", TypeError)
        if tuple(previous.kept.shape) != (b, n) or previous.class_token != class_token:
            got = f"{tuple(previous.kept.shape)} survivors, class_token={previous.class_token}"
            wanted = f"one with ({b}, {n}) survivors and class_token={class_token}"
            checks.fail(op, "previous", wanted, got, "pass the reduction that made these tokens")


@overload
def reduce(
    tokens: Tensor,
    attn: Attention,
    r: int,
    *,
    method: str | Method = ...,
    class_token: bool = ...,
    grid: tuple[int, int] | None = ...,
    size: Tensor | None = ...,
    previous: Reduction | None = ...,
    return_reduction: Literal[False] = ...,
    **hyperparameters: Any,
) -> Tensor: ...
@overload
def reduce(
    tokens: Tensor,
    attn: Attention,
    r: int,
    *,
    method: str | Method = ...,
    class_token: bool = ...,
    grid: tuple[int, int] | None = ...,
    size: Tensor | None = ...,
    previous: Reduction | None = ...,
    return_reduction: Literal[True],
    **hyperparameters: Any,
) -> Reduction: ...
def reduce(
    tokens: Tensor,
    attn: Attention,
    r: int,
    *,
    method: str | Method = "ficoco-v",
    class_token: bool = True,
    grid: tuple[int, int] | None = None,
    size: Tensor | None = None,
    previous: Reduction | None = None,
    return_reduction: bool = False,
    **hyperparameters: Any,
) -> Tensor | Reduction:
    """Remove ``r`` tokens and merge what they knew into the others.

    Args:
        tokens: (B, N, C) float32, float16 or bfloat16; float64 is computed by the specification. Any strides.
        attn: this layer's attention, (B, H, N, N) or (B, N, N), whose values are used as they are (say with
            ``attention="logits"|"probs"`` what they are); or ``QueryKey(query, key, scale)``, from which no N x N map
            is formed.
        r: tokens to remove from each item, 0 <= r <= patches - 1; for ToMe at most half of them.
        method: a name (``ficoco_ext.METHODS``) or a :class:`ficoco_ext.Method`.
        class_token: token 0 is a class token: never removed, never a target, copied bit for bit.
        grid: (height, width) of the patches; None means a square. Only the local penalty needs it.
        size: (B, N, 1) original tokens that each token stands for; if given, merging is weighted by it (ToMe: always).
        previous: the :class:`Reduction` that made these tokens. Ids, grid and sizes go on from it.
        return_reduction: return a :class:`Reduction` instead of the tokens.
        **hyperparameters: of the method, by name; see :func:`ficoco_ext.methods.ficoco_v`, ``tome``, ``topk``.

    Returns:
        (B, N - r, C), new and contiguous, class token first, survivors in original order; or the ``Reduction``.

    Raises:
        ValueError, TypeError: naming the argument, what was wanted, what came and what to do.

    Cost for FiCoCo-V with logits: 4 B H N d + 2 B r N H d FLOPs, q, k and tokens read once and the sources' k once
    more, memory O(N (C + r)). Deterministic, equal scores by lowest index. Gradients flow to ``tokens``; the selection
    and the weights are constants. ``torch.compile(fullgraph=True)`` traces it; with ``dynamic=True`` pass a ``Method``
    instead of a name, whose numbers would become symbolic. Source: FiCoCo, arXiv 2411.17686.

    Example:
        >>> import torch, ficoco_ext
        >>> tokens, (q, k) = torch.randn(1, 65, 32), torch.randn(2, 1, 4, 65, 8)
        >>> ficoco_ext.reduce(tokens, ficoco_ext.QueryKey(q, k), 16).shape
        torch.Size([1, 49, 32])
    """
    _check(tokens, attn, r, class_token, grid, size, previous)
    chosen = get_method(method, **hyperparameters)
    grid = None if grid is None else (grid[0], grid[1])
    result = chosen(tokens, attn, r, class_token=class_token, grid=grid, size=size, previous=previous)
    if return_reduction:
        return result
    assert result.tokens is not None
    return result.tokens
