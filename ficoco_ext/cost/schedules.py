"""Schedules of an architecture, from what a method removes: the same that ``attach`` makes for a loaded model."""

from __future__ import annotations

from collections.abc import Iterable

from .. import resolve
from ..methods import AnyMethod, LanguageMethod, LayerMethod, TowerMethod
from ..resolve import Amount, LanguageModelFacts, TowerFacts
from ..schedule import Schedule
from ..stages.needs import WHOLE_GRID
from .architecture import MOST_TOKENS, Architecture

OP = "cost"  # in messages
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


def require_images(images: int) -> None:
    """Raise if there is no image to remove anything from."""
    if isinstance(images, bool) or not isinstance(images, int) or not 1 <= images <= MOST_TOKENS:
        raise ValueError(f"images must be an integer in 1 ... {MOST_TOKENS}, got {images!r}")


def require_one_layer(shape: Architecture) -> None:
    """Raise, as ``attach`` does, where the language model reads several layers of the tower side by side."""
    if shape.tower.joined > 1:
        raise ValueError(
            f"vision_feature_layer must be one integer to reduce in the tower of {shape.name}, got "
            f"{shape.tower.joined} layers: those of different lengths cannot be set side by side; reduce in its "
            "language model: 'ficoco-l', 'fastv' or 'pyramiddrop'"
        )


def tower_facts(shape: Architecture) -> TowerFacts:
    """The tower of ``shape``.

    Raises:
        ValueError: a tower in which nothing can be reduced.
    """
    tower = shape.tower
    if tower.merge > 1:
        raise ValueError(
            f"the tower of {shape.name} joins blocks of patches, so nothing can leave it; reduce in its language "
            "model: 'ficoco-l', 'fastv' or 'pyramiddrop'"
        )
    require_one_layer(shape)
    side = tower.image_size // tower.patch
    return TowerFacts((side, side), tower.layers, tower.used, class_token=tower.class_token)


def tower_layers(op: str, shape: Architecture, layers: Iterable[int] | None, method: TowerMethod) -> tuple[int, ...]:
    """The layers of the tower that reduce, as :func:`ficoco_ext.resolve.tower_layers` has them."""
    return resolve.tower_layers(op, tower_facts(shape), method, Amount.of(op, layers=layers).layers)


def decoder_layers(
    op: str, shape: Architecture, layers: Iterable[int] | None, method: LanguageMethod
) -> tuple[int, ...]:
    """The layers of the language model that reduce, as :func:`ficoco_ext.resolve.decoder_layers` has them."""
    facts = LanguageModelFacts(shape.language_model.layers)
    return resolve.decoder_layers(op, facts, method, Amount.of(op, layers=layers).layers)


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
        ValueError: an amount or layers that do not fit; the message names what is possible.

    Example:
        >>> from ficoco_ext import cost, get_method
        >>> from ficoco_ext.cost import schedules
        >>> vision, decoder = schedules.build(cost.architecture("llava-1.5-7b"), get_method("fastv"), keep_ratio=0.5)
        >>> vision, decoder.r
        (None, (288,))
    """
    require_images(images)
    amount = Amount.of(OP, r=r, keep_ratio=keep_ratio, tokens=tokens, layers=layers)
    tower, language_model = method.tower, method.language_model
    in_tower = in_language_model = amount
    if tower is not None and language_model is not None:
        whole = amount if amount.given else Amount.of(OP, layers=amount.layers, **dict(method.amount))
        in_tower, in_language_model = resolve.equal_shares(OP, shape.tower.patches, whole)
    vision = decoder = None
    if tower is not None:
        vision, _ = resolve.tower_schedule(OP, tower_facts(shape), tower, in_tower)
    if language_model is not None:
        facts = LanguageModelFacts(shape.language_model.layers)
        plan, _ = resolve.decoder_plan(OP, facts, language_model, in_language_model)
        each = shape.visual_tokens if vision is None else shape.tokens_with(vision.final)
        decoder = plan.schedule(images * each)
    return vision, decoder
