"""What a reduction did: the tokens that are left and where every original token went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .io import notebook


@dataclass(frozen=True)
class Reduction:
    """The result of one or several reductions in a row.

    ``kept``, ``sources`` and ``source_map`` speak of the tokens of the first call, so that after many layers they
    still name positions in the picture. ``targets`` are indices among the survivors.

    Attributes:
        tokens: (B, M, C) survivors in original order, or None where a model holds them.
        size: (B, M, 1) original tokens that each survivor stands for.
        kept: (B, M) original indices of the survivors, ascending.
        sources: (B, r) original indices of the tokens removed by the last reduction, ascending.
        source_map: (B, N) index among the survivors of the one that holds original token i, -1 if it was dropped.
            A token that went to several targets is held by that of largest weight.
        targets: (B, r, k) for each source its targets, indices among the survivors.
        weights: (B, r, k) share of the source that each target got; sums to 1 over k, less what was dropped at once.
        class_token: the first token is a class token.
        grid: (height, width) of the original patches, or None if unknown.
    """

    tokens: Tensor | None
    size: Tensor
    kept: Tensor
    sources: Tensor
    source_map: Tensor
    targets: Tensor
    weights: Tensor
    class_token: bool
    grid: tuple[int, int] | None

    @property
    def patch_ids(self) -> Tensor:
        """(B, P) position on the original grid of each surviving patch."""
        first = int(self.class_token)
        return self.kept[:, first:] - first

    def after(self, previous: Reduction) -> Reduction:
        """This reduction, which started from the survivors of ``previous``, in the indices of the original tokens."""
        step = self.source_map.new_full((self.source_map.shape[0], 1), -1)
        step = torch.cat([step, self.source_map], dim=1)  # index -1 (dropped) maps to -1
        return replace(
            self,
            kept=previous.kept.gather(1, self.kept),
            sources=previous.kept.gather(1, self.sources),
            source_map=step.gather(1, previous.source_map + 1),
            grid=previous.grid,
        )

    def without_tokens(self) -> Reduction:
        """The record alone, to keep while a model continues with the tokens."""
        return replace(self, tokens=None)

    def _repr_html_(self) -> str:
        """What a notebook shows: counts, and which patches of the first image are left."""
        return notebook.reduction(self)

    def unmerge(self, tokens: Tensor | None = None, fill: float = 0.0) -> Tensor:
        """(B, N, C): each original token's position filled with the survivor that holds it, dropped ones with ``fill``.

        Args:
            tokens: (B, M, C) survivors, for instance after later layers; None means ``self.tokens``.
            fill: value for tokens that were dropped.

        Raises:
            ValueError: no tokens, or not one for each survivor.
        """
        tokens = self.tokens if tokens is None else tokens
        if tokens is None:
            raise ValueError("Reduction.unmerge: this record holds no tokens; pass the survivors as tokens=")
        if tokens.dim() != 3 or tokens.shape[:2] != self.kept.shape:
            wanted = f"({self.kept.shape[0]}, {self.kept.shape[1]}, C)"
            raise ValueError(
                f"Reduction.unmerge: tokens must be {wanted}, got {tuple(tokens.shape)}; pass the survivors"
            )
        held = self.source_map.clamp(min=0).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        return tokens.gather(1, held).masked_fill((self.source_map < 0).unsqueeze(-1), fill)


def over_tensors(reduction: Reduction, change: Callable[[Tensor], Tensor]) -> Reduction:
    """A copy of ``reduction``, each of whose tensors went through ``change``."""
    held = {field.name: getattr(reduction, field.name) for field in fields(reduction)}
    changed: dict[str, Any] = {name: change(one) for name, one in held.items() if isinstance(one, Tensor)}
    return replace(reduction, **changed)
