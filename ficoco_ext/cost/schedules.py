"""Schedules of an architecture, from what a method removes: the same that ``attach`` makes for a loaded model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..methods import AnyMethod, LanguageMethod, LayerMethod, TowerMethod
from ..schedule import Plan, Schedule
from ..stages.needs import WHOLE_GRID
from .architecture import MOST_TOKENS, Architecture

Pair = tuple[Schedule | None, Schedule | None]


def ranges(layers: tuple[int, ...]) -> str:
    """``layers 3 ... 31``, for messages."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} ... {layers[-1]}"
    return f"layers {', '.join(map(str, layers))}"


def whole_grid(method: LayerMethod) -> bool:
    """Whether nothing may have left before it reduces, as with pooling."""
    return WHOLE_GRID in method.needs


def share(patches: int, final: int) -> int:
    """What the tower leaves if it and the language model are to keep the same share and ``final`` is left."""
    return math.floor(math.sqrt(patches * final) + 0.5)


def require_images(images: int) -> None:
    """Raise if there is no image to remove anything from."""
    if isinstance(images, bool) or not isinstance(images, int) or not 1 <= images <= MOST_TOKENS:
        raise ValueError(f"images must be an integer in 1 ... {MOST_TOKENS}, got {images!r}")


def _chosen_layers(layers: Iterable[int], first: int, last: int, what: str) -> tuple[int, ...]:
    if not isinstance(layers, Iterable):
        raise TypeError(f"layers must be a sequence of layer indices, got {layers!r}")
    chosen = tuple(layers)
    if not chosen:
        raise ValueError("layers must name at least one layer")
    Schedule(1, chosen, (0,) * len(chosen))  # says if they are not ascending and distinct integers
    if chosen[0] < first or chosen[-1] > last:
        raise ValueError(f"layers must be in {first} ... {last} of the {what}, got {chosen}")
    return chosen


def require_one_layer(shape: Architecture) -> None:
    """Raise, as ``attach`` does, where the language model reads several layers of the tower side by side."""
    if shape.tower.joined > 1:
        raise ValueError(
            f"vision_feature_layer must be one integer to reduce in the tower of {shape.name}, got "
            f"{shape.tower.joined} layers: those of different lengths cannot be set side by side; reduce in its "
            "language model: 'ficoco-l', 'fastv' or 'pyramiddrop'"
        )


def tower_layers(
    shape: Architecture, layers: Iterable[int] | None = None, method: TowerMethod | None = None
) -> tuple[int, ...]:
    """The layers of the tower that reduce: given ones, the method's own, or the second half up to the last in use.

    Raises:
        ValueError: layers that do not exist, or a tower in which nothing can be reduced.
    """
    tower = shape.tower
    if not tower.class_token or tower.merge > 1:
        raise ValueError(
            f"the tower of {shape.name} has no class token or joins blocks of patches, so nothing can leave it; reduce "
            "in its language model: 'ficoco-l', 'fastv' or 'pyramiddrop'"
        )
    require_one_layer(shape)
    own = None if method is None else method.layers
    second_half = range(tower.layers // 2, tower.used)
    chosen = layers if layers is not None else second_half if own is None else own(tower.used)
    return _chosen_layers(chosen, 0, tower.used - 1, "tower that the language model reads")


def decoder_layers(shape: Architecture, method: LanguageMethod, layers: Iterable[int] | None = None) -> tuple[int, ...]:
    """The layers of the language model that reduce: given ones, or the method's own.

    Raises:
        ValueError: layers that do not exist.
    """
    count = shape.language_model.layers
    chosen = method.layers(count) if layers is None else layers
    return _chosen_layers(chosen, int(method.before_attention), count - 1, "language model")


def build(
    shape: Architecture,
    method: AnyMethod,
    *,
    images: int = 1,
    r: int | tuple[int, ...] | None = None,
    keep_ratio: float | tuple[float, ...] | None = None,
    tokens: int | None = None,
    layers: Iterable[int] | None = None,
) -> Pair:
    """The schedules of tower and language model, None where the method does not reduce; see :func:`ficoco_ext.attach`.

    Args:
        shape: of the model.
        method: what reduces.
        images: in the prompt. The language model's schedule is that of the visual tokens of all of them.
        r, keep_ratio, tokens: one of them; none, if the method has an amount of its own.
        layers: that reduce; None: as ``attach`` has it.

    Raises:
        ValueError: an amount or layers that do not fit; the message says what is possible.

    Example:
        >>> from ficoco_ext import cost, get_method
        >>> from ficoco_ext.cost import schedules
        >>> vision, decoder = schedules.build(cost.architecture("llava-1.5-7b"), get_method("fastv"), keep_ratio=0.5)
        >>> vision, decoder.r
        (None, (288,))
    """
    require_images(images)
    amount: dict[str, Any] = {"r": r, "keep_ratio": keep_ratio, "tokens": tokens}
    amount = {name: value for name, value in amount.items() if value is not None}
    amount = amount or dict(method.amount)
    tower, language_model = method.tower, method.language_model
    if tower is not None and language_model is not None:
        whole = set(amount) in ({"keep_ratio"}, {"tokens"}) and not isinstance(amount.get("keep_ratio"), tuple)
        if not whole or layers is not None:
            raise ValueError(f"{method.name} takes one of keep_ratio and tokens for both parts together, and no layers")
        patches = shape.tower.patches
        final = Schedule.build(patches, layers=(0,), **amount).final
        between = share(patches, final)
        vision = _vision(shape, tower, {"tokens": between}, None)
        left = images * shape.tokens_with(vision.final)
        return vision, _decoder(shape, language_model, left, {"keep_ratio": final / between}, None)
    if language_model is not None:
        return None, _decoder(shape, language_model, images * shape.visual_tokens, amount, layers)
    return None if tower is None else _vision(shape, tower, amount, layers), None


def _vision(shape: Architecture, method: TowerMethod, amount: dict[str, Any], layers: Iterable[int] | None) -> Schedule:
    found = Schedule.build(shape.tower.patches, layers=tower_layers(shape, layers, method), **amount)
    for step, one in zip(found.steps, method.of_layers(len(found.layers)), strict=True):
        most = one.largest(1 + step.before, class_token=True)
        if step.r > most:
            raise ValueError(
                f"{one.name} removes at most {one.limit} of what enters a layer: r must be at most {most} in layer "
                f"{step.layer}, got {step.r}; remove less, or in more layers"
            )
        if step.r and whole_grid(one) and step.before != found.patches:
            raise ValueError(
                f"{one.name} needs the whole grid, and {step.before} of {found.patches} patches enter layer "
                f"{step.layer}; name one layer"
            )
    return found


def _decoder(
    shape: Architecture, method: LanguageMethod, visual: int, amount: dict[str, Any], layers: Iterable[int] | None
) -> Schedule:
    chosen = decoder_layers(shape, method, layers)
    before = method.before_attention
    Schedule.build(2**20, layers=chosen, **amount)  # says what is wrong with an amount
    return Plan(layers=chosen, rounding=method.rounding, before_attention=before, **amount).schedule(visual)
