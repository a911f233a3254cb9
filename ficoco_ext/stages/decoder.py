"""The stages of methods inside a language model, where visual tokens stand among text.

As in :mod:`ficoco_ext.stages`, each is a frozen dataclass that is called once per reduction and reads no device. A
filter speaks of indices in the list of visual tokens; so does a correlate. :class:`Layout` says where in the sequence
they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import Attention, QueryKey, checks, costs, sequence
from . import needs
from .base import CorrelateStage, FilterStage, Links, Selection
from .correlate import adaptive_targets, targets_in_words
from .frozen import reject, require_number, require_one_of, value
from .shape import Priced, Shape


@dataclass(frozen=True, eq=False)
class Layout:
    """Where things are in a sequence. What it does not hold is computed when it is asked for.

    Attributes:
        visual: (B, n) columns of the visual tokens, ascending.
        tokens: the number of columns.
        real: (B, tokens) bool, False for padding; None: all are real.
        after: the most columns that any row has after its visual tokens; None: as many as are not visual.
        ids, grid: position of each visual token on the picture's grid (None: all of it, in order), for a local penalty.
        marks: (B, tokens) what a filter noted of each column before the first layer, see :meth:`FilterStage.mark`.
        hidden: (B, tokens, C) the hidden states that are reduced.
        norm: the norm that the language model applies to hidden states after its last layer; None: unknown.
        protected: (B, n) bool, which visual tokens are the key set, which leaves last; None: unknown.
    """

    visual: Tensor
    tokens: int
    real: Tensor | None = None
    after: int | None = None
    ids: Tensor | None = None
    grid: tuple[int, int] | None = None
    marks: Tensor | None = None
    hidden: Tensor | None = None
    norm: Callable[[Tensor], Tensor] | None = None
    protected: Tensor | None = None

    @property
    def text_after(self) -> sequence.Text:
        """Columns (B, R) among which the text after the visual tokens is, and which of them are it."""
        return sequence.text_after(self.visual, self.tokens, self.real, self.after)

    @property
    def text(self) -> Tensor:
        """(B, R) columns among which the text after the visual tokens is."""
        return self.text_after.columns

    @property
    def is_text(self) -> Tensor:
        """(B, R) which of them are that text."""
        return self.text_after.chosen

    @property
    def last(self) -> Tensor:
        """(B, 1) column of the last real token."""
        return sequence.last_token(self.visual, self.tokens, self.real)

    def require(self, r: int) -> None:
        """Raise unless ``r`` of the visual tokens can leave, so that one stays."""
        n = self.visual.shape[1]
        if not 0 <= r < n:
            checks.fail("reduce", "r", f"in [0, {n - 1}] for {n} visual tokens", str(r), "at least one stays")

    @classmethod
    def of(
        cls,
        visual: Tensor,
        tokens: int,
        real: Tensor | None = None,
        *,
        after: int | None = None,
        ids: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        marks: Tensor | None = None,
        norm: Callable[[Tensor], Tensor] | None = None,
        protected: Tensor | None = None,
    ) -> Layout:
        """The layout of ``tokens`` columns with visual ones at ``visual``. Reads no device."""
        return cls(visual, tokens, real, after, ids, grid, marks, norm=norm, protected=protected)


@value
class DecoderFilter(FilterStage):
    """Names the r most redundant visual tokens: beta * attention among them - (1 - beta) * attention with the text.

    With logits both terms are what a visual token gives (rows), as FiCoCo eq. 3 and the released code have it: logits
    know no mask. Of probabilities under a causal mask a visual token gives nothing to later text, so there both terms
    are what it receives (columns). Under that mask an early token can be read by more of the others than a late one and
    so receives more, which a mean over all of them, eq. 3's, does not make up for: early tokens count as more
    redundant. Without text after the visual tokens the first term is left.

    Args:
        beta: weight of visual attention in [0, 1].
        attention: ``"logits"`` or ``"probs"``.
        visual_reduce, text_reduce: ``"mean"`` or ``"sum"`` over the visual and over the text tokens.
        penalty, window: as of :class:`ficoco_ext.stages.Filter`; 1 is off, the paper's choice for the decoder.
    """

    beta: float = 0.6
    attention: str = "logits"
    visual_reduce: str = "mean"
    text_reduce: str = "mean"
    penalty: float = 1.0
    window: int = 2

    def __post_init__(self) -> None:
        require_number("DecoderFilter", "beta", self.beta, 0, 1)
        require_one_of("DecoderFilter", "attention", self.attention, ("logits", "probs"))
        for field in ("visual_reduce", "text_reduce"):
            require_one_of("DecoderFilter", field, getattr(self, field), ("mean", "sum"))
        require_number("DecoderFilter", "penalty", self.penalty, 1, math.inf)
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            reject("DecoderFilter", "window", "an integer >= 1", self.window)

    @property
    def needs(self) -> tuple[str, ...]:
        """The grid, for the penalty."""
        return () if self.penalty == 1 else (needs.GRID,)

    @property
    def reads(self) -> str:
        """The kind of attention."""
        return self.attention

    def describe(self) -> str:
        """What makes a visual token redundant."""
        share = f"{self.beta:g} of visual attention, less {1 - self.beta:g} of attention with the text"
        return f"{share} ({self.attention})"

    def remedy(self, need: str) -> str:
        """Which term to leave out."""
        return "pass penalty=1" if need == needs.GRID else super().remedy(need)

    def operations(self, shape: Shape) -> list[Priced]:
        """Attention with visual tokens and with the text."""
        probs = self.attention == "probs"
        operation = costs.token_attention(probs=probs, column=probs)
        return [shape.price(operation, o=shape.visual + shape.text, j=2)]

    def fused_in_sequence(self) -> dict[str, Any]:
        """All of its fields."""
        return {
            "ranking": self.attention,
            "beta": self.beta,
            "visual_reduce": self.visual_reduce,
            "text_reduce": self.text_reduce,
            "penalty": self.penalty,
            "window": self.window,
        }

    def check(self, attn: Attention, *, class_token: bool, grid: tuple[int, int] | None) -> None:
        """Raise if the local penalty lacks its grid."""
        if self.penalty != 1 and grid is None:
            raise ValueError(
                "DecoderFilter: the local penalty needs the visual tokens' grid; pass grid=(height, width), or "
                "penalty=1 to switch it off"
            )

    def __call__(self, attn: QueryKey, r: int, layout: Layout, *, given: bool = False) -> Selection:
        """Select r sources. ``given``: the attention is a map in disguise, whose values are used as they are."""
        layout.require(r)
        self.check(attn, class_token=False, grid=layout.grid)
        among, text = sequence.visual_scores(
            attn,
            layout.visual,
            sequence.Text(layout.text, layout.is_text),
            layout.real,
            probs=self.attention == "probs",
            given=given,
            visual_reduce=self.visual_reduce,
            text_reduce=self.text_reduce,
        )
        return Selection(
            *ops.filter(
                among,
                text,
                r,
                lam=self.beta,
                penalty=self.penalty,
                window=self.window,
                ids=layout.ids,
                grid=layout.grid,
                class_token=False,
            )
        )


@value
class LastTokenFilter(FilterStage):
    """Drops the r visual tokens that the last real token attends to least (FastV, PyramidDrop)."""

    def describe(self) -> str:
        """Whose attention it ranks by."""
        return "least attention of the last token"

    def operations(self, shape: Shape) -> list[Priced]:
        """The last token's row."""
        return [shape.price(costs.token_attention(probs=True, column=True), o=1, j=1)]

    def fused_in_sequence(self) -> dict[str, Any]:
        """There is nothing to choose."""
        return {"ranking": "last"}

    def __call__(self, attn: QueryKey, r: int, layout: Layout, *, given: bool = False) -> Selection:
        """Select r sources."""
        layout.require(r)
        received = sequence.last_token_scores(attn, layout.visual, layout.last, layout.real, given=given)
        return Selection(*ops.filter(torch.zeros_like(received), received, r, lam=0.0, class_token=False))


@value
class DecoderCorrelate(CorrelateStage):
    """Finds who inherits each source: directly, and by way of the text (FiCoCo eq. 4).

    C_ij = gamma * A_ij + (1 - gamma) * sum over text k of A_ik A_kj; of probabilities, where A_ik is 0 under a causal
    mask, A_ki A_kj: the text reads both.

    Args:
        gamma: weight of the direct attention in [0, 1]; 1 ignores the text.
        indirect_reduce: ``"sum"`` or ``"mean"`` over the text.
        targets: ``"adaptive"`` or a fixed number, at most as many as are kept: prompts differ in their images.
        eps, alpha, attention: as of :class:`ficoco_ext.stages.Correlate`.
    """

    gamma: float = 0.6
    indirect_reduce: str = "sum"
    targets: str | int = "adaptive"
    eps: float = 0.998
    alpha: str = "softmax"
    attention: str = "logits"

    def __post_init__(self) -> None:
        require_number("DecoderCorrelate", "gamma", self.gamma, 0, 1)
        require_one_of("DecoderCorrelate", "indirect_reduce", self.indirect_reduce, ("sum", "mean"))
        require_one_of("DecoderCorrelate", "alpha", self.alpha, ("softmax", "ratio", "average"))
        require_one_of("DecoderCorrelate", "attention", self.attention, ("logits", "probs"))
        require_number("DecoderCorrelate", "eps", self.eps, 0, 1)
        fixed = isinstance(self.targets, int) and not isinstance(self.targets, bool) and self.targets >= 0
        if self.targets != "adaptive" and not fixed:
            reject("DecoderCorrelate", "targets", "'adaptive' or an integer >= 0", self.targets)
        if self.alpha == "ratio" and self.targets != 0 and self.attention == "logits":
            raise ValueError(
                "DecoderCorrelate: alpha='ratio' divides correlations by their sum and needs non-negative ones; use "
                "attention='probs', or alpha='softmax'"
            )

    @property
    def reads(self) -> str | None:
        """The kind of attention, if it reads any."""
        return None if self.drops else self.attention

    @property
    def drops(self) -> bool:
        """No targets."""
        return self.targets == 0

    def describe(self) -> str:
        """Who inherits a source."""
        if self.drops:
            return "none"
        way = " and by way of the text" if self.gamma < 1 else ""
        return f"{targets_in_words(self.targets)} by attention{way} ({self.attention})"

    def operations(self, shape: Shape) -> list[Priced]:
        """The correlations of the sources, direct ones and those by way of the text."""
        if not self.count(shape.kept):
            return []
        operation = costs.correlate_tokens(probs=self.attention == "probs")
        return [shape.price(operation, e=shape.text if self.gamma < 1 else 0)]

    def fused_in_sequence(self) -> dict[str, Any]:
        """All that decides who inherits, but their number."""
        return {
            "correlation": self.attention,
            "gamma": self.gamma,
            "indirect_reduce": self.indirect_reduce,
            "alpha": self.alpha,
        }

    def count(self, candidates: int) -> int:
        """Targets per source when ``candidates`` visual tokens are kept."""
        if isinstance(self.targets, str):
            return adaptive_targets(candidates, self.eps)
        return min(self.targets, candidates)

    def __call__(self, attn: QueryKey, selection: Selection, layout: Layout, *, given: bool = False) -> Links:
        """Targets, indices among the kept visual tokens, and weights of the selected sources."""
        sources, kept = selection.sources, selection.kept
        k = self.count(kept.shape[1])
        if k == 0:
            return Links(sources.new_empty(*sources.shape, 0), selection.redundancy.new_empty(*sources.shape, 0))
        probs = self.attention == "probs"
        return Links(
            *ops.correlate_tokens(
                attn,
                layout.visual.gather(1, sources),
                layout.visual.gather(1, kept),
                layout.text,
                sequence.shares(layout.is_text, self.indirect_reduce, selection.redundancy.dtype),
                k,
                gamma=self.gamma,
                alpha=self.alpha,
                probs=probs and not given,
                column=probs,
                causal=probs and not given,
                key_mask=layout.real,
            )
        )
