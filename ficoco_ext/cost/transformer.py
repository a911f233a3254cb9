"""The operations of transformer layers, projector and head, in both conventions.

The tables are the model: every operation with its formulas. ``"matmul"`` counts 2 for each multiply-add of a matrix
product and nothing else, as torch's FlopCounterMode does; its bytes are what unfused kernels move (norm, activation and
addition included), with attention either fused (keys and values read once) or not.

``"llmviewer"`` is LLM-Viewer at commit 472f71f, peculiarities included: softmax 5, norm 7, addition 1, activation 2
operations a number; its activation is as wide as the hidden state, additions load one operand, of grouped queries a
prefill loads as many as there are keys, the fused kernel writes n x n numbers twice, and the head counts 1, not 2, for
a multiply-add.
"""

from __future__ import annotations

import math
from typing import Any

from .architecture import LanguageModel, Projector, Tower
from .lines import Line, Operation, Rules


def _linear(name: str, rows: str, inputs: str, outputs: str) -> Operation:
    return Operation(
        name, f"2*b*{rows}*{inputs}*{outputs}", f"{inputs}*{outputs}", f"b*{rows}*{inputs}", f"b*{rows}*{outputs}"
    )


def _cached(name: str) -> Operation:
    """A projection whose result goes into the KV cache."""
    return Operation(name, "2*b*n*h*k*d", "h*k*d", "b*n*h", kv_stores="b*n*k*d")


_PROJECTIONS = (
    _linear("q_proj", "n", "h", "a*d"),
    _cached("k_proj"),
    _cached("v_proj"),
    _linear("o_proj", "n", "a*d", "h"),
)
_GATED = (_linear("gate_proj", "q", "h", "i"), _linear("up_proj", "q", "h", "i"), _linear("down_proj", "q", "i", "h"))
_PLAIN = (_linear("fc1", "q", "h", "i"), _linear("fc2", "q", "i", "h"))

_ATTENTION = {
    ("matmul", False): (
        Operation("qk", "2*b*s*a*d", loads="b*n*a*d", stores="b*a*s", kv_loads="b*c*k*d"),
        Operation("softmax", "0", loads="b*a*s", stores="b*a*s"),
        Operation("sv", "2*b*s*a*d", loads="b*a*s", stores="b*n*a*d", kv_loads="b*c*k*d"),
    ),
    ("matmul", True): (Operation("attention", "4*b*s*a*d", loads="b*n*a*d", stores="b*n*a*d", kv_loads="2*b*c*k*d"),),
    ("llmviewer", False): (
        Operation("qk", "2*b*s*a*d", loads="b*n*k*d", stores="b*a*s", kv_loads="b*c*k*d"),
        Operation("softmax", "5*b*a*s", loads="b*a*s", stores="b*a*s"),
        Operation("sv", "2*b*s*a*d", loads="b*a*s", stores="b*n*a*d", kv_loads="b*c*k*d"),
    ),
    ("llmviewer", True): (
        Operation("attention", "b*s*a*(4*d+5)", loads="b*n*a*d", stores="2*b*a*s", kv_loads="2*b*f*c*k*d"),
    ),
}
_ELEMENTWISE = {
    "matmul": (
        Operation("attn_norm", "0", "h", "b*n*h", "b*n*h"),
        Operation("attn_add", "0", "0", "2*b*n*h", "b*n*h"),
        Operation("mlp_norm", "0", "h", "b*q*h", "b*q*h"),
        Operation("mlp_add", "0", "0", "2*b*q*h", "b*q*h"),
    ),
    "llmviewer": (
        Operation("attn_norm", "7*b*n*h", "0", "b*n*h", "b*n*h"),
        Operation("attn_add", "b*n*h", "0", "b*n*h", "b*n*h"),
        Operation("mlp_norm", "7*b*q*h", "0", "b*q*h", "b*q*h"),
        Operation("mlp_add", "b*q*h", "0", "b*q*h", "b*q*h"),
        Operation("mlp_act", "2*b*q*h", "0", "2*b*q*h", "b*q*h"),
    ),
}
_ACT = {
    True: Operation("mlp_act", "0", "0", "2*b*q*i", "b*q*i"),
    False: Operation("mlp_act", "0", "0", "b*q*i", "b*q*i"),
}
_HEAD = {
    "matmul": _linear("lm_head", "t", "h", "v"),
    "llmviewer": Operation("lm_head", "b*h*v", "h*v", "b*h", "b*v"),
}
_PATCHES = Operation("patch_embedding", "2*b*p*x*h", "x*h", "b*p*x", "b*p*h")


def operations_of_layer(rules: Rules, *, gated: bool, decoding: bool = False) -> tuple[Operation, ...]:
    """The operations of one layer, in a prefill or ``decoding``."""
    act = () if rules.quirks else (_ACT[gated],)
    attention = _ATTENTION[rules.convention, rules.fused]
    if decoding and rules.quirks and not rules.fused:
        attention = (_ATTENTION["matmul", False][0], *attention[1:])  # here it loads all heads of the query
    return (*_PROJECTIONS, *attention, *(_GATED if gated else _PLAIN), *act, *_ELEMENTWISE[rules.convention])


def decoder_layer(
    rules: Rules, shape: LanguageModel, layer: int, tokens: float, in_mlp: float, keys: float | None = None
) -> list[Line]:
    """One layer of the language model: ``tokens`` enter attention, ``in_mlp`` the MLP, and ``keys`` are attended to."""
    context = tokens if keys is None else keys
    values: dict[str, Any] = {
        "b": 1,
        "n": tokens,
        "q": in_mlp,
        "c": context,
        "s": _pairs(tokens, context, rules.causal),
        "h": shape.hidden,
        "i": shape.mlp,
        "a": shape.heads,
        "k": shape.kv_heads,
        "d": shape.head_dim,
        "f": _tiles(rules, tokens, shape.head_dim),
    }
    operations = operations_of_layer(rules, gated=shape.gated, decoding=keys is not None)
    return [rules.line("decoder", layer, one, values) for one in operations]


def _pairs(tokens: float, context: float, causal: bool) -> float:
    """The last of ``tokens`` queries meets all keys; causally each one before it meets one less."""
    if not causal:
        return tokens * context
    fewer = tokens * (tokens - 1)
    return tokens * context - (fewer // 2 if isinstance(fewer, int) else fewer / 2)


def _tiles(rules: Rules, tokens: float, head_dim: int) -> int:
    """How often LLM-Viewer's fused kernel reads keys and values: a tile has as many rows as a head has numbers."""
    rows = head_dim
    if rules.hardware is not None:
        rows = min(math.ceil(rules.hardware.on_chip / (rules.precision.kv / 8 * head_dim)), head_dim)
    return math.ceil(tokens / rows)


def tower_layer(rules: Rules, tower: Tower, layer: int, batch: int, tokens: int, in_mlp: int) -> list[Line]:
    """One layer of the vision tower for ``batch`` crops. Keys and values are activations: nothing is cached."""
    width = tower.hidden // tower.heads
    values: dict[str, Any] = {
        "b": batch,
        "n": tokens,
        "q": in_mlp,
        "c": tokens,
        "s": tower.pairs(layer, tokens),
        "h": tower.hidden,
        "i": tower.mlp,
        "a": tower.heads,
        "k": tower.heads,
        "d": width,
        "f": _tiles(rules, tokens, width),
    }
    operations = operations_of_layer(rules, gated=tower.gated)
    return [rules.line("tower", layer, _without_cache(one), values) for one in operations]


def _without_cache(one: Operation) -> Operation:
    if one.kv_loads == one.kv_stores == "0":
        return one
    loads, stores = f"{one.loads}+{one.kv_loads}", f"{one.stores}+{one.kv_stores}"
    return Operation(one.name, one.operations, one.weights, loads, stores)


def patch_embedding(rules: Rules, tower: Tower, batch: int, patches: int) -> list[Line]:
    """The convolution that turns patches into tokens."""
    values = {"b": batch, "p": patches, "x": tower.channels * tower.patch**2, "h": tower.hidden}
    return [rules.line("tower", None, _PATCHES, values)]


def projector(rules: Rules, shape: Projector, tokens: float) -> list[Line]:
    """The two layers between tower and language model."""
    values = {"b": 1, "t": tokens, "y": shape.inputs, "w": shape.hidden, "h": shape.outputs}
    act = Operation("act", "2*b*t*w" if rules.quirks else "0", "0", "b*t*w", "b*t*w")
    operations = (_linear("linear_1", "t", "y", "w"), act, _linear("linear_2", "t", "w", "h"))
    return [rules.line("projector", None, one, values) for one in operations]


def head(rules: Rules, shape: LanguageModel) -> list[Line]:
    """Logits of the last position, from which the next token is chosen."""
    values = {"b": 1, "t": 1, "h": shape.hidden, "v": shape.vocabulary}
    return [rules.line("head", None, _HEAD[rules.convention], values)]
