"""Recycling: the best of the tokens that leave come back as a few clusters (SparseVLM)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops
from ..ops import QueryKey, checks, costs
from ..ops.attention import rows
from .base import CompressStage, FilterStage, Links, Selection
from .decoder import Layout
from .density import computed, density_peaks
from .frozen import reject, require_number, value
from .shape import Priced, Shape


@value
class Recycle(FilterStage):
    """Lets another filter choose who leaves, and clusters the best of these around tokens that stay after all.

    Of d tokens that the filter would remove, the m = floor(share * d) + 1 least redundant ones go into
    c = floor(m / size) + 1 clusters by :func:`~ficoco_ext.stages.density.density_peaks` of their hidden states, with c
    neighbours. The centre of a cluster stays where it is and inherits the others, which :class:`RecycledMean` makes
    its mean; the rest is dropped. So r = d - c columns leave. Given r, d is the smallest number for which that holds;
    where it would leave the filter no token to keep, it keeps one, and c is what is left.

    Args:
        filter: who ranks the tokens.
        share: of those it removes, how many are clustered; in [0, 1].
        size: tokens for each cluster, at least 2: clusters of one token would bring back all that is clustered.
    """

    filter: Callable[..., Selection]
    share: float = 0.3
    size: int = 10

    def __post_init__(self) -> None:
        require_number("Recycle", "share", self.share, 0, 1)
        if type(self.size) is not int or self.size < 2:
            reject("Recycle", "size", "an integer >= 2", self.size)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the filter needs."""
        return FilterStage.of(self.filter).needs

    @property
    def reads(self) -> str | None:
        """What the filter reads."""
        return FilterStage.of(self.filter).reads

    @property
    def inheritor(self) -> str:
        """Where what is recycled goes."""
        return "the centre of its cluster, if it is among the best of those that leave"

    def describe(self) -> str:
        """Who leaves."""
        return FilterStage.of(self.filter).describe()

    def remedy(self, need: str) -> str:
        """What the filter says."""
        return FilterStage.of(self.filter).remedy(need)

    def count(self, candidates: int) -> int:
        """One cluster for each source."""
        return 1

    def mark(self, embeddings: Tensor, layout: Layout) -> Tensor | None:
        """What the filter notes of the prompt."""
        return FilterStage.of(self.filter).mark(embeddings, layout)

    def clustered(self, removed: int) -> int:
        """How many of ``removed`` tokens are clustered."""
        return min(int(self.share * removed + 1e-9) + 1, removed)

    def clusters(self, removed: int) -> int:
        """Into how many clusters."""
        return self.clustered(removed) // self.size + 1

    def split(self, tokens: int, r: int) -> tuple[int, int]:
        """Of ``tokens`` of which ``r`` columns leave, how many the filter removes, and how many clusters come back.

        Example:
            >>> from ficoco_ext.stages.recycle import Recycle
            >>> Recycle(None).split(576, 576 - 309)  # 300 stay, 9 clusters
            (276, 9)
        """
        removed = r
        while removed < tokens - 1 and removed - self.clusters(removed) < r:
            removed += 1
        return removed, removed - r

    def operations(self, shape: Shape) -> list[Priced]:
        """Those of the filter, and the clusters."""
        removed, clusters = self.split(shape.visual, shape.r)
        found, among = FilterStage.of(self.filter).operations(shape), self.clustered(removed)
        return [*found, shape.price(costs.DENSITY_PEAKS, n=among, c=computed(among))] if clusters else found

    def __call__(self, attn: QueryKey, r: int, layout: Layout, *, given: bool = False) -> Selection:
        """Select r sources, and the clusters of those that are recycled."""
        layout.require(r)
        if layout.hidden is None:
            checks.fail("reduce", "layout", "one with the hidden states", layout, "pass Layout(..., hidden=tokens)")
        removed, clusters = self.split(layout.visual.shape[1], r)
        chosen = self.filter(attn, removed, layout, given=given)
        holder = chosen.redundancy.new_full(layout.visual.shape, -1, dtype=torch.int64)
        stays = torch.ones_like(holder, dtype=torch.bool).scatter(1, chosen.sources, False)
        if clusters:
            order = chosen.redundancy.gather(1, chosen.sources).sort(dim=1, stable=True).indices
            best = chosen.sources.gather(1, order[:, : self.clustered(removed)].sort(1).values)
            hidden = rows(layout.hidden, layout.visual.gather(1, best))
            centres, cluster = density_peaks(hidden, clusters, clusters, op="reduce")
            centres = best.gather(1, centres)
            holder = holder.scatter(1, best, centres.gather(1, cluster))
            stays = stays.scatter(1, centres, True)
        return self._selected(chosen.redundancy, stays, holder, r)

    @staticmethod
    def _selected(redundancy: Tensor, stays: Tensor, holder: Tensor, r: int) -> Selection:
        """The selection of those that stay; ``holder`` (B, n) is the centre of a token's cluster, -1 for none."""
        order = stays.to(torch.uint8).sort(dim=1, stable=True).indices
        sources, kept = order[:, :r].contiguous(), order[:, r:].contiguous()
        heir = holder.gather(1, sources)
        target = (stays.cumsum(1) - 1).gather(1, heir.clamp(min=0)).unsqueeze(-1)
        inherits = (heir >= 0).unsqueeze(-1)
        return Selection(
            redundancy, sources, kept, Links(torch.where(inherits, target, 0), inherits.to(redundancy.dtype))
        )


@value
class RecycledMean(CompressStage):
    """A centre becomes the mean of its cluster; a source with weight 0 is dropped."""

    def describe(self) -> str:
        """What a cluster becomes."""
        return "the mean of a cluster, others dropped"

    def operations(self, shape: Shape) -> list[Priced]:
        """Every source goes into its target, some with weight 0."""
        return [shape.price(costs.COMPRESS)]

    def __call__(
        self, tokens: Tensor, selection: Selection, links: Links, *, size: Tensor | None, size_weighted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, M, C), size (B, M, 1) and source_map (B, N), with -1 for what is dropped."""
        sources, kept = selection.sources, selection.kept
        merged, sizes, source_map = ops.compress(
            tokens, sources, kept, *links[:2], size=size, size_weighted=size_weighted
        )
        holders = source_map.gather(1, sources).masked_fill(links.weights.amax(2) == 0, -1)
        return merged, sizes, source_map.scatter(1, sources, holders)
