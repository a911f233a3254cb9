"""Prune early, merge late: a method that differs from layer to layer."""

from __future__ import annotations

import math

from ..stages import Compress, Correlate, Filter, Match
from ..stages.frozen import require_number, value
from .base import LayerMethod
from .method import Method
from .registry import register
from .split import Split
from .staged import Staged

# The filters to prune by. FiCoCo's is read as probabilities, normalised: the reading that was tried
# (benchmarks/results/accuracy_choosing.md).
_PRUNE = {
    "topk": Filter(lam=0.0, attention="probs", normalize=False, penalty=1.0),
    "ficoco": Filter(lam=0.35, attention="probs", normalize=True, penalty=2.0),
}


@value
class PruneThenMerge:
    """The rule: the last layers merge, the others prune, and the last of these may do both."""

    prune: Method
    merge: Method
    merge_layers: float
    split: float

    def __call__(self, layers: int) -> tuple[LayerMethod, ...]:
        merging = min(max(1, math.floor(layers * self.merge_layers + 0.5)), layers)
        pruning: tuple[LayerMethod, ...] = (self.prune,) * (layers - merging)
        if pruning and self.split:
            pruning = (*pruning[:-1], Split("prune and merge", self.prune, self.merge, 1 - self.split))
        return (*pruning, *[Split("merge", self.prune, self.merge, 0.0)] * merging)


@register("prune-then-merge", rank=60)
def prune_then_merge(
    *,
    merge_layers: float = 0.25,
    split: float = 0.5,
    prune: str = "ficoco",
    weigh: float = 0.0,
    proportional_attention: bool = False,
) -> Staged:
    """Prune by FiCoCo's filter in the earlier reducing layers, merge by similarity of keys, as ToMe does, in the last.

    Our own method. The order matters: what gets no attention leaves while there is much of it, and what is left is
    close enough to be averaged. The defaults were chosen on scenes held out for choosing, with the embedded model; of a
    CLIP tower of real size nothing is known yet. A merging layer that is to lose more than matching can remove, half of
    its tokens, prunes the excess first. Needs a :class:`ficoco_ext.QueryKey` and the patches' grid; without a class
    token its row is replaced as in :class:`ficoco_ext.stages.Filter`. A single reduction merges, like one layer alone.

    Args:
        merge_layers: share in [0, 1] of the reducing layers that merge, the last ones; at least one does.
        split: share in [0, 1] of r that the last pruning layer merges instead.
        prune: ``"ficoco"``, the filter of FiCoCo-V (probabilities, normalised), or ``"topk"``, class attention alone.
        weigh: of class attention against similarity in merging, see :class:`ficoco_ext.stages.Match`.
        proportional_attention: layers after a merging one add log(size) to the logits of each key, as in ``"tome"``.

    Raises:
        ValueError: a value out of range.

    Cost: that of ``"ficoco-v"`` without targets in a pruning layer, of ``"tome"`` in a merging one, of both where a
    layer does both.
    """
    require_number("prune-then-merge", "merge_layers", merge_layers, 0, 1)
    require_number("prune-then-merge", "split", split, 0, 1)
    if prune not in _PRUNE:
        raise ValueError(f"prune-then-merge: prune must be one of 'topk', 'ficoco', got {prune!r}")
    if not isinstance(proportional_attention, bool):
        raise ValueError(
            f"prune-then-merge: proportional_attention must be True or False, got {proportional_attention!r}"
        )
    source = "ours: the filter of FiCoCo-V, arXiv 2411.17686, then ToMe, arXiv 2210.09461"
    pruning = Method("prune", _PRUNE[prune], Correlate(targets=0), Compress(), source)
    merging = Method("merge", Match(weigh=weigh), None, Compress(True), source, proportional_attention)
    return Staged("prune-then-merge", PruneThenMerge(pruning, merging, merge_layers, split), source)
