"""Three methods that name their amount: how much of a picture stays, for those who would rather not choose a number.

All are ``"prune-then-merge"`` with its defaults. Of the methods of the tower it had the highest mean accuracy at each
of the three ratios (docs/accuracy.md, from benchmarks/results/accuracy_methods.md). At 50 % several others are within
the error, and questions that count things are not in that mean. Measured on scenes, with the embedded model; of a CLIP
tower of real size nothing is known yet.
"""

from __future__ import annotations

from dataclasses import replace

from .prune_then_merge import prune_then_merge
from .registry import register
from .staged import Staged


def _preset(name: str, keep_ratio: float) -> Staged:
    return replace(prune_then_merge(), name=name, amount=(("keep_ratio", keep_ratio),))


@register("quality", rank=900, preset_of="prune-then-merge")
def quality() -> Staged:
    """``"prune-then-merge"`` that keeps 50 % of the visual tokens: for answers as close as can be.

    An amount that is given counts instead. A single reduction (``reduce``) needs its r.
    """
    return _preset("quality", 0.5)


@register("balanced", rank=901, preset_of="prune-then-merge")
def balanced() -> Staged:
    """``"prune-then-merge"`` that keeps 25 % of the visual tokens: what to begin with.

    An amount that is given counts instead. A single reduction (``reduce``) needs its r.
    """
    return _preset("balanced", 0.25)


@register("fast", rank=902, preset_of="prune-then-merge")
def fast() -> Staged:
    """``"prune-then-merge"`` that keeps 10 % of the visual tokens: for speed, at a price in accuracy.

    An amount that is given counts instead. A single reduction (``reduce``) needs its r.
    """
    return _preset("fast", 0.1)
