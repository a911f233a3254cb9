"""One prefill of a reduced language model: rows that have equally many visual tokens are reduced together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..methods import LanguageMethod
from ..ops import QueryKey, checks
from ..reduction import Reduction
from ..stages import Layout
from ..stages.needs import GRID
from . import placeholders
from .positions import HeldPositions
from .row_groups import Held, RowGroup


class GroupRecord(NamedTuple):
    """What one layer did with a group: the reduction without its tokens, and how the survivors moved afterwards.

    ``reduction`` is None where the group only moved, because others lost tokens. ``shift`` empty positions were put
    before the survivors, or removed there if it is negative.
    """

    layer: int
    rows: Tensor | None
    reduction: Reduction | None
    shift: int


class _Part(NamedTuple):
    """What a group's rows hold; the first dimension is its rows. ``indices``: as of :class:`HeldPositions`.

    ``size`` is None before the first reduction of rows that it reduces: one each.
    """

    tokens: Tensor
    indices: Tensor
    real: Tensor | None
    size: Tensor | None

    def shifted(self, by: int) -> _Part:
        """With ``by`` empty positions before it, or without the first ``-by``, which are not needed."""
        tokens, indices, real, size = self
        assert size is not None
        if by < 0:
            real = None if real is None else real[:, -by:]
            return _Part(tokens[:, -by:], indices[:, -by:], real, size[:, -by:])
        if by > 0:
            assert real is not None
            tokens, size = F.pad(tokens, (0, 0, by, 0)), F.pad(size, (0, 0, by, 0), value=1.0)
            return _Part(tokens, F.pad(indices, (by, 0)), F.pad(real, (by, 0)), size)
        return self


class _Stage(NamedTuple):
    """The sequence between two reductions.

    ``size`` (B, W, 1): tokens that each position stands for; None: one. ``groups``: the rows, in as many groups as
    lost different numbers so far.
    """

    held: HeldPositions
    size: Tensor | None
    groups: list[Held]


class ReducedPrefill:
    """One pass through the layers, from the full prompt to the positions that are left.

    Args:
        visual: (B, L) bool, the placeholders.
        real: (B, L) bool, False for padding; None: all are real.
        groups: the rows.
        picture: grid of one image, for a local penalty; None: unknown.

    Attributes:
        norm: the norm that the language model applies after its last layer; None: unknown.
        protected: (B, L) bool, the key set of each row, for a method that has one; None: unknown.
    """

    norm: Callable[[Tensor], Tensor] | None = None
    protected: Tensor | None = None

    def __init__(
        self, visual: Tensor, real: Tensor | None, groups: list[RowGroup], picture: tuple[int, int] | None = None
    ) -> None:
        b, self.length = visual.shape
        self.visual, self.groups, self.picture = visual, groups, picture
        indices = torch.arange(self.length, device=visual.device).expand(b, -1)
        held = HeldPositions(indices, real, False)
        self._stages = [_Stage(held, None, [Held(group, group.visual, group.left) for group in groups])]
        self.records: list[GroupRecord] = []
        self._marks: dict[LanguageMethod, Tensor] = {}  # (B, L) each

    def read_prompt(self, embeddings: Tensor, methods: Sequence[LanguageMethod]) -> None:
        """Let the methods note what they want to know of the prompt before the first layer.

        Args:
            embeddings: (B, L, C) what the first layer gets.
        """
        for method in dict.fromkeys(methods):
            marks = self._noted(method, embeddings.detach())
            if marks is not None:
                self._marks[method] = marks

    def layout(self, group: RowGroup, device: torch.device) -> Layout:
        """Where a group's visual tokens and text are in the prompt, before any has left."""
        real = self._stages[0].held.to(device).real
        return Layout.of(
            group.visual.to(device), self.length, None if real is None else group.of(real), after=group.after
        )

    def _noted(self, method: LanguageMethod, embeddings: Tensor) -> Tensor | None:
        """(B, L) the notes of one method, zeros in rows of text; None: it takes none."""
        noted = None
        for group in self.groups:
            if group.is_text:
                continue
            marks = method.mark(group.of(embeddings), self.layout(group, embeddings.device))
            if marks is None or group.rows is None:
                return marks
            if noted is None:
                noted = marks.new_zeros(embeddings.shape[0], *marks.shape[1:])
            noted = noted.index_copy(0, group.rows.to(marks.device), marks)
        return noted

    @property
    def held(self) -> list[HeldPositions]:
        """What is held before the first reduction, and after each one that has run."""
        return [stage.held for stage in self._stages]

    def labels(self, labels: Tensor) -> Tensor:
        """(B, W) the labels (B, L) of the positions that are left in the end; -100 where there is nothing to predict.

        The model's loss compares each position with the label of the next one that is left. The first token of a row
        has none before it, wherever empty positions or padding were put there, so its label does not count. Where no
        row lost anything they stay as they are.
        """
        if not self.records:
            return labels
        held = self._stages[-1].held
        return placeholders.after_the_first(labels.to(held.indices.device).gather(1, held.indices), held.real)

    def reduce(self, tokens: Tensor, attn: QueryKey, method: LanguageMethod, layer: int, step: int) -> Tensor:
        """The ``step``-th reduction, in ``layer``: (B, W, C) -> (B, W', C).

        W' is what the longest row needs. A shorter one begins with empty positions, which the mask hides. Where a
        backward pass computes the layer again (gradient checkpointing), so does this, and records nothing.
        """
        tokens, stage, records = self._reduced(tokens, attn, method, layer, step)
        if len(self._stages) == step + 1:
            self._stages.append(stage)
            self.records += records
        return tokens

    def _reduced(
        self, tokens: Tensor, attn: QueryKey, method: LanguageMethod, layer: int, step: int
    ) -> tuple[Tensor, _Stage, list[GroupRecord]]:
        stage = self._stages[step]
        stage = stage._replace(held=stage.held.to(tokens.device))
        leaving = self._leaving(tokens, stage, attn, method, step)
        if not any(r for _, r in leaving):
            return tokens, stage, []
        counts = [count - r for held, r in leaving for count in held.left]
        width, holes = max(counts), min(counts) < max(counts)
        parts, groups, records = [], [], []
        for (group, visual, left), r in leaving:
            part = self._part(tokens, stage, group, holes, sized=not r)
            shift = width - (tokens.shape[1] - r)
            reduction = None
            if r:
                part, visual, reduction = self._reduce(part, visual, attn, method, group, r)
            records.append(GroupRecord(layer, group.rows, reduction, shift))
            groups.append(Held(group, visual + shift if shift else visual, [count - r for count in left]))
            parts.append(part.shifted(shift))
        tokens, indices, real, size = _together(parts, groups)
        return tokens, _Stage(HeldPositions(indices, real, holes), size, groups), records

    def _leaving(
        self, tokens: Tensor, stage: _Stage, attn: QueryKey, method: LanguageMethod, step: int
    ) -> list[tuple[Held, int]]:
        """The groups, each with how many visual tokens its rows lose now.

        Where the data decide, rows of a group may come to lose different numbers, and the group is divided. That waits
        for the device once.
        """
        if not method.data_decides:
            return [(held, held.group.removes(step)) for held in stage.groups]
        asked = []
        for group, visual, _ in stage.groups:
            if visual.shape[1] > 1:  # else it is text, or the last one stays
                part = self._part(tokens, stage, group, holes=False, sized=False)
                asked.append(method.leaving(part.tokens, *self._seen(part, visual, attn, method, group)))
        counts = iter(torch.cat(asked).tolist() if asked else ())
        leaving: list[tuple[Held, int]] = []
        for held in stage.groups:
            asks = held.visual.shape[1] > 1
            leaving += held.divided([next(counts) for _ in held.left]) if asks else [(held, 0)]
        return leaving

    @staticmethod
    def _part(tokens: Tensor, stage: _Stage, group: RowGroup, holes: bool, *, sized: bool) -> _Part:
        held = stage.held
        indices, tokens = group.of(held.indices), group.of(tokens)
        real = None if held.real is None else group.of(held.real)
        if real is None and holes:
            real = torch.ones_like(indices, dtype=torch.bool)
        size = None
        if stage.size is not None:
            size = group.of(stage.size.to(tokens.device))
        elif sized:
            size = tokens.new_ones(*tokens.shape[:2], 1, dtype=torch.float32)
        return _Part(tokens, indices, real, size)

    def _reduce(
        self, part: _Part, visual: Tensor, attn: QueryKey, method: LanguageMethod, group: RowGroup, r: int
    ) -> tuple[_Part, Tensor, Reduction]:
        own, layout = self._seen(part, visual, attn, method, group)
        reduction, visual = method(part.tokens, own, r, layout, size=part.size)
        assert reduction.tokens is not None
        indices = part.indices.gather(1, reduction.kept)
        real = None if part.real is None else part.real.gather(1, reduction.kept)
        left = _Part(reduction.tokens, indices, real, reduction.size)
        return left, visual, reduction.without_tokens()

    def _seen(
        self, part: _Part, visual: Tensor, attn: QueryKey, method: LanguageMethod, group: RowGroup
    ) -> tuple[QueryKey, Layout]:
        """What the method sees of a group, besides its tokens."""
        visual = visual.to(part.indices.device)
        own = QueryKey(group.of(attn.query), group.of(attn.key), attn.scale)
        ids, grid = self._grid(method, part, visual, group)
        marks = self._marks.get(method)
        if marks is not None:
            marks = group.of(marks.to(part.indices.device)).gather(1, part.indices)
        where: dict[str, Any] = {"after": group.after, "ids": ids, "grid": grid, "marks": marks, "norm": self.norm}
        if self.protected is not None:
            columns = part.indices.gather(1, visual)
            where["protected"] = group.of(self.protected.to(columns.device)).gather(1, columns)
        return own, Layout.of(visual, part.indices.shape[1], part.real, **where)

    def _grid(
        self, method: LanguageMethod, part: _Part, visual: Tensor, group: RowGroup
    ) -> tuple[Tensor | None, tuple[int, int] | None]:
        """Cells of the visual tokens on one grid of all the row's images, one below the other."""
        if GRID not in method.needs or self.picture is None:
            return None, None
        height, width = self.picture
        pictures = -(-group.pictured // (height * width))
        if pictures > 1 and height % method.window:
            need, got = f"a divisor of the images' height {height}", f"{method.window} with {pictures} images in a row"
            checks.fail("forward", "window", need, got, f"or windows would span two images; {method.remedy(GRID)}")
        rank = group.of(self.visual).to(visual.device).cumsum(1) - 1
        return rank.gather(1, part.indices.gather(1, visual)), (pictures * height, width)


def _together(parts: list[_Part], groups: list[Held]) -> _Part:
    """The groups' rows as one batch again."""
    if groups[0].group.rows is None:
        return parts[0]
    order = torch.cat([held.group.rows for held in groups if held.group.rows is not None])
    sizes = [part.size for part in parts if part.size is not None]
    back = order.argsort().to(parts[0].tokens.device)
    real = [part.real for part in parts if part.real is not None]
    return _Part(
        torch.cat([part.tokens for part in parts]).index_select(0, back),
        torch.cat([part.indices for part in parts]).index_select(0, back),
        torch.cat(real).index_select(0, back) if real else None,
        torch.cat(sizes).index_select(0, back),
    )
