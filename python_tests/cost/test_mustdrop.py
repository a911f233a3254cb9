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


NEXT = cost.architecture("llava-next-7b")
ONE = cost.architecture("llava-next-7b", picture=(480, 640))
WINDOWS = r"removes single patches in the vision tower of llava-next-7b, got mustdrop, of whose windows padding may be"


@pytest.mark.parametrize("shape", [NEXT, ONE])
@pytest.mark.parametrize("part", ["both", "tower"])
def test_windows_of_crops_are_neither_billed_nor_planned(shape, part):
    """A picture of one size whose crops have no padding too: ``attach`` refuses the model."""
    method = get_method("mustdrop", part=part)
    for amount in ({}, {"keep_ratio": 0.25}):
        with pytest.raises(NotImplementedError, match=f"cost: method must be one that {WINDOWS} a part; pass part="):
            schedules.build(shape, method, **amount)
    with pytest.raises(NotImplementedError, match=f"plan: method must be one that {WINDOWS}"):
        cost.plan(shape, method, tflops=20)
    vision = schedules.build(SHAPE, get_method("mustdrop", part="tower"), r=8).vision
    with pytest.raises(NotImplementedError, match=WINDOWS):
        cost.prefill(shape, vision=vision, method=method)


def test_of_crops_windows_may_stay_and_the_language_model_reduces():
    method = get_method("mustdrop", part="tower")
    leaves = schedules.build(ONE, method, r=0)
    assert leaves.vision.r == (0,) and cost.prefill(ONE, vision=leaves.vision, method=method).tflops > 0
    language = get_method("mustdrop", part="language_model")
    assert schedules.build(ONE, language).decoder.layers == (2, 6, 10, 14)
    assert cost.plan(ONE, language, tflops=20).decoder.layers == (2, 6, 10, 14)


def few_layers(shape):
    return dataclasses.replace(shape, language_model=dataclasses.replace(shape.language_model, layers=4))


def test_too_few_layers_name_what_this_method_takes():
    """The remedies work; windows of crops are named first."""
    too_few = r"cost: keep_ratio must be given, for 4 layers are too few for 4 stages, got None; "
    with pytest.raises(ValueError, match=too_few + r"pass it for all parts together, or vision={\.\.\.} and decoder="):
        schedules.build(few_layers(SHAPE), get_method("mustdrop"))
    assert schedules.build(few_layers(SHAPE), get_method("mustdrop"), keep_ratio=0.25).decoder.layers == (1, 2, 3)
    with pytest.raises(ValueError, match=too_few + "pass keep_ratio and layers"):
        schedules.build(few_layers(SHAPE), get_method("mustdrop", part="language_model"))
    with pytest.raises(NotImplementedError, match=WINDOWS):
        schedules.build(few_layers(NEXT), get_method("mustdrop"))
