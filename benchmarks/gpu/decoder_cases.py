"""What is timed of the methods in a language model: whole reductions and the operators in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch_decoder
from cases import Inputs, Results, Shape, Work, wide

import ficoco_ext
from ficoco_ext import QueryKey, ops

VISUAL = (35, 2880)  # first column and number of the visual tokens in `sequence`
LAST, GAMMA, TARGETS = 1, 0.6, 2


def sequence(batch: int, dtype: torch.dtype) -> Shape:
    """A prompt of a 7B decoder: the visual tokens of five crops among 512 of text; a layer removes 210."""
    return Shape("decoder-7b, 2880 + 512", batch, 3392, 32, 128, 210, (48, 60), False, dtype)


def reductions(inputs: Inputs, visual: tuple[int, int] = VISUAL) -> Iterator[Work]:
    """Whole reductions of a prompt."""
    s, x, q, k = inputs.shape, inputs.tokens, inputs.query, inputs.key
    begin, n = visual
    attn, inner, item = QueryKey(q, k), s.heads * s.width, s.dtype.itemsize
    columns = torch.arange(begin, begin + n, device=x.device).repeat(s.batch, 1)
    move = item * inner * s.batch * (2 * s.tokens - s.r)
    for name, options in (("fastv", {}), ("ficoco-l", {}), ("ficoco-l", {"variant": "released"})):
        paper = name == "ficoco-l" and not options
        how: dict[str, Any] = {"method": ficoco_ext.get_method(name, **options), "visual": visual}
        rows = LAST if name == "fastv" else s.tokens - begin if paper else 0
        ways: dict[str, Callable[[], Results]] = {}
        if name == "fastv":
            ways["rows of all heads"] = lambda: (torch_decoder.fastv(x, q, k, columns, s.r),)
        yield Work(
            f"reduce {name}{' released' if options else ''}",
            bytes=move + s.batch * item * inner * s.tokens * (1 if name == "fastv" else 2),
            flop=2 * s.batch * inner * s.tokens * (rows + (s.r if name == "ficoco-l" else 0)),
            exponentials=s.batch * s.heads * s.tokens * rows,
            ours=lambda how=how: (ficoco_ext.reduce(x, attn, s.r, **how),),
            wanted=lambda how=how: (ficoco_ext.reduce(x.double(), QueryKey(*wide(q, k)), s.r, **how),),
            torch=ways,
        )


def operators(inputs: Inputs, visual: tuple[int, int] = VISUAL) -> Iterator[Work]:
    """The operators that those are made of."""
    s, q, k = inputs.shape, inputs.query, inputs.key
    begin, n = visual
    attn, inner, item, device = QueryKey(q, k), s.heads * s.width, s.dtype.itemsize, q.device
    columns = torch.arange(begin, begin + n, device=device).repeat(s.batch, 1)
    text = torch.arange(begin + n, s.tokens, device=device).repeat(s.batch, 1)
    sources, stays = columns[:, :: n // s.r][:, : s.r], torch.ones_like(columns, dtype=torch.bool)
    indices = (sources - begin).contiguous()
    left = columns[stays.scatter(1, indices, False)].view(s.batch, n - s.r)
    last, one = text[:, -1:], torch.ones(s.batch, 1, 1, device=device)
    each = torch.full((s.batch, text.shape[1]), 1 / text.shape[1], device=device)
    for name, others, weights, probs in (
        ("last token, probs", last, one, True),
        ("text, probs", text, each[:, None], True),
        ("text, logits", text, each[:, None], False),
    ):
        call = partial(ops.token_attention, tokens=columns, others=others, weights=weights,
                       probs=probs, column=True, causal=True)  # fmt: skip
        count = others.shape[1]
        plain: dict[str, Callable[[], Results]] = {}
        if probs:
            plain["rows of all heads"] = partial(
                lambda of: (torch_decoder.rows(q, k, of, True).mean(1, keepdim=True)[:, :, begin : begin + n],), others
            )
        yield Work(
            f"token_attention {name}",
            bytes=s.batch * item * inner * (s.tokens + count) + 4 * s.batch * n,
            flop=2 * s.batch * inner * (count * s.tokens if probs else n + count),
            exponentials=s.batch * s.heads * count * s.tokens if probs else 0,
            ours=partial(lambda call: (call(attn),), call),
            wanted=partial(lambda call: (call(QueryKey(*wide(q, k))),), call),
            torch=plain,
        )
    chosen = (sources, left, text, each)
    for probs in (False, True):
        how = {"gamma": GAMMA, "alpha": "ratio" if probs else "softmax", "probs": probs}
        how |= {"causal": True, "column": probs}
        yield Work(
            f"correlate.tokens {'probs' if probs else 'logits'}",
            bytes=s.batch * item * inner * (s.tokens + s.r + text.shape[1]),
            flop=2 * s.batch * inner * (s.r + text.shape[1]) * s.tokens,
            exponentials=s.batch * s.heads * (s.r + text.shape[1]) * s.tokens if probs else 0,
            ours=partial(lambda how: ops.correlate_tokens(attn, *chosen, TARGETS, **how), how),
            wanted=partial(lambda how: ops.correlate_tokens(QueryKey(*wide(q, k)), *chosen, TARGETS, **how), how),
            torch={
                "rows": partial(torch_decoder.correlate, q, k, sources, left, text, TARGETS, GAMMA, probs),
            },
        )
    targets = torch.zeros(s.batch, s.r, TARGETS, dtype=torch.int64, device=device)
    inside = (columns, indices, (left - begin).contiguous(), targets, s.tokens)
    yield Work(
        "to_sequence",
        bytes=8 * s.batch * (2 * s.tokens + 2 * n + 2 * s.r * TARGETS),
        flop=0,
        ours=lambda: tuple(ops.to_sequence(*inside)),
        wanted=lambda: tuple(ops.to_sequence(*inside)),
    )


def tiny() -> tuple[Shape, tuple[int, int]]:
    """For rehearsals: shape and visual tokens."""
    return Shape("tiny sequence", 2, 72, 2, 8, 6, (6, 8), False, torch.float32), (8, 48)
