"""Correlate: which kept patches inherit the sources, and with what weight (FiCoCo, arXiv 2411.17686, eq. 2)."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import ops
from ..ops import Attention, QueryKey, costs
from . import needs
from .base import CorrelateStage, Links, Selection
from .frozen import reject, require_number, require_one_of, value
from .shape import Priced, Shape


def adaptive_targets(candidates: int, eps: float) -> int:
    """How many of ``candidates`` distinct values reach their own ``eps``-quantile (linear interpolation).

    This is FiCoCo's token-adaptive K. Without ties it is the same for every row, so it is known before anything runs:
    ``m - ceil(eps * (m - 1))``, that is 1, 1, 2, 2, 6 for m = 64, 145, 576, 577, 2880 at eps = 0.998. Among equal
    values the lowest indices are taken until the count is reached.

    Example:
        >>> [adaptive_targets(m, 0.998) for m in (64, 145, 576, 577, 2880)]
        [1, 1, 2, 2, 6]
    """
    return candidates - math.ceil(eps * (candidates - 1) - 1e-9)


def targets_in_words(targets: str | int) -> str:
    """How many targets a source has, in words.

    Example:
        >>> from ficoco_ext.stages.correlate import targets_in_words
        >>> targets_in_words("adaptive"), targets_in_words(1), targets_in_words(3)
        ('those above the quantile', 'the best one', 'the 3 best')
    """
    if targets == "adaptive":
        return "those above the quantile"
    return f"the {targets} best" if targets != 1 else "the best one"


@value
class Correlate(CorrelateStage):
    """Finds who inherits each source: the kept patches it correlates with most.

    Args:
        by: ``"attention"`` (the source's row, as the paper has it), ``"key"`` (cosine of head-mean keys; needs a
            QueryKey) or ``"convergent"`` (all sources go into one token: the most redundant patch that is kept is its
            host, the lowest index of equal ones, and gives its slot for it, so as many tokens stay as ever; the class
            token never is. One target has weight 1, whatever ``eps``, ``alpha`` and ``attention`` say).
        targets: ``"adaptive"`` (the row's ``eps``-quantile) or a fixed number; 0 drops the sources.
        eps: quantile in [0, 1] for adaptive targets.
        alpha: weights of a source's targets: ``"softmax"`` of the correlations, their ``"ratio"`` (probabilities only)
            or ``"average"`` (1 / k each).
        attention: as in :class:`Filter`.
    """

    by: str = "attention"
    targets: str | int = "adaptive"
    eps: float = 0.998
    alpha: str = "softmax"
    attention: str = "logits"

    def __post_init__(self) -> None:
        require_one_of("Correlate", "by", self.by, ("attention", "key", "convergent"))
        require_one_of("Correlate", "alpha", self.alpha, ("softmax", "ratio", "average"))
        require_one_of("Correlate", "attention", self.attention, ("logits", "probs"))
        require_number("Correlate", "eps", self.eps, 0, 1)
        fixed = isinstance(self.targets, int) and not isinstance(self.targets, bool) and self.targets >= 0
        if self.targets != "adaptive" and not fixed:
            reject("Correlate", "targets", "'adaptive' or an integer >= 0", self.targets)
        if self.by == "convergent":
            require_one_of("Correlate", "targets", self.targets, ("adaptive", 1))
            return
        if self.alpha == "ratio" and self.targets != 0 and (self.by == "key" or self.attention == "logits"):
            raise ValueError(
                "Correlate: alpha='ratio' divides correlations by their sum and needs non-negative ones; use "
                "attention='probs' with correlation='attention', or alpha='softmax'"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys, if it compares them."""
        return (needs.QUERY_AND_KEY,) if self.by == "key" else ()

    @property
    def reads(self) -> str | None:
        """The kind of attention, if it reads any."""
        return self.attention if self.by == "attention" and self.targets != 0 else None

    @property
    def drops(self) -> bool:
        """No targets."""
        return self.targets == 0

    def describe(self) -> str:
        """Who inherits a source."""
        return self.in_words("keys")

    def in_words(self, keys: str) -> str:
        """Who inherits a source, with a word for what it compares by ``by="key"``."""
        if self.drops:
            return "none"
        if self.by == "convergent":
            return "one token for all"
        how = f"cosine of {keys}" if self.by == "key" else f"attention ({self.attention})"
        return f"{targets_in_words(self.targets)} by {how}"

    def operations(self, shape: Shape) -> list[Priced]:
        """The correlations of the sources; none if there is nothing to choose."""
        if self.by == "convergent" or not self.count(shape.kept):
            return []
        return [shape.price(costs.correlate("key" if self.by == "key" else self.attention))]

    def fused(self) -> dict[str, Any] | None:
        """How it correlates; one token for all is not among what the operator can do."""
        if self.by == "convergent":
            return None
        return {"correlation": "key" if self.by == "key" else self.attention, "alpha": self.alpha}

    def count(self, candidates: int) -> int:
        """Targets per source when ``candidates`` patches are kept."""
        if self.by == "convergent":
            return 1
        return adaptive_targets(candidates, self.eps) if isinstance(self.targets, str) else self.targets

    def check(self, attn: Attention) -> None:
        """Raise if this attention lacks what the correlations need."""
        if self.by == "key" and self.targets != 0 and not isinstance(attn, QueryKey):
            raise ValueError("Correlate: correlation='key' compares keys, and a map holds none; pass a QueryKey")

    def __call__(self, attn: Attention, selection: Selection, *, class_token: bool) -> Links:
        """Targets and weights of the selected sources."""
        self.check(attn)
        sources, kept = selection.sources, selection.kept
        if self.by == "convergent":
            return into_the_most_redundant(selection, class_token)
        k = self.count(kept.shape[1] - int(class_token))
        if k == 0:
            return Links(sources.new_empty(*sources.shape, 0), selection.redundancy.new_empty(*sources.shape, 0))
        if self.by == "key":
            assert isinstance(attn, QueryKey)
            return Links(*ops.correlate_key(attn.key, sources, kept, k, alpha=self.alpha, class_token=class_token))
        probs = self.attention == "probs"
        return Links(*ops.correlate(attn, sources, kept, k, alpha=self.alpha, class_token=class_token, probs=probs))


def into_the_most_redundant(selection: Selection, class_token: bool) -> Links:
    """Every source into the kept patch of highest redundancy, of equal ones that of the lowest index."""
    first, redundancy = int(class_token), selection.redundancy
    host = redundancy.gather(1, selection.kept[:, first:] - first).argmax(1, keepdim=True) + first
    targets = host.unsqueeze(-1).repeat(1, selection.sources.shape[1], 1)
    return Links(targets, torch.ones_like(targets, dtype=redundancy.dtype))
