"""What choosing and merging tokens costs beside the prefill that it shortens, at the budgets that papers print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..methods import AnyMethod, get_method
from ..stages.needs import CROPS
from .presets import architecture
from .schedules import build
from .scope import bill

LIMIT = 0.02  # of the prefill's operations: what costs more is named as an exception
BUDGETS = {"llava-1.5-7b": (192, 128, 64), "qwen2.5-vl-7b": (432, 288, 144)}
OF_CROPS = {"llava-next-7b": (1440, 720, 288)}  # for a method that needs pictures of several crops


@dataclass(frozen=True)
class Share:
    """The operations of a method's own, of all from pixels to the first token.

    Attributes:
        model: a key of :data:`BUDGETS`, or of :data:`OF_CROPS`. tokens: visual tokens that are left in the end.
        share: in 0 ... 1.
    """

    model: str
    tokens: int
    share: float


def shares(method: str | AnyMethod, **hyperparameters: Any) -> tuple[Share, ...]:
    """What ``method`` costs at each budget of :data:`BUDGETS`; one picture, 60 text tokens.

    A method that needs pictures of several crops is counted at those of :data:`OF_CROPS`, with five full crops. Models
    that it does not fit are left out. A method that takes no number of tokens is counted at its own amount.

    Raises:
        ValueError, TypeError: as :func:`ficoco_ext.get_method`.

    Example:
        >>> from ficoco_ext.cost import selection
        >>> [f"{one.share:.2%}" for one in selection.shares("divprune") if one.model == "llava-1.5-7b"]
        ['0.04%', '0.05%', '0.07%']
    """
    chosen = get_method(method, **hyperparameters)
    found = []
    for model, budgets in (OF_CROPS if CROPS in chosen.needs else BUDGETS).items():
        at = [one for tokens in budgets if (one := _share(model, chosen, {"tokens": tokens})) is not None]
        own = None if at or not chosen.amount else _share(model, chosen, {})
        found += at if own is None else [own]
    return tuple(found)


def _share(model: str, method: AnyMethod, amount: dict[str, Any]) -> Share | None:
    """None if the method does not act in this model, or not with this amount, or has stages without a price."""
    shape = architecture(model)
    try:
        leaves = build(shape, method, **amount)
        cost = bill(shape, "matmul", method=method, **leaves._asdict())
    except ValueError:
        return None
    return Share(model, round(cost.tokens.final), cost.reduction_share)


def said(found: tuple[Share, ...]) -> str:
    """These shares in words, a model at a time; marked where one is above :data:`LIMIT`.

    Example:
        >>> from ficoco_ext.cost import selection
        >>> selection.said(selection.shares("random"))
        '0.00 to 0.00 % of the prefill of llava-1.5-7b at 192, 128, 64 tokens'
    """
    parts = []
    for model in dict.fromkeys(one.model for one in found):
        held = [one for one in found if one.model == model]
        low, high = min(one.share for one in held), max(one.share for one in held)
        percent = f"{low * 100:.2f} to {high * 100:.2f} %"
        parts.append(f"{percent} of the prefill of {model} at {', '.join(str(one.tokens) for one in held)} tokens")
    above = f" (more than the {LIMIT:.0%} that it should cost)" if any(one.share > LIMIT for one in found) else ""
    return "; ".join(parts) + above
