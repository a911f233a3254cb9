"""What MustDrop costs: windows that leave together after an MLP, and a key set that is read in the tower."""

import dataclasses

import pytest

from ficoco_ext import cost, get_method
from ficoco_ext.cost import rows, schedules, scope

SHAPE = cost.architecture("llava-1.5-7b")


@pytest.mark.parametrize("tflops", [1.7, 3.3, 4.4, 5.06, 8.4])
def test_plans_of_windows_can_be_attached_and_none_comes_closer(tflops):
    method = get_method("mustdrop", part="tower")
    found = cost.plan(SHAPE, method, tflops=tflops)
    (r,) = found.vision.r
    assert r % 8 == 0
    assert found.vision == schedules.build(SHAPE, method, r=r).vision

    def off(leaving):
        vision = schedules.build(SHAPE, method, r=leaving).vision
        return abs(scope.bill(SHAPE, "llmviewer", vision=vision).tflops - tflops)

    assert off(r) == abs(found.reached - tflops)
    assert all(off(other) >= off(r) for other in (r - 8, r + 8) if 0 <= other <= 512)


def test_a_floor_leaves_whole_windows():
    """276 patches may leave; 34 windows of 8 do."""
    method = get_method("mustdrop", part="tower")
    row = rows.tower_row(SHAPE, method, None, 300)
    assert row.at(34).vision.r == row.at(row.last).vision.r == (272,)


def test_a_plan_of_both_parts_removes_whole_windows():
    method = get_method("mustdrop")
    found = cost.plan(SHAPE, method, tflops=2.5)
    assert found.vision.r[0] % 8 == 0 and found.vision.after_mlp == (0,)
    assert found.decoder.layers == (2, 6, 10, 14)
    assert found.reached == pytest.approx(2.5, rel=0.01)


def test_the_first_layer_computes_its_mlp_for_all_patches():
    """By hand: windows merge after it. Between attention and MLP the MLP of layer 0 would see 440 patches."""
    vision = schedules.build(SHAPE, get_method("mustdrop", part="tower")).vision
    early = dataclasses.replace(vision, after_mlp=())
    late, before = (cost.prefill(SHAPE, vision=one).parts["tower"].operations for one in (vision, early))
    assert late - before == 136 * 2 * 2 * 1024 * 4096


@pytest.mark.parametrize(("keys", "billed"), [(None, [(23, 2 * 441 * 1024)]), (0.0, [])])
def test_the_key_set_is_read_in_the_block_that_reads_the_features(keys, billed):
    """Of 440 patches that the tower has left, and the class token itself."""
    method = get_method("mustdrop", **({} if keys is None else {"keys": keys}))
    leaves = schedules.build(SHAPE, method)
    found = cost.prefill(SHAPE, **leaves._asdict(), method=method)
    assert [(one.layer, one.operations) for one in found.lines if one.name == "key_set"] == billed
    alone = cost.prefill(SHAPE, **leaves._asdict(), method=method, include_reduction=False)
    assert not [one for one in alone.lines if one.name == "key_set"]


def test_a_key_set_needs_a_class_token():
    bare = dataclasses.replace(SHAPE, tower=dataclasses.replace(SHAPE.tower, class_token=False))
    method = get_method("mustdrop", part="language_model")
    leaves = schedules.build(bare, method)
    with pytest.raises(ValueError, match=r"no class token for .*, whose tower has none: it reads its key_set"):
        cost.prefill(bare, **leaves._asdict(), method=method)


def test_it_costs_far_below_what_selection_should():
    method = get_method("mustdrop")
    found = cost.prefill(SHAPE, **schedules.build(SHAPE, method)._asdict(), method=method)
    assert found.reduction_share < 0.001
