"""What a case must come to, counted from its rows and its plan alone: columns, rows' losses, widths, cache lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from helpers.families import VIDEO
from helpers.models import IMAGE
from property.build import HIDDEN
from property.cases import Case
from torch import Tensor


@dataclass
class Row:
    """One row of the prompt that reaches the language model.

    Attributes:
        ids: of its tokens. first: column of the first of them.
        real: (n,) bool, what the mask shows. visual: (n,) bool, what may leave.
        padded_left: the mask hides what is before its tokens, and nothing else.
        steps: (layer, r) for each reduction that removes something from it. removed: r of each layer of the plan.
    """

    ids: list[int]
    first: int
    real: Tensor
    visual: Tensor
    padded_left: bool
    steps: list[tuple[int, int]]
    removed: list[int]


def shortened(ids: list[int], before: int, after: int) -> list[int]:
    """The ids of a row with the first ``after`` of every ``before`` placeholders."""
    kept, seen = [], 0
    for one in ids:
        if one != IMAGE or seen % before < after:
            kept.append(one)
        seen += one == IMAGE
    return kept


def rows_of(case: Case, spelled: list[list[int]], schedule, plan) -> tuple[int, list[Row]]:
    """The width n of the prompt that the language model gets, and its rows.

    Args:
        spelled: ids of the caller's rows, without padding.
        schedule: of the tower, or None. plan: of the language model, or None.
    """
    longest = max(map(len, spelled))
    gaps = [longest - len(row) for row in spelled]
    if schedule is not None:
        extra = int(case.strategy == "full" and case.tower == "clip")
        counts = schedule.patches + extra, schedule.final + extra
        spelled = [shortened(row, *counts) for row in spelled]
    right = gaps if case.padding == "right" else [0] * len(spelled)
    n = max(len(row) + gap for row, gap in zip(spelled, right, strict=True))
    rows = []
    for ids, gap in zip(spelled, right, strict=True):
        first = n - gap - len(ids)
        real, visual = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
        spelled_ids = torch.tensor(ids)
        real[first : n - gap] = ~(case.holes & (spelled_ids % HIDDEN == 0))
        visual[first : n - gap] = (spelled_ids == IMAGE) | (spelled_ids == VIDEO)
        visual[int(real.nonzero()[-1])] = False  # the answer is read from the last token
        count = int(visual.sum())
        steps = [] if plan is None or not count else [(one.layer, one.r) for one in plan.schedule(count).steps]
        removed = [r for _, r in steps]
        even = gap == 0 and bool(real[first:].all())
        rows.append(Row(ids, first, real, visual, even, [one for one in steps if one[1]], removed))
    return n, rows


def widths(n: int, rows: list[Row], plan, *, static_counts: bool) -> list[int]:
    """Positions that are left after each of the plan's reductions, n first.

    A batch is as wide as its longest row. Padding on the left is removed as far as all rows allow, other padding not.
    """
    found = [n]
    if plan is None:
        return found
    needs = [n if static_counts or not row.padded_left else int(row.real.sum()) for row in rows]
    for step in range(len(plan.layers)):
        lost = [row.removed[step] if row.removed else 0 for row in rows]
        needs = [need - gone for need, gone in zip(needs, lost, strict=True)]
        found.append(max(needs) if any(lost) else found[-1])
    return found


def cached(layers: int, found: list[int], plan, *, aware: bool) -> list[int]:
    """Positions of the prompt that each of the ``layers`` caches holds; ``aware``: cut once the prompt was read."""
    lengths, stage = [], 0
    for layer in range(layers):
        reduces = plan is not None and layer in plan.layers
        stage += reduces and plan.before_attention
        lengths.append(found[-1 if aware and layer >= plan.layers[0] else stage])
        stage += reduces and not plan.before_attention
    return lengths
