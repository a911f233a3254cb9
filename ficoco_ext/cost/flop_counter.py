"""Floating point operations counted on the real forward: formulas of our operators for torch's own counter.

``torch.utils.flop_counter.FlopCounterMode`` counts the matrix products that run, by shape. Importing this module adds
what ``ficoco::attention_stats``, ``token_attention``, ``correlate``, ``match``, ``compress`` and the compositions
``reduce`` and ``reduce_sequence`` cost; ``ficoco::filter`` and ``ficoco::to_sequence`` have no product and count zero.
Without the formulas a compiled kernel would be opaque to it and look free. The formulas are those of
:mod:`ficoco_ext.ops.costs`, by which the
stages price themselves, so what is predicted and what is counted on a real forward cannot drift apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from ..ops import costs
from ..ops.costs import Operation, evaluate

Shape = Sequence[int]

HOW = (
    "matrix products of one real prefill by torch.utils.flop_counter.FlopCounterMode, 2 FLOPs a multiply-add, "
    "attention as full rectangles (causal too); the reduction's own by formulas registered with register_flop_formula"
)


def _counted(operation: Operation, **values: Any) -> int:
    return evaluate(operation.operations, values)


def nothing(*args: Any, **named: Any) -> int:
    """No product: a given map is only added up or looked up."""
    return 0


def attention_stats(query: Shape, *rest: Any) -> int:
    """Logits 4 B H N d, probabilities 2 B H N^2 d, the class row alone 2 B H N d."""
    b, h, n, d = query
    _, _, _, probs, _, patches = rest  # (key, scale, class_token, probs, column, patches)
    return _counted(costs.attention_stats(probs=probs, patches=patches), b=b, a=h, n=n, d=d)


def correlate(query: Shape, key: Shape, sources: Shape, kept: Shape, *rest: Any) -> int:
    """Attention 2 B r M H d, probabilities 2 B r N H d."""
    b, h, n, d = query
    *_, probs = rest  # (k, scale, alpha, class_token, probs)
    return _counted(costs.correlate("probs" if probs else "logits"), b=b, a=h, n=n, d=d, r=sources[1], m=kept[1])


def correlate_key(key: Shape, sources: Shape, kept: Shape, *rest: Any) -> int:
    """2 B r M d: heads are averaged first."""
    return _counted(costs.correlate("key"), b=key[0], r=sources[1], m=kept[1], d=key[3])


def correlate_tokens(query: Shape, key: Shape, sources: Shape, candidates: Shape, others: Shape, *rest: Any) -> int:
    """Logits 2 B H d (r m + r R + R m), probabilities 2 B (r + R) T H d; by way of others 2 B r R m besides.

    With ``column`` the blocks are transposed or share their rows, and cost the same.
    """
    _, _, _, _, gamma, _, probs, _, _ = rest  # (weights, key_mask, k, scale, gamma, alpha, probs, column, causal)
    b, h, _, d = query
    sizes = {"l": key[2], "r": sources[1], "m": candidates[1], "e": others[1] if gamma < 1 else 0}
    return _counted(costs.correlate_tokens(probs=probs), b=b, a=h, d=d, **sizes)


def match(key: Shape, r: int, class_token: bool, distill_token: bool) -> int:
    """2 B |A| |B| d for the tokens at even and at odd positions that may be paired."""
    b, _, n, d = key
    return _counted(costs.MATCH, b=b, d=d, **costs.pairs(n, class_token=class_token, distill_token=distill_token))


def cosines(features: Shape, things: Shape) -> int:
    """2 B N R D."""
    b, n, d = features
    return _counted(costs.COSINES, b=b, n=n, c=things[1], h=d)


def greedy_select(features: Shape, count: int, objective: str, *rest: Any) -> int:
    """B N^2 D for half of all cosines, and what the picks take; see :func:`ficoco_ext.ops.costs.greedy_select`."""
    b, n, d = features
    return _counted(costs.greedy_select(objective), b=b, n=n, h=d, m=count)


def greedy_cover(cover: Shape, count: int, *rest: Any) -> int:
    """2 B N R: every gain once."""
    b, n, things = cover
    return _counted(costs.GREEDY_COVER, b=b, n=n, c=things)


def window_similarity(tokens: Shape, *rest: Any) -> int:
    """6 B P C."""
    b, n, c = tokens
    return _counted(costs.WINDOW_SIMILARITY, b=b, n=n, h=c)


def received_from(query: Shape, key: Shape, visual: Shape, text: Shape, *rest: Any) -> int:
    """2 B R T H d for R rows of text, all of them counted as chosen; by logits 2 B R n H d."""
    b, h, _, d = query
    _, _, _, probs, _ = rest  # (chosen, key_mask, scale, probs, causal)
    return _counted(costs.received_from(probs=probs), b=b, a=h, d=d, l=key[2], u=visual[1], o=text[1])


def bipartite_thin(features: Shape, *rest: Any) -> int:
    """B N^2 D for half of all cosines."""
    b, n, d = features
    return _counted(costs.BIPARTITE_THIN, b=b, n=n, h=d)


def compress(tokens: Shape, sources: Shape, kept: Shape, targets: Shape, *rest: Any) -> int:
    """2 B r k C: every source goes into its k targets."""
    b, r, k = targets
    return _counted(costs.COMPRESS, b=b, r=r, g=k, h=tokens[2])


def reduce_map(tokens: Shape, attn: Shape, ids: Any, size: Any, r: int, k: int, *rest: Any) -> int:
    """Only Compress multiplies."""
    return _counted(costs.COMPRESS, b=tokens[0], r=r, g=k, h=tokens[2])


def reduce(tokens: Shape, query: Shape, key: Shape, scale: float, *rest: Any) -> int:
    """The sum of its stages."""
    ids, size, r, k, _, lam, probs, _, _, _, _, _, _, correlation, _, _ = rest
    (b, h, n, d), m = query, tokens[1] - r
    stats = _counted(costs.attention_stats(probs=probs, patches=lam != 0), b=b, a=h, n=n, d=d)
    links = _counted(costs.correlate(correlation), b=b, a=h, n=n, d=d, r=r, m=m) if k else 0
    return stats + links + reduce_map(tokens, query, ids, size, r, k)


def token_attention(query: Shape, key: Shape, tokens: Shape, others: Shape, weights: Shape, *rest: Any) -> int:
    """Logits 2 B W (N + R) H d; probabilities 2 B Q T H d for the Q query rows, N or with column R."""
    b, h, _, d = query
    _, _, probs, column, _ = rest  # (key_mask, scale, probs, column, causal)
    sizes = {"l": key[2], "u": tokens[1], "o": others[1], "j": weights[1]}
    return _counted(costs.token_attention(probs=probs, column=column), b=b, a=h, d=d, **sizes)


def reduce_sequence(tokens: Shape, query: Shape, key: Shape, scale: float, visual: Shape, *rest: Any) -> int:
    """The sum of its parts."""
    _, _, _, r, k, after, ranking, *_ = rest  # (real, ids, size, r, k, after, ranking, ..)
    correlation, gamma, _, _, _ = rest[-5:]  # (correlation, gamma, indirect_reduce, alpha, size_weighted)
    (b, h, n, d), count, column = query, visual[1], ranking != "logits"
    asked = {"o": 1, "j": 1} if ranking == "last" else {"o": count + after, "j": 2}
    found = _counted(costs.token_attention(probs=column, column=column), b=b, a=h, d=d, l=n, u=count, **asked)
    if k:
        links = costs.correlate_tokens(probs=correlation == "probs")
        found += _counted(links, b=b, a=h, d=d, l=n, r=r, m=count - r, e=after if gamma < 1 else 0)
    return found + _counted(costs.COMPRESS, b=b, r=r, g=k, h=tokens[2])


def cpu_attention(query: Shape, key: Shape, value: Shape, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    """2 B H N L (d + dv) for N queries and L keys, as torch counts its other attention kernels."""
    b, h, n, d = query
    return 2 * b * h * n * key[2] * (d + value[3])


FORMULAS: dict[str, dict[str, Callable[..., int]]] = {
    "attention_stats": {"default": attention_stats, "map": nothing},
    "correlate": {"default": correlate, "map": nothing, "key": correlate_key, "tokens": correlate_tokens},
    "match": {"default": match},
    "cosines": {"default": cosines},
    "greedy_select": {"default": greedy_select},
    "greedy_cover": {"default": greedy_cover},
    "bipartite_thin": {"default": bipartite_thin},
    "window_similarity": {"default": window_similarity},
    "received_from": {"default": received_from},
    "compress": {"default": compress},
    "reduce": {"default": reduce, "map": reduce_map},
    "token_attention": {"default": token_attention},
    "reduce_sequence": {"default": reduce_sequence},
}


def _overload(name: str, args: tuple[Any, ...]) -> str:
    """The overload of the operator ``name`` that takes these arguments.

    torch's counter passes a formula the arguments, not the overload. They distinguish all overloads but two: ``.map``
    and ``.key`` of ``correlate``, where a map is as wide as it is high. Keys whose width equals their number look alike
    and count zero there; :func:`counter` notes the overload and counts them.
    """
    packet = getattr(torch.ops.ficoco, name)
    found = [one for one in FORMULAS[name] if len(getattr(packet, one)._schema.arguments) == len(args)]
    if len(found) == 1:
        return found[0]
    first = args[0]
    return "key" if len(first) == 4 and first[2] != first[3] else "map"


def _of_packet(name: str, overload: Callable[[], str | None] = lambda: None) -> Callable[..., int]:
    """The formula of all overloads of ``name``; ``overload`` says which one runs, or None if it is not known."""

    def formula(*args: Any, out_shape: Any = None, **named: Any) -> int:
        return FORMULAS[name][overload() or _overload(name, args)](*args)

    return formula


for _name in FORMULAS:
    if getattr(torch.ops.ficoco, _name) not in flop_registry:  # a reload of this module finds them registered
        register_flop_formula(getattr(torch.ops.ficoco, _name))(_of_packet(_name))

# The counter of torch 2.13 has no formula for the CPU's flash attention and silently counts zero for it.
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


class _Noted(TorchDispatchMode):
    """Notes the overload that runs, which torch's counter does not pass to formulas."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.running.append(func)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.running.pop()

    def overload(self, name: str) -> str | None:
        """The overload of the operator ``name`` that runs now, or None."""
        running = self.running[-1] if self.running else None
        packet, _, overload = str(running).removeprefix("ficoco.").partition(".")
        return overload if packet == name else None


class Counter(FlopCounterMode):
    """torch's FlopCounterMode, which also counts attention on the CPU and separates our operators' overloads."""

    def __init__(self) -> None:
        self._noted = _Noted()
        ours = {
            getattr(torch.ops.ficoco, name): _of_packet(name, functools.partial(self._noted.overload, name))
            for name in FORMULAS
        }
        theirs = {} if _ATTENTION in flop_registry else {_ATTENTION: cpu_attention}
        super().__init__(display=False, custom_mapping=ours | theirs)

    def __enter__(self) -> Counter:
        super().__enter__()
        self._noted.__enter__()
        return self

    def __exit__(self, *raised: Any) -> Any:
        self._noted.__exit__(*raised)
        return super().__exit__(*raised)


def counter() -> FlopCounterMode:
    """A FlopCounterMode that counts all that this package runs. Nothing outside of it changes.

    Example:
        >>> import torch
        >>> from ficoco_ext.cost import flop_counter
        >>> with flop_counter.counter() as mode:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> mode.get_total_flops()
        48
    """
    return Counter()


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
    return str(operator).removeprefix("ficoco.") in FORMULAS
