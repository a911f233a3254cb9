"""How many tokens of a picture stay after the projector, and how three parts divide one amount: numbers by hand."""

from __future__ import annotations

import dataclasses

import pytest

from ficoco_ext import get_method
from ficoco_ext.amounts import Amount, equal_shares
from ficoco_ext.resolve import ProjectorPlan, projector_plan

DIVPRUNE = get_method("divprune")


def of(**given):
    return Amount.of("attach", **{"r": None, "keep_ratio": None, "tokens": None} | given)


@pytest.mark.parametrize(
    ("ratio", "before", "left"),
    [
        (0.25, 576, 144),
        (0.25, 10, 3),  # 2.5 is rounded up
        (0.5, 3, 2),  # 1.5, too
        (0.25, 9, 2),  # 2.25
        (0.1, 4, 1),  # 0.4, but one stays
        (0.1, 1, 1),
        (0.1, 0, 0),  # a picture without tokens has none to keep
        (1.0, 7, 7),
    ],
)
def test_a_share_of_a_picture(ratio, before, left):
    plan = projector_plan("attach", DIVPRUNE, of(keep_ratio=ratio))
    assert plan.count(before) == left and plan.removes(before) == (left < before)
    assert plan.amount == f"{ratio:g} of the tokens of a picture"


@pytest.mark.parametrize(("tokens", "before", "left"), [(5, 9, 5), (9, 9, 9), (10, 9, 9), (5, 0, 0), (1, 9, 1)])
def test_a_number_of_tokens_is_never_more_than_there_are(tokens, before, left):
    plan = projector_plan("attach", DIVPRUNE, of(tokens=tokens))
    assert plan.count(before, (3, 3)) == left and plan.removes(before) == (left < before)
    assert plan.amount == f"{tokens} tokens of a picture"


def test_a_function_of_the_grid():
    plan = projector_plan("attach", DIVPRUNE, of(tokens=lambda grid: 4 if grid is None else grid[0] * grid[1] // 3))
    assert [plan.count(12, (3, 4)), plan.count(3, (3, 4)), plan.count(12)] == [4, 3, 4]
    assert plan.count(12, (2, 6)) == 4 and plan.removes(1)  # nothing is known of it before it is called
    assert plan.amount == "a number of tokens that its grid decides"


@pytest.mark.parametrize("returned", [0, -1, 2.0, True, None, "3"])
def test_a_function_that_gives_no_number(returned):
    plan = projector_plan("attach", DIVPRUNE, of(tokens=lambda grid: returned))
    message = r"forward: tokens must be a function that returns an integer >= 1, got .*with the grid, here \(3, 4\)"
    with pytest.raises(TypeError, match=message):
        plan.count(12, (3, 4))


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({}, ValueError, "amount must be one of keep_ratio and tokens with method 'divprune', got nothing"),
        ({"r": 3}, ValueError, "amount must be one of keep_ratio and tokens with method 'divprune', got r"),
        ({"keep_ratio": 0.5, "tokens": 3}, ValueError, "got keep_ratio, tokens; pass keep_ratio=0.25"),
        ({"keep_ratio": 0.5, "layers": (1,)}, ValueError, "layers must be None with method 'divprune', which acts aft"),
        ({"keep_ratio": [0.5, 0.25]}, TypeError, r"keep_ratio must be one value: it acts once, got \[0.5, 0.25\]"),
        ({"tokens": (9, 4)}, TypeError, r"tokens must be one value: it acts once, got \[9, 4\]"),
        ({"keep_ratio": 0.0}, ValueError, "keep_ratio must be"),
        ({"keep_ratio": 1.5}, ValueError, "keep_ratio must be"),
        ({"tokens": 0}, ValueError, "tokens must be"),
        ({"tokens": 2.5}, TypeError, "tokens must be"),
        ({"tokens": "all"}, TypeError, "tokens must be"),
    ],
)
def test_amounts_that_are_refused(given, kind, message):
    with pytest.raises(kind, match=message):
        projector_plan("attach", DIVPRUNE, of(**given))


def test_an_own_amount_is_for_where_there_is_none():
    half = dataclasses.replace(DIVPRUNE, amount=(("keep_ratio", 0.5),))
    assert projector_plan("attach", half, of()) == ProjectorPlan(half, keep_ratio=0.5)
    assert projector_plan("attach", half, of(tokens=3)) == ProjectorPlan(half, tokens=3)


def test_three_parts_keep_the_same_share():
    """64 to 8 is a half three times; 36 to 9 by 0.63: 22.68 and 14.29."""
    assert equal_shares("attach", 64, of(tokens=8), 3) == (of(tokens=32), of(tokens=16), of(keep_ratio=0.5))
    shares = equal_shares("attach", 36, of(keep_ratio=0.25), 3)
    assert shares == (of(tokens=23), of(tokens=14), of(keep_ratio=9 / 14))


@pytest.mark.parametrize(("parts", "each"), [(2, 0.5), (3, 0.25 ** (1 / 3))])
def test_shares_where_pictures_differ(parts, each):
    shares = equal_shares("attach", 0, of(keep_ratio=0.25), parts)
    assert [one.keep_ratio for one in shares] == pytest.approx([each] * parts)
    assert all(one == of(keep_ratio=one.keep_ratio) for one in shares)
    message = "amount must be keep_ratio, for the number of visual tokens depends on the picture, got tokens"
    with pytest.raises(ValueError, match=message):
        equal_shares("attach", 0, of(tokens=9), parts)
    with pytest.raises(ValueError, match="keep_ratio"):
        equal_shares("attach", 0, of(keep_ratio=1.5), parts)
