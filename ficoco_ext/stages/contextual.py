"""Salient tokens, and among the others evenly spaced ones that take the rest up (VisionZip, arXiv 2412.04467)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import costs
from . import needs
from .base import CompressStage, Links, Selection
from .features import SelectStage, VisualCorrelateStage, VisualFeatures
from .frozen import require_number, require_one_of, value
from .select import required_saliency
from .shape import Priced, Shape


def contextual_count(kept: int, share: float) -> int:
    """How many of ``kept`` tokens are centres: that share, rounded, at least 1, and one token less than all.

    Half a token goes to the even number. A ``share`` of 0 makes none.

    Example:
        >>> from ficoco_ext.stages.contextual import contextual_count
        >>> [contextual_count(kept, 10 / 64) for kept in (1, 2, 8, 64, 128, 192)]
        [0, 1, 1, 10, 20, 30]
    """
    return min(max(round(share * kept), 1), kept - 1) if share else 0


@value
class ContextualSelect(SelectStage):
    """Keeps the tokens of highest saliency, and of the others every k-th, the centres.

    Of T tokens C are centres, see :func:`contextual_count`. The T - C of highest saliency stay, of equal ones those of
    the lowest index. Of the M others, in their order, those at 0, s, 2 s, ... (C - 1) s stay, where s = max(1, M // C).

    Args:
        share: of the tokens that stay, in [0, 1]: centres.
    """

    share: float = 10 / 64

    def __post_init__(self) -> None:
        require_number("ContextualSelect", "share", self.share, 0, 1)

    @property
    def needs(self) -> tuple[str, ...]:
        """Saliency."""
        return (needs.SALIENCY,)

    def describe(self) -> str:
        """What leaves."""
        return "features of least saliency, except every k-th of them"

    def operations(self, shape: Shape) -> list[Priced]:
        """None: a sort of saliency."""
        return []

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending."""
        saliency = required_saliency(self.title, visual)
        real = torch.ones_like(saliency, dtype=torch.bool) if visual.mask is None else visual.mask
        centres = contextual_count(count, self.share)
        first = saliency.masked_fill(~real, -1.0).sort(dim=1, descending=True, stable=True).indices
        stays = torch.zeros_like(real).scatter(1, first[:, : count - centres], True)
        if centres:
            others = real & ~stays
            step = (others.sum(1, keepdim=True) // centres).clamp(min=1)
            number = others.cumsum(1) - 1
            stays = stays | (others & (number % step == 0) & (number < centres * step))
        return (~stays).to(torch.uint8).sort(dim=1, stable=True).indices[:, :count]


@value
class ToCentres(VisualCorrelateStage):
    """Sends each token that leaves to the centre whose key of the vision tower is most like its own, by cosine.

    Of equal ones the centre of the lowest index. Salient tokens inherit nothing; without a centre all that leaves is
    dropped. Centres are those that :class:`ContextualSelect` keeps with the same share.

    Args:
        share: of the tokens that stay, in [0, 1]: centres.
    """

    share: float = 10 / 64

    def __post_init__(self) -> None:
        require_number("ToCentres", "share", self.share, 0, 1)

    @property
    def needs(self) -> tuple[str, ...]:
        """Saliency, to know the centres by, and keys."""
        return (needs.SALIENCY, needs.TOWER_KEYS)

    @property
    def drops(self) -> bool:
        """No centres."""
        return not self.share

    def describe(self) -> str:
        """Who inherits a source."""
        return "the best of every k-th by cosine of the tower's keys"

    def count(self, candidates: int) -> int:
        """One target, if there is a centre."""
        return int(contextual_count(candidates, self.share) > 0)

    def operations(self, shape: Shape) -> list[Priced]:
        """The cosines of what leaves and the centres."""
        centres, width = contextual_count(shape.kept, self.share), shape.tower_head_dim or shape.channels
        return [shape.price(costs.correlate("key"), m=centres, a=1, d=width)] if centres else []

    def __call__(self, visual: VisualFeatures, selection: Selection) -> Links:
        """Targets and weights of the selected sources."""
        sources, kept = selection.sources, selection.kept
        saliency = required_saliency(self.title, visual)
        if visual.keys is None:
            raise ValueError(f"{self.title}: keys are needed, and none were given; pass keys=(B, N, K) of the tower")
        salient = kept.shape[1] - (centres := contextual_count(kept.shape[1], self.share))
        if not centres:
            empty = sources.new_empty(*sources.shape, 0)
            return Links(empty, saliency.new_empty(empty.shape))
        keys = visual.keys.detach()
        if visual.mask is not None:
            keys = keys.masked_fill(~visual.mask.unsqueeze(-1), 0)
        ranked = saliency.gather(1, kept).sort(dim=1, descending=True, stable=True).indices
        slots = ranked[:, salient:].sort(dim=1).values
        compared = torch.cat([sources, kept.gather(1, slots)], 1)  # the operator compares all that it gets
        keys = keys.gather(1, compared.unsqueeze(-1).expand(-1, -1, keys.shape[2])).unsqueeze(1)
        leave, stay = (
            torch.arange(compared.shape[1], device=keys.device)
            .expand(len(compared), -1)
            .split([sources.shape[1], centres], 1)
        )
        targets, weights = ops.correlate_key(keys, leave, stay, 1, alpha="average", class_token=False)
        return Links(slots.gather(1, targets.flatten(1)).view_as(targets), weights)


@value
class CentrePlusMean(CompressStage):
    """A token becomes itself and what it inherits.

    Args:
        merging: ``"sum"``: itself plus the mean of what it inherits, of about twice the norm of a token, as released.
            ``"mean"``: the mean of itself and all that it inherits.
    """

    merging: str = "sum"

    def __post_init__(self) -> None:
        require_one_of("CentrePlusMean", "merging", self.merging, ("sum", "mean"))

    def describe(self) -> str:
        """How sources are merged."""
        return "itself plus the mean of what it inherits" if self.merging == "sum" else "mean of all"

    def operations(self, shape: Shape) -> list[Priced]:
        """Every source goes into its targets."""
        return [shape.price(costs.COMPRESS)]

    def __call__(
        self, tokens: Tensor, selection: Selection, links: Links, *, size: Tensor | None, size_weighted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, M, C), size (B, M, 1) and source_map (B, N).

        Means are weighted by size with ``size_weighted``; what inherits nothing is copied.
        """
        given: tuple[Any, ...] = (selection.sources, selection.kept, links.targets, links.weights)
        counted = size if size_weighted else None
        means, mass, source_map = ops.compress(tokens, *given, size=counted, size_weighted=size_weighted)
        size_out = mass
        if size is not None and not size_weighted:
            _, size_out, _ = ops.compress(tokens[..., :1], *given, size=size, size_weighted=False)
        if self.merging == "mean":
            return means, size_out, source_map
        index = selection.kept.unsqueeze(-1)
        own = torch.ones_like(mass) if counted is None else counted.gather(1, index).to(mass.dtype)
        inherited = mass - own
        held = torch.where(inherited > 0, inherited, 1)
        before = tokens.gather(1, index.expand(-1, -1, tokens.shape[2]))
        # The mean of what came is (mass * mean - own * before) / inherited; together with itself nothing cancels.
        added = means.to(mass.dtype) * (mass / held) + before.to(mass.dtype) * (1 - own / held)
        return torch.where(inherited > 0, added.to(tokens.dtype), means), size_out, source_map
