"""``ficoco::attention_stats``: what the class token and the other patches see in a patch (FiCoCo eq. 1, 9-13)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .attention import TINY, Attention, QueryKey, accumulate, head_mean
from .library import define, fake, operator, result_dtype


def specification(
    query: Tensor, key: Tensor, scale: float, class_token: bool, probs: bool, column: bool, patches: bool
) -> tuple[Tensor, Tensor]:
    """Class attention (B, P) and patch attention (B, P) of A = ``attention_map`` (eq. 1).

    Class attention is A[0, i]. Patch attention is the mean over the patches j of A[i, j] (row) or A[j, i] (column).
    Without a class token its place is taken by -cos(mean key, key_i) of the head-mean keys (eq. 9-13): a token whose
    key is unlike the mean is important, as one that the class token looks at. Without ``patches`` patch attention is
    not computed and returned as zeros.
    """
    op = "attention_stats"
    checks.query_key(op, query, key)
    checks.has_patches(op, "query", query, query.shape[2], class_token)
    first = int(class_token)
    h = query.shape[1]
    group = h // key.shape[1]
    q, k = accumulate(query), accumulate(key).repeat_interleave(group, dim=1)
    if probs:
        mean = q.new_zeros(q.shape[0], q.shape[2])
        class_row = torch.zeros_like(mean)
        for head in range(h):  # one head at a time: (B, N, N), never (B, H, N, N)
            attn = (q[:, head] @ k[:, head].mT * scale).softmax(-1)
            class_row += attn[:, 0]
            if patches:
                mean += attn[:, first:].mean(1) if column else attn[:, :, first:].mean(2)
        class_attention, patch_attention = class_row[:, first:] / h, mean[:, first:] / h
    else:  # a mean of inner products is an inner product with the mean
        many, one = (k, q) if column else (q, k)
        patch_attention = torch.einsum("bhd,bhnd->bn", one[:, :, first:].mean(2), many[:, :, first:]) * (scale / h)
        class_attention = torch.einsum("bhd,bhnd->bn", q[:, :, 0], k[:, :, first:]) * (scale / h)
    if not patches:
        patch_attention = torch.zeros_like(patch_attention)
    if not class_token:
        keys = accumulate(key).mean(1)
        class_attention = -torch.cosine_similarity(keys.mean(1, keepdim=True), keys, dim=-1, eps=TINY)
    return class_attention, patch_attention


def specification_map(attn: Tensor, class_token: bool, column: bool, patches: bool) -> tuple[Tensor, Tensor]:
    """:func:`specification` of a given map, whose values are used as they are.

    Without a class token class attention is returned as zeros: a map holds no keys to replace it with.
    """
    op = "attention_stats"
    checks.attention_map(op, attn)
    checks.has_patches(op, "attn", attn, attn.shape[-1], class_token)
    first = int(class_token)
    attn = head_mean(attn)
    patch_attention = attn[:, first:, first:].mean(1 if column else 2)
    if not patches:
        patch_attention = torch.zeros_like(patch_attention)
    class_attention = attn[:, 0, first:].clone() if class_token else torch.zeros_like(patch_attention)
    return class_attention, patch_attention


define(
    "attention_stats",
    "(Tensor query, Tensor key, float scale, bool class_token, bool probs, bool column,"
    " bool patches) -> (Tensor, Tensor)",
    specification,
)
define(
    "attention_stats.map",
    "(Tensor attn, bool class_token, bool column, bool patches) -> (Tensor, Tensor)",
    specification_map,
)


@fake("attention_stats")
def _(query, key, scale, class_token, probs, column, patches):
    checks.query_key("attention_stats", query, key)
    out = query.new_empty(query.shape[0], query.shape[2] - int(class_token), dtype=result_dtype(query))
    return out, torch.empty_like(out)


@fake("attention_stats.map")
def _(attn, class_token, column, patches):
    checks.attention_map("attention_stats", attn)
    out = attn.new_empty(attn.shape[0], attn.shape[-1] - int(class_token), dtype=result_dtype(attn))
    return out, torch.empty_like(out)


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
        return operator("attention_stats", attn.query)(
            attn.query, attn.key, attn.logit_scale, class_token, probs, column, patches
        )
    return operator("attention_stats.map", attn)(attn, class_token, column, patches)
