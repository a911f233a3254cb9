"""What every method has to beat, and methods of several parts, at equal numbers of tokens in the language model."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from helpers.embedded import embedded, grid, one_thread  # noqa: F401

from ficoco_ext.evaluation import Prompts, evaluate, questions, settings_of
from ficoco_ext.models import resolve


def test_baselines_are_random_with_three_seeds_and_every_kth():
    found = settings_of(["tome"], tokens=[36, 18], baselines=True)
    assert [(one.name, one.budget) for one in found] == [
        (name, f"tokens {count}")
        for count in (36, 18)
        for name in ("tome", "random-0", "random-1", "random-2", "stride", "downsample")
    ]
    kept = set()
    for one in found:
        plan = resolve(embedded().model, one.built(7), **one.amount) if one.name != "tome" else None
        if plan is not None:  # after the projector, by its own seed and not by the run's
            assert plan.schedule is None and plan.projector.tokens == one.amount["tokens"]
            assert not one.seeded
            kept.add((one.budget, str(plan.projector.method)))
    assert len(kept) == 10
    own = settings_of(
        ["stride", "random-1=topk"], tokens=[9], baselines=True, hyperparameters={"stride": {"merge": True}}
    )
    assert [(one.name, one.method) for one in own] == [
        ("stride", "stride"),
        ("random-1", "topk"),
        ("random-0", "random"),
        ("random-2", "random"),
        ("downsample", "downsample"),
    ]
    assert own[0].hyperparameters == {"merge": True} and own[1].hyperparameters == {}


def test_methods_of_several_parts_by_their_names():
    one, other = settings_of(["divprune+fastv", "both=random+divprune"], tokens=[36])
    assert (one.name, one.budget, one.seeded) == ("divprune+fastv", "tokens 36", False)
    assert one.describe()["hyperparameters"] == {"part": "projector", "merge": False, "layer": 2}
    assert other.seeded and "seed" not in other.describe()["hyperparameters"]
    plan = resolve(embedded().model, one.built(0), **one.amount)
    assert plan.changes_features and plan.changes_language_model


def test_geometric_schedules_leave_the_projector_alone():
    found = settings_of(["divprune", "topk+divprune"], keep_ratios=[0.25], schedule="geometric")
    assert [one.amount for one in found] == [{"keep_ratio": 0.25}] * 2


def test_equal_numbers_of_tokens_in_the_language_model():
    """What the columns say of every method at one number is what its prompts have."""
    settings = settings_of(["topk", "divprune", "topk+divprune", "divprune+fastv"], tokens=[36], baselines=True)
    lines = evaluate(embedded(), grid(2), settings).summary().lines
    words = Prompts(embedded(), questions(grid(2))).text_tokens[0]
    full = lines[0].cost["kv_bytes"]
    for line in lines[1:]:
        tokens = line.cost["visual_tokens"]
        if line.name == "divprune+fastv":
            assert tokens["entering"] > tokens["average"] > tokens["final"] == 36
        else:
            assert set(tokens.values()) == {36}
            assert line.cost["kv_bytes"] / full == pytest.approx((36 + words) / (144 + words))
        assert line.cost["flops_ratio"] < 1
