"""GlobalCom2 and MustDrop against references that another hand wrote from their descriptions."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from ficoco_ext.methods.mustdrop import dual_filter, merge_windows
from oracles import crops, mustdrop

import ficoco_ext
from ficoco_ext.stages import Crops

PINPOINTS = [(24, 48), (48, 24), (48, 48), (24, 72), (72, 24)]
OPTIONS = [
    {},
    {"alpha": 0.0},
    {"alpha": 1.0},
    {"normalize": False},
    {"temperature": 1.0},
    {"temperature": 100.0, "cells": "crops"},
    {"budget": "floor"},
    {"budget": "floor", "cells": "crops", "alpha": 0.3},
]
SIZES = [(24, 48), (20, 61), (70, 24), (30, 31), (5, 200), (300, 20), (47, 48), (20, 2500), (2500, 20), (64, 63)]


def picture(size, side=6, seed=0, scale=1.0):
    """A canvas, and scores for its thumbnail and crops."""
    canvas = crops.Canvas(size, PINPOINTS, side, 24)
    drawn = torch.Generator().manual_seed(seed)
    scores = torch.randn(1 + canvas.crops, side * side, generator=drawn, dtype=torch.float64) * scale
    return canvas, scores


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("keep", [0.05, 0.1, 0.25, 0.29, 0.5, 0.75, 0.9, 1.0])
def test_globalcom2_keeps_the_same_patches(options, keep):
    for number, size in enumerate(SIZES):
        for side in (6, 7):  # 7 is no multiple of two or three crops
            canvas, scores = picture(size, side, seed=number, scale=(0.3, 1.0, 3.0)[number % 3])
            if keep == 1.0 and options.get("budget") == "floor":
                continue  # a ratio below 1 in a poor crop loses patches there
            wanted = crops.globalcom2(canvas, scores.tolist(), keep, **options)
            kept = ficoco_ext.globalcom2_keep(scores, size, PINPOINTS, side, 24, keep_ratio=keep, **options)
            assert [one.tolist() for one in kept] == wanted, (size, side)


def test_globalcom2_takes_the_first_of_equal_scores():
    for size in SIZES[:6]:
        canvas, scores = picture(size)
        coarse = (scores * 2).round() / 2
        for keep in (0.1, 0.4, 0.7):
            wanted = crops.globalcom2(canvas, coarse.tolist(), keep, alpha=0.0, normalize=False)
            kept = ficoco_ext.globalcom2_keep(
                coarse, size, PINPOINTS, 6, 24, keep_ratio=keep, alpha=0.0, normalize=False
            )
            assert [one.tolist() for one in kept] == wanted, (size, keep)


def test_crops_are_the_same_cells():
    drawn = random.Random(5)
    for _ in range(60):
        size, side = (drawn.randint(5, 500), drawn.randint(5, 500)), drawn.choice((5, 6, 24))
        canvas, ours = crops.Canvas(size, PINPOINTS, side, 24), Crops.of(size, PINPOINTS, side, 24)
        assert ours.origins == [tuple(cell) for cell in canvas.order() if cell != "end"]
        assert ours.line_ends == tuple(at for at, cell in enumerate(canvas.order()) if cell == "end")
        assert ours.valid == tuple(len(canvas.valid(1 + crop)) for crop in range(canvas.crops))


@pytest.mark.parametrize("receiver", ["last", "centre"])
@pytest.mark.parametrize(("grid", "side"), [((6, 6), 3), ((7, 8), 3), ((6, 9), 2), ((12, 12), 3), ((3, 3), 3)])
def test_windows_become_the_same_tokens(grid, side, receiver):
    drawn = torch.Generator().manual_seed(3)
    tokens = torch.randn(2, grid[0] * grid[1], 5, generator=drawn, dtype=torch.float64)
    tokens[1, ::3] = tokens[1, :1]  # alike
    for count in range(len(mustdrop.windows(grid, side)) + 1):
        found = merge_windows(tokens, grid, count, window=side, receiver=receiver)
        for row in range(2):
            kept, rows, size = mustdrop.merged(tokens[row], grid, count, side, receiver)
            assert found.kept[row].tolist() == kept
            assert torch.allclose(found.tokens[row], rows, rtol=0, atol=1e-12)
            assert found.size[row].flatten().tolist() == size


@pytest.mark.parametrize(("gamma", "alpha"), [(0.015, 0.03), (0.011, 0.01), (0.001, 0.001), (0.2, 0.9)])
def test_the_dual_filter_keeps_the_same_tokens(gamma, alpha):
    drawn = torch.Generator().manual_seed(8)
    attention = torch.rand(3, 7, 20, generator=drawn, dtype=torch.float64) ** 4 / 20
    keys = torch.rand(3, 20, generator=drawn) < 0.2
    for count in range(1, 21):
        kept = dual_filter(attention, keys, count, gamma=gamma, alpha=alpha)
        for row in range(3):
            own = set(keys[row].nonzero().flatten().tolist())
            assert kept[row].tolist() == mustdrop.ranked(attention[row], own, count, gamma, alpha)


def test_counts_of_a_threshold_run_give_its_set():
    drawn = torch.Generator().manual_seed(9)
    for gamma, alpha in itertools.product((0.02, 0.05), (0.004, 0.02)):
        attention = torch.rand(1, 6, 24, generator=drawn, dtype=torch.float64) ** 5 / 24
        keys = torch.zeros(1, 24, dtype=torch.bool).index_fill(1, torch.tensor([3, 11]), True)
        wanted = mustdrop.filtered(attention[0], {3, 11}, gamma, alpha)
        assert dual_filter(attention, keys, len(wanted), gamma=gamma, alpha=alpha)[0].tolist() == wanted
