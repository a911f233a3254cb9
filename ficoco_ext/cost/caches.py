"""What the layers of a language model keep of a prompt that was read, as ``attach(cache=...)`` has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import resolve
from ..methods.base import CACHES
from ..ops.costs import Operation
from ..schedule import Schedule
from .architecture import LanguageModel
from .lines import Line, Rules

# Keys and values of c tokens are read, and written side by side.
_CUT = Operation("cut_cache", "0", kv_loads="2*k*d*c", kv_stores="2*k*d*c")


def chosen(cache: str | None, method: Any) -> str:
    """``cache``, or where it is None what the language model's part of ``method`` says.

    Args:
        cache: one of :data:`ficoco_ext.methods.base.CACHES`, or None. method: what reduces, or None.

    Raises:
        ValueError: another value, or nothing reduces in the language model.

    Example:
        >>> from ficoco_ext import get_method
        >>> chosen(None, get_method("fastv")), chosen("output-aware", get_method("fastv"))
        ('staircase', 'output-aware')
    """
    inside = None if method is None else method.language_model
    if cache is None:
        return CACHES[0] if inside is None else str(inside.cache)
    require_known(cache)
    if inside is None:
        raise ValueError(f"cache must be None without a method for the language model, got {cache!r}; leave it out")
    return cache


def require_known(cache: str) -> None:
    """Raise unless ``cache`` is one of :data:`ficoco_ext.methods.base.CACHES`."""
    if cache not in CACHES:
        raise ValueError(f"cache must be {' or '.join(map(repr, CACHES))}, got {cache!r}")


def held(schedule: Schedule | None, entering: Sequence[float], final: float, cache: str) -> list[float]:
    """Visual tokens that each layer's cache holds once the prompt is read.

    Args:
        schedule: of the language model; None: nothing leaves. entering: that enter the attention of each layer.
        final: that leave the last one. cache: one of :data:`ficoco_ext.methods.base.CACHES`.

    Raises:
        ValueError: a first reducing layer that cannot be cut.

    Example:
        >>> held(Schedule(9, (1, 2), (3, 2)), (9, 9, 6, 4), 4, "output-aware")
        [9, 4, 4, 4]
    """
    require_known(cache)
    if schedule is None or cache == CACHES[0]:
        return list(entering)
    resolve.require_whole_first_layer("cost", schedule.layers)
    first = schedule.layers[0]
    return [*entering[:first], *(final for _ in entering[first:])]


def cut(rules: Rules, shape: LanguageModel, layer: int, before: float, left: float) -> list[Line]:
    """What it costs to take the tokens that stay out of a layer's cache: nothing where all ``before`` do."""
    if left == before:
        return []
    return [rules.line("reduction", layer, _CUT, {"c": left, "k": shape.kv_heads, "d": shape.head_dim})]
