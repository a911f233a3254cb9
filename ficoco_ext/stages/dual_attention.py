"""Visual tokens leave that the text reads little as a whole, and no word reads much (MustDrop, arXiv 2411.10803)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import Attention, QueryKey, costs, sequence
from . import needs
from .base import FilterStage, Selection
from .decoder import Layout
from .frozen import reject, require_number, require_one_of, value
from .shape import Priced, Shape


def key_count(share: float, tokens: int) -> int:
    """ceil(``share`` ``tokens``), without the luck of 0.55 * 440 = 242.00000000000003."""
    return math.ceil(share * tokens - 1e-9)


def key_set(class_attention: Tensor, rate: float) -> Tensor:
    """(B, n) bool: the ceil(``rate`` n) tokens of each picture that the class token attends to most.

    Of equal ones the first.

    Args:
        class_attention: (B, n). rate: in [0, 1].

    Example:
        >>> import torch
        >>> from ficoco_ext.stages.dual_attention import key_set
        >>> key_set(torch.tensor([[0.1, 0.5, 0.5, 0.2]]), 0.3)
        tensor([[False,  True,  True, False]])
    """
    count = key_count(rate, class_attention.shape[1])
    chosen = class_attention.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(class_attention, dtype=torch.bool).scatter(1, chosen, True)


def read_by_text(total: Tensor, peak: Tensor, gamma: float, alpha: float) -> Tensor:
    """(B, n) how much the text reads each visual token: max(share / gamma, peak / alpha), up to a factor.

    The share is the token's part of ``total`` over all n tokens. With one of the two thresholds 0 the other statistic
    alone ranks, as in the limit.

    Args:
        total, peak: (B, n) sum and maximum over the text of the attention that each token receives.
        gamma: threshold of shares. alpha: threshold of peaks.
    """
    largest = max(gamma, alpha)
    return torch.maximum(shares(total) * (alpha / largest), peak * (gamma / largest))


def above_thresholds(total: Tensor, peak: Tensor, gamma: float, alpha: float) -> Tensor:
    """(B, n) bool: which visual tokens have a share of at least ``gamma`` or a peak of at least ``alpha``.

    Args:
        total, peak: as of :func:`read_by_text`.
    """
    return (shares(total) >= gamma) | (peak >= alpha)


def shares(total: Tensor) -> Tensor:
    """(B, n) parts of a sum over n; 0 where that is 0."""
    whole = total.sum(1, keepdim=True)
    return torch.where(whole > 0, total / whole, 0.0)


def first_in_rank(read: Tensor, keys: Tensor, count: int) -> Tensor:
    """(B, ``count``) int64, ascending: the key set first, then those that are read most; of equal ones the first.

    Args:
        read: (B, n). keys: (B, n) bool.
    """
    order = read.sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, keys.gather(1, order).byte().sort(dim=1, descending=True, stable=True).indices)
    return order[:, :count].sort(1).values


@value
class DualFilter(FilterStage):
    """Drops the r visual tokens that the text after the picture reads least, in two ways, and keeps a key set.

    With A the probabilities of the layer, averaged over heads, the share of a token is what it receives of all
    attention of the text to visual tokens, and its peak the most that it receives of one text token. It leaves early if
    max(share / ``gamma``, peak / ``alpha``) is low: the r lowest leave, the last of equal ones. So the published rule,
    share < gamma and peak < alpha, is this filter at the number of tokens that it happens to leave; only the ratio of
    the two thresholds ranks. The key set leaves only when nothing else is left.

    The text is what comes after the row's last visual token; without any, that token counts as text.

    Args:
        gamma, alpha: thresholds of share and peak, at least 0 and not both 0.
        keys: share in [0, 1] of the tokens of each picture that are its key set: those that the class token attends to
            most in the block of the vision tower that reads the features. 0: there is none.
        thresholds: the data decide how many leave: all below both thresholds that are not in the key set. One token
            stays, the one that is read most.
    """

    gamma: float = 0.001
    alpha: float = 0.001
    keys: float = 0.08
    thresholds: bool = False

    def __post_init__(self) -> None:
        require_thresholds("DualFilter", self.gamma, self.alpha)
        require_number("DualFilter", "keys", self.keys, 0, 1)
        require_one_of("DualFilter", "thresholds", self.thresholds, (True, False))

    @property
    def needs(self) -> tuple[str, ...]:
        """The class token's attention, for a key set."""
        return (needs.KEY_SET,) if self.keys else ()

    @property
    def key_share(self) -> float:
        """``keys``."""
        return self.keys

    def describe(self) -> str:
        """What makes a visual token leave."""
        kept = f", but for a key set of {100 * self.keys:g} % by class attention" if self.keys else ""
        if self.thresholds:
            return f"share below {self.gamma:g} and peak below {self.alpha:g} of the attention of the text{kept}"
        return f"least attention of the text, by share and by peak ({self.gamma:g} : {self.alpha:g}){kept}"

    def remedy(self, need: str) -> str:
        """How to do without a key set."""
        return "pass keys=0, which protects no tokens" if need == needs.KEY_SET else super().remedy(need)

    def operations(self, shape: Shape) -> list[Priced]:
        """What the text, or without any the last visual token, gives to the visual tokens: its sum and its maximum."""
        return [shape.price(costs.received_from(probs=True), o=shape.text + 1)]

    def __call__(self, attn: QueryKey, r: int, layout: Layout, *, given: bool = False) -> Selection:
        """Select r sources.

        Raises:
            ValueError: more than can leave, or no key set in ``layout`` where there has to be one.
        """
        layout.require(r)
        keys, (total, peak) = self._key_set(layout), _received(attn, layout, given)
        read = read_by_text(total, peak, self.gamma, self.alpha)
        first = keys
        if self.thresholds:  # exactly those, whatever rounding does to ranks
            first = keys | above_thresholds(total, peak, self.gamma, self.alpha)
        kept = first_in_rank(read, first, read.shape[1] - r)
        stays = torch.zeros_like(keys).scatter(1, kept, True)
        sources = stays.sort(dim=1, stable=True).indices[:, :r].contiguous()
        return Selection((-read).masked_fill(keys, -math.inf), sources, kept)

    @property
    def data_decides(self) -> bool:
        """``thresholds``."""
        return self.thresholds

    def leaving(self, attn: Attention, layout: Layout) -> Tensor:
        """(B,) int64: how many are below both thresholds and not in the key set; of all of them one stays."""
        assert isinstance(attn, QueryKey)
        total, peak = _received(attn, layout, given=False)
        stays = above_thresholds(total, peak, self.gamma, self.alpha) | self._key_set(layout)
        return (~stays).sum(1).clamp(max=stays.shape[1] - 1)

    def _key_set(self, layout: Layout) -> Tensor:
        """(B, n) bool."""
        if layout.protected is None and self.keys:
            raise ValueError(
                "DualFilter: protected must say which visual tokens are the key set, got None; pass it in the layout, "
                "or keys=0, which protects no tokens"
            )
        protected = layout.protected if self.keys else None
        return torch.zeros_like(layout.visual, dtype=torch.bool) if protected is None else protected


def require_thresholds(op: str, gamma: float, alpha: float) -> None:
    """Raise unless both are finite and at least 0, and one is above."""
    for name, given in (("gamma", gamma), ("alpha", alpha)):
        require_number(op, name, given, 0, math.inf)
    if not (gamma or alpha):
        reject(op, "gamma or alpha", "above 0: with both 0 nothing ranks the tokens", 0)


def _received(attn: QueryKey, layout: Layout, given: bool) -> ops.Received:
    """Sum and maximum (B, n) of what the text gives to each visual token."""
    columns, chosen = _text(layout)
    how: dict[str, Any] = {"probs": not given, "causal": not given, "key_mask": layout.real}
    return ops.received_from(attn, layout.visual, columns, chosen, **how)


def _text(layout: Layout) -> sequence.Text:
    """The text after the visual tokens; where there is none, the last visual token counts as text."""
    columns, chosen = layout.text_after
    none = ~chosen.any(1, keepdim=True)
    return sequence.Text(torch.cat([columns, layout.visual[:, -1:]], 1), torch.cat([chosen, none], 1))
