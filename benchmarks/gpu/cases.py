"""What is timed: each operator and each whole reduction, beside the same mathematics in torch.

A :class:`Work` knows its bytes (each input read once, each output written once), its arithmetic, our call, the
formulations in torch, and the specification in float64 that all of them are compared with before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import measure  # noqa: F401  (knows where torch_formulations lies)
import released
import torch
import torch_formulations as batched
from torch import Tensor

import ficoco_ext
from ficoco_ext import QueryKey, ops
from ficoco_ext.ops import reference
from ficoco_ext.stages import adaptive_targets

Results = tuple[Tensor, ...]


@dataclass(frozen=True)
class Shape:
    """One layer: B images, N tokens, H heads of width d, r tokens to remove, a grid of patches."""

    name: str
    batch: int
    tokens: int
    heads: int
    width: int
    r: int
    grid: tuple[int, int]
    class_token: bool
    dtype: torch.dtype

    @property
    def first(self) -> int:
        """1 with a class token."""
        return int(self.class_token)

    @property
    def kept(self) -> int:
        """M."""
        return self.tokens - self.r

    def described(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "shape": self.name,
            "batch": self.batch,
            "tokens": self.tokens,
            "channels": self.heads * self.width,
            "heads": self.heads,
            "width": self.width,
            "r": self.r,
            "dtype": str(self.dtype).removeprefix("torch."),
        }


def vision(batch: int, dtype: torch.dtype) -> Shape:
    """A layer of CLIP ViT-L/14 at 336 pixels."""
    return Shape("ViT-L/14-336", batch, 577, 16, 64, 42, (24, 24), True, dtype)


def decoder(batch: int, dtype: torch.dtype) -> Shape:
    """The visual tokens of five crops in a decoder of 7B parameters; as many leave, in proportion."""
    return Shape("decoder-7b", batch, 2880, 32, 128, 210, (48, 60), False, dtype)


def tiny(class_token: bool, dtype: torch.dtype) -> Shape:
    """For rehearsals."""
    return Shape("tiny", 2, 48 + int(class_token), 2, 8, 6, (6, 8), class_token, dtype)


@dataclass
class Inputs:
    """Random tensors of one shape, (B, N, H, d) in memory as Hugging Face attention has them."""

    shape: Shape
    tokens: Tensor
    query: Tensor
    key: Tensor
    value: Tensor

    @classmethod
    def make(cls, shape: Shape, device: torch.device) -> Inputs:
        """Keys share a direction, so that attention is as uneven as in a trained model."""
        generator = torch.Generator(device).manual_seed(0)
        size = (shape.batch, shape.tokens, shape.heads, shape.width)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator, device=device)

        tokens = normal(shape.batch, shape.tokens, shape.heads * shape.width)
        query, value = normal(*size), normal(*size)
        key = normal(*size) + normal(shape.batch, 1, shape.heads, shape.width)
        q, k, v = (t.to(shape.dtype).transpose(1, 2) for t in (query, key, value))
        return cls(shape, tokens.to(shape.dtype), q, k, v)


@dataclass
class Work:
    """One thing to time. ``torch`` and ``released`` take no arguments and give what ``ours`` gives, or its head."""

    name: str
    bytes: int
    flop: int
    ours: Callable[[], Results]
    wanted: Callable[[], Results]
    torch: dict[str, Callable[[], Results]] = field(default_factory=dict)
    released: Callable[[], Results] | None = None
    comparable: bool = True  # torch with the specification; ToMe's tokens leave in another order
    exponentials: int = 0


def _alone(run: Callable[..., Tensor], *arguments: Any) -> Results:
    return (run(*arguments),)


def wide(*tensors: Tensor) -> Any:
    return [t.double() for t in tensors]


def _items(*tensors: Tensor) -> Any:
    return zip(*tensors, strict=True)


def _stack(results: list[Results]) -> Results:
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def whole(inputs: Inputs) -> Work:
    """One FiCoCo-V reduction from query and key (logits)."""
    s, x, q, k = inputs.shape, inputs.tokens, inputs.query, inputs.key
    options: dict[str, Any] = {"class_token": s.class_token, "grid": s.grid}
    attn = QueryKey(q, k)
    inner = s.heads * s.width
    ways = {
        "heads, scatter": batched.reduce_heads_scatter,
        "concatenated, scatter": batched.reduce_concatenated_scatter,
        "concatenated, dense": batched.reduce_concatenated_dense,
    }
    return Work(
        "reduce ficoco-v",
        bytes=s.batch * (s.dtype.itemsize * inner * (3 * s.tokens + s.kept)),
        flop=2 * s.batch * inner * (2 * s.tokens + s.r * (s.kept - s.first)),
        ours=lambda: (ficoco_ext.reduce(x, attn, s.r, **options),),
        wanted=lambda: (ficoco_ext.reduce(x.double(), QueryKey(*wide(q, k)), s.r, **options),),
        torch={name: partial(_alone, way, x, q, k, s.r, s.first, s.grid) for name, way in ways.items()},
        released=lambda: (released.reduce(x, q, k, s.r, s.first, s.grid),),
    )


def whole_probs(inputs: Inputs) -> Work:
    """One FiCoCo-V reduction from query and key, the paper's reading: softmax attention."""
    s, x, q, k = inputs.shape, inputs.tokens, inputs.query, inputs.key
    options: dict[str, Any] = {"class_token": s.class_token, "grid": s.grid, "variant": "paper"}
    inner = s.heads * s.width
    return Work(
        "reduce ficoco-v paper",
        bytes=s.batch * (s.dtype.itemsize * inner * (3 * s.tokens + s.kept)),
        flop=2 * s.batch * inner * s.tokens * (s.tokens + s.r),
        exponentials=s.batch * s.heads * s.tokens * (s.tokens + s.r),
        ours=lambda: (ficoco_ext.reduce(x, QueryKey(q, k), s.r, **options),),
        wanted=lambda: (ficoco_ext.reduce(x.double(), QueryKey(*wide(q, k)), s.r, **options),),
        torch={
            "map of all heads": lambda: (batched.reduce_map(x, probabilities(q, k).mean(1), s.r, s.grid),),
            "map of all heads, dense": lambda: (batched.reduce_map_dense(x, probabilities(q, k).mean(1), s.r, s.grid),),
        },
        comparable=False,  # the same operations with the constants of the other reading
    )


def tome(inputs: Inputs) -> Work:
    """One ToMe reduction by the keys."""
    s, x, q, k = inputs.shape, inputs.tokens, inputs.query, inputs.key
    pairs = (s.tokens // 2) * (s.tokens - s.tokens // 2)
    options: dict[str, Any] = {"class_token": s.class_token, "method": "tome"}
    return Work(
        "reduce tome",
        bytes=s.batch * s.dtype.itemsize * s.heads * s.width * (2 * s.tokens + s.kept),
        flop=2 * s.batch * pairs * s.width,
        ours=lambda: (ficoco_ext.reduce(x, QueryKey(q, k), s.r, **options),),
        wanted=lambda: (ficoco_ext.reduce(x.double(), QueryKey(*wide(q, k)), s.r, **options),),
        torch={"bipartite matching": lambda: (released.tome(x, k, s.r, s.class_token),)},
        comparable=False,
    )


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def _stats_probs(q: Tensor, k: Tensor, first: int, column: bool) -> Results:
    attn = probabilities(q, k)
    patch = attn[:, :, first:, first:].mean((1, 2 if column else 3))
    return (attn[:, :, 0, first:].mean(1) if first else batched.key_typicality(k), patch)


def _swapped(run: Callable[..., Results], *arguments: Any) -> Results:
    return run(*arguments)[::-1]


def statistics(inputs: Inputs) -> Iterator[Work]:
    """The operator attention_stats in its four kinds."""
    s, q, k, f = inputs.shape, inputs.query, inputs.key, inputs.shape.first
    attn, inner, patches = QueryKey(q, k), s.heads * s.width, s.tokens - s.first
    read, written = 2 * s.batch * s.tokens * inner * s.dtype.itemsize, 8 * s.batch * patches
    ways = {"heads": batched.stats_heads, "concatenated": batched.stats_concatenated}
    for name, probs, column in (("logits row", 0, 0), ("probs row", 1, 0), ("probs column", 1, 1)):
        how: dict[str, Any] = {"class_token": s.class_token, "probs": bool(probs), "column": bool(column)}
        work = Work(
            f"attention_stats {name}",
            bytes=read + written,
            flop=2 * s.batch * s.tokens * inner * (s.tokens if probs else 2),
            exponentials=s.batch * s.heads * s.tokens**2 if probs else 0,
            ours=partial(ops.attention_stats, attn, **how),
            wanted=partial(lambda how: ops.attention_stats(QueryKey(*wide(q, k)), **how), how),
        )
        if probs:
            work.torch = {"all heads": partial(_stats_probs, q, k, f, bool(column))}
        else:
            work.torch = {name: partial(_swapped, way, q, k, f) for name, way in ways.items()}
            work.released = lambda: _stack([released.statistics(one, other, f)[::-1] for one, other in _items(q, k)])
        yield work
    given = mean_map(inputs)
    how = {"class_token": s.class_token, "probs": False, "column": False}
    yield Work(
        "attention_stats map",
        bytes=given.nbytes + written,
        flop=0,
        ours=lambda: ops.attention_stats(given, **how),
        wanted=lambda: ops.attention_stats(given.double(), **how),
        torch={"mean": lambda: (given[:, 0, f:] * f, given[:, f:, f:].mean(-1))},
    )


def mean_map(inputs: Inputs) -> Tensor:
    """(B, N, N) logits averaged over heads, in the inputs' dtype."""
    q, k = batched.concatenate(inputs.query), batched.concatenate(inputs.key)
    return torch.bmm(q, k.mT) * (inputs.shape.width**-0.5 / inputs.shape.heads)


def selection(inputs: Inputs) -> Work:
    """The operator filter."""
    s, f = inputs.shape, inputs.shape.first
    cls, patch = ops.attention_stats(
        QueryKey(inputs.query, inputs.key), class_token=s.class_token, probs=False, column=False
    )
    how: dict[str, Any] = {"lam": 0.65, "normalize": True, "penalty": 2.0, "grid": s.grid, "class_token": s.class_token}

    def in_tokens(redundancy: Tensor, sources: Tensor, kept: Tensor) -> Results:
        """As ours: indices that count the class token, which stays."""
        kept = torch.cat([kept.new_zeros(*kept.shape[:-1], 1), kept + 1], dim=-1) if f else kept
        return redundancy, sources + f, kept

    return Work(
        "filter",
        bytes=s.batch * (12 * patch.shape[1] + 8 * s.tokens),
        flop=0,
        ours=lambda: ops.filter(patch, cls, s.r, **how),
        wanted=lambda: ops.filter(patch.double(), cls.double(), s.r, **how),
        torch={"sort": lambda: in_tokens(*batched.select(patch, cls, s.r, s.grid))},
        released=lambda: _stack([in_tokens(*released.select(a, c, s.r, s.grid)) for a, c in _items(patch, cls)]),
    )


def links_and_merge(inputs: Inputs) -> Iterator[Work]:
    """The operators correlate, in its four kinds, and compress, for one selection."""
    s, f, x, q, k = inputs.shape, inputs.shape.first, inputs.tokens, inputs.query, inputs.key
    attn, given, inner, item = QueryKey(q, k), mean_map(inputs), s.heads * s.width, s.dtype.itemsize
    cls, patch = ops.attention_stats(attn, class_token=s.class_token, probs=False, column=False)
    how: dict[str, Any] = {"lam": 0.65, "normalize": True, "penalty": 2.0, "grid": s.grid, "class_token": s.class_token}
    _, sources, kept = ops.filter(patch, cls, s.r, **how)
    leave, stay, count = sources - f, kept[:, f:] - f, adaptive_targets(s.kept - f, batched.EPS)
    links: dict[str, Any] = {"class_token": s.class_token}
    indices = 8 * s.batch * s.tokens + 12 * s.batch * s.r * count

    def ours(way: Callable[..., Results], first: Any, alpha: str, **more: Any) -> Callable[[], Results]:
        return lambda: way(first, sources, kept, count, alpha=alpha, **links, **more)

    def as_results(weights: Tensor, targets: Tensor) -> Results:
        return targets + f, weights

    def columns(rows: Tensor) -> Tensor:
        return rows.gather(2, stay[:, None].expand(-1, s.r, -1))

    def probs() -> Results:
        index = sources[:, None, :, None].expand(-1, s.heads, -1, s.width)
        rows = probabilities(q.gather(2, index), k).mean(1)
        return as_results(*batched.links(columns(rows[:, :, f:]), "ratio"))

    def keys() -> Results:
        metric = torch.nn.functional.normalize(k.mean(1), dim=-1)
        one, other = (metric.gather(1, i.unsqueeze(-1).expand(-1, -1, s.width)) for i in (sources, kept[:, f:]))
        return as_results(*batched.links(one @ other.mT))

    def rows_of_map() -> Results:
        rows = given.gather(1, sources.unsqueeze(-1).expand(-1, -1, s.tokens))
        return as_results(*batched.links(columns(rows[:, :, f:])))

    def looped() -> Results:
        picked = [as_results(*released.correlate(a[i][:, j])) for a, i, j in _items(given, sources, kept[:, f:])]
        return _stack(picked)

    rows_and_keys = s.batch * inner * item * (s.r + s.kept)
    yield Work(
        "correlate logits",
        bytes=rows_and_keys + indices,
        flop=2 * s.batch * s.r * (s.kept - f) * inner,
        ours=ours(ops.correlate, attn, "softmax"),
        wanted=ours(ops.correlate, QueryKey(*wide(q, k)), "softmax"),
        torch={"concatenated": lambda: as_results(*batched.links(batched.rows_concatenated(q, k, leave, stay, f)))},
    )
    yield Work(
        "correlate probs",
        bytes=s.batch * inner * item * (s.r + s.tokens) + indices,
        flop=2 * s.batch * s.r * s.tokens * inner,
        exponentials=s.batch * s.heads * s.r * s.tokens,
        ours=ours(ops.correlate, attn, "ratio", probs=True),
        wanted=ours(ops.correlate, QueryKey(*wide(q, k)), "ratio", probs=True),
        torch={"rows of all heads": probs},
    )
    yield Work(
        "correlate key",
        bytes=s.batch * s.tokens * inner * item + indices,
        flop=2 * s.batch * s.r * (s.kept - f) * s.width,
        ours=ours(ops.correlate_key, k, "softmax"),
        wanted=ours(ops.correlate_key, k.double(), "softmax"),
        torch={"cosine": keys},
    )
    yield Work(
        "correlate map",
        bytes=s.batch * s.r * s.tokens * item + indices,
        flop=0,
        ours=ours(ops.correlate, given, "softmax"),
        wanted=ours(ops.correlate, given.double(), "softmax"),
        torch={"rows": rows_of_map},
        released=looped,
    )
    targets, weights = ops.correlate(attn, sources, kept, count, alpha="softmax", **links)
    merge = (leave, stay, weights, targets - f)
    yield Work(
        "compress",
        bytes=s.batch * inner * item * (s.tokens + s.kept) + indices + 12 * s.batch * s.tokens,
        flop=2 * s.batch * s.r * count * inner,
        ours=lambda: ops.compress(x, sources, kept, targets, weights)[:1],
        wanted=lambda: reference.compress(x.double(), sources, kept, targets, weights.double(), None, False)[:1],
        torch={
            "scatter": lambda: (batched.merge_scatter(x, *merge, f),),
            "dense": lambda: (batched.merge_dense(x, *merge, f),),
        },
        released=lambda: (torch.stack([released.compress(t, i, j, w, a, f) for t, i, j, w, a in _items(x, *merge)]),),
    )


def operators(inputs: Inputs) -> Iterator[Work]:
    """Every operator once."""
    yield from statistics(inputs)
    yield selection(inputs)
    yield from links_and_merge(inputs)
