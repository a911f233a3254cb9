"""What the operators cost: one formula for each operator and variant.

The stages price themselves by these formulas, and :mod:`ficoco_ext.cost.flop_counter` registers them with torch, so
what is predicted and what is counted on a real forward cannot drift apart. Bytes: each operand once, no N x N map.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

SYMBOLS = {
    "b": "sequences that go through together: crops in the tower, 1 in the language model",
    "n": "tokens that enter the attention of the layer",
    "h": "width of the hidden state",
    "a": "attention heads",
    "k": "key-value heads",
    "d": "width of a head",
    "r": "tokens that leave (sources)",
    "m": "tokens that may inherit them (candidates)",
    "g": "targets of each source",
    "l": "tokens in the sequence, all of them keys",
    "u": "visual tokens before the reduction",
    "o": "other tokens whose attention to or from the visual ones is wanted",
    "j": "weighted sums over these",
    "e": "tokens by way of which sources and candidates correlate: the text after the visual tokens",
    "z": "tokens at even positions that may be paired",
    "w": "words of the prompt that the choice reads",
    "c": "what tokens are to cover, or are compared with: words of the prompt and tokens",
}


@dataclass(frozen=True)
class Operation:
    """What one operation does, as formulas: operations, and numbers (not bytes) that it moves.

    ``weights`` are read once; ``loads`` and ``stores`` are activations; ``kv_loads`` and ``kv_stores`` cache entries.
    """

    name: str
    operations: str
    weights: str = "0"
    loads: str = "0"
    stores: str = "0"
    kv_loads: str = "0"
    kv_stores: str = "0"


_NOTHING: dict[str, Any] = {"__builtins__": {}}  # formulas call nothing


@functools.cache
def _compiled(formula: str) -> CodeType:
    return compile(formula, "<formula>", "eval")


def evaluate(formula: str, values: Mapping[str, Any]) -> Any:
    """The number that ``formula``, arithmetic on single letters, has for ``values``; integers stay exact.

    Example:
        >>> from ficoco_ext.ops import costs
        >>> costs.evaluate(costs.COMPRESS.operations, {"b": 1, "r": 2, "g": 1, "h": 8})
        32
    """
    return 0 if formula == "0" else eval(_compiled(formula), _NOTHING, values)


_CLASS_ATTENTION = Operation("class_attention", "2*b*n*a*d", loads="b*n*a*d", stores="b*n")
_STATS = {
    "logits": Operation("attention_stats", "4*b*n*a*d", loads="2*b*n*a*d", stores="2*b*n"),
    "probs": Operation("attention_stats", "2*b*n*n*a*d", loads="2*b*n*a*d", stores="2*b*n"),
}
_CORRELATE = {
    "logits": Operation("correlate", "2*b*r*m*a*d", loads="b*(r+m)*a*d", stores="2*b*r*g"),
    "probs": Operation("correlate", "2*b*r*n*a*d", loads="b*(r+n)*a*d", stores="2*b*r*g"),
    "key": Operation("correlate", "2*b*r*m*d", loads="b*(r+m)*a*d", stores="2*b*r*g"),
}
_TOKEN_ATTENTION = {
    "logits": Operation("token_attention", "2*b*a*d*j*(u+o)", loads="b*(u+o)*(a+k)*d", stores="b*j*u"),
    "rows": Operation("token_attention", "2*b*a*d*u*l", loads="b*(u*a+l*k)*d", stores="b*j*u"),
    "columns": Operation("token_attention", "2*b*a*d*o*l", loads="b*(o*a+l*k)*d", stores="b*j*u"),
}
_RECEIVED_FROM = {
    "logits": Operation("received_from", "2*b*a*d*o*u", loads="b*(o*a+u*k)*d", stores="2*b*u"),
    "probs": Operation("received_from", "2*b*a*d*o*l", loads="b*(o*a+l*k)*d", stores="2*b*u"),
}
_CORRELATE_TOKENS = {
    "logits": Operation("correlate", "2*b*(a*d*(r*m+r*e+e*m)+r*e*m)", loads="b*((r+e)*a+(m+e)*k)*d", stores="2*b*r*g"),
    "probs": Operation("correlate", "2*b*(a*d*(r+e)*l+r*e*m)", loads="b*((r+e)*a+l*k)*d", stores="2*b*r*g"),
}
_COSINES = {"loads": "b*n*h+b*n*n", "stores": "b*n*n"}
# Half of all cosines. Coverage, here and of given things, computes every gain once; the few that it computes again are
# not counted.
_GREEDY_SELECT = {
    "max-min": Operation("greedy_select", "b*n*(n*h+2*m)", **_COSINES),
    "coverage": Operation("greedy_select", "b*n*(n*h+2*n)", **_COSINES),
    "log-det": Operation("greedy_select", "b*n*(n*h+m*m)", **_COSINES),
    "mmr": Operation("greedy_select", "b*n*(n*h+2*m)", **_COSINES),
}
GREEDY_COVER = Operation("greedy_cover", "2*b*n*c", loads="b*n*c", stores="2*b*m")
# Squares, products with the inverse length, sums: two operations each for every number of a patch.
WINDOW_SIMILARITY = Operation("window_similarity", "6*b*n*h", loads="b*n*h", stores="b*g")
# Of features with the mean of the words.
LIKENESS = Operation("likeness", "2*b*h*(n+w)", loads="b*h*(n+w)", stores="b*n")
COSINES = Operation("cosines", "2*b*n*c*h", loads="b*(n+c)*h", stores="b*n*c")
# The rounds compare besides, about (n^3 - m^3) / (12 step) times to leave m; for 576 tokens that is a two-hundredth.
BIPARTITE_THIN = Operation("bipartite_thin", "b*n*n*h", **_COSINES)
STRONGEST_HEAD = Operation("strongest_head", "2*b*o*(a*d*l+j*u)", loads="b*(o*a+l*k)*d", stores="b*j*u")
TEXT_RATERS = Operation("text_raters", "2*b*u*e*h", loads="b*(u+e)*h", stores="b*l")
PIVOTS = Operation("pivots", "2*b*u*o*h", loads="b*(u+o)*h+b*l*k*d", stores="b*u")
# Of each pair once; c says how many distances that takes.
DENSITY_PEAKS = Operation("density_peaks", "3*b*c*h", loads="b*n*h+2*b*n*n", stores="b*n*n")
MATCH = Operation("match", "2*b*z*o*d", loads="b*n*a*d", stores="2*b*r")
COMPRESS = Operation("compress", "2*b*r*g*h", loads="b*l*h", stores="b*(l-r)*h")


def attention_stats(*, probs: bool, patches: bool) -> Operation:
    """``ficoco::attention_stats`` from query and key; without ``patches`` the class token's row alone."""
    return _STATS["probs" if probs else "logits"] if patches else _CLASS_ATTENTION


def correlate(correlation: str) -> Operation:
    """``ficoco::correlate`` from query and key by ``"logits"`` or ``"probs"``, or ``ficoco::correlate.key``."""
    return _CORRELATE[correlation]


def token_attention(*, probs: bool, column: bool) -> Operation:
    """``ficoco::token_attention``."""
    return _TOKEN_ATTENTION[("columns" if column else "rows") if probs else "logits"]


def received_from(*, probs: bool) -> Operation:
    """``ficoco::received_from`` from ``o`` rows of text."""
    return _RECEIVED_FROM["probs" if probs else "logits"]


def correlate_tokens(*, probs: bool) -> Operation:
    """``ficoco::correlate.tokens``."""
    return _CORRELATE_TOKENS["probs" if probs else "logits"]


def greedy_select(objective: str) -> Operation:
    """``ficoco::greedy_select`` of ``m`` among ``n`` tokens whose features have ``h`` channels."""
    return _GREEDY_SELECT[objective]


def pairs(tokens: int, *, class_token: bool, distill_token: bool) -> dict[str, int]:
    """How many of ``tokens`` tokens :data:`MATCH` compares, at even (``z``) and at odd (``o``) positions.

    Example:
        >>> from ficoco_ext.ops import costs
        >>> costs.pairs(577, class_token=True, distill_token=False)
        {'z': 288, 'o': 288}
    """
    return {"z": max((tokens + 1) // 2 - class_token, 0), "o": max(tokens // 2 - distill_token, 0)}
