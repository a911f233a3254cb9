"""A method between the projector and the language model: which projected features stay, and what they take up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from .. import ops
from ..reduction import Reduction
from ..stages import Compress, CompressStage, CorrelateStage, Crops, Links, Priced, Selection, Shape, needs
from ..stages.features import (
    SelectStage,
    VisualFeatures,
    check_kept,
    check_planes,
    check_shapes,
    check_values,
)
from ..stages.frozen import reject, require_one_of, value
from .base import FeatureMethod, Projected, Words

# Of the class token's attention, of what each patch receives, of keys; "auto" takes the first that the tower has.
KINDS_OF_SALIENCY = ("auto", "class", "column", "keys")


@value
class ProjectorMethod(FeatureMethod):
    """A method that acts after the projector, before the language model. It needs no attention of either.

    Args:
        name: what it is called in messages.
        select: chooses who stays; a :class:`ficoco_ext.stages.SelectStage`, or what is called like one.
        correlate: finds who inherits the tokens that leave: ``Correlate(by="key")``, with the features as keys, or a
            :class:`ficoco_ext.stages.VisualCorrelateStage`. None drops them.
        compress: merges; needed with ``correlate``.
        source: where it comes from.
        amount: what attach and cost take for ``keep_ratio`` or ``tokens`` where they are given none of them.
        saliency: which kind of saliency attach measures in the vision tower where a stage needs one; see
            :class:`ficoco_ext.models.tower_readings.TowerReadings`.
        early_layer: in which of its layers early saliency is measured; see there.

    Raises:
        ValueError: a correlate without a compress, or the other way round, or one that reads attention.

    Example:
        >>> import torch
        >>> from ficoco_ext import get_method
        >>> from ficoco_ext.stages import VisualFeatures
        >>> features = torch.tensor([[[1., 0.], [1., .1], [0., 1.], [-1., 0.]]])
        >>> get_method("divprune")(VisualFeatures(features), 3).kept
        tensor([[0, 2, 3]])
    """

    name: str
    select: Callable[[VisualFeatures, int], Tensor]
    correlate: Callable[..., Links] | None = None
    compress: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
    source: str = ""
    amount: tuple[tuple[str, Any], ...] = ()
    saliency: str = "auto"
    early_layer: int | float | None = None

    def __post_init__(self) -> None:
        require_one_of("ProjectorMethod", "saliency", self.saliency, KINDS_OF_SALIENCY)
        require_early_layer("ProjectorMethod", self.early_layer)
        if (self.correlate is None) != (self.compress is None):
            reject(
                "ProjectorMethod", "correlate and compress", "both given or both None", (self.correlate, self.compress)
            )
        if self.correlate is not None and CorrelateStage.of(self.correlate).reads is not None:
            reject("ProjectorMethod", "correlate", "by='key', as there is no attention here", self.correlate)

    @property
    def drops(self) -> bool:
        """Whether what leaves goes into no other token."""
        return self.correlate is None or CorrelateStage.of(self.correlate).drops

    @property
    def needs(self) -> tuple[str, ...]:
        """What its stages need; the features are the keys."""
        found = list(SelectStage.of(self.select).needs)
        if self.correlate is not None:
            found += [*CorrelateStage.of(self.correlate).needs, *CompressStage.of(self.compress).needs]
        return needs.in_order(need for need in found if need != needs.QUERY_AND_KEY)

    @property
    def needs_to_keep(self) -> tuple[str, ...]:
        """What its select needs."""
        return needs.in_order(SelectStage.of(self.select).needs)

    @property
    def data_decides(self) -> bool:
        """Whether its select reads the data for how many tokens stay."""
        return SelectStage.of(self.select).data_decides

    def number(self, before: int, crops: Crops | None, share: float) -> int | None:
        """How many stay by the rule of its select; None: it has none."""
        return SelectStage.of(self.select).number(before, crops, share)

    def asked(self, share: float) -> ProjectorMethod:
        """With the select for that ``share``."""
        select = SelectStage.of(self.select)
        found = select.asked(share)
        return self if found is select else replace(self, select=cast(Any, found))

    def counts(self, visual: VisualFeatures) -> Tensor:
        """(B,) int64: how many tokens of each picture stay, where :attr:`data_decides`.

        Raises:
            ValueError, TypeError: as :meth:`keep`.
        """
        check_shapes(self.name, visual, 1, needs=self.needs_to_keep)
        check_values(self.name, visual, 1, needs=self.needs_to_keep)
        with torch.no_grad():
            return SelectStage.of(self.select).counts(visual)

    def scores(self, visual: VisualFeatures) -> Tensor | None:
        """What its select ranks by."""
        with torch.no_grad():
            return SelectStage.of(self.select).scores(visual)

    def describe(self) -> Words:
        """Its stages in words."""
        leave = SelectStage.of(self.select).describe()
        if self.drops:
            return Words(leave, "none", "dropped")
        inherits = CorrelateStage.of(self.correlate).in_words("features")
        return Words(leave, inherits, CompressStage.of(self.compress).describe())

    def operations(self, shape: Shape) -> list[Priced]:
        """What its stages call for one reduction of features as wide as the model, which are one head.

        Of ``shape`` the visual tokens, those that leave, ``channels``, the width of the model, and ``text``, the words
        of the prompt, count. Planes are not in it.
        """
        one_head = {"heads": 1, "kv_heads": 1, "head_dim": shape.channels}
        shape = replace(shape, tokens=shape.visual, class_token=False, targets=0, **one_head)
        found = SelectStage.of(self.select).operations(shape)
        if self.correlate is not None:
            links = CorrelateStage.of(self.correlate)
            shape = replace(shape, targets=links.count(shape.kept) or 0)
            found = [*found, *links.operations(shape)]
        return [*found, *CompressStage.of(self._compress).operations(shape)]

    @property
    def _compress(self) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        return Compress() if self.compress is None else self.compress

    def keep(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending.

        Args:
            visual: what there is of B pictures.
            count: tokens that stay, 1 <= count <= N, and no more than any picture has real ones.

        Raises:
            ValueError, TypeError: shapes, dtypes and a ``count`` that do not fit; what the stages say; on the CPU also
                features that are not finite, negative saliency, and a mask that leaves fewer than ``count``.
        """
        return self._noted(visual, count)[0]

    def _noted(self, visual: VisualFeatures, count: int) -> tuple[Tensor, Any]:
        """What :meth:`keep` gives, and what the select found on its way."""
        check_shapes(self.name, visual, count, needs=self.needs_to_keep)
        check_values(self.name, visual, count, needs=self.needs_to_keep)
        with torch.no_grad():
            kept, notes = SelectStage.of(self.select).noted(visual, count)
        check_kept(self.name, kept, visual, count)
        return kept.contiguous(), notes

    def __call__(self, visual: VisualFeatures, count: int, planes: Sequence[Tensor] = ()) -> Projected:
        """Keep ``count`` of the N tokens of each picture.

        Args:
            visual: what there is of B pictures.
            count: as of :meth:`keep`.
            planes: other features of the same tokens, each (B, N, E), such as DeepStack's levels.

        Raises:
            ValueError, TypeError: as :meth:`keep`, and planes that do not fit.

        Features and planes are differentiable; selection and weights are constants of the gradient.
        """
        check_shapes(self.name, visual, count, needs=self.needs)
        kept, notes = self._noted(visual, count)
        check_planes(self.name, visual, planes)
        mask = visual.mask
        features, *others = (_real(one, mask) for one in (visual.features, *planes))
        with torch.no_grad():
            selection = _selection(kept, features)._replace(notes=notes)
            links = self._links(visual._replace(features=features.detach()), selection)
        size = None if mask is None else mask.unsqueeze(-1).to(ops.result_dtype(features))
        weighed: dict[str, Any] = {"size": size, "size_weighted": size is not None}
        merged, size_out, source_map = self._compress(features, selection, links, **weighed)
        weights = links.weights
        if mask is not None:  # what is not there goes nowhere
            source_map = source_map.masked_fill(~mask, -1)
            weights = weights.masked_fill(~mask.gather(1, selection.sources).unsqueeze(-1), 0.0)
        reduction = Reduction(
            tokens=None,
            size=size_out,
            kept=kept,
            sources=selection.sources,
            source_map=source_map,
            targets=links.targets,
            weights=weights,
            class_token=False,
            grid=None if visual.grid is None else (visual.grid[0], visual.grid[1]),
        )
        merged_planes = tuple(self._compress(plane, selection, links, **weighed)[0] for plane in others)
        return Projected(kept, merged, merged_planes, reduction)

    def _links(self, visual: VisualFeatures, selection: Selection) -> Links:
        if self.correlate is None:
            empty = selection.sources.new_empty(*selection.sources.shape, 0)
            return Links(empty, visual.features.new_empty(empty.shape, dtype=ops.result_dtype(visual.features)))
        return CorrelateStage.of(self.correlate).of_features(visual, selection)


def require_early_layer(owner: str, layer: int | float | None) -> None:
    """Raise ValueError unless ``layer`` is None, a layer counted from 0, or a share above 0 and at most 1."""
    number = isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
    if layer is not None and not number and not (isinstance(layer, float) and 0 < layer <= 1):
        reject(owner, "early_layer", "a layer counted from 0, a share in (0.0, 1.0], or None", layer)


def _real(features: Tensor, mask: Tensor | None) -> Tensor:
    """0 where ``mask`` says that no token is, so that nothing there counts, whatever it holds."""
    return features if mask is None else features.masked_fill(~mask.unsqueeze(-1), 0)


def _selection(kept: Tensor, features: Tensor) -> Selection:
    """With who leaves, ascending: the tokens that are not in ``kept`` (B, T). By torch, for videos of any length."""
    b, n, _ = features.shape
    leaves = torch.ones(b, n, device=features.device, dtype=ops.result_dtype(features)).scatter(1, kept, 0.0)
    order = leaves.sort(dim=1, descending=True, stable=True).indices
    r = n - kept.shape[1]
    return Selection(leaves, order[:, :r].contiguous(), order[:, r:].contiguous())
