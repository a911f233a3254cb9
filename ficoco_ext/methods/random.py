"""Random dropping: what every method has to beat."""

from __future__ import annotations

from ..stages import Compress, Correlate, RandomFilter
from .method import Method
from .registry import register


@register("random", rank=110)
def random(*, seed: int = 0) -> Method:
    """Drop patches at random: the floor under every method.

    The choice is a hash of seed and position, so all images of a run lose the same positions: a fair figure needs
    several seeds. Several layers together drop what one layer alone would.

    Args:
        seed: an integer in [0, 2**32).

    Raises:
        ValueError: another seed.

    Cost: a sort of the positions, and the survivors copied.
    """
    return Method(
        name="random",
        filter=RandomFilter(seed),
        correlate=Correlate(targets=0),
        compress=Compress(),
        source="a baseline: no method",
    )
