"""Colours of merge groups: all different, and far apart where two groups touch."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

from ..io.images import rgb

Colour = tuple[float, float, float]


def neighbours(held: Sequence[int], grid: tuple[int, int]) -> dict[int, set[int]]:
    """For each holder the others that hold a patch above, below, left or right of one of its own."""
    height, width = grid
    touching: dict[int, set[int]] = {holder: set() for holder in held if holder >= 0}
    pairs = [(position, position + 1) for position in range(height * width) if position % width < width - 1]
    pairs += [(position, position + width) for position in range((height - 1) * width)]
    for one, other in pairs:
        a, b = held[one], held[other]
        if a != b and a >= 0 and b >= 0:
            touching[a].add(b)
            touching[b].add(a)
    return touching


def group_colours(held: Sequence[int], chosen: Sequence[int], grid: tuple[int, int]) -> dict[int, Colour]:
    """A saturated colour for each of the ``chosen`` holders.

    Touching groups get different parts of the colour circle (a greedy colouring, the most entangled first), groups in
    the same part different hues of it. So no two are alike, also where a group lies in pieces all over the picture.

    Args:
        held: for each patch of the grid its holder, -1 if it has none.
        chosen: which holders need a colour.
        grid: (height, width).

    Example:
        >>> from ficoco_ext.viz.colours import group_colours
        >>> [tuple(round(x, 2) for x in colour) for colour in group_colours([0, 0, 3, 3], [0, 3], (2, 2)).values()]
        [(0.91, 0.09, 0.09), (0.09, 0.91, 0.91)]
    """
    touching = neighbours(held, grid)
    wanted = set(chosen)
    part: dict[int, int] = {}
    for holder in sorted(chosen, key=lambda one: (-len(touching[one] & wanted), one)):
        taken = {part[other] for other in touching[holder] if other in part}
        part[holder] = next(number for number in range(len(chosen)) if number not in taken)
    parts = max(part.values(), default=0) + 1
    colours = {}
    for number in range(parts):
        members = [holder for holder in sorted(chosen) if part[holder] == number]
        for i, holder in enumerate(members):
            hue = (number + 0.6 * i / len(members)) / parts  # the rest of the part keeps it off the next one
            colours[holder] = colorsys.hls_to_rgb(hue, (0.5, 0.6, 0.42)[i % 3], 0.82)
    return colours


def patch_means(image: Any, grid: tuple[int, int]) -> Any:
    """(height, width, 3) mean colour of the pixels of each patch, in [0, 1]."""
    import numpy as np
    from PIL import Image

    height, width = grid
    return np.asarray(rgb(image).resize((width, height), Image.Resampling.BOX), dtype=float) / 255


def mean_colours(image: Any, groups: Mapping[int, Sequence[int]], grid: tuple[int, int]) -> dict[int, Colour]:
    """The mean colour of the pixels under each group."""
    means = patch_means(image, grid).reshape(-1, 3)
    return {holder: tuple(means[list(members)].mean(0).tolist()) for holder, members in groups.items()}
