"""Schedules of an architecture, from what a method removes: the same that ``attach`` makes for a loaded model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from .. import resolve
from ..amounts import Amount, each_has_its_own, equal_shares, require_numbers
from ..methods import AnyMethod, LanguageMethod, LayerMethod, TowerMethod
from ..resolve import LanguageModelFacts, TowerFacts
from ..schedule import Schedule
from ..stages.needs import WHOLE_GRID
from .architecture import MOST_TOKENS, Architecture
from .projected import entering_with, left_of_picture, tokens_of_picture

OP = "cost"  # in messages


ELSEWHERE = "after its projector: 'divprune', or in its language model: 'ficoco-l', 'fastv' or 'pyramiddrop'"


class Schedules(NamedTuple):
    """What leaves each part of a model; None where nothing is reduced.

    Attributes:
        vision: of the tower, for every crop.
        projector: tokens that stay of a picture after the projector.
        decoder: of the language model, for all visual tokens of the prompt.
    """

    vision: Schedule | None = None
    projector: int | None = None
    decoder: Schedule | None = None


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
            f"{shape.tower.joined} layers: those of different lengths cannot be set side by side; reduce {ELSEWHERE}"
        )


def tower_facts(shape: Architecture) -> TowerFacts:
    """The tower of ``shape``.

    Raises:
        ValueError: a tower in which nothing can be reduced.
    """
    tower = shape.tower
    if tower.merge > 1:
        raise ValueError(
            f"the tower of {shape.name} joins blocks of patches, so nothing can leave it; reduce {ELSEWHERE}"
        )
    require_one_layer(shape)
    side = tower.image_size // tower.patch
    return TowerFacts((side, side), tower.layers, tower.used, class_token=tower.class_token)


def require_any_patches(shape: Architecture, method: TowerMethod) -> None:
    """Raise if ``method`` needs whole grids, where padding is to leave before it."""
    patches = shape.tower.patches
    padded = shape.leaves_first(patches, patches) != {0: shape.crops}
    if padded and any(map(whole_grid, method.of_layers(1))):
        raise ValueError(
            f"picture must be None, or one without padding, with {method.name}: it keeps a part of each crop's grid, "
            "padding too, which is not counted; a method such as 'topk' has padding leave first"
        )


def require_single_patches(op: str, shape: Architecture, methods: Iterable[LayerMethod]) -> None:
    """Raise, as ``attach`` does, if one of ``methods``, which remove patches, merges windows of crops."""
    if shape.pinpoints:
        resolve.require_single_patches(op, shape.name, methods)


def tower_layers(op: str, shape: Architecture, layers: Iterable[int] | None, method: TowerMethod) -> tuple[int, ...]:
    """The layers of the tower that reduce, as :func:`ficoco_ext.resolve.tower_layers` has them."""
    require_single_patches(op, shape, method.of_layers(1))
    require_any_patches(shape, method)
    return resolve.tower_layers(op, tower_facts(shape), method, Amount.of(op, layers=layers).layers)


def decoder_layers(
    op: str, shape: Architecture, layers: Iterable[int] | None, method: LanguageMethod
) -> tuple[int, ...]:
    """The layers of the language model that reduce, as :func:`ficoco_ext.resolve.decoder_layers` has them."""
    facts = LanguageModelFacts(shape.language_model.layers, shape.deepstack)
    return resolve.decoder_layers(op, facts, method, Amount.of(op, layers=layers).layers)


def same_patches(shape: Architecture) -> int:
    """Patches of an image if all are visual tokens of it, in which case ``attach`` shares integers; else 0."""
    tower = shape.tower
    fixed = tower.merge == tower.joined == shape.crops == 1
    return tower.patches if fixed else 0


def shares(
    op: str, shape: Architecture, method: AnyMethod, whole: Amount, *, patches: int | None = None
) -> list[Amount]:
    """What each part of ``method`` removes, as ``attach`` divides it: each keeps the same share of what it gets.

    Args:
        op: the caller, for messages. shape: of the model. method: what reduces. whole: what all parts remove together.
        patches: tokens of a picture that enter the first part; None: what ``attach`` knows of them.
    """
    parts = [one for one in (method.tower, method.projector, method.language_model) if one is not None]
    if len(parts) == 1:
        return [whole]
    if shape.pinpoints and method.tower is not None and method.projector is not None:
        raise ValueError(
            f"method must have a single part before the language model for {shape.name}, got {method.name}: what the "
            "tower leaves of crops is packed with line ends, among which none may choose; use one of them alone"
        )
    if each_has_its_own(parts, method.amount, whole):
        return [Amount()] * len(parts)
    whole = whole if whole.given else Amount.of(op, layers=whole.layers, **dict(method.amount))
    if patches is None:
        patches = same_patches(shape) if method.tower is None else shape.tower.patches
    unit = 1 if method.tower is None else method.tower.unit
    found = list(equal_shares(op, patches, whole, len(parts), unit))
    if method.tower is not None and method.projector is not None and not same_patches(shape):
        found[1] = _as_ratio(found[1], found[0])  # a picture has not the patches of one crop
    return found


def _as_ratio(amount: Amount, before: Amount) -> Amount:
    if amount.keep_ratio is not None:
        return amount
    return Amount(keep_ratio=amount.tokens / before.tokens)


def build(
    shape: Architecture,
    method: AnyMethod,
    *,
    images: int = 1,
    r: int | tuple[int, ...] | None = None,
    keep_ratio: float | tuple[float, ...] | None = None,
    tokens: Any = None,
    layers: Iterable[int] | None = None,
) -> Schedules:
    """What leaves tower, projector and language model, None where the method does not reduce; as ``attach`` has it.

    Args:
        shape: of the model.
        method: what reduces.
        images: in the prompt. The language model's schedule is that of the visual tokens of all of them.
        r, keep_ratio, tokens: one of them; none, if the method has an amount of its own. After the projector alone
            ``tokens`` may be a function of the grid.
        layers: that reduce; None: as ``attach`` has it.

    Raises:
        ValueError: an amount or layers that do not fit; the message names what is possible. A method that lets the data
            decide how many tokens leave. NotImplementedError: windows of crops.

    Example:
        >>> from ficoco_ext import cost, get_method
        >>> from ficoco_ext.cost import schedules
        >>> shape = cost.architecture("llava-1.5-7b")
        >>> schedules.build(shape, get_method("fastv"), keep_ratio=0.5).decoder.r
        (288,)
        >>> schedules.build(shape, get_method("divprune"), tokens=64).projector
        64
        >>> both = schedules.build(shape, get_method("divprune+fastv"), keep_ratio=0.25)
        >>> both.projector, both.decoder.final
        (288, 144)
    """
    require_images(images)
    require_numbers("its cost", method)
    amounts = iter(shares(OP, shape, method, Amount.of(OP, r=r, keep_ratio=keep_ratio, tokens=tokens, layers=layers)))
    vision = projector = decoder = None
    if method.tower is not None:
        vision, each = resolve.tower_schedule(OP, tower_facts(shape), method.tower, next(amounts))
        removing = [one for step, one in zip(vision.steps, each, strict=True) if step.r]
        require_single_patches(OP, shape, removing)
        if removing:
            require_any_patches(shape, method.tower)
    if method.projector is not None:
        plan_there = resolve.projector_plan(OP, method.projector, next(amounts))
        projector = left_of_picture(shape, vision, plan_there)
    if method.language_model is not None:
        facts = LanguageModelFacts(shape.language_model.layers, shape.deepstack)
        plan, _ = resolve.decoder_plan(
            OP, facts, method.language_model, next(amounts), alone=method is method.language_model
        )
        left = tokens_of_picture(shape, vision) if projector is None else projector
        decoder = plan.schedule(entering_with(shape, left, images))
    return Schedules(vision, projector, decoder)
