"""Split: two methods in one layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..ops import Attention, QueryKey
from ..reduction import Reduction
from ..stages import Priced, Shape
from ..stages.frozen import require_number, value
from .base import AnyMethod, LayerMethod
from .method import Method


@value
class Split(LayerMethod):
    """Two methods in one layer: the first removes a share of r, the second the rest of what that left.

    The second sees query and key (or the map) of the survivors alone; a map is cut as it is, so its rows no longer sum
    to 1 as probabilities from a query and key do, and the two may choose differently. Where it cannot remove its part,
    as bipartite matching can remove only half, the first removes as much more as is needed. The record is that of one
    reduction: a source that was dropped has weights of 0, one that went on to another holder with its own is recorded
    with that. What the first merged into a token that the second drops is lost with it, and so are its weights.

    Args:
        name: what it is called in messages.
        first, second: what removes.
        share: in [0, 1], of r that the first removes, rounded half up.
        amount: as of :class:`Method`.

    Example:
        >>> from ficoco_ext.methods import Split
        >>> from ficoco_ext import get_method
        >>> half = Split("half", get_method("topk"), get_method("tome"), 0.5)
        >>> [(part.name, r) for part, r in half.parts(577, 42, class_token=True)]
        [('topk', 21), ('tome', 21)]
        >>> [(part.name, r) for part, r in half.parts(577, 500, class_token=True)]  # ToMe may halve 152 patches
        [('topk', 424), ('tome', 76)]
    """

    name: str
    first: Method
    second: Method
    share: float = 0.5
    amount: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        require_number("Split", "share", self.share, 0, 1)
        for part in (self.first, self.second):
            if not isinstance(part, Method):
                raise TypeError(f"Split: first and second must each be a Method, got {part!r}")
        if self.first.after_mlp != self.second.after_mlp or max(self.first.unit, self.second.unit) > 1:
            names = f"{self.first.name} and {self.second.name}"
            raise ValueError(
                f"Split: first and second must act in the same place of a layer and remove any number of tokens, got "
                f"{names}; give each a layer of its own"
            )

    @property
    def source(self) -> str:
        """Where both come from."""
        return "; ".join(dict.fromkeys((self.first.source, self.second.source)))

    @property
    def proportional_attention(self) -> bool:
        """Whether one of both wants it."""
        return self.first.proportional_attention or self.second.proportional_attention

    @property
    def after_mlp(self) -> bool:
        """Where both act."""
        return self.first.after_mlp

    @property
    def members(self) -> tuple[AnyMethod, ...]:
        """Both, or the second if it removes all."""
        return (self.second,) if self.share == 0 else (self.first, self.second)

    def operations(self, shape: Shape) -> list[Priced]:
        """What both call, one after the other."""
        found: list[Priced] = []
        for part, r in self.parts(shape.tokens, shape.r, class_token=shape.class_token):
            found += part.operations(replace(shape, r=r))
            shape = replace(shape, tokens=shape.tokens - r, visual=shape.visual - r)
        return found

    def largest(self, tokens: int, *, class_token: bool) -> int:
        """The most of ``tokens`` tokens that can leave at once, if the first can remove any number."""
        return max(tokens - class_token - 1, 0)

    def parts(self, tokens: int, r: int, *, class_token: bool) -> tuple[tuple[Method, int], ...]:
        """Who removes how many of the ``r`` that are to leave ``tokens`` tokens; who removes none is left out."""
        early = math.floor(r * self.share + 0.5)
        while r - early > self.second.largest(tokens - early, class_token=class_token):
            early += 1
        both = ((self.first, early), (self.second, r - early))
        return tuple((part, count) for part, count in both if count)

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
        parts = self.parts(tokens.shape[1], r, class_token=class_token)
        if len(parts) < 2:
            one = parts[0][0] if parts else self.second
            return one(tokens, attn, r, class_token=class_token, grid=grid, size=size, previous=previous)
        (first, early), (second, late) = parts
        begun = first(tokens, attn, early, class_token=class_token, grid=grid, size=size, previous=previous)
        indices = begun.kept if previous is None else torch.searchsorted(previous.kept, begun.kept)
        assert begun.tokens is not None
        done = second(
            begun.tokens,
            attention_among(attn, indices),
            late,
            class_token=class_token,
            size=None if size is None else begun.size,
            previous=begun,
        )
        return as_one(begun, done)


def picked(tokens: Tensor, at: Tensor) -> Tensor:
    """(B, M, C): of ``tokens`` (B, N, C) those at the indices ``at`` (B, M), each copied as a whole."""
    b, n, _ = tokens.shape
    first = torch.arange(b, device=at.device).unsqueeze(1) * n
    return tokens.flatten(0, 1).index_select(0, (at + first).flatten()).unflatten(0, (b, at.shape[1]))


def attention_among(attn: Attention, at: Tensor) -> Attention:
    """The attention among the tokens at the indices ``at`` (B, M)."""
    if isinstance(attn, QueryKey):
        query, key = (
            picked(t.transpose(1, 2).flatten(2), at).unflatten(2, (t.shape[1], -1)).transpose(1, 2)
            for t in (attn.query, attn.key)
        )
        return QueryKey(query, key, attn.scale)
    rows = at.view(at.shape[0], *[1] * (attn.dim() - 3), -1, 1)
    rows = rows.expand(*attn.shape[:-2], -1, attn.shape[-1])
    taken = attn.gather(-2, rows)
    columns = rows[..., :1].mT.expand(*taken.shape[:-1], -1)
    return taken.gather(-1, columns)


def as_one(begun: Reduction, done: Reduction) -> Reduction:
    """Two reductions in a row of one layer as one. ``done`` followed ``begun``; both are in original indices."""
    holders = done.source_map.gather(1, begun.kept)  # where those went that the first left
    targets = holders.gather(1, begun.targets.flatten(1)).view_as(begun.targets)
    weights = begun.weights.masked_fill(targets < 0, 0.0)
    width = max(targets.shape[2], done.targets.shape[2])

    unused = int(done.class_token)  # an index for weights of 0 to name; the class token is never a target

    def wide(tensor: Tensor, value: int = 0) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[2]), value=value)

    sources, order = torch.cat([begun.sources, done.sources], dim=1).sort(dim=1)
    order = order.unsqueeze(-1).expand(-1, -1, width)
    return replace(
        done,
        sources=sources,
        targets=torch.cat([wide(targets.clamp(min=unused), unused), wide(done.targets, unused)], dim=1).gather(
            1, order
        ),
        weights=torch.cat([wide(weights), wide(done.weights)], dim=1).gather(1, order),
    )
