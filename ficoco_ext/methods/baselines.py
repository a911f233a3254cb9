"""What every method has to beat: dropping patches at random, and average pooling of the grid."""

from __future__ import annotations

from ..stages import Cells, Compress, Correlate, RandomFilter
from .base import Method


def last_layer(used: int) -> tuple[int, ...]:
    """The last of a tower's ``used`` layers.

    Example:
        >>> last_layer(23)
        (22,)
    """
    return (used - 1,)


def random(*, seed: int = 0) -> Method:
    """Drop patches at random: the floor under every method.

    The choice is a hash of seed and place, so all images of a run lose the same places: a fair figure needs several
    seeds. Several layers together drop what one layer alone would.

    Args:
        seed: an integer in [0, 2**32).

    Raises:
        ValueError: another seed.

    Cost: a sort of the places, and the survivors copied.
    """
    return Method(
        name="random",
        filter=RandomFilter(seed),
        correlate=Correlate(targets=0),
        compress=Compress(),
        source="a baseline: no method",
    )


def pool() -> Method:
    """Average pooling: the grid is cut into M near-equal rectangles, and each becomes the mean of its patches.

    Any M will do; 144 patches to 36 are cells of 2 x 2. It needs the whole grid, so it reduces in one layer: by default
    in the last one of the tower whose output is used.

    Cost: 2 B r C FLOPs, tokens read and written once.
    """
    return Method(
        name="pool",
        filter=Cells(),
        correlate=None,
        compress=Compress(),
        source="a baseline: spatial average pooling",
        layers=last_layer,
    )
