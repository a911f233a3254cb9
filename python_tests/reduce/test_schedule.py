"""Schedules: plain integers, known before anything runs."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ficoco_ext import Plan, Schedule
from ficoco_ext.schedule import Step, geometric

TOWER = range(12, 23)  # the eleven layers of CLIP ViT-L that count


@pytest.mark.parametrize(
    ("tokens", "r"), [(192, (35,) * 10 + (34,)), (128, (41,) * 10 + (38,)), (64, (47,) * 10 + (42,)), (114, (42,) * 11)]
)
def test_published_budgets(tokens, r):
    schedule = Schedule.build(576, layers=TOWER, tokens=tokens)
    assert schedule.r == r
    assert schedule.final == tokens
    assert schedule.layers == tuple(TOWER)
    assert Schedule.build(576, layers=TOWER, r=list(r)) == schedule


@pytest.mark.parametrize("layers", [1, 2, 3, 7, 11, 24])
@pytest.mark.parametrize("patches", [1, 2, 10, 36, 576, 2880])
def test_every_budget_is_met(patches, layers):
    for tokens in {1, max(1, patches // 9), max(1, patches // 2), max(1, patches - 5), patches}:
        schedule = Schedule.build(patches, layers=range(layers), tokens=tokens)
        assert schedule.final == tokens
        assert len(schedule.r) == layers
        step = math.ceil((patches - tokens) / layers)
        assert max(schedule.r) == step
        assert list(schedule.r) == sorted(schedule.r, reverse=True)
        assert len({r for r in schedule.r if r not in (0, step)}) <= 1  # one remainder


def test_budget_smaller_than_the_number_of_layers():
    assert Schedule.build(576, layers=TOWER, tokens=570).r == (1,) * 6 + (0,) * 5
    assert Schedule.build(576, layers=TOWER, tokens=576).r == (0,) * 11
    assert Schedule.build(1, layers=TOWER, keep_ratio=0.1).r == (0,) * 11


@pytest.mark.parametrize(
    ("patches", "keep_ratio", "final"),
    [
        (576, 1 / 3, 192),
        (576, 0.1111, 64),
        (576, 1.0, 576),
        (576, 1, 576),
        (10, 0.25, 3),
        (10, 0.15, 2),
        (10, 0.05, 1),
        (10, 0.001, 1),
        (7, 0.5, 4),
        (5, 0.5, 3),
    ],
)
def test_keep_ratio_rounds_half_up(patches, keep_ratio, final):
    assert Schedule.build(patches, layers=[3], keep_ratio=keep_ratio).final == final


def test_r():
    schedule = Schedule.build(36, layers=(0, 2, 5), r=[4, 0, 7])
    assert schedule.steps == (Step(0, 36, 4, 32), Step(2, 32, 0, 32), Step(5, 32, 7, 25))
    assert schedule.final == 25
    assert schedule.keep_ratio == 25 / 36
    assert Schedule.build(36, layers=(0, 2, 5), r=3).r == (3, 3, 3)
    assert Schedule.build(36, layers=iter((0, 2)), r=0).final == 36


def test_tokens_entering():
    """A layer reduces after its attention, so it sees what the one before left."""
    schedule = Schedule.build(36, layers=(1, 2), r=[10, 5])
    assert schedule.tokens_entering(5) == (36, 36, 26, 21, 21)
    assert schedule.average_tokens(5) == (36 + 36 + 26 + 21 + 21) / 5
    assert schedule.tokens_entering(2) == (36, 36)


def test_printing():
    text = str(Schedule.build(576, layers=(12, 13, 22), r=[42, 0, 134]))
    assert text == (
        "576 patches\n"
        "  layer  12:   576 -   42 =   534\n"
        "  layer  13:   534 -    0 =   534\n"
        "  layer  22:   534 -  134 =   400\n"
        "400 left (keep ratio 0.694)"
    )


def test_is_a_value():
    assert Schedule.build(36, layers=[1], r=3) == Schedule(36, (1,), (3,))
    assert hash(Schedule(36, (1,), (3,))) == hash(Schedule(36, (1,), (3,)))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, ValueError, "exactly one of r, keep_ratio and tokens, got none"),
        ({"r": 1, "tokens": 3}, ValueError, "exactly one of .*, got r, tokens"),
        ({"r": 1, "keep_ratio": 0.5, "tokens": 3}, ValueError, "got r, keep_ratio, tokens"),
        ({"layers": (), "r": 1}, ValueError, "layers must name at least one layer"),
        ({"layers": (2, 1), "r": 1}, ValueError, "layers must be ascending and distinct"),
        ({"layers": (1, 1), "r": 1}, ValueError, "layers must be ascending and distinct"),
        ({"layers": (-1, 1), "r": 1}, ValueError, "layers must not be negative, got -1"),
        ({"layers": (0.0, 1), "r": 1}, TypeError, "layers must be made of integers, got 0.0"),
        ({"layers": "12", "r": 1}, TypeError, "layers must be made of integers, got '1'"),
        ({"layers": 3, "r": 1}, TypeError, "layers must be"),
        ({"layers": None, "r": 1}, TypeError, "layers must be"),
        ({"r": -1}, ValueError, "r must not be negative, got -1"),
        ({"r": 18}, ValueError, "removes 36 of 36 patches.*at most 35 in all"),
        ({"r": (3,)}, ValueError, "r has 1 entries for 2 layers"),
        ({"r": (3, 3, 3)}, ValueError, "r has 3 entries for 2 layers"),
        ({"r": (3, True)}, TypeError, "r must be made of integers, got True"),
        ({"r": True}, TypeError, "r must be made of integers, got True"),
        ({"r": 1.5}, TypeError, "r must be"),
        ({"r": "33"}, TypeError, "r must be made of integers, got '3'"),
        ({"keep_ratio": 0}, ValueError, r"keep_ratio must be in \(0, 1\], got 0"),
        ({"keep_ratio": -0.5}, ValueError, "keep_ratio must be"),
        ({"keep_ratio": 1.01}, ValueError, "keep_ratio must be"),
        ({"keep_ratio": float("nan")}, ValueError, "keep_ratio must be"),
        ({"keep_ratio": True}, ValueError, "keep_ratio must be"),
        ({"keep_ratio": "0.5"}, ValueError, "keep_ratio must be"),
        ({"tokens": 0}, ValueError, r"tokens must be in \[1, 36\], got 0"),
        ({"tokens": 37}, ValueError, r"tokens must be in \[1, 36\], got 37"),
        ({"tokens": 3.0}, TypeError, "tokens must be an integer, got 3.0"),
        ({"tokens": True}, TypeError, "tokens must be an integer, got True"),
        ({"patches": 0, "r": 0}, ValueError, "patches must be"),
        ({"patches": 0, "tokens": 1}, ValueError, "patches must be"),
        ({"patches": 0, "keep_ratio": 0.5}, ValueError, "patches must be"),
        ({"patches": -4, "keep_ratio": 0.5}, ValueError, "patches must"),
        ({"patches": 36.0, "tokens": 4}, TypeError, "patches must be"),
        ({"patches": "36", "keep_ratio": 0.5}, TypeError, "patches must be"),
        ({"patches": True, "r": 0}, TypeError, "patches must be"),
    ],
)
def test_errors(options, kind, message):
    options = {"patches": 36, "layers": (0, 1)} | options
    with pytest.raises(kind, match=f"Schedule: .*{message}"):
        Schedule.build(options.pop("patches"), **options)


@pytest.mark.parametrize(
    ("patches", "ratios", "rounding", "left"),
    [
        (576, (0.5, 0.25, 0.125), "floor", (288, 144, 72)),
        (576, (0.5, 0.25, 0.125), "half_up", (288, 144, 72)),
        (35, (0.5, 0.25, 0.125), "floor", (17, 8, 4)),
        (35, (0.5, 0.25, 0.125), "half_up", (18, 9, 4)),
        (7, (1.0, 0.5, 0.5), "half_up", (7, 4, 4)),
        (7, (1, 0.5, 0.01), "floor", (7, 3, 1)),
        (1, (0.5, 0.25, 0.125), "floor", (1, 1, 1)),
        (10, (0.3, 0.3, 0.1), "floor", (3, 3, 1)),
        (100, (0.29, 0.28, 0.14), "floor", (29, 28, 14)),  # 100 * 0.29 is a little less than 29
        (2880, (0.35, 0.35, 0.1), "floor", (1008, 1008, 288)),  # and 2880 * 0.35 than 1008
        (36, (0.5, 0.49, 0.25), "half_up", (18, 18, 9)),
    ],
)
def test_a_ratio_after_each_layer(patches, ratios, rounding, left):
    schedule = Schedule.build(patches, layers=(8, 16, 24), keep_ratio=ratios, rounding=rounding)
    assert tuple(step.after for step in schedule.steps) == left
    assert Schedule.build(patches, layers=(8, 16, 24), keep_ratio=list(ratios), rounding=rounding) == schedule


def test_one_ratio_is_rounded_as_asked():
    for rounding, final in (("half_up", 4), ("floor", 3)):
        assert Schedule.build(7, layers=(1, 2), keep_ratio=0.5, rounding=rounding).final == final


@given(
    st.integers(1, 3000), st.lists(st.floats(0.001, 1), min_size=1, max_size=6), st.sampled_from(["half_up", "floor"])
)
def test_survivors_of_any_ratios(patches, ratios, rounding):
    ratios = sorted(ratios, reverse=True)
    schedule = Schedule.build(patches, layers=range(len(ratios)), keep_ratio=ratios, rounding=rounding)
    for step, ratio in zip(schedule.steps, ratios, strict=True):
        assert 1 <= step.after <= step.before
        exact = patches * ratio
        if rounding == "half_up":
            assert step.after == 1 or abs(step.after - exact) <= 0.5 + 1e-6
        else:
            assert step.after == 1 or exact - 1 < step.after <= exact + 1e-6


def test_before_attention():
    """A layer that reduces before its attention sees what it has left itself."""
    after, before = (Schedule.build(36, layers=(1, 2), r=[10, 5], before_attention=before) for before in (False, True))
    assert after.tokens_entering(5) == (36, 36, 26, 21, 21)
    assert before.tokens_entering(5) == (36, 26, 21, 21, 21)
    assert after.tokens_in_mlp(5) == before.tokens_in_mlp(5) == (36, 26, 21, 21, 21)
    assert before.average_tokens(5) == (36 + 26 + 21 + 21 + 21) / 5
    assert after != before and after.steps == before.steps and after.final == before.final


def test_pyramiddrop_in_numbers():
    """The average that its preset comes to with 32 layers: 270 of 576."""
    schedule = Schedule.build(576, layers=(8, 16, 24), keep_ratio=(0.5, 0.25, 0.125), before_attention=True)
    assert schedule.average_tokens(32) == 270


@pytest.mark.parametrize(
    ("plan", "tokens", "r"),
    [
        (Plan(layers=(2, 4), r=14), 576, (14, 14)),
        (Plan(layers=(2, 4), r=14), 29, (14, 14)),
        (Plan(layers=(2, 4), r=14), 28, (14, 13)),
        (Plan(layers=(2, 4), r=14), 15, (14, 0)),
        (Plan(layers=(2, 4), r=14), 14, (13, 0)),
        (Plan(layers=(2, 4), r=14), 1, (0, 0)),
        (Plan(layers=(0, 1, 2), r=(3, 0, 5)), 6, (3, 0, 2)),
        (Plan(layers=(0, 1, 2), r=(0, 9, 5)), 6, (0, 5, 0)),
        (Plan(layers=(0, 1), tokens=10), 576, (283, 283)),
        (Plan(layers=(0, 1), tokens=10), 10, (0, 0)),
        (Plan(layers=(0, 1), tokens=10), 3, (0, 0)),
        (Plan(layers=(0, 1), tokens=10), 11, (1, 0)),
        (Plan(layers=(0, 1), keep_ratio=0.5), 7, (2, 1)),
        (Plan(layers=(0, 1), keep_ratio=0.5, rounding="floor"), 7, (2, 2)),
        (Plan(layers=(0, 1), keep_ratio=(0.5, 0.25)), 1, (0, 0)),
        (Plan(layers=(0, 1), keep_ratio=(0.5, 0.25)), 36, (18, 9)),
    ],
)
def test_a_plan_takes_what_a_prompt_has(plan, tokens, r):
    schedule = plan.schedule(tokens)
    assert schedule.r == r and schedule.layers == plan.layers and schedule.patches == tokens


@given(
    tokens=st.integers(1, 700),
    layers=st.lists(st.integers(0, 31), min_size=1, max_size=8, unique=True).map(sorted).map(tuple),
    amount=st.one_of(
        st.integers(0, 200).map(lambda r: {"r": r}),
        st.integers(1, 700).map(lambda tokens: {"tokens": tokens}),
        st.floats(0.001, 1).map(lambda ratio: {"keep_ratio": ratio}),
    ),
    before=st.booleans(),
)
def test_any_plan_leaves_something_of_any_prompt(tokens, layers, amount, before):
    plan = Plan(layers=layers, before_attention=before, **amount)
    schedule = plan.schedule(tokens)
    assert schedule.before_attention == before and 1 <= schedule.final <= tokens and min(schedule.r) >= 0
    if "r" in amount:  # as much as is wanted, as early as it is wanted
        wanted = [min(amount["r"] * (i + 1), tokens - 1) for i in range(len(layers))]
        assert [tokens - step.after for step in schedule.steps] == wanted
    elif "tokens" in amount:
        assert schedule.final == min(amount["tokens"], tokens)
    else:
        assert schedule == Schedule.build(tokens, layers=layers, before_attention=before, **amount)
    if not plan.removes:
        assert not any(schedule.r)


def test_whether_a_plan_removes_anything():
    for amount in ({"r": 0}, {"r": (0, 0)}, {"keep_ratio": 1}, {"keep_ratio": 1.0}, {"keep_ratio": (1.0, 1)}):
        assert not Plan(layers=(1, 2), **amount).removes
    for amount in ({"r": 1}, {"r": (0, 1)}, {"keep_ratio": 0.999}, {"keep_ratio": (1.0, 0.5)}, {"tokens": 5000}):
        assert Plan(layers=(1, 2), **amount).removes


def test_a_plan_is_a_value():
    assert Plan(layers=(1, 2), r=3) == Plan(layers=(1, 2), r=3)
    assert hash(Plan(layers=(1, 2), r=(3, 4))) == hash(Plan(layers=(1, 2), r=(3, 4)))
    assert Plan(layers=(1, 2), r=3) != Plan(layers=(1, 2), r=3, before_attention=True)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, ValueError, "exactly one of r, keep_ratio and tokens, got none"),
        ({"r": 1, "tokens": 3}, ValueError, "got r, tokens"),
        ({"r": 1, "layers": ()}, ValueError, "layers must name at least one layer"),
        ({"r": 1, "layers": (2, 1)}, ValueError, "layers must be ascending and distinct"),
        ({"r": 1, "layers": (-1, 1)}, ValueError, "layers must not be negative"),
        ({"r": 1, "layers": (1.0, 2)}, TypeError, "layers must be made of integers"),
        ({"r": -1}, ValueError, "r must not be negative"),
        ({"r": (5, -1)}, ValueError, "r must not be negative"),
        ({"r": (1, 2, 3)}, ValueError, "r has 3 entries for 2 layers"),
        ({"r": True}, TypeError, "r must be made of integers"),
        ({"r": (1, 2.0)}, TypeError, "r must be made of integers"),
        ({"tokens": 0}, ValueError, "tokens must be in"),
        ({"tokens": -5}, ValueError, "tokens must be in"),
        ({"tokens": 2.0}, TypeError, "tokens must be an integer"),
        ({"keep_ratio": 0}, ValueError, "keep_ratio must be in"),
        ({"keep_ratio": 1.5}, ValueError, "keep_ratio must be in"),
        ({"keep_ratio": (0.5, 0)}, ValueError, "keep_ratio must be in"),
        ({"keep_ratio": (0.5,)}, ValueError, "keep_ratio has 1 entries for 2 layers"),
        ({"keep_ratio": 0.5, "rounding": "up"}, ValueError, "rounding must be 'half_up' or 'floor', got 'up'"),
    ],
)
def test_plans_that_make_no_sense(options, kind, message):
    with pytest.raises(kind, match=f"Schedule: .*{message}"):
        Plan(**{"layers": (0, 1)} | options)


def test_a_rising_ratio_is_refused():
    with pytest.raises(ValueError, match=r"keep_ratio must not rise from layer to layer, got \(0.25, 0.5\)"):
        Schedule.build(36, layers=(0, 1), keep_ratio=(0.25, 0.5))
    with pytest.raises(ValueError, match="keep_ratio must not rise"):
        Plan(layers=(0, 1), keep_ratio=(0.25, 0.5))


def test_geometric_ratios_keep_the_same_share_in_every_layer():
    assert geometric(0.25, 2) == (0.5, 0.25)
    for keep_ratio, layers in ((0.1, 4), (0.9, 3), (1.0, 2)):
        ratios = (1.0, *geometric(keep_ratio, layers))
        assert len(ratios) == layers + 1 and ratios[-1] == keep_ratio  # the last one exactly
        shares = [after / before for before, after in itertools.pairwise(ratios)]
        assert shares == pytest.approx([keep_ratio ** (1 / layers)] * layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0, 2), r"keep_ratio must be a number in \(0, 1\], got 0"),
        ((1.5, 2), "keep_ratio must be"),
        ((True, 2), "keep_ratio must be"),
        ((0.5, 0), "layers must be an integer >= 1, got 0"),
        ((0.5, True), "layers must be"),
        ((0.5, 2.0), "layers must be"),
    ],
)
def test_geometric_ratios_of_nothing(options, message):
    with pytest.raises(ValueError, match=f"geometric: {message}"):
        geometric(*options)
