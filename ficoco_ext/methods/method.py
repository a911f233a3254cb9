"""A method: stages and a name, applied to one layer's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import Attention, Reduced
from ..reduction import Reduction
from ..stages import CorrelateStage, FilterStage, Links, Priced, Selection, Shape, needs
from ..stages.frozen import value
from .base import LayerMethod, Words
from .composition import Stages, fused_settings, operations, stage_needs, targets, words


def square_grid(patches: int) -> tuple[int, int] | None:
    """(s, s) if ``patches`` is s * s, else None."""
    side = torch.sym_int(patches**0.5 + 0.5)  # math.isqrt would not trace with a symbolic size
    return (side, side) if side * side == patches else None


@value
class Method(LayerMethod):
    """A token-reduction method: Filter, Correlate, Compress.

    Args:
        name: what it is called in messages.
        filter: chooses who leaves.
        correlate: finds who inherits each of them; None if the filter, such as :class:`Match`, says that too.
        compress: merges.
        source: where it comes from.
        proportional_attention: in a model, layers after a reduction of this method count each survivor as many times
            as the original tokens it stands for: log(size) is added to the logits of its key.
        layers: function (number of a tower's layers that are used) -> the layers that reduce, where attach is given
            none; None: the second half of the tower.
        amount: what attach and cost take for ``r``, ``keep_ratio`` or ``tokens`` where they are given none of them.
        after_mlp: in a model a layer reduces after its MLP, on what leaves the layer, instead of between its attention
            and its MLP.

    Example:
        >>> from ficoco_ext.stages import Compress, Correlate, Filter
        >>> from ficoco_ext import Method
        >>> prune = Method("prune", Filter(lam=0, attention="probs", penalty=1), Correlate(targets=0), Compress())
    """

    name: str
    filter: Callable[..., Selection]
    correlate: Callable[..., Links] | None
    compress: Callable[..., tuple[Tensor, Tensor, Tensor]]
    source: str = ""
    proportional_attention: bool = False
    layers: Callable[[int], tuple[int, ...]] | None = None
    amount: tuple[tuple[str, Any], ...] = ()
    after_mlp: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """What its stages need, and the attention of a model with proportional attention."""
        own = (needs.PLAIN_ATTENTION,) if self.proportional_attention else ()
        return stage_needs(self.filter, self.correlate, self.compress, *own)

    def describe(self) -> Words:
        """Its stages in words."""
        return words(self.filter, self.correlate, self.compress)

    def operations(self, shape: Shape) -> list[Priced]:
        """What its stages call for one reduction."""
        return operations(self.filter, self.correlate, self.compress, shape)

    def parts(self, tokens: int, r: int, *, class_token: bool) -> tuple[tuple[Method, int], ...]:
        """Who removes how many of the ``r`` that are to leave ``tokens`` tokens: this one all of them."""
        return ((self, r),)

    @property
    def unit(self) -> int:
        """What its filter says."""
        return FilterStage.of(self.filter).unit

    @property
    def limit(self) -> str:
        """What its filter says."""
        return FilterStage.of(self.filter).limit

    def largest(self, tokens: int, *, class_token: bool) -> int:
        """The most of ``tokens`` tokens that can leave at once."""
        return FilterStage.of(self.filter).largest(tokens, class_token=class_token)

    def targets(self, candidates: int) -> int | None:
        """Targets of each source when ``candidates`` patches are kept; None: not known before it runs."""
        return targets(self.filter, self.correlate, candidates)

    def places(self, grid: tuple[int, int], count: int) -> tuple[int, ...] | None:
        """What its filter says."""
        return FilterStage.of(self.filter).places(grid, count)

    def __call__(
        self,
        tokens: Tensor,
        attn: Attention,
        r: int,
        *,
        class_token: bool = True,
        grid: tuple[int, int] | None = None,
        size: Tensor | None = None,
        previous: Reduction | None = None,
    ) -> Reduction:
        """Remove ``r`` tokens; see :func:`ficoco_ext.reduce`, which checks the arguments first."""
        n = tokens.shape[1]
        if previous is not None:
            grid = previous.grid
        elif grid is None:
            grid = square_grid(n - int(class_token))
        weighted = size is not None
        if size is None and previous is not None:
            size = previous.size
        if r == 0:
            result = identity(tokens, size, class_token, grid)
        else:
            ids = None if previous is None else previous.patch_ids
            stages = self.filter, self.correlate, self.compress
            gradients = tokens.requires_grad and torch.is_grad_enabled()
            settings = None if gradients else fused_settings(*stages)
            given: dict[str, Any] = {"class_token": class_token, "ids": ids, "grid": grid, "size": size}
            if settings is None:
                done = _stage_by_stage(tokens, attn, r, stages, **given, size_weighted=weighted)
            else:
                settings["size_weighted"] = settings["size_weighted"] or weighted
                done = _at_once(tokens, attn, r, stages, **given, **settings)
            result = Reduction(
                tokens=done.tokens,
                size=done.size,
                kept=done.kept,
                sources=done.sources,
                source_map=done.source_map,
                targets=done.targets,
                weights=done.weights,
                class_token=class_token,
                grid=grid,
            )
        return result if previous is None else result.after(previous)


def _at_once(
    tokens: Tensor,
    attn: Attention,
    r: int,
    stages: Stages,
    *,
    class_token: bool,
    grid: tuple[int, int] | None,
    **settings: Any,
) -> Reduced:
    """What the three stages give one after the other, in one call. Without gradients."""
    filter, correlate = FilterStage.of(stages[0]), CorrelateStage.of(stages[1])
    filter.check(attn, class_token=class_token, grid=grid)
    correlate.check(attn)
    k = correlate.count(tokens.shape[1] - r - int(class_token))
    assert k is not None, "a stage with fused settings knows its targets"
    return ops.reduce(tokens, attn, r, k, class_token=class_token, grid=grid, **settings)


def _stage_by_stage(
    tokens: Tensor,
    attn: Attention,
    r: int,
    stages: Stages,
    *,
    class_token: bool,
    ids: Tensor | None,
    grid: tuple[int, int] | None,
    size: Tensor | None,
    size_weighted: bool,
) -> Reduced:
    filter, correlate, compress = stages
    with torch.no_grad():  # selection and weights are constants of the gradient
        seen = tokens if FilterStage.of(filter).reads_tokens else attn
        selection = filter(seen, r, class_token=class_token, ids=ids, grid=grid)
        links = selection.links if correlate is None else correlate(attn, selection, class_token=class_token)
    if links is None:
        raise ValueError(
            "Method: correlate is None, and the filter does not say where its sources go; pass a Correlate"
        )
    merged, sizes, source_map = compress(tokens, selection, links, size=size, size_weighted=size_weighted)
    chosen = selection.redundancy, selection.sources, selection.kept
    return Reduced(merged, sizes, source_map, *chosen, links.targets, links.weights)


def identity(tokens: Tensor, size: Tensor | None, class_token: bool, grid: tuple[int, int] | None) -> Reduction:
    """What r = 0 gives: the same tokens in a new tensor, every token holding itself."""
    b, n = tokens.shape[:2]
    dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    own = torch.arange(n, device=tokens.device).repeat(b, 1)
    return Reduction(
        tokens=tokens.clone(memory_format=torch.contiguous_format),
        size=tokens.new_ones(b, n, 1, dtype=dtype) if size is None else size.to(dtype, copy=True),
        kept=own,
        sources=own.new_empty(b, 0),
        source_map=own.clone(),
        targets=own.new_empty(b, 0, 1),
        weights=tokens.new_empty(b, 0, 1, dtype=dtype),
        class_token=class_token,
        grid=grid,
    )
