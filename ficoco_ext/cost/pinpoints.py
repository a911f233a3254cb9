"""The sizes that the crops of an image can have together in LLaVA-NeXT."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Pinpoints = tuple[tuple[int, int], ...]

# (height, width) in pixels, of crops of 336 x 336.
LLAVA_NEXT: Pinpoints = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
_SIDE = 336


def of_config(config: Any, side: int) -> Pinpoints:
    """``image_grid_pinpoints`` of a config, or LLaVA-NeXT's own if there are none and a crop has 336 pixels a side.

    Args:
        config: of the whole model. side: pixels of a side of a crop.

    Raises:
        ValueError: something else than pairs of integers of at least 1.

    Example:
        >>> from types import SimpleNamespace
        >>> from ficoco_ext.cost import pinpoints
        >>> pinpoints.of_config(SimpleNamespace(image_grid_pinpoints=[[24, 48]]), 24)
        ((24, 48),)
    """
    given = getattr(config, "image_grid_pinpoints", None)
    if given is None:
        return LLAVA_NEXT if side == _SIDE else ()
    if not isinstance(given, Iterable) or not all(map(_is_pair, held := list(given))):
        wanted = "pairs of integers (height, width) of at least 1"
        raise ValueError(f"model: image_grid_pinpoints of its config must be {wanted}, got {given!r}")
    return tuple((height, width) for height, width in held)


def _is_pair(one: object) -> bool:
    held = one if isinstance(one, (list, tuple)) else ()
    return len(held) == 2 and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in held)
