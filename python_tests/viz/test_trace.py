"""Where one patch went: against the product of explicit merge matrices, and against the sizes that were counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.pictures import assert_traces, chain
from helpers.reductions import inputs, record

from ficoco_ext import get_method
from ficoco_ext.methods import Split
from ficoco_ext.viz.traces import groups, holders, trace

CHAINS = {
    "several targets": (("ficoco-v",) * 3, {"ficoco_v": {"targets": 3}}),
    "targets by the paper": (("ficoco-v",) * 2, {"ficoco_v": {"variant": "paper"}}),
    "tome": (("tome",) * 3, {}),
    "dropped": (("topk",) * 2, {}),
    "dropped, then merged": (("topk", "ficoco-v"), {"ficoco_v": {"targets": 2}}),
    "merged, then dropped": (("ficoco-v", "topk"), {"ficoco_v": {"targets": 4}}),
    "one layer": (("ficoco-v",), {"ficoco_v": {"targets": 5}}),
}


@pytest.mark.parametrize("case", CHAINS)
@pytest.mark.parametrize("item", [0, 1])
def test_shares_are_those_of_the_merge_matrices(case, item):
    methods, options = CHAINS[case]
    told = chain(methods, **options)
    total = assert_traces(told, 36, item)
    last = told[-1]
    assert torch.allclose(total[last.patch_ids[item]], last.size[item, 1:, 0].double(), atol=1e-4)
    assert float(total.sum()) == pytest.approx(float(last.size[item, 1:].sum()), abs=1e-4)


def test_a_patch_with_one_target_a_layer_is_with_its_holder():
    told = chain(("tome",) * 2, ratio=0.5)
    for patch, holder in enumerate(holders(told[-1])):
        found = trace(told, patch)
        assert found.shares == {holder: 1.0}
        assert found.dropped == 0


def test_largest_share_after_one_layer_is_the_holders():
    told = chain(("ficoco-v",), ficoco_v={"targets": 3})
    for patch, holder in enumerate(holders(told[0])):
        assert next(iter(trace(told, patch).shares)) == holder


def test_moves_carry_what_leaves():
    told = chain(("ficoco-v",) * 3, ficoco_v={"targets": 3})
    moved = 0
    for patch in range(36):
        held = {patch: 1.0}
        for step in trace(told, patch).steps:
            for source in {move.source for move in step.moves}:
                mine = [move for move in step.moves if move.source == source]
                assert sum(move.weight for move in mine) == pytest.approx(1, abs=1e-12)
                assert all(move.share == pytest.approx(move.weight * held[source]) for move in mine)
                moved += len(mine)
            held = step.shares
    assert moved > 100


def test_what_was_dropped_says_so_and_where():
    told = chain(("ficoco-v", "topk"), ficoco_v={"targets": 4})
    lost = [trace(told, patch, layers=("merging", "dropping")) for patch in range(36)]
    assert any(0 < found.dropped < 1 for found in lost)
    for found in lost:
        merging, dropping = found.steps
        assert (merging.layer, dropping.layer) == ("merging", "dropping")
        assert merging.dropped == 0
        assert dropping.dropped == found.dropped
        assert not dropping.moves


@pytest.mark.parametrize("targets", [1, 2, 3])
@pytest.mark.parametrize("item", [0, 1])
def test_what_a_split_loses_is_dropped(targets, item):
    """What went into a token that left in the same layer is nobody's, not its other targets'."""
    merge, tokens, attn = get_method("ficoco-v", targets=targets), *inputs()
    result = record(tokens, attn, 50, method=Split("lost", merge, get_method("topk"), 0.5))
    total = assert_traces([result], 64, item)
    assert torch.allclose(total[result.patch_ids[item]], result.size[item, 1:, 0].double(), atol=1e-5)
    dropped = [trace(result, patch).dropped for patch in range(64)]
    assert any(0 < share < 1 for share in dropped) == (targets > 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_rounding_of_weights_is_not_dropped(dtype):
    """Weights of any precision: what they lack of 1 by rounding is given out."""
    told = chain(("ficoco-v",), ficoco_v={"targets": 5})[0]
    told = replace(told, weights=told.weights.to(dtype))
    for patch in range(36):
        found = trace(told, patch)
        assert found.dropped == 0
        assert sum(found.shares.values()) == pytest.approx(1, abs=1e-12)


def test_groups_hold_every_merged_patch_once():
    told = chain(("ficoco-v",) * 2)
    held = holders(told[-1])
    found = groups(told[-1])
    assert all(len(members) > 1 and holder in members for holder, members in found.items())
    together = sorted(patch for members in found.values() for patch in members)
    alone = [patch for patch, holder in enumerate(held) if holder == patch and patch not in found]
    assert sorted(together + alone) == list(range(36))


def test_errors_name_the_argument():
    told = chain(("topk",) * 2)
    with pytest.raises(ValueError, match=r"trace: patch must be in \[0, 35\], got 36"):
        trace(told, 36)
    with pytest.raises(ValueError, match=r"trace: patch must be in \[0, 35\], got -1"):
        trace(told, -1)
    with pytest.raises(ValueError, match=r"trace: item must be in \[0, 1\], got 2"):
        trace(told, 0, item=2)
    with pytest.raises(ValueError, match="one layer a reduction, got 1 for 2"):
        trace(told, 0, layers=(3,))
    with pytest.raises(ValueError, match="all be different"):
        trace(told, 0, layers=(3, 3))
    with pytest.raises(ValueError, match="reductions is empty"):
        trace((), 0)


def test_equal_shares_are_in_the_order_of_their_patches():
    """Two targets with half each, whichever the record names first."""
    tokens, attn = inputs(b=1)
    result = record(tokens, attn, 20, targets=2, alpha="average")
    turned = replace(result, targets=result.targets.flip(-1))
    for patch in (result.sources[0] - 1).tolist():
        for one in (result, turned):
            found = trace(one, patch)
            assert list(found.shares.values()) == [0.5, 0.5]
            assert list(found.shares) == sorted(found.shares)
            assert [move.target for move in found.steps[0].moves] == list(found.shares)
