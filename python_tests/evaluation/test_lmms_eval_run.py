"""benchmarks/lmms_eval/run.py with a stand-in for lmms-eval 0.7.3, whose models and benchmarks are not here."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from types import ModuleType, SimpleNamespace

import pytest
from helpers.paths import ROOT

pytest.importorskip("transformers")

from helpers.embedded import embedded, grid, one_thread  # noqa: F401

from ficoco_ext.cost.paper_rows import paper_rows


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("lmms_eval_run", ROOT / "benchmarks" / "lmms_eval" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Asked:
    """A model of lmms-eval: made from a string of arguments, asked by simple_evaluate, silent on exceptions."""

    def __init__(self, model, arguments, config):
        self.model, self.arguments, self.config = model, arguments, config
        self.lengths: list = []

    def ask(self, inputs):
        try:
            found = self.model.generate(**inputs, max_new_tokens=1, do_sample=False)
        except Exception:
            return ""  # as lmms-eval has it
        handle = getattr(self.model, "ficoco_handle", None)
        self.lengths.append(None if handle is None else handle.schedule.final)
        return found


@pytest.fixture
def stand_in(monkeypatch):
    """Modules of lmms-eval as far as the script calls them."""
    there = embedded()
    question = next(iter(grid(scenes=1, per_scene=1)))
    inputs = there.processor(
        images=question.image, text=f"USER: <image>\n{question.question} ASSISTANT:", return_tensors="pt"
    )
    asked = []

    class Factory:
        @staticmethod
        def create_from_arg_string(arguments, config):
            asked.append(Asked(there.model, arguments, config))
            return asked[-1]

    def get_model(name):
        assert name == "llava_hf"
        return Factory

    class TaskManager:
        def __init__(self, model_name):
            self.model_name = model_name

    def simple_evaluate(model, tasks, task_manager, batch_size, limit, log_samples):
        assert batch_size == 1 and not log_samples and task_manager.model_name == "llava_hf"
        answer = model.ask(inputs)
        return {"results": {task: {"answered": len(answer) > 0, "limit": limit} for task in tasks}, "samples": {}}

    for name, members in {
        "lmms_eval": {},
        "lmms_eval.models": {"get_model": get_model},
        "lmms_eval.evaluator": {"simple_evaluate": simple_evaluate},
        "lmms_eval.tasks": {"TaskManager": TaskManager},
    }.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(asked=asked, model=there.model)


def test_the_method_is_attached_while_it_is_asked(script, stand_in):
    found = script.evaluate("llava", ["gqa", "pope"], "topk", {"tokens": 36}, model_args="dtype=float32", limit=2)
    (asked,) = stand_in.asked
    assert asked.arguments == "pretrained=llava,dtype=float32" and asked.config == {"batch_size": 1}
    assert asked.lengths == [36] and not hasattr(stand_in.model, "ficoco_handle")
    assert "generate" not in vars(stand_in.model)
    assert found["results"] == {task: {"answered": True, "limit": 2} for task in ("gqa", "pope")}
    assert (found["method"], found["arguments"]) == ("topk", {"tokens": 36}) and "36" in found["plan"]


def test_without_a_method_nothing_is_attached(script, stand_in):
    found = script.evaluate("llava", ["gqa"])
    assert stand_in.asked[0].lengths == [None] and stand_in.asked[0].arguments == "pretrained=llava"
    assert found["plan"] is None and found["method"] is None and found["arguments"] == {}


def test_an_answer_that_failed_is_no_empty_answer(script, stand_in, monkeypatch):
    def broken(*given, **named):
        raise ValueError("out of tokens")

    monkeypatch.setattr(stand_in.model, "generate", broken, raising=False)
    with pytest.raises(RuntimeError, match="1 calls of generate failed, the first with: out of tokens"):
        script.evaluate("llava", ["gqa"])
    assert stand_in.model.generate is broken


def test_a_wrong_amount_is_refused_before_anything_is_asked(script, stand_in):
    with pytest.raises(ValueError, match="145"):
        script.evaluate("llava", ["gqa"], "topk", {"tokens": 145})
    assert stand_in.asked[0].lengths == []


def test_the_command_line(script, stand_in, tmp_path, capsys):
    out = tmp_path / "found.json"
    script.main(["llava", "--tasks", "gqa", "--method", "topk", "--attach", '{"tokens": 18}', "--output", str(out)])
    assert json.loads(out.read_text()) == json.loads(capsys.readouterr().out)
    assert stand_in.asked[0].lengths == [18]
    for wrong, words in (
        (["--attach", "[1]"], "must be a JSON object"),
        (["--attach", '{"r": 1}'], "give --method"),
    ):
        with pytest.raises(SystemExit):
            script.main(["llava", "--tasks", "gqa", *wrong])
        assert words in capsys.readouterr().err


def test_it_takes_the_commands_that_cost_prints(script, monkeypatch, capsys):
    """Those of every row, with what the row attaches."""
    said = []
    monkeypatch.setattr(script, "evaluate", lambda *given, **named: said.append(given) or {})
    for row in paper_rows():
        command = row.command()
        if command is None:
            continue
        words = shlex.split(command)
        assert words[:2] == ["python", "benchmarks/lmms_eval/run.py"] and (ROOT / words[1]).is_file()
        script.main(words[2:])
        attached = next(one.attach for one in row.readings if one.attach is not None)
        assert said[-1][2:] == (row.method, attached)
    assert len(said) > 30
    capsys.readouterr()
