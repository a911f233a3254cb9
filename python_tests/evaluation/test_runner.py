"""Runs: what is refused before they begin, that they go on where they stopped, and that the numbers are right."""

from __future__ import annotations

import copy
import json
import time
import types

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from helpers.embedded import embedded, grid, one_thread  # noqa: F401
from helpers.models import snapshot

import ficoco_ext
from ficoco_ext import get_method, methods
from ficoco_ext.cost import flop_counter
from ficoco_ext.evaluation import (
    Prompts,
    Results,
    Setting,
    asking,
    evaluate,
    markdown,
    questions,
    runner,
    settings_of,
)
from ficoco_ext.evaluation.runner import weights_digest
from ficoco_ext.schedule import geometric

TWO = settings_of(["topk", "fastv"], keep_ratios=[0.3])


def _timeless(document):
    """Without what differs between two runs of the same."""
    found = copy.deepcopy(document)
    for cell in found["cells"]:
        cell.pop("seconds")
    for line in found["summary"]["lines"]:
        line.pop("seconds")
        line.pop("rate")
    return found


class Stop(Exception):
    pass


def _stopping(after):
    def progress(done, total, text):
        if done >= after:
            raise Stop

    return progress


def test_a_run_goes_on_where_it_stopped_and_ends_alike(tmp_path):
    given = {"seeds": (0, 1)}
    whole = evaluate(embedded(), grid(), TWO, **given)
    path = tmp_path / "out.json"
    before = snapshot(embedded().model)
    cells = []
    for after in (1, 10, 25):
        with pytest.raises(Stop):
            evaluate(embedded(), grid(), TWO, results=path, progress=_stopping(after), **given)
        cells.append(len(json.loads(path.read_text())["cells"]) if path.exists() else 0)
        assert snapshot(embedded().model) == before
    assert cells == sorted(set(cells)) and cells[-1] < 6
    asked = []
    found = evaluate(embedded(), grid(), TWO, results=path, progress=lambda *told: asked.append(told), **given)
    assert _timeless(found.document) == _timeless(whole.document) == _timeless(json.loads(path.read_text()))
    assert len(found.document["cells"]) == 6
    assert asked[-1][0] == asked[-1][1]
    text = path.read_text()
    again = evaluate(embedded(), grid(), TWO, results=path, progress=_stopping(0), **given)
    assert again.document == found.document and path.read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


def test_a_file_of_another_run_is_refused(tmp_path):
    path = tmp_path / "out.json"
    evaluate(embedded(), grid(), TWO[:1], results=path)
    for what, change in (
        ("data", {"dataset": grid(3)}),
        ("seeds", {"seeds": (1,)}),
        ("settings", {"settings": TWO}),
        ("asking", {"judge": "contained"}),
        ("asking", {"max_new_tokens": 2}),
    ):
        given = {"dataset": grid(), "settings": TWO[:1], "results": path} | change
        with pytest.raises(ValueError, match=f"out.json is of another run: '{what}' in it differs"):
            evaluate(embedded(), **given)
    changed = json.loads(path.read_text())
    changed["run"]["weights"] = "other"
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="'weights' in it differs"):
        evaluate(embedded(), grid(), TWO[:1], results=path)
    for text in ("{", "[]", '{"format": "other"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"results file .*must be"):
            evaluate(embedded(), grid(), TWO[:1], results=path)


def test_the_first_setting_is_timed_warm(monkeypatch):
    heard, generated = [], asking._generated
    clock = types.SimpleNamespace(perf_counter=lambda: heard.append("clock") or time.perf_counter())
    monkeypatch.setattr(runner, "time", clock)
    monkeypatch.setattr(asking, "_generated", lambda *given: heard.append("answers") or generated(*given))
    monkeypatch.setattr(Prompts, "warm", lambda self: heard.append("pictures"))
    evaluate(embedded(), grid(), TWO[:1])
    assert heard == ["answers", *["pictures", "clock", "answers", "clock"] * 2]


def test_weights_digest_sees_one_weight():
    model = embedded().model
    before = weights_digest(model)
    assert weights_digest(model) == before
    weight = model.lm_head.weight.data
    kept = weight[0, 0].clone()
    weight[0, 0] += 1
    assert weights_digest(model) != before
    weight[0, 0] = kept
    assert weights_digest(model) == before


def test_what_a_method_cannot_do_is_told_and_the_others_run():
    found = evaluate(embedded(), grid(), settings_of(["tome", "topk"], keep_ratios=[0.6, 0.02]))
    lines = {(line.name, line.budget): line for line in found.summary().lines}
    refused = lines["tome", "keep_ratio 0.02"]
    assert refused.mean is None and "half" in refused.remark
    assert all(line.mean is not None and line.remark is None for line in lines.values() if line is not refused)
    with pytest.raises(ValueError, match="has no answers"):
        found.paired("tome", "topk", "keep_ratio 0.02")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"settings": settings_of(["tome"], keep_ratios=[0.02])}, ValueError, "none of the settings can be done"),
        ({"settings": [Setting("topk", {"keep_ratio": 0.5}, {"lam": 1})]}, TypeError, "no hyperparameter 'lam'"),
        ({"settings": [Setting("nope", {"keep_ratio": 0.5})]}, ValueError, "method must be"),
        ({"settings": [*TWO, TWO[0]]}, ValueError, "settings must differ.*topk at keep_ratio 0.3"),
        ({"seeds": ()}, ValueError, "seeds must be different"),
        ({"seeds": (1, 1)}, ValueError, "seeds must be different"),
        ({"seeds": (-1,)}, ValueError, "seeds must be integers >= 0"),
        ({"mean_of": ("color",)}, ValueError, "mean_of must be among .*exist.*got color"),
        ({"judge": "close"}, ValueError, "judge must be"),
        ({"bad_rows": "skip"}, ValueError, "bad_rows must be"),
        ({"dataset": []}, ValueError, "at least one row"),
        ({"results": "/nowhere/out.json"}, FileNotFoundError, "no folder /nowhere"),
    ],
)
def test_mistakes_are_found_before_anything_runs(change, error, message):
    given = {"dataset": grid(), "settings": TWO, "progress": lambda *told: pytest.fail("it ran")} | change
    before = snapshot(embedded().model)
    with pytest.raises(error, match=message):
        evaluate(embedded(), **given)
    assert snapshot(embedded().model) == before


def test_a_model_that_is_reduced_already_is_refused():
    with ficoco_ext.attach(embedded().model, "topk", keep_ratio=0.5), pytest.raises(ValueError, match="without red"):
        evaluate(embedded(), grid(), [])
    (line,) = evaluate(embedded(), grid(), []).summary().lines
    assert line.name == "unreduced" and line.agreement == 1


def test_numbers_are_those_of_the_answers():
    found = evaluate(embedded(), grid(3, 6), TWO, judge=lambda answer, truth: answer != truth, seeds=(0, 2))
    summary = found.summary()
    asked = {seed: questions(grid(3, 6, seed=seed)).items for seed in (0, 2)}
    assert summary.questions == sum(map(len, asked.values())) and summary.scenes == 6
    assert "count" in summary.kinds and "count" not in summary.mean_of
    full = {seed: found.answers(0, seed) for seed in asked}
    for number, line in enumerate(summary.lines):
        said = {seed: found.answers(number, seed) for seed in asked}
        pairs = [(item, text) for seed in asked for item, text in zip(asked[seed], said[seed], strict=True)]
        for kind in summary.kinds:
            judged = [text != item.answer for item, text in pairs if item.kind == kind]
            assert line.kinds[kind].value == pytest.approx(sum(judged) / len(judged))
        assert line.mean.value == pytest.approx(
            sum(line.kinds[kind].value for kind in summary.mean_of) / len(summary.mean_of)
        )
        same = [a == b for seed in asked for a, b in zip(said[seed], full[seed], strict=True)]
        assert line.agreement == sum(same) / len(same)
        assert len(line.seeds.values) == 2 and line.seconds > 0 and line.rate > 0
        if number:
            assert line.difference.value == pytest.approx(line.mean.value - summary.lines[0].mean.value)
            assert line.difference == found.paired(number, 0)
    assert found.summary(["count"]).lines[1].mean == summary.lines[1].kinds["count"]


def test_costs_are_those_that_a_counter_finds():
    one = [next(iter(grid()))]
    several = settings_of(["ficoco-v", "fastv", "ficoco-vl"], keep_ratios=[0.25])
    found = evaluate(embedded(), one, several).summary()
    inputs = embedded().inputs(one[0].image, one[0].question)

    def counted(method):
        handle = None if method is None else ficoco_ext.attach(embedded().model, method, keep_ratio=0.25)
        prefill = lambda: embedded().model(**inputs, use_cache=True, logits_to_keep=1)  # noqa: E731
        total, output = flop_counter.count(embedded().model, prefill)
        if handle is not None:
            handle.detach()
        layers = output.past_key_values.layers
        return total.total, sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))

    full = counted(None)
    for line, method in zip(found.lines, (None, "ficoco-v", "fastv", "ficoco-vl"), strict=True):
        operations, cached = counted(method)
        assert (line.cost["flops"], line.cost["kv_bytes"]) == (operations, cached)
        assert line.cost["flops_ratio"] == operations / full[0] and line.cost["kv_ratio"] == cached / full[1]
    assert found.lines[1].cost["visual_tokens"] == {"entering": 36, "average": 36, "final": 36}
    assert found.lines[2].cost["visual_tokens"]["entering"] == 144
    assert found.lines[2].cost["visual_tokens"]["final"] == 36


def test_compositions_have_labels_and_no_cost_where_none_is_known():
    count = embedded().model.config.vision_config.num_hidden_layers // 2 - 1
    mixed = [get_method("ficoco-v"), *[get_method("topk")] * (count - 1)]
    found = evaluate(
        embedded(), grid(), [Setting(get_method("topk"), {"tokens": 40}), Setting(mixed, {"r": 5}, label="mixed")]
    ).summary()
    assert [(line.name, line.budget) for line in found.lines[1:]] == [("topk", "tokens 40"), ("mixed", "r 5")]
    assert found.lines[1].cost["visual_tokens"]["final"] == 40
    assert found.lines[2].cost is None and "one method for each layer" in found.lines[2].remark
    assert found.lines[2].mean is not None


@pytest.fixture
def drawing_method(monkeypatch):
    """A method with a seed; it remembers those that it got."""
    got = []

    def drawn(seed: int = 0):
        got.append(seed)
        return get_method("topk")

    monkeypatch.setitem(methods.METHODS, "drawn", drawn)
    methods.registry._built.cache_clear()
    yield got
    methods.registry._built.cache_clear()


def test_seeds_reach_methods_that_draw(drawing_method):
    rows = list(grid())
    several = settings_of(["drawn", "topk", "fixed=drawn"], tokens=[40], hyperparameters={"fixed": {"seed": 9}})
    found = evaluate(embedded(), rows, several, seeds=(3, 5))
    assert set(drawing_method) == {3, 5, 9}
    cells = [(cell["setting"], cell["seed"]) for cell in found.document["cells"]]
    assert cells == [(0, 3), (1, 3), (2, 3), (3, 3), (1, 5)]
    lines = found.summary().lines
    assert lines[1].seeds.deviation == 0 and lines[2].seeds.deviation is None
    assert lines[1].mean == lines[2].mean  # the same scenes, twice as many answers: no more is known
    assert lines[1].agreement == lines[2].agreement
    assert [one["seeded"] for one in found.document["settings"]] == [False, True, False, False]


@pytest.mark.parametrize("dataset", [grid, lambda: list(grid())], ids=["scenes of each seed", "the same rows"])
def test_what_is_drawn_once_a_seed_is_known_no_better_than_its_seeds_agree(dataset):
    several = settings_of(["random", "topk"], tokens=[30])
    found = evaluate(embedded(), dataset(), several, seeds=(0, 1, 2))
    for number, sign in ((1, 1), (2, -1)):  # seeds far apart, though each has few scenes
        for cell in found.cells(number):
            odd = sign * cell["seed"] % 3 == 1
            cell["right"] = ("1" if odd else "0") * len(cell["right"])
    plain = copy.deepcopy(found.document)
    plain["settings"][1]["seeded"] = False
    summary, before = found.summary(), Results(plain).summary()
    drawn, line = before.lines[1], summary.lines[1]
    floor = np.std([0, 1, 0], ddof=1) / np.sqrt(3)
    assert line.seeds.error == pytest.approx(floor) and drawn.mean.error < floor
    assert line.mean.error == pytest.approx(floor) and line.mean.value == drawn.mean.value
    assert line.mean.low == pytest.approx(min(drawn.mean.low, line.mean.value - 1.959964 * floor))
    assert line.mean.high == pytest.approx(max(drawn.mean.high, line.mean.value + 1.959964 * floor))
    assert line.difference.error >= drawn.difference.error and line.difference == found.paired(1, 0)
    assert found.paired(1, 2).error == pytest.approx(found.paired(2, 1).error) and found.paired(1, 1).error == 0
    assert summary.lines[2] == before.lines[2] and summary.lines[0] == before.lines[0]
    assert "draws once a seed" in markdown.page(found, summary)
    assert "draws once a seed" not in markdown.page(Results(plain), before)


def test_notices_and_bad_rows():
    heard = []
    rows = [*grid(1, 2), {"image": next(iter(grid())).image, "question": "where is the dragon ?"}]
    rows += [{**rows[-1], "answer": "no"}]
    found = evaluate(embedded(), rows, TWO[:1], bad_rows="count", notice=heard.append)
    assert any("'dragon'" in text for text in heard)
    assert any("1 rows cannot be asked" in text and "row 3, field 'answer'" in text for text in heard)
    summary = found.summary()
    assert summary.questions == 3 and len(summary.bad) == 1
    assert "gridvqa" not in found.document["run"]["data"]


def test_settings_by_name():
    found = settings_of(["paper=ficoco-v", "topk"], keep_ratios=[0.5, 0.25], layers={"topk": (3,)})
    assert [(one.name, one.method, one.amount["keep_ratio"], one.layers) for one in found] == [
        ("paper", "ficoco-v", 0.5, None),
        ("topk", "topk", 0.5, (3,)),
        ("paper", "ficoco-v", 0.25, None),
        ("topk", "topk", 0.25, (3,)),
    ]
    assert Setting(["topk", "tome", "topk"]).name == "topk, tome"
    assert len(settings_of(["topk"], keep_ratios=[0.5, 0.5], tokens=[9, 9])) == 2
    assert settings_of(["fastv"])[0].budget == "own amount"


def test_geometric_schedules_are_for_several_layers_of_the_tower():
    names = ["topk", "prune-then-merge", "ficoco-v", "prumerge", "fastv", "pyramiddrop"]
    layers = {"topk": (3, 4), "prune-then-merge": (1, 2, 3), "ficoco-v": (5,), "fastv": (1, 2)}
    found = settings_of(names, keep_ratios=[0.25], layers=layers, schedule="geometric")
    assert [one.amount["keep_ratio"] for one in found] == [geometric(0.25, 2), geometric(0.25, 3), *[0.25] * 4]
    assert {one.budget for one in found} == {"keep_ratio 0.25"}
    assert settings_of(names, keep_ratios=[0.25], layers=layers)[0].amount == {"keep_ratio": 0.25}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ["nope"]}, "methods must be among .*got 'nope'"),
        ({"methods": []}, "methods must name at least one"),
        ({"methods": ["topk", "topk"]}, "labels of their own, got 'topk' twice"),
        ({"methods": ["unreduced=topk"]}, "labels of their own"),
        ({"methods": ["topk"], "keep_ratios": [0]}, r"keep_ratios must be in \(0, 1\], got 0"),
        ({"methods": ["topk"], "keep_ratios": [1.5]}, "keep_ratios must be in"),
        ({"methods": ["topk"], "tokens": [0]}, "tokens must be integers >= 1, got 0"),
        ({"methods": ["topk"], "hyperparameters": {"tome": {}}}, "hyperparameters must be of one of topk, got tome"),
        ({"methods": ["topk"], "schedule": "steep"}, "schedule must be one of even, geometric, got 'steep'"),
        (
            {"methods": ["topk", "a=tome", "pool", "ficoco-l"], "keep_ratios": [0.5], "schedule": "geometric"},
            "needs the layers of topk, a; give them, as --layers topk=1-4",
        ),
        (
            {"methods": ["topk"], "layers": {"topk": (1,)}, "tokens": [9], "schedule": "geometric"},
            "goes with keep ratios, got tokens 9",
        ),
        ({"methods": ["topk"], "layers": {"tome": (1,)}}, "layers must be of one of topk"),
        ({"methods": ["topk"], "baselines": True}, "baselines have no amount of their own"),
        ({"methods": ["divprune+nope"], "tokens": [9]}, "several of them joined by .*, got 'divprune.nope'"),
    ],
)
def test_settings_errors(given, message):
    with pytest.raises(ValueError, match=message):
        settings_of(**given)


def test_results_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="results file not found"):
        Results.load(tmp_path / "none.json")
    found = evaluate(embedded(), grid(), settings_of(["topk"], tokens=[40, 20]))
    with pytest.raises(ValueError, match="setting must be one of unreduced at all tokens; topk at tokens 40"):
        found.paired("topk", "unreduced")
    assert found.paired("topk", "topk", "tokens 20").value == 0
    assert found.paired("topk", "unreduced", "tokens 20") == found.summary().lines[2].difference
    with pytest.raises(ValueError, match="mean_of"):
        found.summary(["color"])
