"""A select that keeps salient tokens, and of the others those that are left when what repeats is thinned."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..ops import costs
from . import needs
from .features import SelectStage, VisualFeatures
from .frozen import reject, require_number, require_one_of, value
from .select import required_saliency
from .shape import Priced, Shape


@value
class BipartiteThin(SelectStage):
    """Keeps part of the tokens by saliency, and the rest of them by :func:`ficoco_ext.ops.bipartite_thin`.

    Of T tokens that stay int(T * ``share``) are those of highest saliency. All others are a list, highest saliency
    first, which is thinned to the number that is missing: in every round those leave that are most like one of the
    tokens between them.

    Args:
        step: tokens that leave in a round, at least 1.
        share: of those that stay, by saliency alone, in [0, 1].
        before_projector: compare what the vision tower gave for each token. False: the projected features.
    """

    step: int = 8
    share: float = 0.5
    before_projector: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.step, bool) or not isinstance(self.step, int) or self.step < 1:
            reject("BipartiteThin", "step", "an integer of at least 1", self.step)
        require_number("BipartiteThin", "share", self.share, 0, 1)
        require_one_of("BipartiteThin", "before_projector", self.before_projector, (True, False))

    @property
    def needs(self) -> tuple[str, ...]:
        """Saliency, and what it compares."""
        return (needs.SALIENCY, needs.TOWER_FEATURES) if self.before_projector else (needs.SALIENCY,)

    def describe(self) -> str:
        """What leaves."""
        if self.share == 1:
            return "features of least saliency"
        what = "of little saliency that repeat others" if self.share else "that repeat others"
        return f"features {what}, {self.step} at a time"

    def operations(self, shape: Shape) -> list[Priced]:
        """The thinning; none where saliency alone chooses."""
        if shape.kept == self._by_saliency(shape.kept):
            return []
        width = shape.tower_channels if self.before_projector and shape.tower_channels else shape.channels
        return [shape.price(costs.BIPARTITE_THIN, n=shape.visual, h=width)]

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending."""
        saliency = required_saliency(self.title, visual)
        if visual.mask is not None:
            saliency = saliency.masked_fill(~visual.mask, -1.0)
        order = saliency.sort(dim=1, descending=True, stable=True).indices
        important = self._by_saliency(count)
        kept, others = order[:, :important], order[:, important:]
        if important < count:
            left = ops.bipartite_thin(
                self._compared(visual), others, count - important, step=self.step, mask=visual.mask
            )
            kept = torch.cat([kept, left], 1)
        return kept.sort(1).values

    def _by_saliency(self, count: int) -> int:
        return int(count * self.share)

    def _compared(self, visual: VisualFeatures) -> Tensor:
        if not self.before_projector:
            return visual.features.detach()
        if visual.tower_features is None:
            raise ValueError(
                f"{self.title}: features before the projector are needed, and none were given; pass "
                "tower_features=(B, N, C), or before_projector=False to compare the projected ones"
            )
        return visual.tower_features.detach()
