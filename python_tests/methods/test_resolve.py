"""The rules of ``ficoco_ext/resolve.py`` in numbers, without a model: which layers remove how much."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ficoco_ext import Method, cost, get_method
from ficoco_ext.amounts import Amount, equal_shares, shared_tokens
from ficoco_ext.methods import LayerMethod, Split
from ficoco_ext.resolve import (
    LanguageModelFacts,
    TowerFacts,
    decoder_layers,
    decoder_plan,
    tower_layers,
    tower_schedule,
)
from ficoco_ext.stages import Compress, Correlate, Filter

TOWER = TowerFacts(grid=(6, 6), layers=12, used=11)
SHALLOW = TowerFacts(grid=(6, 6), layers=12, used=5)
LANGUAGE = LanguageModelFacts(layers=32)
TOPK, TOME, FASTV = (get_method(name) for name in ("topk", "tome", "fastv"))


def of(**given):
    return Amount.of("attach", **{"r": None, "keep_ratio": None, "tokens": None} | given)


def wide(targets, window=2):
    """FiCoCo-V with a fixed number of targets."""
    return Method("wide", Filter(window=window), Correlate(targets=targets), Compress())


@pytest.mark.parametrize(
    ("patches", "final", "between"), [(576, 144, 288), (576, 64, 192), (36, 7, 16), (36, 5, 13), (10, 3, 5), (1, 1, 1)]
)
def test_both_parts_keep_the_same_share(patches, final, between):
    """The geometric mean, rounded half up: sqrt(36 * 7) = 15.9, sqrt(36 * 5) = 13.4, sqrt(10 * 3) = 5.5 less a bit."""
    assert shared_tokens(patches, final) == between
    vision, decoder = equal_shares("attach", patches, of(tokens=final))
    assert vision == of(tokens=between) and decoder == of(keep_ratio=final / between)


def test_the_second_half_of_a_tower_reduces():
    """Of all its layers, up to the last one whose output is used."""
    assert tower_layers("attach", TOWER, TOPK, None) == (6, 7, 8, 9, 10)
    assert tower_layers("attach", replace(TOWER, layers=11, used=11), TOPK, None) == (5, 6, 7, 8, 9, 10)
    assert tower_layers("attach", TOWER, get_method("pool"), None) == (10,)
    assert tower_layers("attach", TOWER, TOPK, (0, 10)) == (0, 10)
    message = r"attach: layers must be given, for the second half of the tower is not used, got vision layers up to 4"
    with pytest.raises(ValueError, match=message):
        tower_layers("attach", SHALLOW, TOPK, None)
    with pytest.raises(ValueError, match=r"layers must be in 0 \.\.\. 10 of the tower, got 11; of 12 layers, the out"):
        tower_layers("attach", TOWER, TOPK, (11,))


def test_parts_of_a_layer_are_checked_one_after_the_other():
    """Each removes 10 of 36 patches: the second part is asked about the 26 that the first one leaves."""
    both = Split("both", TOPK, wide(targets=16), 0.5)
    schedule, _ = tower_schedule("attach", TOWER, both, of(r=20, layers=(3,)))
    assert schedule.final == 16
    message = r"attach: targets must be at most 16, the patches that layer 3 leaves, got 17; lower targets, or remove"
    with pytest.raises(ValueError, match=message):
        tower_schedule("attach", TOWER, Split("both", TOPK, wide(targets=17), 0.5), of(r=20, layers=(3,)))


@pytest.mark.parametrize(("targets", "fits"), [(16, True), (17, False), (36, False)])
def test_targets_are_patches_that_are_left(targets, fits):
    options = ("attach", TOWER, wide(targets=targets), of(r=20, layers=(3,)))
    if fits:
        assert tower_schedule(*options)[0].final == 16
    else:
        with pytest.raises(ValueError, match=rf"targets must be at most 16, .* got {targets}"):
            tower_schedule(*options)


def test_half_of_what_enters_a_layer():
    assert tower_schedule("attach", TOWER, TOME, of(r=[18, 9], layers=(1, 2)))[0].final == 9
    message = "r must be at most 9 in layer 2, half of the 18 patches that enter it, got 10; tome removes at most half"
    with pytest.raises(ValueError, match=message):
        tower_schedule("attach", TOWER, TOME, of(r=[18, 10], layers=(1, 2)))
    distilled = get_method("tome", distill_token=True)  # one of the 36 is protected
    assert tower_schedule("attach", TOWER, distilled, of(r=17, layers=(1,)))[0].final == 19
    with pytest.raises(ValueError, match="r must be at most 17 in layer 1"):
        tower_schedule("attach", TOWER, distilled, of(r=18, layers=(1,)))


def test_pooling_comes_first():
    pool = get_method("pool")
    assert tower_schedule("attach", TOWER, pool, of(tokens=9))[0].layers == (10,)
    assert tower_schedule("attach", TOWER, (pool, TOPK), of(r=4, layers=(2, 3)))[0].final == 28
    message = "layers must be the first that reduces with method 'pool', .* got layer 3, which 32 of 36 patches enter"
    with pytest.raises(ValueError, match=message):
        tower_schedule("attach", TOWER, (TOPK, pool), of(r=4, layers=(2, 3)))


def test_an_amount_that_is_given_counts():
    """A method's own amount is for where there is none."""
    balanced = get_method("balanced")
    assert tower_schedule("attach", TOWER, balanced, of())[0].final == 9
    assert tower_schedule("attach", TOWER, balanced, of(tokens=20))[0].final == 20
    assert decoder_plan("attach", LANGUAGE, FASTV, of())[0].keep_ratio == 0.5
    assert decoder_plan("attach", LANGUAGE, FASTV, of(keep_ratio=0.25))[0].keep_ratio == 0.25


def test_layers_of_the_language_model():
    assert decoder_layers("attach", LANGUAGE, FASTV, None) == (1,)
    assert decoder_layers("attach", LANGUAGE, get_method("ficoco-l"), None) == tuple(range(4, 32))
    assert decoder_layers("attach", LanguageModelFacts(1), get_method("ficoco-l"), None) == (0,)
    assert decoder_layers("attach", LANGUAGE, get_method("pyramiddrop"), None) == (8, 16, 24)
    assert decoder_layers("attach", LanguageModelFacts(3), get_method("pyramiddrop"), None) == (1, 2)  # never layer 0
    assert decoder_layers("attach", LANGUAGE, get_method("ficoco-l"), (0, 31)) == (0, 31)
    before = get_method("ficoco-l", before_attention=True)
    with pytest.raises(ValueError, match=r"layers must be in 1 \.\.\. 31 of the language model, got 0; layer 0 caches"):
        decoder_layers("attach", LANGUAGE, before, (0, 1))
    with pytest.raises(ValueError, match=r"layers must be None with method 'fastv', or \(1,\), got .*say layer=4"):
        decoder_layers("attach", LANGUAGE, FASTV, (3,))


def test_methods_of_several_layers_agree():
    """On when a layer reduces, and on how survivors are rounded: there is one plan for all."""
    ours = get_method("ficoco-l")
    for other, wanted in (
        (replace(ours, rounding="floor"), "round survivors in one way"),
        (replace(ours, before_attention=True), "reduce before, or all after, the attention of a layer"),
    ):
        with pytest.raises(ValueError, match=f"method must be methods that all {wanted}, got ficoco-l, ficoco-l; pass"):
            decoder_layers("attach", LANGUAGE, (ours, other), (3, 4))
    assert decoder_layers("attach", LANGUAGE, (ours, replace(ours, name="own")), (3, 4)) == (3, 4)


def test_stages_that_a_language_model_is_too_small_for():
    """PyramidDrop's three ratios, which were not given, do not fit two layers."""
    plan, _ = decoder_plan("attach", LANGUAGE, get_method("pyramiddrop"), of())
    assert plan.schedule(35).r == (18, 9, 4) and plan.rounding == "floor" and plan.before_attention
    message = "attach: keep_ratio must be given, for 2 layers are too few for 3 stages, got None; pass keep_ratio and"
    with pytest.raises(ValueError, match=message):
        decoder_plan("attach", LanguageModelFacts(2), get_method("pyramiddrop"), of())


@pytest.mark.parametrize(
    "one", [Filter(), TOPK, LayerMethod(), Split("both", TOPK, TOME, 0.5)], ids=lambda one: type(one).__name__
)
def test_all_but_one_can_leave(one):
    assert [one.largest(tokens, class_token=True) for tokens in (65, 3, 2, 1)] == [63, 1, 0, 0]
    assert [one.largest(tokens, class_token=False) for tokens in (65, 2, 1, 0)] == [64, 1, 0, 0]


@pytest.mark.parametrize("amount", [{"keep_ratio": 0.01}, {"tokens": 6}])
def test_too_much_names_what_was_passed(amount):
    """Of one part and of all together; never an r that no one passed."""
    ((name, value),) = amount.items()
    message = rf"{name} must be such that r is at most 512 in layer 0, .*, got {value}, which removes 568; "
    shape = cost.architecture("llava-1.5-7b")
    with pytest.raises(ValueError, match=message):
        cost.schedules.build(shape, get_method("mustdrop", part="tower"), **amount)
    together = {name: value // 3 if name == "tokens" else 0.004}
    with pytest.raises(ValueError, match=rf"{name} must be such that r is at most 512 .* got {together[name]}, which"):
        cost.schedules.build(shape, get_method("mustdrop"), **together)
    with pytest.raises(ValueError, match=r"cost: r must be at most 512 in layer 0, .*, got 520; "):
        cost.schedules.build(shape, get_method("mustdrop", part="tower"), r=520)
