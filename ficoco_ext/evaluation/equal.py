"""The amount with which a method reaches a goal, found by the cost model. Nothing runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from ..methods import AnyMethod
from . import costs
from .asking import Prompts
from .settings import Setting

CLOSE = 0.02  # of what is wanted: what is farther off is not called equal
_HALF_A_TOKEN = 0.5

Value = Callable[[int], float | None]


def solved(setting: Setting, prompts: Prompts, seed: int) -> Setting:
    """``setting`` with the amount that comes closest to its goal; one without a goal as it is.

    The amount is the number of visual tokens that are left in the end, as ``attach`` takes ``tokens``, so the method
    divides it over its layers and parts as it always does.

    Args:
        setting: what reduces. prompts: of the questions, for their text and the model. seed: of a method that draws.

    Raises:
        ValueError: a goal that the method cannot reach with any number; the message has the closest. Or one method for
            each layer, whose cost is not known.

    Cost: about ten evaluations of the cost model. Deterministic.
    """
    if setting.goal is None:
        return setting
    goal = setting.goal.of(prompts.visual)
    assert goal.tokens is not None
    setting = replace(setting, goal=goal)
    method = setting.built(seed)
    if not isinstance(method, AnyMethod):
        raise ValueError(f"{goal.budget}: the cost model cannot count one method for each layer")
    model = prompts.checkpoint.model
    refused: list[ValueError] = []

    @functools.cache
    def value(tokens: int) -> float | None:
        try:
            plan = replace(setting, amount={"tokens": tokens}).resolve(model, seed)
        except ValueError as error:
            refused.append(error)
            return None
        found = costs.prefill(prompts, plan, method)
        return found.tokens.average if goal.equal == "average" else found.total.operations

    wanted = float(goal.tokens)
    if goal.equal == "flops":
        wanted = costs.chosen_free(prompts, goal.tokens).total.operations
    allowed = CLOSE * wanted if goal.equal == "flops" else max(CLOSE * wanted, _HALF_A_TOKEN)
    if goal.equal == "average" and method.language_model is None:
        tokens = goal.tokens if value(goal.tokens) is not None else None  # no layer removes any
    else:
        tokens = closest(value, wanted, prompts.visual - 1)
    if tokens is None:
        raise refused[-1]
    grids = method.projector is not None and method.projector.resizes  # far apart: less is fair, more is not
    if grids:
        tokens = _no_more(value, tokens, wanted + allowed)
    reached = value(tokens) or 0.0
    if reached > wanted + allowed or (reached < wanted - allowed and not grids):
        raise ValueError(_out_of_reach(setting, prompts, wanted, reached, tokens))
    return replace(setting, amount={"tokens": tokens})


def _no_more(value: Value, tokens: int, most: float) -> int:
    """``tokens`` or the next number below whose value is not above ``most``; 1 if there is none."""
    while tokens > 1 and (value(tokens) or 0.0) > most:
        tokens -= 1
    return tokens


def _out_of_reach(setting: Setting, prompts: Prompts, wanted: float, reached: float, tokens: int) -> str:
    assert setting.goal is not None
    unit, scale = "a mean of {:.4g} tokens", 1.0
    if setting.goal.equal == "flops":
        unit, scale = "{:.4g} % of the unreduced FLOPs", 100 / costs.prefill(prompts, None, None).total.operations
    left = "1 token" if tokens == 1 else f"{tokens} tokens"
    return (
        f"{setting.goal.budget}: {setting.name} cannot reach {unit.format(wanted * scale)}: the closest is "
        f"{reached * scale:.4g}, with {left} left in the end"
    )


def closest(value: Value, wanted: float, most: int) -> int | None:
    """The number in 1 ... ``most`` whose value is closest to ``wanted``; of equals the larger one. None: all refuse.

    Args:
        value: of a number of tokens, which rises with it; None for those that are too few for the method.

    Example:
        >>> from ficoco_ext.evaluation.equal import closest
        >>> closest(lambda tokens: 10.0 + tokens, 37.4, 144), closest(lambda tokens: None, 1.0, 144)
        (27, None)
    """

    def enough(tokens: int) -> bool:
        found = value(tokens)
        return found is not None and found >= wanted

    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    near = [
        (abs(found - wanted), -tokens) for tokens in (low - 1, low) if tokens and (found := value(tokens)) is not None
    ]
    return -min(near)[1] if near else None
