"""A method between the projector and the language model: which projected features stay, and what they take up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..ops import QueryKey
from ..reduction import Reduction
from ..stages import Compress, CompressStage, CorrelateStage, Links, Priced, Selection, Shape, needs
from ..stages.features import SelectStage, VisualFeatures
from ..stages.frozen import reject, value
from .base import AnyMethod, Words


class Projected(NamedTuple):
    """What a :class:`ProjectorMethod` returns.

    Attributes:
        kept: (B, T) int64, indices of the tokens that stay, ascending.
        features: (B, T, D), those of the tokens that stay, copied bit for bit or merged with what left.
        planes: the other features of the same tokens, each (B, T, E), cut or merged by the same indices and weights.
        reduction: where every token went, without tokens.
    """

    kept: Tensor
    features: Tensor
    planes: tuple[Tensor, ...]
    reduction: Reduction


@value
class ProjectorMethod(AnyMethod):
    """A method that acts after the projector, before the language model. It needs no attention of either.

    Args:
        name: what it is called in messages.
        select: chooses who stays; a :class:`ficoco_ext.stages.SelectStage`, or what is called like one.
        correlate: finds who inherits the tokens that leave: ``Correlate(by="key")``, with the features as keys. None
            drops them.
        compress: merges; needed with ``correlate``.
        source: where it comes from.
        amount: what attach and cost take for ``keep_ratio`` or ``tokens`` where they are given none of them.

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

    def __post_init__(self) -> None:
        if (self.correlate is None) != (self.compress is None):
            reject(
                "ProjectorMethod", "correlate and compress", "both given or both None", (self.correlate, self.compress)
            )
        if self.correlate is not None and CorrelateStage.of(self.correlate).reads is not None:
            reject("ProjectorMethod", "correlate", "by='key', as there is no attention here", self.correlate)

    @property
    def projector(self) -> ProjectorMethod:
        """This method."""
        return self

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

    def describe(self) -> Words:
        """Its stages in words."""
        leave = SelectStage.of(self.select).describe()
        if self.drops:
            return Words(leave, "none", "dropped")
        inherits = CorrelateStage.of(self.correlate).in_words("features")
        return Words(leave, inherits, CompressStage.of(self.compress).describe())

    def operations(self, shape: Shape) -> list[Priced]:
        """What its stages call for one reduction of features as wide as the model, which are one head.

        ``shape`` has as many ``tokens`` as ``visual`` ones.
        """
        shape = replace(shape, heads=1, kv_heads=1, head_dim=shape.channels, class_token=False, text=0)
        found = SelectStage.of(self.select).operations(shape)
        if self.correlate is not None:
            links = CorrelateStage.of(self.correlate)
            shape = replace(shape, targets=links.count(shape.kept) or 0)
            found = [*found, *links.operations(shape), *CompressStage.of(self.compress).operations(shape)]
        return found

    def __call__(self, visual: VisualFeatures, count: int, planes: Sequence[Tensor] = ()) -> Projected:
        """Keep ``count`` of the N tokens of each picture.

        Args:
            visual: what there is of B pictures.
            count: tokens that stay, 1 <= count <= N, and no more than any picture has real ones.
            planes: other features of the same tokens, each (B, N, E), such as DeepStack's levels.

        Raises:
            ValueError: a ``count`` or a plane that does not fit, and what the stages say.

        Features and planes are differentiable; selection and weights are constants of the gradient.
        """
        _check(self.name, visual, count, planes)
        with torch.no_grad():
            features = visual.features.detach()
            if visual.mask is not None:
                features = features.masked_fill(~visual.mask.unsqueeze(-1), 0)
            selection = _selection(self.select(visual, count), features)
            links = self._links(features, selection)
        compress = Compress() if self.compress is None else self.compress
        size = None if visual.mask is None else visual.mask.unsqueeze(-1).to(ops.result_dtype(features))
        merged, size_out, source_map = _compressed(compress, visual.features, selection, links, visual.mask, size)
        reduction = Reduction(
            tokens=None,
            size=size_out,
            kept=selection.kept,
            sources=selection.sources,
            source_map=source_map,
            targets=links.targets,
            weights=links.weights,
            class_token=False,
            grid=visual.grid,
        )
        others = (_compressed(compress, plane, selection, links, visual.mask, size)[0] for plane in planes)
        if visual.mask is not None:  # what is not there went nowhere
            reduction = replace(
                reduction,
                source_map=source_map.masked_fill(~visual.mask, -1),
                weights=links.weights.masked_fill(~visual.mask.gather(1, selection.sources).unsqueeze(-1), 0.0),
            )
        return Projected(selection.kept, merged, tuple(others), reduction)

    def _links(self, features: Tensor, selection: Selection) -> Links:
        if self.correlate is None:
            empty = selection.sources.new_empty(*selection.sources.shape, 0)
            return Links(empty, features.new_empty(empty.shape, dtype=ops.result_dtype(features)))
        keys = features.unsqueeze(1)
        return self.correlate(QueryKey(keys, keys), selection, class_token=False)


def _check(name: str, visual: VisualFeatures, count: int, planes: Sequence[Tensor]) -> None:
    b, n, _ = visual.features.shape
    if not 1 <= count <= n:
        raise ValueError(f"{name}: count must be in [1, {n}], the number of tokens, got {count}; lower it")
    for plane in planes:
        if plane.dim() != 3 or tuple(plane.shape[:2]) != (b, n):
            raise ValueError(
                f"{name}: each of planes must be ({b}, {n}, E), like features, got {tuple(plane.shape)}; pass those of "
                "the same tokens"
            )


def _selection(kept: Tensor, features: Tensor) -> Selection:
    """With who leaves, ascending: the tokens that are not in ``kept`` (B, T)."""
    b, n, _ = features.shape
    leaves = torch.ones(b, n, device=features.device, dtype=ops.result_dtype(features)).scatter(1, kept, 0.0)
    return Selection(*ops.filter(leaves, leaves, n - kept.shape[1], lam=1.0, class_token=False))


def _compressed(
    compress: Callable[..., tuple[Tensor, Tensor, Tensor]],
    features: Tensor,
    selection: Selection,
    links: Links,
    mask: Tensor | None,
    size: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of tokens that are not there count for nothing, whatever they hold."""
    if mask is not None:
        features = features.masked_fill(~mask.unsqueeze(-1), 0)
    return compress(features, selection, links, size=size, size_weighted=size is not None)
