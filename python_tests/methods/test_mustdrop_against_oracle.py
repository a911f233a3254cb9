"""MustDrop against references that another hand wrote from its description."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracles import mustdrop

from ficoco_ext.methods.mustdrop import dual_filter, merge_windows


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
