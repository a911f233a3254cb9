"""Argument checks shared by the specification and the fake kernels (the C++ twin is ``csrc/ops/checks.h``).

Every check looks at shapes, dtypes and devices only: nothing is read from a device. An error names the operator, the
argument, what was wanted, what came, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Text = str | Callable[[], str]
MAX_CELLS = MAX_SEQUENCE = 2**31 - 1  # as in csrc/params.h
ALPHAS = ("softmax", "ratio", "average")


def describe(value: object) -> str:
    """``(2, 3) torch.float32 on cpu`` for a tensor, ``repr`` for anything else."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} on {value.device}"
    text, kind = repr(value), type(value).__name__
    return f"{text} ({kind})" if len(text) <= 80 else f"a {kind}"


def fail(op: str, argument: str, wanted: str, got: object, remedy: str, kind: type[Exception] = ValueError) -> NoReturn:
    """Raise ``kind`` with the message every check of this package has."""
    got_text = got if isinstance(got, str) else describe(got)
    raise kind(f"ficoco::{op}: {argument} must be {wanted}, got {got_text}; {remedy}")


def floating(op: str, argument: str, tensor: Tensor) -> None:
    """``tensor`` has one of the supported floating dtypes."""
    if tensor.dtype not in FLOATS:
        fail(op, argument, "float32, float16, bfloat16 or float64", tensor, "convert it first", TypeError)


def shape(op: str, argument: str, tensor: Tensor, wanted: Text, ok: bool, remedy: str) -> None:
    """``ok`` says whether the shape is right; ``wanted`` is how the message describes a right one.

    A description that contains sizes is a function: formatting a size would make it a constant for torch.compile.
    """
    if not ok:
        fail(op, argument, wanted if isinstance(wanted, str) else wanted(), tensor, remedy)


def same_device(op: str, first: str, reference: Tensor, **others: Tensor | None) -> None:
    """All of ``others`` are on the device of ``reference``, which the message calls ``first``."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != reference.device:
            fail(op, name, f"on {first}'s device {reference.device}", tensor, f"move it with .to({first}.device)")


def indices(op: str, argument: str, tensor: Tensor, wanted: Text, ok: bool) -> None:
    """``tensor`` is int64 and has the right shape."""
    if not ok or tensor.dtype != torch.int64:
        text = wanted if isinstance(wanted, str) else wanted()
        kind = TypeError if tensor.dtype != torch.int64 else ValueError
        fail(op, argument, f"{text} int64", tensor, "pass what the previous stage returned", kind)


def query_key(op: str, query: Tensor, key: Tensor, cached: bool = False) -> None:
    """``query`` (B, H, N, d) and ``key`` (B, Hk, N, d) fit; Hk divides H. ``cached``: there may be more keys."""
    floating(op, "query", query)
    floating(op, "key", key)
    shape(op, "query", query, "(B, H, N, d)", query.dim() == 4, "split the heads before calling")
    shape(op, "key", key, "(B, Hk, N, d)", key.dim() == 4, "split the heads before calling")
    if key.dtype != query.dtype:
        fail(op, "key", f"{query.dtype} like query", key, "convert one of them", TypeError)
    b, h, n, d = query.shape
    fits = (
        h > 0
        and key.shape[0] == b
        and (key.shape[2] == n or (cached and key.shape[2] > n))
        and key.shape[3] == d
        and key.shape[1] > 0
        and h % key.shape[1] == 0
    )
    shape(
        op,
        "key",
        key,
        lambda: f"({b}, Hk, {n}{' or more' * cached}, {d}) with Hk dividing {h}",
        fits,
        "query and key come from the same layer",
    )
    same_device(op, "query", query, key=key)


def key(op: str, key: Tensor) -> None:
    """``key`` is (B, Hk, N, d)."""
    floating(op, "key", key)
    if key.dim() != 4 or key.shape[1] == 0:
        fail(op, "key", "(B, Hk, N, d) with Hk >= 1", key, "split the heads before calling")


def attention_map(op: str, attn: Tensor) -> None:
    """``attn`` is (B, H, N, N) or (B, N, N)."""
    floating(op, "attn", attn)
    ok = attn.dim() in (3, 4) and attn.shape[-1] == attn.shape[-2] and attn.shape[1] > 0
    shape(op, "attn", attn, "(B, H, N, N) or (B, N, N)", ok, "pass one layer's attention, class token included")


def has_patches(op: str, argument: str, tensor: Tensor, tokens: int, class_token: bool) -> None:
    """There is at least one token besides the class token."""
    if tokens <= int(class_token):
        fail(op, argument, f"of at least {1 + int(class_token)} tokens", tensor, "there is no patch to reduce")


def selection(op: str, batch: int, tokens: int, sources: Tensor, kept: Tensor) -> None:
    """``sources`` (B, r) and ``kept`` (B, N - r) partition the N tokens (shapes only)."""
    ok = sources.dim() == 2 and sources.shape[0] == batch
    indices(op, "sources", sources, lambda: f"({batch}, r)", ok)
    wanted = tokens - sources.shape[1]
    indices(op, "kept", kept, lambda: f"({batch}, {wanted})", tuple(kept.shape) == (batch, wanted))


def matching(tokens: int, r: int, class_token: bool, distill_token: bool) -> None:
    """``r`` of ``tokens`` tokens can be matched with others."""
    if distill_token and not class_token:
        remedy = "a distillation token is token 1, after the class token"
        fail("match", "distill_token", "False without a class token", distill_token, remedy)
    largest = max((tokens - class_token - distill_token) // 2, 0)
    if not 0 <= r <= largest:
        remedy = f"only every other token can leave: the largest legal r is {largest}"
        fail("match", "r", f"in [0, {largest}] for {tokens} tokens", r, remedy)


def grid(height: int, width: int, op: str = "filter") -> None:
    """The grid of patches has a size that kernels can count."""
    if height < 1 or width < 1:
        fail(op, "grid", "of positive sides", f"({height}, {width})", "pass (height, width)")
    if height > MAX_CELLS // width:
        remedy = "pass (height, width) in patches"
        fail(op, "grid", f"of at most {MAX_CELLS} cells", f"({height}, {width})", remedy)


def target_count(op: str, k: int, candidates: int, alpha: str) -> None:
    """``k`` targets can be chosen out of ``candidates`` and ``alpha`` is known."""
    if not 0 <= k <= candidates:
        fail(op, "k", f"in [0, {candidates}], the number of kept patches", k, "lower k or r")
    if alpha not in ALPHAS:
        fail(op, "alpha", f"one of {', '.join(ALPHAS)}", alpha, "pick one of them")


def chosen_tokens(op: str, query: Tensor, key: Tensor, key_mask: Tensor | None, **index: Tensor) -> None:
    """Query, key, mask and lists of tokens (B, count) of an operator for decoders."""
    query_key(op, query, key, cached=True)
    b, t = query.shape[0], key.shape[2]
    same_device(op, "query", query, key_mask=key_mask, **index)
    for name, tensor in index.items():
        indices(op, name, tensor, lambda: f"({b}, count)", tensor.dim() == 2 and tensor.shape[0] == b)
    if key_mask is not None:
        if key_mask.dtype != torch.bool:
            fail(op, "key_mask", f"({b}, {t}) bool", key_mask, "True where a token is real", TypeError)
        fits = tuple(key_mask.shape) == (b, t)
        shape(op, "key_mask", key_mask, lambda: f"({b}, {t})", fits, "one flag for each key")
