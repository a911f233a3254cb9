"""A method: stages and a name, applied to one layer's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..ops import Attention, Reduced
from ..reduction import Reduction
from ..stages import CompressStage, CorrelateStage, FilterStage, Layout, reduce_at_once, runs_at_once
from ..stages.frozen import value


def square_grid(patches: int) -> tuple[int, int] | None:
    """(s, s) if ``patches`` is s * s, else None."""
    side = torch.sym_int(patches**0.5 + 0.5)  # math.isqrt would not trace with a symbolic size
    return (side, side) if side * side == patches else None


class AnyMethod:
    """What every method is, whatever it is made of: ask this, not which class it is.

    Attributes:
        name: what it is called in messages.
        source: where it comes from.
        amount: what attach and cost take for ``r``, ``keep_ratio`` or ``tokens`` where they are given none of them, as
            pairs of name and value; empty: an amount has to be given.
        tower, language_model: its two parts, of which one may be None.
    """

    name: str

    @property
    def source(self) -> str:
        """Where it comes from."""
        return ""

    @property
    def amount(self) -> tuple[tuple[str, Any], ...]:
        """What is removed where nothing is said."""
        return ()

    @property
    def tower(self) -> TowerMethod | None:
        """The part that acts in the vision tower, or None."""
        return None

    @property
    def language_model(self) -> LanguageMethod | None:
        """The part that acts in the language model, or None."""
        return None


class TowerMethod(AnyMethod):
    """A method of the vision tower.

    Attributes:
        layers: function (number of a tower's layers that are used) -> the layers that reduce, where attach is given
            none; None: the second half of the tower.
        varies: it does not do the same in each layer, so it cannot be one of a sequence with one method a layer.
    """

    varies: ClassVar[bool] = False

    @property
    def layers(self) -> Callable[[int], tuple[int, ...]] | None:
        """No layers of its own."""
        return None

    @property
    def tower(self) -> TowerMethod:
        """This method."""
        return self

    def of_layers(self, count: int) -> tuple[LayerMethod, ...]:
        """One method for each of ``count`` reducing layers."""
        raise NotImplementedError


class LayerMethod(TowerMethod):
    """A method of the vision tower that does the same in each layer, and so can be applied to one."""

    @property
    def proportional_attention(self) -> bool:
        """Whether later layers count each token as many times as the original ones it stands for."""
        return False

    def of_layers(self, count: int) -> tuple[LayerMethod, ...]:
        """One method for each of ``count`` reducing layers: this one."""
        return (self,) * count

    def parts(self, tokens: int, r: int, *, class_token: bool) -> tuple[tuple[Method, int], ...]:
        """Who removes how many of the ``r`` that are to leave ``tokens`` tokens."""
        raise NotImplementedError

    @property
    def whole_grid(self) -> bool:
        """Whether nothing may have left before it reduces, as with pooling."""
        return False

    def largest(self, tokens: int, *, class_token: bool) -> int:
        """The most of ``tokens`` tokens that can leave at once."""
        return max(tokens - class_token - 1, 0)

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
        raise NotImplementedError


class LanguageMethod(AnyMethod):
    """A method of the language model; its attributes are those of :class:`ficoco_ext.methods.DecoderMethod`."""

    layers: Callable[[int], tuple[int, ...]]

    @property
    def language_model(self) -> LanguageMethod:
        """This method."""
        return self

    @property
    def rounding(self) -> str:
        """How survivors of a ratio are rounded."""
        return "half_up"

    @property
    def before_attention(self) -> bool:
        """Whether a layer reduces before its attention."""
        return False

    @property
    def drops(self) -> bool:
        """Whether what leaves goes into no other token."""
        return False

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
        """Remove ``r`` >= 1 visual tokens; see :class:`ficoco_ext.methods.DecoderMethod`."""
        raise NotImplementedError


@value
class Method(LayerMethod):
    """A token-reduction method: Filter, Correlate, Compress.

    Args:
        name: what it is called in messages.
        filter: chooses who leaves.
        correlate: finds who inherits each of them; None if the filter, such as :class:`Match`, says that too.
        compress: merges.
        source: where it comes from.
        proportional_attention: in a model, layers behind a reduction of this method count each survivor as many times
            as the original tokens it stands for: log(size) is added to the logits of its key.
        layers: function (number of a tower's layers that are used) -> the layers that reduce, where attach is given
            none; None: the second half of the tower.
        amount: what attach and cost take for ``r``, ``keep_ratio`` or ``tokens`` where they are given none of them.

    Example:
        >>> from ficoco_ext.stages import Compress, Correlate, Filter
        >>> from ficoco_ext import Method
        >>> prune = Method("prune", Filter(lam=0, attention="probs", penalty=1), Correlate(targets=0), Compress())
    """

    name: str
    filter: FilterStage
    correlate: CorrelateStage | None
    compress: CompressStage
    source: str = ""
    proportional_attention: bool = False
    layers: Callable[[int], tuple[int, ...]] | None = None
    amount: tuple[tuple[str, Any], ...] = ()

    def parts(self, tokens: int, r: int, *, class_token: bool) -> tuple[tuple[Method, int], ...]:
        """Who removes how many of the ``r`` that are to leave ``tokens`` tokens: this one all of them."""
        return ((self, r),)

    @property
    def whole_grid(self) -> bool:
        """Whether nothing may have left before it reduces, as with pooling."""
        return bool(getattr(self.filter, "whole_grid", False))

    def largest(self, tokens: int, *, class_token: bool) -> int:
        """The most of ``tokens`` tokens that can leave at once."""
        own = getattr(self.filter, "largest", None)
        return max(tokens - class_token - 1, 0) if own is None else own(tokens, class_token=class_token)

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
            stages: Any = (self.filter, self.correlate, self.compress)
            gradients = tokens.requires_grad and torch.is_grad_enabled()
            run = reduce_at_once if runs_at_once(stages) and not gradients else _stage_by_stage
            done = run(
                tokens, attn, r, stages, class_token=class_token, ids=ids, grid=grid, size=size, size_weighted=weighted
            )
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


def _stage_by_stage(
    tokens: Tensor,
    attn: Attention,
    r: int,
    stages: tuple[FilterStage, CorrelateStage | None, CompressStage],
    *,
    class_token: bool,
    ids: Tensor | None,
    grid: tuple[int, int] | None,
    size: Tensor | None,
    size_weighted: bool,
) -> Reduced:
    filter, correlate, compress = stages
    with torch.no_grad():  # selection and weights are constants of the gradient
        selection = filter(attn, r, class_token=class_token, ids=ids, grid=grid)
        links = selection.links if correlate is None else correlate(attn, selection, class_token=class_token)
    if links is None:
        raise ValueError(
            "Method: correlate is None, and the filter does not say where its sources go; pass a Correlate"
        )
    merged = compress(tokens, selection, links, size=size, size_weighted=size_weighted)
    chosen = selection.redundancy, selection.sources, selection.kept
    return Reduced(*merged, *chosen, links.targets, links.weights)


def identity(tokens: Tensor, size: Tensor | None, class_token: bool, grid: tuple[int, int] | None) -> Reduction:
    """What r = 0 gives: the same tokens in a new tensor, everyone holding itself."""
    b, n = tokens.shape[:2]
    dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    everyone = torch.arange(n, device=tokens.device).repeat(b, 1)
    return Reduction(
        tokens=tokens.clone(memory_format=torch.contiguous_format),
        size=tokens.new_ones(b, n, 1, dtype=dtype) if size is None else size.to(dtype, copy=True),
        kept=everyone,
        sources=everyone.new_empty(b, 0),
        source_map=everyone.clone(),
        targets=everyone.new_empty(b, 0, 1),
        weights=tokens.new_empty(b, 0, 1, dtype=dtype),
        class_token=class_token,
        grid=grid,
    )
