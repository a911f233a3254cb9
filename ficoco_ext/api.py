"""``ficoco_ext.reduce``: one reduction of one layer's tokens."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from .methods import AnyMethod, LanguageMethod, get_method
from .methods.method import identity
from .ops import Attention, QueryKey, checks
from .reduction import Reduction
from .stages import Layout

Visual = tuple[int, int] | Tensor


def _check(
    tokens: Tensor,
    attn: Attention,
    r: int,
    class_token: bool,
    grid: tuple[int, int] | None,
    size: Tensor | None,
    previous: Reduction | None,
    visual: int | None = None,
) -> None:
    """Raise for anything that the stages could not name as clearly. Shapes and types only: no device is read.

    ``visual``: how many of the tokens may leave, if not all but the class token.
    """
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
    patches = n - int(class_token) if visual is None else visual
    if isinstance(r, bool) or not isinstance(r, (int, torch.SymInt)):
        checks.fail(op, "r", "an integer", r, "pass how many tokens to remove", TypeError)
    largest = max(patches - 1, 0)
    what = "patches" if visual is None else "visual tokens"
    if not 0 <= r <= largest:
        checks.fail(op, "r", f"in [0, {largest}] for {patches} {what}", r, f"the largest legal r is {largest}")
    if grid is not None:
        ok = isinstance(grid, (tuple, list)) and len(grid) == 2 and all(isinstance(x, int) and x > 0 for x in grid)
        if not ok:
            checks.fail(op, "grid", "(height, width) in patches", grid, "pass two positive integers")
        if previous is not None:
            checks.fail(op, "grid", "None with previous=", grid, "the previous reduction carries the original grid")
        if grid[0] * grid[1] != patches:
            checks.fail(op, "grid", f"of {patches} cells", grid, f"tokens hold {patches} {what}")
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
    method: str | AnyMethod = ...,
    class_token: bool | None = ...,
    grid: tuple[int, int] | None = ...,
    size: Tensor | None = ...,
    previous: Reduction | None = ...,
    visual: Visual | None = ...,
    mask: Tensor | None = ...,
    return_reduction: Literal[False] = ...,
    **hyperparameters: Any,
) -> Tensor: ...
@overload
def reduce(
    tokens: Tensor,
    attn: Attention,
    r: int,
    *,
    method: str | AnyMethod = ...,
    class_token: bool | None = ...,
    grid: tuple[int, int] | None = ...,
    size: Tensor | None = ...,
    previous: Reduction | None = ...,
    visual: Visual | None = ...,
    mask: Tensor | None = ...,
    return_reduction: Literal[True],
    **hyperparameters: Any,
) -> Reduction: ...
def reduce(
    tokens: Tensor,
    attn: Attention,
    r: int,
    *,
    method: str | AnyMethod = "ficoco-v",
    class_token: bool | None = None,
    grid: tuple[int, int] | None = None,
    size: Tensor | None = None,
    previous: Reduction | None = None,
    visual: Visual | None = None,
    mask: Tensor | None = None,
    return_reduction: bool = False,
    **hyperparameters: Any,
) -> Tensor | Reduction:
    """Remove ``r`` tokens and merge what they knew into the others.

    Args:
        tokens: (B, N, C) float32, float16 or bfloat16; float64 is computed by the specification. Any strides.
        attn: this layer's attention, (B, H, N, N) or (B, N, N), whose values are used as they are (say with
            ``attention="logits"|"probs"`` which of both); or ``QueryKey(query, key, scale)``, from which no
            N x N map is formed.
        r: tokens to remove from each item, 0 <= r <= patches - 1; for ToMe at most half of them.
        method: a name (``ficoco_ext.METHODS``, ``ficoco methods`` describes them), a :class:`ficoco_ext.Method` or
            :class:`ficoco_ext.methods.Split`, a :class:`ficoco_ext.methods.Staged` (what it does in a single layer),
            or a :class:`ficoco_ext.methods.LanguageMethod`, whose tokens are a sequence of text and visual tokens.
        class_token: token 0 is a class token: never removed, never a target, copied bit for bit. None is True, and
            False for a decoder method.
        grid: (height, width) of the patches; None means a square (decoder methods: unknown). Only the local penalty
            and pooling need it.
        size: (B, N, 1) original tokens that each token stands for; if given, merging is weighted by it (ToMe: always).
        previous: the :class:`Reduction` that made these tokens. Positions, grid and sizes continue from it.
        visual: decoder methods only: which tokens are visual, as (start, length) or as (B, N) bool with equally many
            in every row (one device read). The text is the real tokens after the last of them.
        mask: decoder methods only: (B, N) bool, False for padding.
        return_reduction: return a :class:`Reduction` instead of the tokens.
        **hyperparameters: of the method, by name; see ``ficoco methods NAME``, or the functions in
            ``ficoco_ext.methods``: ``ficoco_v``, ``ficoco_l``, ``tome`` and the others.

    Returns:
        (B, N - r, C), new and contiguous, class token first, survivors in original order, text unchanged; or the
        ``Reduction``, in the indices of all N tokens.

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
    chosen = get_method(method, **hyperparameters)
    if sum(part is not None for part in (chosen.tower, chosen.projector, chosen.language_model)) > 1:
        wanted, remedy = "one reduction", "reduce with its vision or its decoder method, as 'ficoco-v' and 'ficoco-l'"
        checks.fail("reduce", "method", wanted, chosen.name, remedy)
    if chosen.projector is not None:
        wanted, remedy = "a method of layers with attention", "it acts after the projector: call select or merge"
        checks.fail("reduce", "method", wanted, chosen.name, remedy)
    if chosen.tower is None:
        assert chosen.language_model is not None
        result = _reduce_sequence(
            chosen.language_model, tokens, attn, r, class_token, grid, size, previous, visual, mask
        )
        return result if return_reduction else _tokens(result)
    for name, value in (("visual", visual), ("mask", mask)):
        if value is not None:
            checks.fail("reduce", name, f"None with method {chosen.name!r}", value, "it is for decoder methods")
    class_token = True if class_token is None else class_token
    _check(tokens, attn, r, class_token, grid, size, previous)
    grid = None if grid is None else (grid[0], grid[1])
    result = chosen.tower.of_layers(1)[0](
        tokens, attn, r, class_token=class_token, grid=grid, size=size, previous=previous
    )
    return result if return_reduction else _tokens(result)


def _tokens(reduction: Reduction) -> Tensor:
    assert reduction.tokens is not None
    return reduction.tokens


def _reduce_sequence(
    method: LanguageMethod,
    tokens: Tensor,
    attn: Attention,
    r: int,
    class_token: bool | None,
    grid: tuple[int, int] | None,
    size: Tensor | None,
    previous: Reduction | None,
    visual: Visual | None,
    mask: Tensor | None,
) -> Reduction:
    """:func:`reduce` by a decoder method."""
    if class_token is not None and class_token is not False:
        kind = ValueError if class_token is True else TypeError
        checks.fail("reduce", "class_token", f"False with method {method.name!r}", class_token, "leave it out", kind)
    _check(tokens, attn, 0, False, None, size, previous)
    b, n, _ = tokens.shape
    columns = _visual_columns(visual, tokens)
    count = columns.shape[1]
    _check(tokens, attn, r, False, grid, size, previous, count)
    if mask is not None:
        fits = isinstance(mask, Tensor) and mask.dtype == torch.bool and tuple(mask.shape) == (b, n)
        if not fits:
            checks.fail("reduce", "mask", f"({b}, {n}) bool", mask, "False for padding", TypeError)
        checks.same_device("reduce", "tokens", tokens, mask=mask)
    weighted = size is not None
    if size is None and previous is not None:
        size = previous.size
    if r == 0:
        result = identity(tokens, size, False, None)
    else:
        layout = Layout.of(columns, n, mask, grid=None if grid is None else (grid[0], grid[1]))
        result, _ = method(tokens, attn, r, layout, size=size, size_weighted=weighted)
    return result if previous is None else result.after(previous)


def _visual_columns(visual: Visual | None, tokens: Tensor) -> Tensor:
    """Columns (B, n) of the visual tokens, ascending."""
    b, n, _ = tokens.shape
    wanted, remedy = f"(start, length) within {n} tokens, or ({b}, {n}) bool", "say which tokens are visual"
    if isinstance(visual, Tensor):
        if visual.dtype != torch.bool or tuple(visual.shape) != (b, n):
            checks.fail("reduce", "visual", wanted, visual, remedy, TypeError)
        checks.same_device("reduce", "tokens", tokens, visual=visual)
        counts = set(visual.sum(1).tolist())
        if len(counts) != 1 or counts == {0}:
            got = f"rows with {', '.join(map(str, sorted(counts)))} visual tokens"
            checks.fail("reduce", "visual", "equally many in every row, at least 1", got, "reduce the rows one by one")
        return visual.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : counts.pop()]
    ok = isinstance(visual, (tuple, list)) and len(visual) == 2 and all(type(x) is int for x in visual)
    if not ok or visual is None or not (visual[0] >= 0 and visual[1] >= 1 and sum(visual) <= n):
        checks.fail("reduce", "visual", wanted, visual, remedy)
    return torch.arange(visual[0], sum(visual), device=tokens.device).expand(b, -1)
