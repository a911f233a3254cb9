"""Between projector and language model: how many visual tokens there are, how many stay, what choosing them costs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..amounts import require_numbers
from ..methods import FeatureMethod, get_method
from ..resolve import ProjectorPlan
from ..schedule import Schedule
from ..stages.needs import CROPS
from . import reduction
from .architecture import Architecture
from .bill import AfterProjector, Sum
from .lines import Line, Rules


def tokens_of_picture(shape: Architecture, vision: Schedule | None) -> int:
    """Visual tokens of a picture that a method after the projector may remove, each picture on its own."""
    return (shape.tokens_with(left_of_crop(shape, vision)) - shape.line_ends) // shape.pictures


def left_of_crop(shape: Architecture, vision: Schedule | None) -> int:
    """Patches of a crop that the tower leaves."""
    return shape.tower.patches if vision is None else vision.final


def entering_with(shape: Architecture, left: int, images: int) -> int:
    """Visual tokens of the prompt that the language model gets if ``left`` of each picture stay: line ends besides."""
    return images * shape.pictures * (left + shape.line_ends)


def grid_of_picture(shape: Architecture, vision: Schedule | None) -> tuple[int, int] | None:
    """(rows, columns) of these tokens; None if they are no whole grid."""
    tokens = tokens_of_picture(shape, vision)
    side = math.isqrt(tokens)
    whole = vision is None and not shape.extra and (shape.apart or shape.crops == 1)
    return (side, side) if whole and side * side == tokens else None


def require_crops(shape: Architecture, method: FeatureMethod) -> None:
    """Raise if ``method`` acts on the crops of a picture, and pictures have none."""
    if CROPS in method.needs and not shape.pinpoints:
        raise ValueError(
            f"method must not be {method.name} for {shape.name}, whose pictures are not cut into crops by their size; "
            "use 'fastervlm' or 'divprune'"
        )


def left_of_picture(shape: Architecture, vision: Schedule | None, projector: ProjectorPlan | int) -> int:
    """How many of these tokens stay.

    Raises:
        TypeError, ValueError: a number that is no integer, or not in 1 ... those there are.
    """
    before = tokens_of_picture(shape, vision)
    if isinstance(projector, ProjectorPlan):
        require_crops(shape, projector.method)
        require_numbers("its cost", projector.method, ("projector",))
        return projector.count(before, grid_of_picture(shape, vision), shape.picture)
    if isinstance(projector, bool) or not isinstance(projector, int):
        raise TypeError(f"projector must be an integer, the tokens that stay of a picture, got {projector!r}")
    if not 1 <= projector <= before:
        raise ValueError(
            f"projector must be in 1 ... {before}, the tokens that the projector of {shape.name} gives of a picture, "
            f"got {projector}"
        )
    return projector


def entering(
    shape: Architecture,
    vision: Schedule | None,
    projector: ProjectorPlan | int | None,
    images: int,
    visual_tokens: float | None,
) -> float:
    """Visual tokens that the language model gets."""
    if projector is not None:
        if visual_tokens is not None:
            raise ValueError(
                f"visual_tokens must be None with projector, which says how many stay, got {visual_tokens}"
            )
        return entering_with(shape, left_of_picture(shape, vision, projector), images)
    if visual_tokens is None:
        return entering_with(shape, tokens_of_picture(shape, vision), images)
    if visual_tokens < 0:
        raise ValueError(f"visual_tokens must not be negative, got {visual_tokens}")
    return visual_tokens


def resizes(projector: ProjectorPlan | int | None, method: Any) -> bool:
    """Whether fewer tokens come out because pictures are resized before the tower."""
    part = projector.method if isinstance(projector, ProjectorPlan) else None
    if part is None and projector is not None and method is not None:
        part = get_method(method).projector
    return part is not None and part.resizes


def encoded_patches(shape: Architecture, projector: ProjectorPlan | int | None) -> int:
    """Patches of a resized picture, that of which as many tokens come as ``projector`` says.

    Raises:
        ValueError: a picture whose crops are known, of which it is not known what resizing leaves.
    """
    assert projector is not None
    if shape.picture is not None:
        raise ValueError(f"picture must be None for {shape.name} with a method that resizes pictures before the tower")
    return left_of_picture(shape, None, projector) * shape.pictures * shape.tower.merge // shape.crops


class Chosen(NamedTuple):
    """What leaves after the projector, and the lines of the bill that say what choosing it costs."""

    found: AfterProjector | None = None
    lines: tuple[Line, ...] = ()


def choose(
    rules: Rules,
    shape: Architecture,
    vision: Schedule | None,
    projector: ProjectorPlan | int | None,
    method: FeatureMethod | None,
    images: int,
    text: int,
) -> Chosen:
    """What leaves after the projector. Without ``method``, which may read the text tokens, its cost is not counted."""
    if projector is None:
        return Chosen()
    before, left = tokens_of_picture(shape, vision), left_of_picture(shape, vision, projector)
    pictures = images * shape.pictures
    lines: list[Line] = []
    if method is not None:
        require_crops(shape, method)
    if method is not None and left < before:
        layers = shape.tower.layers
        seen = (shape.tower.patches,) * layers if vision is None else vision.tokens_entering(layers)
        lines += reduction.saliency(rules, method, shape, images * shape.crops, seen)
        lines += reduction.after_projector(rules, method, shape, pictures, before, left, text)
    return Chosen(AfterProjector(pictures, before, left, Sum.of(lines)), tuple(lines))
