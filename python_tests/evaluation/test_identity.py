"""What makes two runs one, and what a document says of where it comes from."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
import types

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from helpers.embedded import embedded, grid, one_thread  # noqa: F401

from ficoco_ext import get_method, methods
from ficoco_ext.evaluation import Setting, evaluate, markdown, provenance, questions, settings_of
from ficoco_ext.evaluation.runner import weights_digest

FASTV = settings_of(["fastv"], keep_ratios=[0.3])


def test_a_changed_default_or_attention_is_another_run(tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    evaluate(embedded(), grid(), FASTV, results=path)
    kept = path.read_text()
    monkeypatch.setattr(embedded().model.config, "_attn_implementation_internal", "eager")
    with pytest.raises(ValueError, match="'attention' in it differs"):
        evaluate(embedded(), grid(), FASTV, results=path)
    monkeypatch.undo()
    factory = methods.METHODS["fastv"]
    monkeypatch.setitem(methods.METHODS, "fastv", lambda *, layer=3: factory(layer=layer))
    with pytest.raises(ValueError, match="'settings' in it differs"):
        evaluate(embedded(), grid(), FASTV, results=path)
    assert path.read_text() == kept


def test_settings_are_described_whole():
    given = Setting("ficoco-v", {"keep_ratio": (0.5, 0.25)}, {"variant": "paper"}).describe()
    assert given["hyperparameters"] == methods.hyperparameters("ficoco-v") | {"variant": "paper"}
    assert given == json.loads(json.dumps(given)) and not given["seeded"]
    drawn, fixed = Setting("random").describe(), Setting("random", {}, {"seed": 3}).describe()
    assert (drawn["hyperparameters"], drawn["seeded"]) == ({"part": "tower"}, True)
    assert (fixed["hyperparameters"], fixed["seeded"]) == ({"seed": 3, "part": "tower"}, False)
    joined = Setting("random+fastv").describe()
    assert (joined["hyperparameters"], joined["seeded"]) == ({"part": "tower", "layer": 2}, True)
    both = Setting(["topk", "evit", "topk"]).describe()
    assert both["hyperparameters"] == {name: methods.hyperparameters(name) for name in ("topk", "evit")}
    assert Setting("ficoco-vl").describe() == json.loads(json.dumps(Setting("ficoco-vl").describe()))


def test_without_seeds_the_dataset_has_its_own():
    found = evaluate(embedded(), grid(seed=7), [])
    assert found.document["run"]["seeds"] == [7]
    assert found.document["run"]["data"]["questions"] == questions(grid(seed=7)).digest
    assert evaluate(embedded(), list(grid(seed=7)), []).document["run"]["seeds"] == [0]


def _strict(answer, truth):
    return answer == truth


def _lenient(answer, truth):
    return True


class _Called:
    def __call__(self, answer, truth):
        return True


def test_judges_of_ones_own_are_told_by_module_and_name(tmp_path):
    path = tmp_path / "out.json"
    found = evaluate(embedded(), grid(), [], judge=_strict, results=path)
    assert found.document["run"]["asking"]["judge"] == f"{__name__}._strict"
    with pytest.raises(ValueError, match="'asking' in it differs"):
        evaluate(embedded(), grid(), [], judge=_lenient, results=path)
    for nameless in (lambda a, b: True, functools.partial(_strict), _Called()):
        with pytest.raises(ValueError, match="judge must be a function with a name"):
            evaluate(embedded(), grid(), [], judge=nameless, results=tmp_path / "other.json")
        assert len(evaluate(embedded(), grid(), [], judge=nameless).summary().lines) == 1
    assert evaluate(embedded(), grid(), [], judge="exact").document["run"]["asking"]["judge"] == "exact"


def test_documents_say_where_they_come_from(monkeypatch):
    monkeypatch.setenv("FICOCO_COMMIT", "abc1234")
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/ficoco", "eval", "--results", "my file.json"])
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__file__="ficoco"))
    found = evaluate(embedded(), grid(), [])
    at = found.document["platform"]
    assert at["commit"] == "abc1234" and at["command"] == "ficoco eval --results 'my file.json'"
    assert at["torch"] == torch.__version__ and re.search(r".+, \d+ CPUs$", at["processor"])
    page = markdown.page(found, found.summary())
    assert "commit abc1234" in page and at["processor"] in page and "times are indicative" in page
    monkeypatch.setattr("sys.argv", ["benchmarks/accuracy.py", "late"])
    assert provenance.command() == "python benchmarks/accuracy.py late"
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace())
    assert provenance.command() is None
    monkeypatch.delenv("FICOCO_COMMIT")
    monkeypatch.setattr(provenance, "_git", lambda *given: str(provenance.ROOT) if "rev-parse" in given else "12-dirty")
    assert provenance.commit() == "12-dirty"
    for top in ("", str(provenance.ROOT.parent)):  # no repository, or one around an installed package
        monkeypatch.setattr(provenance, "_git", lambda *given, top=top: top)
        assert provenance.commit() is None


class _Model:
    """As much of a model as has weights."""

    def __init__(self, *weights):
        self._weights = weights

    def state_dict(self):
        return {f"weight {number}": one for number, one in enumerate(self._weights)}


def test_weights_of_another_shape_or_type_are_others():
    weight = torch.arange(6, dtype=torch.int32)
    same_bytes = (weight, weight.view(2, 3), weight.view(3, 2), weight.view(torch.float32), weight.view(torch.int16))
    assert len({weights_digest(_Model(one)) for one in same_bytes}) == len(same_bytes)
    assert weights_digest(_Model(weight, weight[:0])) != weights_digest(_Model(weight))
    assert weights_digest(_Model(weight)) == weights_digest(_Model(weight.clone()))


def test_precision_belongs_to_a_run(tmp_path):
    path = tmp_path / "out.json"
    evaluate(embedded(), grid(1, 1), [], results=path)
    held = json.loads(path.read_text())
    assert held["run"]["precision"] == "float32 on cpu"
    for name in held["run"]:
        other = {**held, "run": {**held["run"], name: "other"}}
        path.write_text(json.dumps(other))
        with pytest.raises(ValueError, match=rf"'{name}' in it differs|run\.{name} must be"):
            evaluate(embedded(), grid(1, 1), [], results=path)


def test_a_method_of_ones_own_is_the_same_in_every_process():
    class Mine:
        """Its repr has an address."""

    method = dataclasses.replace(get_method("topk"), filter=Mine())
    again = dataclasses.replace(get_method("topk"), filter=Mine())
    assert repr(method) != repr(again)
    assert Setting(method).describe() == Setting(again).describe()


def test_results_never_replace_what_is_read(tmp_path):
    rows = list(grid(1, 1))
    rows[0].image.save(tmp_path / "a.png")
    asked = json.dumps({"image": "a.png", "question": rows[0].question, "answer": rows[0].answer})
    (tmp_path / "rows.jsonl").write_text(asked)
    for name in ("rows.jsonl", "a.png"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match=f"results must not be what is read, .*{name}"):
            evaluate(embedded(), tmp_path / "rows.jsonl", FASTV, results=tmp_path / name)
        assert (tmp_path / name).read_bytes() == before


def test_questions_of_a_later_seed_are_compared_too(tmp_path):
    path = tmp_path / "out.json"
    evaluate(embedded(), grid(1, 1), FASTV, seeds=(0, 1), results=path)
    held = json.loads(path.read_text())
    held["cells"].pop()
    held["tables"][1]["questions"] = "other"
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match="is of another run: its questions of seed 1 differ"):
        evaluate(embedded(), grid(1, 1), FASTV, seeds=(0, 1), results=path)
