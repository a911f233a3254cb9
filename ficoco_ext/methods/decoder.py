"""A method inside a language model: stages and a name, applied to one layer's sequence of text and visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import Attention, QueryKey
from ..reduction import Reduction
from ..stages import Compress, DecoderCorrelate, DecoderFilter, LastTokenFilter, Layout, Links, Selection
from ..stages.frozen import value
from .base import AnyMethod, LanguageMethod, TowerMethod


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
        source: where it comes from.
    """

    name: str
    filter: DecoderFilter | LastTokenFilter
    correlate: DecoderCorrelate | None
    compress: Compress
    layers: Callable[[int], tuple[int, ...]]
    amount: tuple[tuple[str, Any], ...] = ()
    rounding: str = "half_up"
    before_attention: bool = False
    source: str = ""

    @property
    def drops(self) -> bool:
        """What leaves is dropped: it goes into no other token."""
        return self.correlate is None

    @property
    def mixed(self) -> bool:
        """Filter and correlation read different kinds of attention."""
        correlate = self.correlate
        if not isinstance(correlate, DecoderCorrelate) or correlate.targets == 0:
            return False
        return getattr(self.filter, "attention", correlate.attention) != correlate.attention

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
            The reduction, told in the columns of ``tokens``, and the columns (B, n - r) that the visual tokens which
            are left have in the shorter sequence.
        """
        given = isinstance(attn, Tensor)
        if given and self.mixed:
            raise ValueError(
                f"{self.name}: attn must be a QueryKey: the filter reads one kind of attention, correlation another "
                "and a map has one; pass ficoco_ext.QueryKey(query, key), or the same attention for both"
            )
        with torch.no_grad():  # selection and weights are constants of the gradient
            seen = _disguised(attn) if isinstance(attn, Tensor) else attn
            selection = self.filter(seen, r, layout, given=given)
            if self.correlate is None:
                empty = selection.sources.new_empty(*selection.sources.shape, 0)
                links = Links(empty, selection.redundancy.new_empty(empty.shape))
            else:
                links = self.correlate(seen, selection, layout, given=given)
            placed = ops.to_sequence(layout.visual, selection.sources, selection.kept, links.targets, tokens.shape[1])
        chosen = Selection(selection.redundancy, placed.sources, placed.kept)
        merged = self.compress(
            tokens, chosen, Links(placed.targets, links.weights), size=size, size_weighted=size_weighted
        )
        reduction = Reduction(
            tokens=merged[0],
            size=merged[1],
            kept=placed.kept,
            sources=placed.sources,
            source_map=merged[2],
            targets=placed.targets,
            weights=links.weights,
            class_token=False,
            grid=None,
        )
        return reduction, placed.visual


def _disguised(attn: Tensor) -> QueryKey:
    """A map as the product of itself with the identity, so that the operators on query and key take it as it is."""
    heads = attn if attn.dim() == 3 else attn.to(ops.result_dtype(attn)).mean(1)
    b, n, _ = heads.shape
    identity = torch.eye(n, dtype=heads.dtype, device=heads.device)
    return QueryKey(heads.unsqueeze(1), identity.expand(b, 1, n, n), 1.0)


@value
class VisionAndDecoder(AnyMethod):
    """Two reductions of one model: one in its vision tower, one in its language model.

    Args:
        vision, decoder: the two methods. How much each removes unless ``amount`` says so is not taken from them.
        amount: what attach and cost take for ``keep_ratio`` or ``tokens`` of both together where they are given none.

    Example:
        >>> from ficoco_ext.methods import VisionAndDecoder
        >>> from ficoco_ext import get_method
        >>> both = VisionAndDecoder(get_method("topk"), get_method("fastv"))
    """

    vision: TowerMethod
    decoder: LanguageMethod
    amount: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:  # type: ignore[override]
        """The names of both."""
        return f"{self.vision.name} + {self.decoder.name}"

    @property
    def source(self) -> str:
        """Where both come from."""
        return "; ".join(dict.fromkeys((self.vision.source, self.decoder.source)))

    @property
    def tower(self) -> TowerMethod:
        """The method of the vision tower."""
        return self.vision

    @property
    def language_model(self) -> LanguageMethod:
        """The method of the language model."""
        return self.decoder
