"""Random dropping: what every method has to beat."""

from __future__ import annotations

from ..stages import RandomFilter, RandomSelect
from .base import AnyMethod
from .parts import in_part
from .registry import register


@register("random", rank=110)
def random(*, seed: int = 0, part: str = "tower") -> AnyMethod:
    """Drop patches at random: the floor under every method.

    The choice is a hash of seed and position, so all images of a run lose the same positions: a fair figure needs
    several seeds. Several layers together drop what one layer alone would.

    Args:
        seed: an integer in [0, 2**32).
        part: ``"tower"``: in layers of the vision tower. ``"projector"``: after it.

    Raises:
        ValueError: another seed, or another part.

    Cost: a sort of the positions, and the survivors copied.
    """
    return in_part(
        "random",
        part,
        filter=RandomFilter(seed),
        select=RandomSelect(seed),
        merge=False,
        source="a baseline: no method",
    )
