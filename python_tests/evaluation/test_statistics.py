"""Accuracies against sums by hand, intervals against simulations whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ficoco_ext.evaluation import Bootstrap, Estimate, Spread, Tally

RIGHT = [True, True, False, True, False, False, True]
SCENE = [0, 0, 0, 1, 1, 2, 2]
KIND = [0, 1, 1, 0, 0, 1, 1]


def test_accuracy_by_hand():
    tally = Tally.of(RIGHT, SCENE, KIND, (3, 2))
    assert tally.right.tolist() == [[1, 1], [1, 0], [0, 1]]
    assert tally.asked.tolist() == [[1, 2], [2, 0], [0, 2]]
    assert tally.accuracy().tolist() == [2 / 3, 2 / 4]
    found = Bootstrap(3, 10)
    assert found.mean(tally).value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.mean(tally, [1]).value == 1 / 2
    assert [one.value for one in found.kinds(tally)] == [2 / 3, 1 / 2]


def test_every_resample_by_hand():
    tally, found = Tally.of(RIGHT, SCENE, KIND, (3, 2)), Bootstrap(3, 50, seed=3)
    assert found.weights.sum(1).tolist() == [3] * 50
    means = []
    for drawn in found.weights:
        rows = [scene for scene in range(3) for _ in range(int(drawn[scene]))]
        each = []
        for kind in (0, 1):
            answers = [
                r for scene in rows for r, s, k in zip(RIGHT, SCENE, KIND, strict=True) if (s, k) == (scene, kind)
            ]
            if answers:
                each.append(sum(answers) / len(answers))
        means.append(sum(each) / len(each))  # a kind that no drawn scene asks is not in this resample's mean
    got = found.mean(tally)
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert got.error == pytest.approx(np.std(means))


def test_difference_is_paired():
    rng = np.random.default_rng(0)
    scene, kind = np.repeat(np.arange(60), 4).tolist(), [0] * 240
    a = (rng.random(240) < np.repeat(rng.random(60), 4)).tolist()
    b = list(a)
    b[0] = not b[0]
    one, other = (Tally.of(answers, scene, kind, (60, 1)) for answers in (a, b))
    found = Bootstrap(60)
    difference = found.difference(one, other)
    assert difference.value == pytest.approx((sum(a) - sum(b)) / 240)
    assert difference.error < found.mean(one).error / 5  # what both share cancels
    assert found.difference(one, one) == Estimate(0, 0, 0, 0)
    turned = found.difference(other, one)
    assert (turned.low, turned.high) == pytest.approx((-difference.high, -difference.low))


def test_same_numbers_every_time():
    tally = Tally.of(RIGHT, SCENE, KIND, (3, 2))
    assert Bootstrap(3).mean(tally) == Bootstrap(3).mean(tally)
    assert Bootstrap(3, seed=1).weights.tolist() != Bootstrap(3).weights.tolist()


def _covered(questions_hang_together: bool) -> tuple[float, float]:
    """How often the interval holds the truth: with scenes drawn, and with questions drawn as if they were alone."""
    rng, scenes, each, trials = np.random.default_rng(5), 40, 8, 300
    by_scene, by_question = Bootstrap(scenes, 400), Bootstrap(scenes * each, 400)
    inside = [0, 0]
    for _ in range(trials):
        chance = rng.beta(1.4, 0.6, scenes) if questions_hang_together else np.full(scenes, 0.7)
        right = rng.random((scenes, each)) < chance[:, None]
        tally = Tally(right.sum(1, dtype=float)[:, None], np.full((scenes, 1), float(each)))
        single = Tally(right.reshape(-1, 1).astype(float), np.ones((scenes * each, 1)))
        for place, found in enumerate((by_scene.mean(tally), by_question.mean(single))):
            inside[place] += found.low <= 0.7 <= found.high
    return inside[0] / trials, inside[1] / trials


def test_interval_of_scenes_holds_the_truth_as_often_as_it_says():
    of_scenes, of_questions = _covered(True)
    assert 0.90 <= of_scenes <= 0.985
    assert of_questions < 0.80  # why scenes are drawn
    of_scenes, of_questions = _covered(False)
    assert 0.90 <= of_scenes <= 0.985 and 0.90 <= of_questions <= 0.985


def test_error_agrees_with_the_formula_of_a_share():
    right = [i % 10 < 7 for i in range(1000)]
    tally = Tally.of(right, list(range(1000)), [0] * 1000, (1000, 1))
    found = Bootstrap(1000).mean(tally)
    assert found.error == pytest.approx(math.sqrt(0.7 * 0.3 / 1000), rel=0.06)
    assert (found.low + found.high) / 2 == pytest.approx(0.7, abs=0.003)


def test_what_was_never_asked_is_not_known():
    tally = Tally.of([True], [0], [0], (1, 2))
    found = Bootstrap(1, 5)
    assert math.isnan(found.kinds(tally)[1].value) and math.isnan(found.kinds(tally)[1].low)
    assert found.mean(tally) == Estimate(1, 1, 1, 0)


def test_spread():
    assert Spread.of([0.5, 0.7]) == Spread((0.5, 0.7), pytest.approx(math.sqrt(0.02)))
    assert Spread.of([0.5, 0.7]).error == pytest.approx(0.1)
    assert Spread.of([0.5]).deviation is None and Spread.of([0.5]).error == 0


def test_an_error_is_raised_to_a_floor_and_never_lowered():
    found = Estimate(0.5, 0.45, 0.58, 0.03)
    assert found.at_least(0.03) == found.at_least(0) == found
    raised = found.at_least(0.04)
    assert raised == Estimate(0.5, pytest.approx(0.5 - 0.0784, abs=1e-4), 0.58, 0.04)  # 0.58 is further out already
    unknown = Estimate(0.5, math.nan, math.nan, math.nan)
    assert unknown.at_least(1) is unknown


@pytest.mark.parametrize("change", [{"scenes": 0}, {"scenes": 1, "resamples": 0}])
def test_errors(change):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        Bootstrap(**change)


def test_an_interval_leaves_out_as_much_on_either_side():
    found = Estimate.of(0.3, np.append(np.arange(1001) / 1000, np.nan))
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.025, 0.975))
    assert found.error == pytest.approx(np.std(np.arange(1001) / 1000))
