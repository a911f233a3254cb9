"""What the reduction itself costs: the operators that a method says it calls, as lines of a bill."""

from __future__ import annotations

from ..methods import AnyMethod
from ..stages import Shape
from .architecture import LanguageModel, Tower
from .lines import Line, Rules


def _lines(rules: Rules, method: AnyMethod, layer: int, shape: Shape) -> list[Line]:
    return [rules.line("reduction", layer, operation, values) for operation, values in method.operations(shape)]


def vision_layer(
    rules: Rules, method: AnyMethod, tower: Tower, layer: int, batch: int, before: int, r: int
) -> list[Line]:
    """One reduction in the tower: ``r`` of ``before`` patches of each of ``batch`` crops leave."""
    shape = Shape(
        batch=batch,
        tokens=before + tower.class_token,
        visual=before,
        r=r,
        channels=tower.hidden,
        heads=tower.heads,
        kv_heads=tower.heads,
        head_dim=tower.hidden // tower.heads,
        class_token=tower.class_token,
    )
    return _lines(rules, method, layer, shape)


def decoder_layer(
    rules: Rules, method: AnyMethod, model: LanguageModel, layer: int, tokens: int, visual: int, r: int, after: int
) -> list[Line]:
    """One reduction in the language model: ``r`` of ``visual`` among ``tokens`` tokens leave.

    ``after`` is the number of text tokens after the visual ones, which the method may ask.
    """
    shape = Shape(
        batch=1,
        tokens=tokens,
        visual=visual,
        r=r,
        channels=model.hidden,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        text=after,
    )
    return _lines(rules, method, layer, shape)
