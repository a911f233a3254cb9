"""What the reduction itself costs, by the formulas that :mod:`ficoco_ext.cost.flop_counter` registers with torch.

A method is read, not run: its stages say which operators it calls, and the schedule with which counts.
"""

from __future__ import annotations

from typing import Any, NoReturn

from .architecture import LanguageModel, Tower
from .lines import Line, Operation, Rules

# Operators by what they are asked for. Bytes: each operand once, no N x N map.
CLASS_ATTENTION = Operation("class_attention", "2*b*n*a*d", loads="b*n*a*d", stores="b*n")
STATS_LOGITS = Operation("attention_stats", "4*b*n*a*d", loads="2*b*n*a*d", stores="2*b*n")
STATS_PROBS = Operation("attention_stats", "2*b*n*n*a*d", loads="2*b*n*a*d", stores="2*b*n")
CORRELATE_LOGITS = Operation("correlate", "2*b*r*m*a*d", loads="b*(r+m)*a*d", stores="2*b*r*g")
CORRELATE_PROBS = Operation("correlate", "2*b*r*n*a*d", loads="b*(r+n)*a*d", stores="2*b*r*g")
CORRELATE_KEY = Operation("correlate", "2*b*r*m*d", loads="b*(r+m)*a*d", stores="2*b*r*g")
MATCH = Operation("match", "2*b*z*o*d", loads="b*n*a*d", stores="2*b*r")
COMPRESS = Operation("compress", "2*b*r*g*h", loads="b*l*h", stores="b*(l-r)*h")
# By class attention: sizes are merged beside the tokens, as one channel more. Neighbours: products of torch's own.
FUSE = Operation("compress", "2*b*r*g*(h+1)", loads="b*l*h", stores="b*(l-r)*h")
NEIGHBOURS = Operation("neighbours", "2*b*(u-r)*u*a*d", loads="b*u*a*d", stores="b*(u-r)*u")
BORROW = Operation("borrow", "2*b*(u-r)*u*h", loads="b*(u-r)*u+b*u*h", stores="b*(u-r)*h")
TOKEN_ATTENTION_LOGITS = Operation("token_attention", "2*b*a*d*j*(u+o)", loads="b*(u+o)*(a+k)*d", stores="b*j*u")
TOKEN_ATTENTION_ROWS = Operation("token_attention", "2*b*a*d*u*l", loads="b*(u*a+l*k)*d", stores="b*j*u")
TOKEN_ATTENTION_COLUMNS = Operation("token_attention", "2*b*a*d*o*l", loads="b*(o*a+l*k)*d", stores="b*j*u")
CORRELATE_TOKENS_LOGITS = Operation(
    "correlate", "2*b*(a*d*(r*m+r*e+e*m)+r*e*m)", loads="b*((r+e)*a+(m+e)*k)*d", stores="2*b*r*g"
)
CORRELATE_TOKENS_PROBS = Operation("correlate", "2*b*(a*d*(r+e)*l+r*e*m)", loads="b*((r+e)*a+l*k)*d", stores="2*b*r*g")
_EXTRA_PROJECTIONS = (
    Operation("extra q_proj", "2*b*l*h*a*d", "h*a*d", "b*l*h", "b*l*a*d"),
    Operation("extra k_proj", "2*b*l*h*k*d", "h*k*d", "b*l*h", "b*l*k*d"),
    Operation("extra v_proj", "2*b*l*h*k*d", "h*k*d", "b*l*h", "b*l*k*d"),
    Operation("extra o_proj", "2*b*l*a*d*h", "a*d*h", "b*l*a*d", "b*l*h"),
)


def _unknown(stage: str, got: object) -> NoReturn:
    raise ValueError(
        f"cost: the cost of the {stage} {type(got).__name__} is not known; pass include_reduction=False to leave the "
        "reduction's own cost out"
    )


def vision_layer(rules: Rules, method: Any, tower: Tower, layer: int, batch: int, before: int, r: int) -> list[Line]:
    """One reduction in the tower: ``r`` of ``before`` patches of each of ``batch`` crops leave."""
    lines: list[Line] = []
    for part, count in method.parts(before + tower.class_token, r, class_token=bool(tower.class_token)):
        lines += _vision_part(rules, part, tower, layer, batch, before, count)
        before -= count
    return lines


def _vision_part(rules: Rules, method: Any, tower: Tower, layer: int, batch: int, before: int, r: int) -> list[Line]:
    n = before + tower.class_token
    width = tower.hidden // tower.heads
    values: dict[str, Any] = {
        "b": batch,
        "n": n,
        "l": n,
        "r": r,
        "m": n - r,
        "u": before,
        "h": tower.hidden,
        "a": tower.heads,
        "d": width,
    }
    operations, targets = _vision_filter(method.filter, values, n, tower)
    correlate, borrows = method.correlate, False
    if type(correlate).__name__ == "Neighbours":
        borrows, targets = correlate.nearest > 0 and before > 1, 1
    elif correlate is not None:
        if not hasattr(correlate, "by"):
            _unknown("correlate", correlate)
        targets = correlate.count(before - r)
        if targets and correlate.by != "convergent":
            by_attention = CORRELATE_PROBS if correlate.attention == "probs" else CORRELATE_LOGITS
            operations.append(CORRELATE_KEY if correlate.by == "key" else by_attention)
    values["g"] = targets
    operations += [NEIGHBOURS] * borrows
    operations.append(FUSE if type(method.compress).__name__ == "Fuse" else COMPRESS)
    operations += [BORROW] * borrows
    return [rules.line("reduction", layer, one, values) for one in operations]


def _vision_filter(chosen: Any, values: dict[str, Any], n: int, tower: Tower) -> tuple[list[Operation], int]:
    """What a filter of the tower calls, and how many targets each source has if it settles that."""
    kind = type(chosen).__name__
    if hasattr(chosen, "distill_token"):
        values["z"] = max((n + 1) // 2 - tower.class_token, 0)
        values["o"] = max(n // 2 - chosen.distill_token, 0)
        return [*[CLASS_ATTENTION] * bool(chosen.weigh), MATCH], 1
    if hasattr(chosen, "lam"):
        whole = STATS_PROBS if chosen.attention == "probs" else STATS_LOGITS
        return [whole if chosen.lam else CLASS_ATTENTION], 0
    if kind == "SingleHeadFilter":
        return [CLASS_ATTENTION], 0
    if kind in ("RandomFilter", "Cells"):  # places are arithmetic on indices
        return [], int(kind == "Cells")
    _unknown("filter", chosen)


def decoder_layer(
    rules: Rules, method: Any, shape: LanguageModel, layer: int, tokens: int, visual: int, r: int, behind: int
) -> list[Line]:
    """One reduction in the language model: ``r`` of ``visual`` among ``tokens`` tokens leave.

    ``behind`` is the number of text tokens behind the visual ones, which the method may ask.
    """
    values: dict[str, Any] = {
        "b": 1,
        "l": tokens,
        "u": visual,
        "r": r,
        "m": visual - r,
        "h": shape.hidden,
        "a": shape.heads,
        "k": shape.kv_heads,
        "d": shape.head_dim,
    }
    # Before a layer's attention its query and key are computed for this alone, whether or not a token leaves.
    operations = list(_EXTRA_PROJECTIONS) if method.before_attention else []
    if r:
        operations += _filter(method.filter, values, visual, behind)
        operations += _correlate(method.correlate, values, visual - r, behind)
        operations.append(COMPRESS)
    return [rules.line("reduction", layer, one, values) for one in operations]


def _filter(chosen: Any, values: dict[str, Any], visual: int, behind: int) -> list[Operation]:
    if hasattr(chosen, "beta"):
        values |= {"o": visual + behind, "j": 2}
        return [TOKEN_ATTENTION_COLUMNS if chosen.attention == "probs" else TOKEN_ATTENTION_LOGITS]
    if type(chosen).__name__ == "LastTokenFilter":
        values |= {"o": 1, "j": 1}
        return [TOKEN_ATTENTION_COLUMNS]
    _unknown("filter", chosen)


def _correlate(chosen: Any, values: dict[str, Any], candidates: int, behind: int) -> list[Operation]:
    values["g"] = 0
    if chosen is None:
        return []
    if not hasattr(chosen, "gamma"):
        _unknown("correlate", chosen)
    values["g"] = chosen.count(candidates)
    values["e"] = behind if chosen.gamma < 1 else 0
    if not values["g"]:
        return []
    return [CORRELATE_TOKENS_PROBS if chosen.attention == "probs" else CORRELATE_TOKENS_LOGITS]
