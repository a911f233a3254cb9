"""The comparison of the field: equal numbers of tokens in the language model, equal FLOPs, random more than once."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from helpers.embedded import embedded, grid, one_thread  # noqa: F401

from ficoco_ext.cost import flop_counter
from ficoco_ext.evaluation import (
    Goal,
    Prompts,
    Results,
    Setting,
    equal,
    evaluate,
    hard_kinds,
    markdown,
    questions,
    settings_of,
)
from ficoco_ext.evaluation.plans import Plans, Tables
from ficoco_ext.methods import METHODS

SEVERAL = ["divprune", "topk", "pool", "tome", "fastv", "divprune+fastv", "ficoco-vl"]


@pytest.fixture(scope="module")
def prompts():
    return Prompts(embedded(), questions(grid(1, 2)))


def _solved(prompts, names, what, tokens, **more):
    given = settings_of(names, tokens=[tokens], equal=[what], **more)
    return [equal.solved(one, prompts, 0) for one in given]


def _prefill(prompts, setting):
    """FLOPs, and visual tokens that each layer of the language model caches, of a real prefill."""
    model, inputs = embedded().model, prompts.processed([0])
    run = lambda: model(**inputs, use_cache=True, logits_to_keep=1)  # noqa: E731
    with setting.attach(embedded(), 0):
        flops, output = flop_counter.count(model, run)
    words = inputs["input_ids"].shape[1] - prompts.visual
    return flops.total, [layer.keys.shape[2] - words for layer in output.past_key_values.layers]


@pytest.mark.parametrize("wanted", [90, 75])
def test_all_methods_have_the_same_mean_of_tokens_in_the_language_model(prompts, wanted):
    """Counted on the caches of a real prefill, not by the cost model that found the amounts."""
    settings = _solved(prompts, SEVERAL, "average", wanted, baselines=True)
    assert {one.budget for one in settings} == {f"mean tokens {wanted}"}
    for setting in settings:
        cached = _prefill(prompts, setting)[1]
        if setting.name == "downsample":
            assert len(set(cached)) == 1 and 0.85 * wanted <= cached[0] <= wanted
            continue
        assert abs(np.mean(cached) - wanted) <= 0.5, setting.name
        inside = setting.built(0).language_model is not None
        assert inside or set(cached) == {wanted}
        assert not inside or cached[0] > wanted > setting.amount["tokens"]


def test_the_closest_whole_number_of_tokens_is_taken(prompts):
    """No other number of tokens comes closer to the goal."""
    (setting,) = _solved(prompts, ["fastv"], "average", 90)
    found = abs(np.mean(_prefill(prompts, setting)[1]) - 90)
    for other in (-1, 1):
        near = replace(setting, amount={"tokens": setting.amount["tokens"] + other})
        assert abs(np.mean(_prefill(prompts, near)[1]) - 90) > found


def test_all_methods_cost_the_same_flops(prompts):
    """Counted by torch on a real prefill, the selection's own products included."""
    settings = [one for one in _solved(prompts, SEVERAL, "flops", 90, baselines=True) if one.name != "downsample"]
    assert {one.budget for one in settings} == {"FLOPs of 90 tokens"}
    wanted = _prefill(prompts, next(one for one in settings if one.name == "stride"))[0]
    found = {one.name: _prefill(prompts, one)[0] for one in settings}
    assert {name: abs(flops / wanted - 1) <= equal.CLOSE for name, flops in found.items()} == dict.fromkeys(found, True)
    amounts = {one.name: one.amount["tokens"] for one in settings}
    assert amounts["random-0"] == amounts["stride"] == 90 > amounts["divprune"]  # which spends some on choosing
    assert amounts["topk"] > 90  # the tower is cheaper too


def test_a_smaller_picture_never_has_more_than_the_others(prompts):
    """Its grids are far apart: 4 x 4 for 18 tokens, and never one that has, or costs, more than the others."""
    for tokens in (100, 45, 36, 18):
        free = next(one for one in _solved(prompts, ["stride"], "flops", tokens))
        (mean,), (flops,) = (_solved(prompts, ["downsample"], what, tokens) for what in ("average", "flops"))
        assert set(_prefill(prompts, mean)[1]) == {{100: 100, 45: 42, 36: 36, 18: 16}[tokens]}
        assert _prefill(prompts, flops)[0] <= (1 + equal.CLOSE) * _prefill(prompts, free)[0]
        larger = replace(flops, amount={"tokens": flops.amount["tokens"] + 30})
        assert _prefill(prompts, larger)[0] > _prefill(prompts, free)[0]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("average", "mean tokens 20: fastv cannot reach a mean of 20 tokens: the closest is 48.67, with 1 token left"),
        ("flops", r"FLOPs of 20 tokens: fastv cannot reach 6\d.\d* % of the unreduced FLOPs: the closest is 6\d.\d*"),
    ],
)
def test_a_goal_out_of_reach_is_refused_with_what_is_possible(prompts, what, message):
    with pytest.raises(ValueError, match=message):
        _solved(prompts, ["fastv"], what, 20)
    lines = evaluate(embedded(), grid(1, 2), settings_of(["fastv", "topk"], tokens=[20], equal=[what])).summary().lines
    assert lines[1].mean is None and "cannot reach" in lines[1].remark and lines[2].mean is not None


def test_goals_are_refused_where_they_say_nothing(prompts):
    for goal in (Goal("average", 144), Goal("flops", 200), Goal("average", keep_ratio=1.0)):
        with pytest.raises(ValueError, match="must be below the 144 visual ones of a picture, got"):
            goal.of(prompts.visual)
    assert (
        Goal("flops", keep_ratio=0.001).of(144).tokens == 1 and Goal("average", keep_ratio=0.253).of(144).tokens == 36
    )
    with pytest.raises(ValueError, match="equal must be one of average, flops, got 'final'"):
        Goal("final", 36)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"equal": ["flop"]}, "equal must be among final, average, flops, got 'flop'.*flops"),
        ({"equal": []}, "equal must name at least one"),
        ({"equal": ["average"], "tokens": []}, "equal average needs a number of tokens; give keep_ratios or tokens"),
        (
            {
                "equal": ["flops"],
                "tokens": [],
                "keep_ratios": [0.5],
                "schedule": "geometric",
                "layers": {"topk": (1, 2)},
            },
            "schedule 'geometric' goes with equal 'final' alone, got flops",
        ),
    ],
)
def test_equal_errors(given, message):
    with pytest.raises(ValueError, match=message):
        settings_of(["topk"], **{"tokens": [36], **given})


def test_a_table_for_each_goal_and_amount():
    found = settings_of(["topk"], tokens=[36, 18], equal=["average", "final", "average"], baselines=True)
    count = len(found) // 4
    assert [one.budget for one in found[::count]] == ["mean tokens 36", "mean tokens 18", "tokens 36", "tokens 18"]
    assert [one.group for one in found[:5]] == [None, "random", "random", "random", None]
    assert found[0].amount == {} and found[-1].amount == {"tokens": 18} and found[-1].goal is None
    own = settings_of(["random-1=topk", "random-0=random"], tokens=[9], baselines=True)
    assert [one.group for one in own[:4]] == [None, None, "random", None]


def test_a_smaller_picture_is_a_baseline_where_the_method_is_there(monkeypatch):
    def names():
        return [one.name for one in settings_of(["topk"], tokens=[36], baselines=True)]

    monkeypatch.setattr(
        "ficoco_ext.evaluation.settings.METHODS", {k: v for k, v in METHODS.items() if k != "downsample"}
    )
    assert names() == ["topk", "random-0", "random-1", "random-2", "stride"]
    monkeypatch.setattr("ficoco_ext.evaluation.settings.METHODS", {**METHODS, "downsample": METHODS["stride"]})
    assert names() == ["topk", "random-0", "random-1", "random-2", "stride", "downsample"]


def test_random_is_shown_as_one_row_with_its_spread():
    found = evaluate(embedded(), grid(3, 4), settings_of(["topk"], tokens=[30], baselines=True))
    for number, sign in ((2, "1"), (3, "0"), (4, "0")):  # draws far apart
        (cell,) = found.cells(number)
        cell["right"] = sign * len(cell["right"])
    summary = found.summary()
    names = [line.name for line in summary.lines]
    assert names[:7] == ["unreduced", "topk", "random-0", "random-1", "random-2", "random, 3 seeds", "stride"]
    line, members = summary.lines[5], summary.lines[2:5]
    assert line.members == ("random-0", "random-1", "random-2") and line.budget == "tokens 30"
    assert line.mean.value == pytest.approx(1 / 3) and line.seeds.values == (1.0, 0.0, 0.0)
    error = np.std([1, 0, 0], ddof=1) / np.sqrt(3)
    assert line.seeds.error == pytest.approx(error) == line.mean.error == line.difference.error
    assert line.mean.low <= 1 / 3 - 1.95 * error and line.mean.high >= 1 / 3 + 1.95 * error
    assert line.difference.value == pytest.approx(1 / 3 - summary.lines[0].mean.value)
    assert {kind: one.value for kind, one in line.kinds.items()} == pytest.approx(dict.fromkeys(line.kinds, 1 / 3))
    assert line.agreement == pytest.approx(np.mean([one.agreement for one in members]))
    assert line.cost == members[0].cost and line.seconds == pytest.approx(sum(one.seconds for one in members))
    assert summary.to_dict()["lines"][5]["members"] == ["random-0", "random-1", "random-2"]
    assert "members" not in summary.to_dict()["lines"][4]
    assert "random, 3 seeds" in markdown.page(found, summary)
    found.document["cells"].pop(2)
    missing = Results(found.document).summary().lines[5]
    assert missing.mean is None and missing.remark == "random-0: not all of it was run"


def test_amounts_that_come_to_the_same_are_refused():
    """A quarter of 144 tokens are 36."""
    twice = settings_of(["stride"], baselines=True, keep_ratios=[0.25], tokens=[36], equal=["average"])
    with pytest.raises(ValueError, match="settings must differ in name or amount, got stride at mean tokens 36 twice"):
        evaluate(embedded(), grid(), twice)


def test_names_and_remarks_have_no_meaning_in_the_page():
    """A label of the caller's is text, in cells and in lists."""
    setting = Setting("topk", {"tokens": 30}, label="a|b <img src=x>")
    found = evaluate(embedded(), grid(), [setting])
    page = markdown.page(found, found.summary())
    assert r"a\|b \<img src=x\>" in page and "<img" not in page.replace(r"\<", "")


def test_a_run_by_the_protocol_goes_on_where_it_stopped(tmp_path):
    class Stop(Exception):
        pass

    def stopping(done, total, text):
        if "first token" in text:
            raise Stop

    settings = settings_of(["divprune", "fastv"], tokens=[80], equal=["average", "flops"])
    path, given = tmp_path / "out.json", {"first_token": (1, 2), "first_token_seconds": 0.0}
    whole = evaluate(embedded(), grid(), settings, **given).document
    with pytest.raises(Stop):
        evaluate(embedded(), grid(), settings, results=path, progress=stopping, **given)
    stopped = json.loads(path.read_text())
    assert len(stopped["cells"]) == 5 and "first_token" not in stopped
    found = evaluate(embedded(), grid(), settings, results=path, **given).document
    assert [cell["answers"] for cell in found["cells"]] == [cell["answers"] for cell in whole["cells"]]
    assert found["settings"] == whole["settings"] and found["run"] == whole["run"]
    assert [one["batch"] for one in found["first_token"]] == [1, 2]
    with pytest.raises(ValueError, match="of another run: 'settings' in it differs"):
        evaluate(embedded(), grid(), settings_of(["divprune", "fastv"], tokens=[80]), results=path)


def test_goals_are_explained_and_said_to_be_so():
    settings = settings_of(["divprune"], tokens=[80], equal=["average", "flops"])
    found = evaluate(embedded(), grid(1, 2), settings)
    told = "\n".join(markdown.legend(found, found.summary()))
    assert "mean tokens T:" in told and "FLOPs of T tokens:" in told
    plain = evaluate(embedded(), grid(1, 2), settings_of(["divprune"], tokens=[80]))
    assert "T tokens" not in "\n".join(markdown.legend(plain, plain.summary()))
    described = Plans(Tables(embedded(), grid(1, 2), (0,), "fail"), settings, (0,)).described()
    assert [one["amount"] for one in described[1:]] == [{"tokens": 80}, {"tokens": 79}]
    assert [one["goal"]["equal"] for one in described[1:]] == ["average", "flops"]


@pytest.mark.parametrize("kinds", [("exist", "text", "digit", "position"), ("exist", "text"), ("exist",)])
def test_kinds_that_reduction_hurts_are_pointed_at_or_missed(kinds):
    found = evaluate(embedded(), grid(2, 6, kinds=kinds), settings_of(["topk"], tokens=[30]))
    page = markdown.page(found, found.summary())
    asked = [kind for kind in kinds if kind != "exist"]
    assert ("look at " + ", ".join(asked) in page) == bool(asked)
    missing = [what for what, of in hard_kinds.found(kinds).items() if not of]
    assert ("No kind that was asked is called after " + " or ".join(missing) in page) == bool(missing)
    head = next(line for line in page.splitlines() if line.startswith("| method"))
    assert [one for one in head.strip("| ").split(" | ") if one in kinds] == list(found.kinds)
