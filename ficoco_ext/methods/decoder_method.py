"""A method inside a language model: stages and a name, applied to one layer's sequence of text and visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import Attention, QueryKey, Shortened
from ..ops.costs import Operation
from ..reduction import Reduction
from ..stages import CompressStage, CorrelateStage, FilterStage, Layout, Links, Priced, Selection, Shape
from ..stages.frozen import value
from .base import CACHES, LanguageMethod, Words
from .composition import dropped, fused_in_sequence, operations, stage_needs, targets, words
from .layers import FixedLayers

_EXTRA_PROJECTIONS = (
    Operation("extra q_proj", "2*b*l*h*a*d", "h*a*d", "b*l*h", "b*l*a*d"),
    Operation("extra k_proj", "2*b*l*h*k*d", "h*k*d", "b*l*h", "b*l*k*d"),
    Operation("extra v_proj", "2*b*l*h*k*d", "h*k*d", "b*l*h", "b*l*k*d"),
    Operation("extra o_proj", "2*b*l*a*d*h", "a*d*h", "b*l*a*d", "b*l*h"),
)


@value
class DecoderMethod(LanguageMethod):
    """A method that removes visual tokens inside a language model, during prefill. Text is copied bit for bit.

    Args:
        name: what it is called in messages.
        filter: chooses which visual tokens leave.
        correlate: finds who inherits each of them; None drops them.
        compress: merges.
        layers: function (number of layers) -> the layers that reduce, where attach is given none.
        amount: what attach takes for ``r``, ``keep_ratio`` and ``tokens`` where it is given none of them.
        rounding: how survivors of a ratio are rounded, see :meth:`ficoco_ext.Schedule.build`.
        before_attention: a layer reduces before its attention, by the query and key that the tokens would have there,
            instead of between its attention and its MLP.
        cache: what layers keep of a prompt that is read, where attach is given no ``cache``: ``"staircase"`` or
            ``"output-aware"``.
        source: where it comes from.
    """

    name: str
    filter: Callable[..., Selection]
    correlate: Callable[..., Links] | None
    compress: Callable[..., tuple[Tensor, Tensor, Tensor]]
    layers: Callable[[int], tuple[int, ...]]
    amount: tuple[tuple[str, Any], ...] = ()
    rounding: str = "half_up"
    before_attention: bool = False
    cache: str = CACHES[0]
    source: str = ""

    @property
    def drops(self) -> bool:
        """What leaves goes into no other token."""
        return dropped(self.filter, self.correlate)

    @property
    def data_decides(self) -> bool:
        """What its filter says."""
        return FilterStage.of(self.filter).data_decides

    def leaving(self, tokens: Tensor, attn: Attention, layout: Layout) -> Tensor:
        """(B,) what its filter says."""
        with torch.no_grad():
            return FilterStage.of(self.filter).leaving(attn, replace(layout, hidden=tokens))

    @property
    def needs(self) -> tuple[str, ...]:
        """What its stages need."""
        return stage_needs(self.filter, self.correlate, self.compress)

    @property
    def window(self) -> int:
        """What its filter says."""
        return FilterStage.of(self.filter).window

    @property
    def key_share(self) -> float:
        """What its filter says."""
        return FilterStage.of(self.filter).key_share

    def mark(self, embeddings: Tensor, layout: Layout) -> Tensor | None:
        """What its filter notes of the columns of a prompt."""
        with torch.no_grad():
            return FilterStage.of(self.filter).mark(embeddings, layout)

    def remedy(self, need: str) -> str:
        """What the first of its stages says that has the need."""
        stages = FilterStage.of(self.filter), CorrelateStage.of(self.correlate), CompressStage.of(self.compress)
        return next((stage.remedy(need) for stage in stages if need in stage.needs), super().remedy(need))

    def instead_of(self, layers: tuple[int, ...]) -> str | None:
        """What its rule for layers says, if that leaves no choice."""
        return self.layers.instead_of(layers) if isinstance(self.layers, FixedLayers) else None

    def describe(self) -> Words:
        """Its stages in words."""
        return words(self.filter, self.correlate, self.compress)

    def operations(self, shape: Shape) -> list[Priced]:
        """What its stages call for one reduction; before attention, the projections too, whether or not one leaves."""
        extra = [shape.price(one) for one in _EXTRA_PROJECTIONS] if self.before_attention else []
        return extra + (operations(self.filter, self.correlate, self.compress, shape) if shape.r else [])

    @property
    def mixed(self) -> bool:
        """Filter and correlation read different kinds of attention."""
        kinds = {FilterStage.of(self.filter).reads, CorrelateStage.of(self.correlate).reads}
        return len(kinds - {None}) > 1

    def __call__(
        self,
        tokens: Tensor,
        attn: Attention,
        r: int,
        layout: Layout,
        *,
        size: Tensor | None = None,
        size_weighted: bool = False,
    ) -> tuple[Reduction, Tensor]:
        """Remove ``r`` >= 1 of the visual tokens of ``tokens`` (B, N, C).

        Sizes are carried on; ``size_weighted``: merging is weighted by them.

        Returns:
            The reduction, in the columns of ``tokens``, and the columns (B, n - r) that the visual tokens which
            are left have in the shorter sequence.
        """
        given = isinstance(attn, Tensor)
        if given and self.mixed:
            raise ValueError(
                f"{self.name}: attn must be a QueryKey: the filter reads one kind of attention, correlation another "
                "and a map has one; pass ficoco_ext.QueryKey(query, key), or the same attention for both"
            )
        settings = None if given else fused_in_sequence(self.filter, self.correlate, self.compress)
        if settings is None or isinstance(attn, Tensor):
            done = self._stage_by_stage(tokens, attn, r, layout, size, size_weighted)
        else:
            settings["size_weighted"] = settings["size_weighted"] or size_weighted
            done = self._at_once(tokens, attn, r, layout, size, settings)
        reduction = Reduction(
            tokens=done.tokens,
            size=done.size,
            kept=done.kept,
            sources=done.sources,
            source_map=done.source_map,
            targets=done.targets,
            weights=done.weights,
            class_token=False,
            grid=None,
        )
        return reduction, done.visual

    def _at_once(
        self, tokens: Tensor, attn: QueryKey, r: int, layout: Layout, size: Tensor | None, settings: dict[str, Any]
    ) -> Shortened:
        """What the three stages give one after the other, in one call."""
        FilterStage.of(self.filter).check(attn, class_token=False, grid=layout.grid)
        k = targets(self.filter, self.correlate, layout.visual.shape[1] - r)
        assert k is not None, "stages with fused settings know their targets"
        where: dict[str, Any] = {"key_mask": layout.real, "after": layout.after, "ids": layout.ids, "grid": layout.grid}
        return ops.reduce_sequence(tokens, attn, layout.visual, r, k, size=size, **where, **settings)

    def _stage_by_stage(
        self, tokens: Tensor, attn: Attention, r: int, layout: Layout, size: Tensor | None, size_weighted: bool
    ) -> Shortened:
        given = isinstance(attn, Tensor)
        with torch.no_grad():  # selection and weights are constants of the gradient
            seen = _disguised(attn, FilterStage.of(self.filter).heads) if isinstance(attn, Tensor) else attn
            marks = self.mark(tokens, layout) if layout.marks is None else layout.marks
            layout = replace(layout, marks=marks, hidden=tokens)
            selection = self.filter(seen, r, layout, given=given)
            if selection.links is not None and self.correlate is None:
                links = selection.links
            elif self.correlate is None:
                empty = selection.sources.new_empty(*selection.sources.shape, 0)
                links = Links(empty, selection.redundancy.new_empty(empty.shape))
            else:
                links = self.correlate(seen, selection, layout, given=given)
            placed = ops.to_sequence(layout.visual, selection.sources, selection.kept, links.targets, tokens.shape[1])
        chosen = Selection(selection.redundancy, placed.sources, placed.kept)
        linked = Links(placed.targets, links.weights)
        merged = self.compress(tokens, chosen, linked, size=size, size_weighted=size_weighted)
        return Shortened(*merged, *chosen[:3], *linked[:2], placed.visual)


def _disguised(attn: Tensor, reduce: str) -> QueryKey:
    """A map as the product of itself with the identity, so that the operators on query and key take it as it is.

    Args:
        attn: (B, N, N) or (B, H, N, N). reduce: what is taken of the heads, ``"mean"`` or ``"max"``.
    """
    heads = attn if attn.dim() == 3 else attn.to(ops.result_dtype(attn))
    if attn.dim() == 4:
        heads = heads.amax(1) if reduce == "max" else heads.mean(1)
    b, n, _ = heads.shape
    identity = torch.eye(n, dtype=heads.dtype, device=heads.device)
    return QueryKey(heads.unsqueeze(1), identity.expand(b, 1, n, n), 1.0)
