"""Floating point operations counted on the real forward: formulas of our operators for torch's own counter.

``torch.utils.flop_counter.FlopCounterMode`` counts the matrix products that run, by shape. Importing this module tells
it what ``ficoco::attention_stats``, ``token_attention``, ``correlate``, ``match``, ``compress`` and the composition
``reduce`` cost; ``ficoco::filter`` and ``ficoco::to_sequence`` have no product and count zero. Without the formulas a
compiled kernel would be opaque to it and look free. The formulas are those of :mod:`ficoco_ext.cost`, so that what is
predicted and what is counted on a real forward cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from .. import ops  # noqa: F401  (define the operators that the formulas are for)
from . import reduction as formulas
from .lines import Operation, evaluate

Shape = Sequence[int]

HOW = (
    "matrix products of one real prefill by torch.utils.flop_counter.FlopCounterMode, 2 FLOPs a multiply-add, "
    "attention as full rectangles (causal too); the reduction's own by formulas registered with register_flop_formula"
)


def _operations(operation: Operation, **values: Any) -> int:
    return evaluate(operation.operations, values)


def attention_stats(query: Shape, key: Any, *rest: Any, out_shape: Any = None) -> int:
    """Logits 4 B H N d, probabilities 2 B H N^2 d, the class row alone 2 B H N d; a given map is only added up: 0."""
    if isinstance(key, bool):  # the overload .map: (attn, class_token, column, patches)
        return 0
    b, h, n, d = query
    _, _, probs, _, patches = rest  # (query, key, scale, class_token, probs, column, patches)
    whole = formulas.STATS_PROBS if probs else formulas.STATS_LOGITS
    return _operations(whole if patches else formulas.CLASS_ATTENTION, b=b, a=h, n=n, d=d)


def correlate(first: Shape, second: Shape, *rest: Any, out_shape: Any = None) -> int:
    """Attention 2 B r M H d (probabilities 2 B r N H d), keys 2 B r M d; a given map is only looked up: 0.

    ``.map`` and ``.key`` take the same arguments and are told apart by shape: a square last pair is a map. So keys
    whose width equals their number count zero. ``.tokens``: see :func:`correlate_tokens`.
    """
    if len(rest) == 12:
        return correlate_tokens(first, second, *rest)
    if len(second) == 4:  # (query, key, sources, kept, k, scale, alpha, class_token, probs)
        (b, h, n, d), r, m = first, rest[0][1], rest[1][1]
        chosen = formulas.CORRELATE_PROBS if rest[6] else formulas.CORRELATE_LOGITS
        return _operations(chosen, b=b, a=h, n=n, d=d, r=r, m=m)
    if len(first) == 3 or first[2] == first[3]:
        return 0
    # (key, sources, kept, k, alpha, class_token)
    return _operations(formulas.CORRELATE_KEY, b=first[0], r=second[1], m=rest[0][1], d=first[3])


def match(key: Shape, r: int, class_token: bool, distill_token: bool, *, out_shape: Any = None) -> int:
    """2 B |A| |B| d for the tokens at even and at odd places that may be paired."""
    b, _, n, d = key
    even, odd = max((n + 1) // 2 - class_token, 0), max(n // 2 - distill_token, 0)
    return _operations(formulas.MATCH, b=b, d=d, z=even, o=odd)


def correlate_tokens(query: Shape, key: Shape, *rest: Any) -> int:
    """Logits 2 B H d (r m + r R + R m), probabilities 2 B (r + R) T H d; by way of others 2 B r R m besides.

    With ``column`` the blocks are transposed or share their rows, and cost the same.
    """
    sources, candidates, others, _, _, _, _, gamma, _, probs, _, _ = rest
    (b, h, _, d), way = query, others[1] if gamma < 1 else 0
    chosen = formulas.CORRELATE_TOKENS_PROBS if probs else formulas.CORRELATE_TOKENS_LOGITS
    return _operations(chosen, b=b, a=h, d=d, l=key[2], r=sources[1], m=candidates[1], e=way)


def compress(tokens: Shape, sources: Shape, kept: Shape, targets: Shape, *rest: Any, out_shape: Any = None) -> int:
    """2 B r k C: every source goes into its k targets."""
    b, r, k = targets
    return _operations(formulas.COMPRESS, b=b, r=r, g=k, h=tokens[2])


def reduce(tokens: Shape, first: Shape, second: Any, *rest: Any, out_shape: Any = None) -> int:
    """The sum of its stages; from a map (tokens, attn, ids, size, r, k, ...) only Compress multiplies."""
    given_map = len(rest) == 15
    r, k = rest[1:3] if given_map else rest[3:5]
    b, n, _ = tokens
    merge = compress(tokens, (b, r), (b, n - r), (b, r, k))
    if given_map:
        return merge
    lam, probs, correlation = rest[6], rest[7], rest[14]
    stats = attention_stats(first, second, 0.0, True, probs, False, lam != 0)
    if k == 0:
        return stats + merge
    if correlation == "key":
        return stats + merge + _operations(formulas.CORRELATE_KEY, b=b, r=r, m=n - r, d=second[3])
    return stats + merge + correlate(first, second, (b, r), (b, n - r), k, 0.0, "", True, correlation == "probs")


def token_attention(
    query: Shape, key: Shape, tokens: Shape, others: Shape, weights: Shape, *rest: Any, **named: Any
) -> int:
    """Logits 2 B W (N + R) H d; probabilities 2 B Q T H d for the Q query rows, N or with column R."""
    b, h, _, d = query
    _, _, probs, column, _ = rest  # (key_mask, scale, probs, column, causal)
    by_probs = formulas.TOKEN_ATTENTION_COLUMNS if column else formulas.TOKEN_ATTENTION_ROWS
    chosen = by_probs if probs else formulas.TOKEN_ATTENTION_LOGITS
    return _operations(chosen, b=b, a=h, d=d, l=key[2], u=tokens[1], o=others[1], j=weights[1])


def cpu_attention(query: Shape, key: Shape, value: Shape, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    """2 B H N L (d + dv) for N queries and L keys, as torch counts its other attention kernels."""
    b, h, n, d = query
    return 2 * b * h * n * key[2] * (d + value[3])


_FORMULAS: dict[str, Callable[..., int]] = {
    "attention_stats": attention_stats,
    "correlate": correlate,
    "match": match,
    "compress": compress,
    "reduce": reduce,
    "token_attention": token_attention,
}
for _name, _formula in _FORMULAS.items():
    if getattr(torch.ops.ficoco, _name) not in flop_registry:  # a reload of this module finds them registered
        register_flop_formula(getattr(torch.ops.ficoco, _name))(_formula)

# The counter of torch 2.13 does not know the CPU's flash attention and silently counts zero for it.
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Flops:
    """FLOPs of one prefill by part, which add up to ``total``.

    ``reduction`` are the operators of this package, wherever they ran; ``tower`` and ``decoder`` do not contain them. A
    method that reduces before a layer's attention makes the model run its projections there twice, which counts as
    ``decoder``; PruMerge compares and adds up neighbours with torch's own products, which count as ``tower``.
    """

    total: int
    tower: int
    reduction: int
    projector: int
    decoder: int
    head: int


def counter() -> FlopCounterMode:
    """A FlopCounterMode that also counts attention on the CPU. Nothing outside of it changes.

    Example:
        >>> import torch
        >>> from ficoco_ext.cost import flop_counter
        >>> with flop_counter.counter() as mode:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> mode.get_total_flops()
        48
    """
    return FlopCounterMode(
        display=False, custom_mapping={} if _ATTENTION in flop_registry else {_ATTENTION: cpu_attention}
    )


def count(model: torch.nn.Module, forward: Callable[[], Any]) -> tuple[Flops, Any]:
    """FLOPs of ``forward``, a call of the LLaVA ``model``, by part; and what it returned.

    Args:
        model: a ``LlavaForConditionalGeneration``; its class name is where the counter's module paths begin.
        forward: runs the model once.
    """
    with counter() as mode, torch.inference_mode():
        output = forward()
    counts = mode.get_flop_counts()
    root = type(model).__name__

    def part(path: str) -> int:
        """Products of a module and all within, without our operators."""
        return sum(n for op, n in counts.get(f"{root}.{path}", {}).items() if not _ours(op))

    parts = Flops(
        total=mode.get_total_flops(),
        tower=part("model.vision_tower"),
        reduction=sum(n for op, n in counts.get("Global", {}).items() if _ours(op)),
        projector=part("model.multi_modal_projector"),
        decoder=part("model.language_model"),
        head=part("lm_head"),
    )
    return parts, output


def _ours(operator: Any) -> bool:
    return str(operator).removeprefix("ficoco.") in _FORMULAS
