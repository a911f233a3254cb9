"""What ``attach`` plans and refuses for a method after the projector, alone and with other parts."""

from __future__ import annotations

import pickle
import re

import pytest
from helpers.families import tiny_next, tiny_qwen
from helpers.models import assert_refused, one_thread, snapshot, tiny_llava  # noqa: F401

import ficoco_ext
from ficoco_ext import get_method
from ficoco_ext.models import resolve

pytest.importorskip("transformers")

DIVPRUNE = get_method("divprune")
THREE = "topk+divprune+fastv"
EACH = {"vision": {"tokens": 18, "layers": (3,)}, "projector": {"tokens": 9}, "decoder": {"keep_ratio": 0.5}}


def third(grid):
    return 12


@pytest.fixture(scope="module")
def model():
    return tiny_llava(seed=5)


def test_a_plan_says_what_stays_after_the_projector(model):
    plan = resolve(model, "divprune", keep_ratio=0.25)
    assert str(plan).splitlines() == [
        "LLaVA-1.5: 6 x 6 = 36 patches of an image, 6 layers in the vision tower (5 used), 3 layers in the language "
        "model",
        "after the projector, for every picture:",
        "  0.25 of the tokens of a picture left, original positions  divprune",
        "the vision tower is left alone: the method has no part in it",
        "the language model is left alone: the method has no part in it",
    ]
    assert repr(plan).endswith("LLaVA-1.5: divprune, 0.25 of the tokens of a picture after the projector>")
    assert "contiguous positions  divprune" in str(resolve(model, "divprune", tokens=9, positions="contiguous"))
    assert pickle.loads(pickle.dumps(plan)) == plan and hash(plan) == hash(resolve(model, DIVPRUNE, keep_ratio=0.25))


def test_a_plan_of_three_parts(model):
    plan = resolve(model, THREE, **EACH)
    lines = str(plan).splitlines()
    assert lines[1:] == [
        "vision tower, for every image:",
        "  layer   3:    36 -   18 =    18  topk",
        "  18 of 36 patches left (keep ratio 0.500)",
        "after the projector, for every picture:",
        "  9 tokens of a picture left, original positions  divprune",
        "language model, for a prompt with one image:",
        "  layer   1:     9 -    4 =     5  fastv",
        "  5 of 9 visual tokens left (keep ratio 0.556)",
    ]
    assert plan.per_image == 9 and plan.picture is None and plan.left_alone == ()
    assert plan.summary == (
        "topk, 36 -> 18 patches; divprune, 9 tokens of a picture after the projector; fastv in 1 layers of the "
        "language model"
    )


def test_one_amount_is_divided(model):
    three = resolve(model, THREE, keep_ratio=0.25)
    assert (three.schedule.final, three.projector.tokens, three.plan.keep_ratio) == (23, 14, 9 / 14)
    assert resolve(model, THREE, tokens=9) == three
    two = resolve(model, "topk+divprune", keep_ratio=0.25)
    assert (two.schedule.final, two.projector.keep_ratio, two.per_image) == (18, 0.5, 9)
    last = resolve(model, "divprune+fastv", keep_ratio=0.25)
    assert (last.projector.tokens, last.plan.keep_ratio, last.per_image) == (18, 0.5, 18)


def test_visual_tokens_of_an_image(model):
    assert resolve(model, "divprune", keep_ratio=0.25).per_image == 9
    assert resolve(model, "divprune", tokens=50).per_image == 36
    assert resolve(model, "divprune", tokens=lambda grid: grid[0]).per_image == 6
    full = tiny_llava(strategy="full")
    assert resolve(full, "divprune", keep_ratio=0.5).per_image == 19  # 18.5 of 37
    assert resolve(full, "divprune", tokens=lambda grid: 5 if grid is None else 6).per_image == 5
    assert resolve(tiny_qwen(), "divprune", keep_ratio=0.5).per_image is None


def test_a_function_of_the_grid_is_a_value_of_the_plan(model):
    plan = resolve(model, "divprune", tokens=third)
    assert plan == resolve(model, "divprune", tokens=third) and plan.per_image == 12
    assert "a number of tokens that its grid decides left" in str(plan)


@pytest.mark.parametrize("given", [{"keep_ratio": 1.0}, {"tokens": 2**20}])
def test_nothing_to_remove_changes_nothing(model, given):
    plan = resolve(model, "divprune", **given)
    assert not plan.changes_features and not plan.cuts_by_features and plan.picture == (6, 6)
    assert plan.left_alone[-1] == "what the projector gives is left alone: nothing is to be removed"
    before = snapshot(model)
    with ficoco_ext.attach(model, "divprune", **given):
        assert set(vars(model)) - {"ficoco_handle"} == set(before[""][0])


def test_a_method_that_needs_the_grid_cannot_follow(model):
    assert resolve(model, "ficoco-l", keep_ratio=0.5, penalty=2).picture == (6, 6)
    message = "method must be one that needs no grid where the visual tokens of an image are not its whole grid"
    with pytest.raises(NotImplementedError, match=f"{message}.*ficoco-l, which needs the grid; pass penalty=1"):
        resolve(model, "divprune+ficoco-l", keep_ratio=0.5, penalty=2)
    assert resolve(model, "divprune+ficoco-l", keep_ratio=0.5, penalty=1).picture is None


def test_positions(model):
    assert resolve(model, "divprune", keep_ratio=0.5).positions == "original"
    assert resolve(model, "topk", keep_ratio=0.5).positions == "contiguous"
    assert resolve(model, "topk+divprune", keep_ratio=0.5).positions == "original"
    assert resolve(model, "fastv").positions == "contiguous"
    original = resolve(model, "topk", keep_ratio=0.5, positions="original")
    assert original.positions == "original" and original.cuts_by_features
    assert not resolve(model, "topk", keep_ratio=0.5).cuts_by_features
    assert not resolve(model, "topk", r=0, positions="original").cuts_by_features


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"keep_ratio": 0.5, "positions": "old"}, ValueError, "positions must be 'original', 'contiguous' or None"),
        (
            {"method": "fastv", "positions": "original"},
            ValueError,
            "positions must be None for a method of the language model, got original; leave it out: reductions inside",
        ),
        ({"r": 3}, ValueError, "amount must be one of keep_ratio and tokens with method 'divprune', got r"),
        ({}, ValueError, "amount must be one of keep_ratio and tokens with method 'divprune', got nothing"),
        ({"keep_ratio": 0.5, "layers": (1,)}, ValueError, "layers must be None with method 'divprune'"),
        ({"keep_ratio": [0.5]}, TypeError, "keep_ratio must be one value: it acts once"),
        ({"tokens": 0}, ValueError, "tokens must be"),
        (
            {"keep_ratio": 0.5, "projector": {"tokens": 9}},
            ValueError,
            "projector must be None unless the method has several parts",
        ),
        (
            {"keep_ratio": 0.5, "static_counts": True},
            ValueError,
            "static_counts must be False without a method for the language model",
        ),
        (
            {"method": THREE, "vision": {"tokens": 18}, "decoder": {"keep_ratio": 0.5}},
            ValueError,
            "vision and projector and decoder must be all given, and no amount or layers besides",
        ),
        (
            {"method": THREE, "keep_ratio": 0.5, **EACH},
            ValueError,
            'pass vision={"keep_ratio": 0.5}, projector={"keep_ratio": 0.5}, decoder={"keep_ratio": 0.5}',
        ),
        (
            {"method": "divprune+fastv", **EACH},
            ValueError,
            "projector and decoder must be all given, and no amount or layers besides",
        ),
        ({"method": THREE, **EACH, "projector": {"layers": (1,), "tokens": 9}}, ValueError, "layers must be None"),
        ({"method": THREE, **EACH, "projector": 9}, TypeError, "projector must be a dict with some of r, keep_ratio"),
        ({"method": THREE, **EACH, "projector": {"ratio": 0.5}}, TypeError, "projector must be a dict with some of"),
        ({"method": THREE, "r": 3}, ValueError, "amount must be one of keep_ratio and tokens for all parts together"),
        ({"method": ["divprune", "topk"], "r": 3}, ValueError, "methods that are all for the tower or all for the dec"),
    ],
)
def test_what_is_refused(model, options, kind, message):
    assert_refused(model, {"method": "divprune"} | options, kind, message)


def test_tokens_of_several_parts_need_to_be_known():
    """Pictures of Qwen2-VL differ in theirs, so only a ratio can be divided."""
    model = tiny_qwen()
    plan = resolve(model, "divprune+fastv", keep_ratio=0.25)
    assert (plan.projector.keep_ratio, plan.plan.keep_ratio) == (0.5, 0.5)
    with pytest.raises(ValueError, match="amount must be keep_ratio, for the number of visual tokens depends on the"):
        resolve(model, "divprune+fastv", tokens=9)
    each = resolve(model, "divprune+fastv", projector={"tokens": 9}, decoder={"r": 2})
    assert (each.projector.tokens, each.plan.r) == (9, 2)


def test_contiguous_positions_where_rows_and_columns_are_in_them():
    with pytest.raises(NotImplementedError, match="positions must be 'original' for Qwen2-VL, got 'contiguous'"):
        resolve(tiny_qwen(), "divprune", keep_ratio=0.5, positions="contiguous")
    assert resolve(tiny_next(), "divprune", keep_ratio=0.5, positions="contiguous").positions == "contiguous"


def test_ids_of_visual_tokens():
    """One for each kind of picture, in the order in which a family declares them."""
    qwen = tiny_qwen()
    wanted = qwen.config.image_token_id, qwen.config.video_token_id
    assert resolve(qwen, "divprune", keep_ratio=0.5).facts.placeholders == wanted
    assert resolve(qwen, "divprune", keep_ratio=0.5).facts.rope_index
    llava = resolve(tiny_llava(), "divprune", keep_ratio=0.5)
    assert (llava.facts.placeholders, llava.facts.rope_index) == ((3,), False)


def test_a_method_after_the_projector_needs_no_known_tower():
    """The class token may be anywhere: what the projector gives is all that counts."""
    plan = resolve(tiny_llava(feature_layer=[-2, -3]), "divprune", keep_ratio=0.5)
    assert plan.facts.tower is None and plan.per_image is None
    assert re.search("after the projector, for every picture:\n  0.5 of the tokens", str(plan))
