"""Schedules: plain integers, known before anything runs."""

import math

import pytest

from ficoco_ext import Schedule
from ficoco_ext.schedule import Step

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
