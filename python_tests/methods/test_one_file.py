"""A new stage and a new method are one file: everything knows them, by registration or as another package's plug-in."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
import typer.testing
from helpers.embedded import embedded
from helpers.models import PATCHES, batch, image, tiny_llava, words

import ficoco_ext
from ficoco_ext import METHODS, QueryKey, Schedule, cost, describe, get_method
from ficoco_ext.cli.app import app
from ficoco_ext.methods import AnyMethod, distinct, register
from ficoco_ext.methods.registry import hyperparameters
from ficoco_ext.stages import Stage

PACKAGE = Path(ficoco_ext.__file__).parent
ONE_FILE = '''\
from dataclasses import dataclass

from ficoco_ext import Method, ops
from ficoco_ext.methods import register
from ficoco_ext.ops.costs import Operation
from ficoco_ext.stages import Compress, Correlate, FilterStage, Selection
from ficoco_ext.stages.needs import QUERY_AND_KEY


@dataclass(frozen=True)
class LongestKeys(FilterStage):
    power: int = 2
    needs = (QUERY_AND_KEY,)

    def describe(self):
        return f"longest keys (power {self.power})"

    def operations(self, shape):
        return [shape.price(Operation("key_norm", "2*b*n*a*d", loads="b*n*a*d", stores="b*n"))]

    def __call__(self, attn, r, *, class_token, ids, grid):
        score = attn.key.float().abs().pow(self.power).sum((1, 3))[:, int(class_token) :]
        return Selection(*ops.filter(score, score, r, lam=1.0, class_token=class_token))


@register("longest-keys")
def longest_keys(*, power: int = 2):
    """Drop the patches with the longest keys."""
    return Method("longest-keys", LongestKeys(power), Correlate(targets=0), Compress(), amount=(("keep_ratio", 0.5),))
'''


def test_it_is_one_short_file():
    assert len(ONE_FILE.splitlines()) <= 30


@pytest.fixture
def added(tmp_path):
    """The module of the file; afterwards its method is forgotten."""
    path = tmp_path / "one_file.py"
    path.write_text(ONE_FILE)
    spec = importlib.util.spec_from_file_location("one_file", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["one_file"] = module
    spec.loader.exec_module(module)
    yield module
    del METHODS["longest-keys"], sys.modules["one_file"]


def cli(*arguments):
    result = typer.testing.CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_it_reduces(added):
    tokens, (query, key) = torch.randn(2, 26, 8), torch.randn(2, 2, 4, 26, 8)
    found = ficoco_ext.reduce(tokens, QueryKey(query, key), 10, method="longest-keys", return_reduction=True, power=4)
    longest = key.pow(4).sum((1, 3))[:, 1:].topk(10, dim=1).indices.sort(1).values + 1
    assert torch.equal(found.sources, longest) and found.tokens.shape == (2, 16, 8)
    assert torch.equal(found.tokens, tokens.gather(1, found.kept.unsqueeze(-1).expand(-1, -1, 8)))


def test_it_attaches_with_its_own_amount(added):
    model = tiny_llava()
    with torch.no_grad(), ficoco_ext.attach(model, "longest-keys") as handle:
        model(**batch([*words(1, 2), *image(), *words(3)]))
        assert handle.schedule.final == PATCHES // 2
        assert handle.reductions[-1].kept.shape == (1, PATCHES // 2 + 1)
    with ficoco_ext.attach(model, "longest-keys", tokens=5) as handle:
        assert handle.schedule.final == 5


def test_it_is_priced_and_planned_for(added):
    vision = Schedule(576, (4,), (42,))
    bill = cost.prefill("llava-1.5-7b", vision=vision, method="longest-keys")
    lines = [line for line in bill.lines if line.part == "reduction"]
    assert [line.name for line in lines] == ["key_norm", "compress"]
    assert lines[0].explain() == "key_norm: 2*b*n*a*d = 2*1*577*16*64 = 1,181,696 (b=1, n=577, a=16, d=64)"
    assert lines[0].bytes == 2 * (577 * 16 * 64 + 577) and bill.parts["reduction"].operations == 1_181_696
    found = cost.plan("llava-1.5-7b", "longest-keys", tflops=3.3)
    assert found.schedule == cost.plan("llava-1.5-7b", "topk", tflops=3.3).schedule and found.schedule.final == 192
    assert cost.schedules.build(cost.architecture("llava-1.5-7b"), get_method("longest-keys"))[0].final == 288


def test_it_is_described(added):
    said = describe("longest-keys", power=3)
    assert said.summary == "Drop the patches with the longest keys." and said.hyperparameters == {"power": 3}
    assert (said.filter, said.correlate, said.compress) == ("longest keys (power 3)", "none", "dropped")
    assert said.needs == ("query and key",) and said.acts_in == "tower" and said.amount == "keep_ratio=0.5"
    assert list(METHODS)[-1] == "longest-keys" and "longest-keys" in distinct()


def test_the_command_line_knows_it(added, monkeypatch, tmp_path):
    loaded = embedded()
    monkeypatch.setattr("ficoco_ext.apps.checkpoint.load", lambda *_: loaded)
    assert "longest keys (power 2)" in cli("methods", "longest-keys")
    assert "longest-keys" in cli("methods") and "longest-keys" in cli("env")
    cli("eval", "--methods", "longest-keys", "--scenes", 2, "--per-scene", 2, "--results", tmp_path / "out.json")
    cells = json.loads((tmp_path / "out.json").read_text())["settings"]
    assert {one["name"] for one in cells} == {"unreduced", "longest-keys"}
    assert json.loads(cli("cost", "llava-1.5-7b", "--method", "longest-keys", "--json"))


def run(folder, program, *options):
    """A new process that finds packages in ``folder``."""
    path = os.pathsep.join([str(folder), str(PACKAGE.parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, *options, "-c", program]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)


def installed(folder, module, text, entry):
    """A tiny package with one entry point."""
    (folder / f"{module}.py").write_text(text)
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[ficoco_ext.methods]\n{entry}\n")


def test_it_is_found_in_another_package(tmp_path):
    installed(tmp_path, "longest", ONE_FILE, "longest = longest")
    program = (
        "import torch, ficoco_ext\n"
        "from ficoco_ext import cost\n"
        "from ficoco_ext.apps import checkpoint\n"
        "tokens, attn = torch.randn(1, 17, 4), ficoco_ext.QueryKey(*torch.randn(2, 1, 2, 17, 8))\n"
        "assert ficoco_ext.reduce(tokens, attn, 6, method='longest-keys').shape == (1, 11, 4)\n"
        "model = checkpoint.load(None, torch.float32, torch.device('cpu')).model\n"
        "with ficoco_ext.attach(model, 'longest-keys') as handle:\n"
        "    assert handle.schedule.keep_ratio == 0.5\n"
        "assert cost.plan('llava-1.5-7b', 'longest-keys', tflops=3.3).schedule.final == 192\n"
        "from ficoco_ext.cli.app import app\n"
        "app(['methods', 'longest-keys'])\n"
    )
    done = run(tmp_path, program, "-W", "error")
    assert "longest keys (power 2)" in done.stdout and not done.stderr


def test_a_broken_plug_in_is_named_and_the_others_work(tmp_path):
    installed(tmp_path, "longest", ONE_FILE, "longest = longest")
    installed(tmp_path, "broken", "import nothing_of_this_name\n", "spoilt = broken")
    installed(tmp_path, "taken", ONE_FILE.replace("longest-keys", "tome"), "twice = taken")
    done = run(tmp_path, "import ficoco_ext; print(*ficoco_ext.METHODS)")
    assert "longest-keys" in done.stdout.split()
    warned = [line for line in done.stderr.splitlines() if "plug-in" in line]
    assert len(warned) == 2
    assert "'spoilt' (broken)" in done.stderr and "No module named 'nothing_of_this_name'" in done.stderr
    assert "'twice' (taken)" in done.stderr and "'tome' is taken by ficoco_ext.methods.tome.tome" in done.stderr


def test_a_method_of_ones_own_kind_has_at_least_a_name():
    class Own(AnyMethod):
        name = "own"

    own = Own()
    assert own.describe() == ("own", "own", "own") and own.needs == () and own.amount == ()
    assert own.tower is None and own.language_model is None and get_method(own) is own
    with pytest.raises(ValueError, match="cost of the method own is not known; pass include_reduction=False"):
        own.operations(None)


def test_names_of_methods():
    for bad in ("", None, 3):
        with pytest.raises(ValueError, match="register: name must be a text, got"):
            register(bad)
    with pytest.raises(ValueError, match="'tome' is taken"):
        register("tome")(lambda: get_method("topk"))
    register("tome", rank=50)(ficoco_ext.methods.tome)  # a module that is loaded anew
    assert [name for name in METHODS if name in ("topk", "tome", "evit")] == ["topk", "tome", "evit"]


@pytest.mark.parametrize(("name", "ratio"), [("quality", 0.5), ("balanced", 0.25), ("fast", 0.1)])
def test_presets(name, ratio):
    method, whole = get_method(name), get_method("prune-then-merge")
    assert method.amount == (("keep_ratio", ratio),) and method.name == name and hyperparameters(name) == {}
    assert method.of_layers(11) == whole.of_layers(11)
    model = tiny_llava()
    with ficoco_ext.attach(model, name) as own, torch.no_grad():
        answer = model(**batch([*words(1, 2), *image(), *words(3)])).logits
        assert own.schedule.final == round(PATCHES * ratio)
    with ficoco_ext.attach(model, "prune-then-merge", keep_ratio=ratio), torch.no_grad():
        assert torch.equal(answer, model(**batch([*words(1, 2), *image(), *words(3)])).logits)
    with ficoco_ext.attach(model, name, tokens=7) as handle:
        assert handle.schedule.final == 7
    shape = cost.architecture("llava-1.5-7b")
    assert cost.schedules.build(shape, method)[0] == cost.schedules.build(shape, whole, keep_ratio=ratio)[0]
    assert cost.schedules.build(shape, method, keep_ratio=0.75)[0].final == 432
    assert describe(name).amount == f"keep_ratio={ratio}" and name not in distinct()
    assert f"keeps {ratio:.0%}".replace("%", " %") in describe(name).summary


def test_presets_on_the_command_line(monkeypatch, tmp_path):
    loaded = embedded()
    monkeypatch.setattr("ficoco_ext.apps.checkpoint.load", lambda *_: loaded)
    assert "keep_ratio=0.25" in cli("methods", "balanced")
    found = json.loads(cli("cost", "llava-1.5-7b", "--method", "fast", "--json"))
    assert "58" in json.dumps(found)
    demo = json.loads(cli("demo", "--method", "balanced", "--repeats", 1, "--json", "-o", tmp_path / "a.png"))
    assert (demo["patches"], demo["kept"]) == (144, 36)
    cli("eval", "--methods", "fast", "--scenes", 2, "--per-scene", 2, "--results", tmp_path / "out.json")
    settings = json.loads((tmp_path / "out.json").read_text())["settings"]
    assert [(one["name"], one["amount"]) for one in settings] == [("unreduced", {}), ("fast", {})]


# What nobody may ask: which class a stage or a method is, and which attributes it happens to have.


def _subclasses(kind):
    return {kind.__name__}.union(*(_subclasses(one) for one in kind.__subclasses__()))


KINDS = (_subclasses(Stage) | _subclasses(AnyMethod)) - {"AnyMethod"}  # "is it a method at all" may be asked
OWN = {
    field.name
    for name in KINDS
    if is_dataclass(kind := getattr(ficoco_ext.stages, name, None) or getattr(ficoco_ext.methods, name, None))
    for field in fields(kind)
} | {name for kind in (Stage, *Stage.__subclasses__()) for name in vars(kind) if not name.startswith("_")}
OWN -= {"name", "layers", "source"}  # configs, layers and files have them too
MAY = {"stages/base.py", "methods/split.py", "methods/staged.py"}  # they check what they are made of


def _names(node):
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} | {
        one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)
    }


def _type_of(node):
    """``type(x)`` or ``x.__class__``."""
    if isinstance(node, ast.Attribute):
        return node.attr == "__class__"
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "type" and len(node.args) == 1


def questions(text, where=""):
    """Places that ask for the class or an attribute of a stage or method, as line numbers."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asked = node.func.id
            if asked in ("isinstance", "issubclass") and _names(node.args[1]) & KINDS and where not in MAY:
                yield node.lineno
            constant = asked in ("hasattr", "getattr") and isinstance(node.args[1], ast.Constant)
            if constant and node.args[1].value in OWN:
                yield node.lineno
        elif isinstance(node, ast.Compare):
            spelt = any(isinstance(one, ast.Constant) and one.value in KINDS for one in ast.walk(node))
            if spelt or (any(map(_type_of, (node.left, *node.comparators))) and _names(node) & KINDS):
                yield node.lineno
        elif isinstance(node, ast.MatchClass) and _names(node.cls) & KINDS:
            yield node.lineno


@pytest.mark.parametrize(
    "text",
    [
        "isinstance(method, DecoderMethod)",
        "isinstance(method, (str, methods.Split))",
        "issubclass(kind, Filter)",
        "type(stage) is Filter",
        "type(stage).__name__ == 'Neighbours'",
        "kind in ('Cells', 'RandomFilter')",
        "stage.__class__ is Cells",
        "hasattr(stage, 'lam')",
        "getattr(method.filter, 'largest', None)",
        "match stage:\n    case Match():\n        pass",
    ],
)
def test_a_question_is_seen(text):
    assert list(questions(text))


def test_what_may_be_asked():
    assert not list(
        questions("isinstance(method, (str, AnyMethod)) or type(model).__name__ or getattr(model, 'config')")
    )
    assert {"Filter", "Method", "Staged", "FilterStage", "LayerMethod"} <= KINDS and {"lam", "largest", "gamma"} <= OWN


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_asks_for_a_kind_of_stage_or_method(path):
    found = list(questions(path.read_text(), path.relative_to(PACKAGE).as_posix()))
    assert not found, f"{path}, lines {found}: ask the stage or the method itself"
