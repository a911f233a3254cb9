"""What the reduction itself costs: the operators that a method says it calls, as lines of a bill."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..methods import AnyMethod, FeatureMethod, LanguageMethod
from ..ops import costs
from ..schedule import Schedule
from ..stages import Shape
from ..stages.needs import CLASS_LOGITS, EARLY_SALIENCY, SALIENCY
from .architecture import Architecture, LanguageModel, Tower
from .lines import Line, Rules


def _lines(rules: Rules, method: AnyMethod, layer: int | None, shape: Shape) -> list[Line]:
    return [rules.line("reduction", layer, operation, values) for operation, values in method.operations(shape)]


def vision_layer(
    rules: Rules, method: AnyMethod, model: Architecture, layer: int, images: int, before: int, r: int
) -> list[Line]:
    """One reduction in the tower: ``r`` of ``before`` patches of each crop of ``images`` images leave.

    Padding leaves first, unseen by the method, which does not run on crops that lose nothing else.
    """
    found: list[Line] = []
    for padding, crops in model.leaves_first(before, r).items():
        if padding < r:
            found += _of_crops(rules, method, model.tower, layer, images * crops, before - padding, r - padding)
    return found


def _of_crops(rules: Rules, method: AnyMethod, tower: Tower, layer: int, batch: int, before: int, r: int) -> list[Line]:
    """A method removes ``r`` of ``before`` patches of each of ``batch`` crops."""
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


def saliency(
    rules: Rules, method: FeatureMethod, shape: Architecture, batch: int, patches: Sequence[int]
) -> list[Line]:
    """How much a tower layer looks at each patch, if ``method`` needs to know that.

    It is the last layer in use, or an early one; for logits of the class token the one that reads what is selected.

    Args:
        patches: that enter each tower layer.

    Raises:
        ValueError: it asks for the class token's attention of a tower without one, or for an early layer not in use.
    """
    if CLASS_LOGITS in method.needs:
        return [_class_row(rules, shape, batch, patches, "class_logits")]
    tower, kind = shape.tower, method.saliency
    layers = [tower.used - 1] if SALIENCY in method.needs else []
    if EARLY_SALIENCY in method.needs:
        layers.insert(0, _early_layer(method, tower))
    if not layers:
        return []
    if kind == "auto":
        kind = "class" if tower.class_token and tower.trained_class else "column"
    if kind == "class" and not tower.class_token:
        raise ValueError(
            f"saliency must be 'column' or 'keys' for {shape.name}, whose tower has no class token, got {kind!r}"
        )
    operation = costs.attention_stats(probs=True, patches=kind == "column")  # keys cost what the class token's row does
    first = tower.class_token and kind != "keys"
    values = {"b": batch, "a": tower.heads, "d": tower.hidden // tower.heads}
    operation = dataclasses.replace(operation, name="saliency")
    return [rules.line("reduction", at, operation, values | {"n": patches[at] + first}) for at in layers]


def key_set(
    rules: Rules, method: LanguageMethod, shape: Architecture, batch: int, vision: Schedule | None
) -> list[Line]:
    """How much the class token looks at each patch, if ``method`` has a key set; in the layer that reads the features.

    Raises:
        ValueError: a tower without a class token.
    """
    if not method.key_share:
        return []
    tower = shape.tower
    patches = (tower.patches,) * tower.layers if vision is None else vision.tokens_entering(tower.layers)
    return [_class_row(rules, shape, batch, patches, "key_set", 1)]


def _class_row(rules: Rules, shape: Architecture, batch: int, patches: Sequence[int], name: str, own: int = 0) -> Line:
    """The class token's row of the layer that reads what is selected for the projector, of each crop.

    ``own``: 1 if its attention to itself is computed too, as a softmax needs it.
    """
    tower = shape.tower
    if not tower.class_token:
        raise ValueError(f"method must need no class token for {shape.name}, whose tower has none: it reads its {name}")
    at = min(tower.used, tower.layers - 1)
    operation = dataclasses.replace(costs.attention_stats(probs=True, patches=False), name=name)
    values = {"b": batch, "a": tower.heads, "d": tower.hidden // tower.heads, "n": patches[at] + own}
    return rules.line("reduction", at, operation, values)


def _early_layer(method: FeatureMethod, tower: Tower) -> int:
    """The layer of early saliency; unless the method names one, that of CLIP, 9 of 24."""
    asked = 9 / 24 if method.early_layer is None else method.early_layer
    layer = asked if isinstance(asked, int) else max(round(asked * tower.layers), 1) - 1
    if layer >= tower.used:
        raise ValueError(f"early_layer must be a layer in [0, {tower.used - 1}], which are in use, got {asked}")
    return layer


def after_projector(
    rules: Rules, method: FeatureMethod, shape: Architecture, pictures: int, before: int, after: int, text: int
) -> list[Line]:
    """One reduction after the projector: ``after`` of ``before`` tokens of each of ``pictures`` pictures stay.

    ``text`` is the number of text tokens of the prompt, which the method may read.
    """
    model = shape.language_model
    one = Shape(
        batch=pictures,
        tokens=before,
        visual=before,
        r=before - after,
        text=text,
        channels=model.hidden,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        tower_head_dim=shape.tower.hidden // shape.tower.heads,
        tower_channels=shape.tower.hidden,
    )
    lines = _lines(rules, method, None, one)
    return lines + [line for line in lines if line.name == costs.COMPRESS.name] * shape.deepstack  # of other levels


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
