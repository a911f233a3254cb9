"""Parts of the command line by themselves: how options are read, and what tables say of results made by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.cli import document, run
from helpers.paths import PACKAGE
from rich.console import Console

from ficoco_ext import cost, get_method
from ficoco_ext.apps import bench, doctor, layer_tokens, one_reduction, questions, timing
from ficoco_ext.cli import bench as bench_command
from ficoco_ext.cli import common, completion, cost_tables, evaluate, evaluate_settings, plan, values
from ficoco_ext.cli import demo as demo_command
from ficoco_ext.cli import doctor as doctor_command
from ficoco_ext.cli import show as show_command
from ficoco_ext.cost import compare
from ficoco_ext.cost.flop_counter import Flops
from ficoco_ext.viz.traces import Trace, TraceStep


def _cells(table):
    """The rows of a table as text."""
    columns = [[getattr(cell, "plain", cell) for cell in column.cells] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


# ---- options


def test_errors_name_options_by_their_long_names(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"tokens": torch.ones(1, 17, 8), "attn": torch.rand(1, 17, 17)}, tmp_path / "in")
    result = run("reduce", "--input", tmp_path / "in", "-o", tmp_path / "in")
    assert result.exit_code == 2 and result.stderr.startswith("ficoco: error: --output must not be what is read, ")


def test_words_inside_of_words_are_no_options():
    options = {"layers": "--layers", "r": "--r"}
    for text in (
        "sublayers must be",
        "their_layers must be",
        "for must be",
        "text_config.layers must be",
        "'r' must be",
    ):
        assert common.in_options(text, options) == text
    assert common.in_options("r must be at most 3", options) == "--r must be at most 3"


def test_ranges_hold_their_ends():
    assert values.integers("--layers", "12-22") == tuple(range(12, 23))
    assert values.integers("--layers", "3, 5-5,7") == (3, 5, 7)
    for wrong in ("5-3", "", "-1", "1-2-3", "0-10000"):
        with pytest.raises(ValueError, match="--layers must be"):
            values.integers("--layers", wrong)
    assert len(values.integers("--layers", "0-9999")) == 10_000


def test_values_are_set_once():
    assert values.assignments(["a-b=1", "c = [1, 2]", "d=x=y", "e="]) == {"a_b": 1, "c": [1, 2], "d": "x=y", "e": ""}
    with pytest.raises(ValueError, match="--set a_b is given twice"):
        values.assignments(["a-b=1", "a_b=2"])


def test_booleans_are_set_as_shells_write_them():
    found = values.assignments(["a=true", "b = false ", "c=True", "d=False", "e='true'", "f=truely"])
    assert found == {"a": True, "b": False, "c": True, "d": False, "e": "true", "f": "truely"}


def test_one_amount_is_given():
    assert values.removal("0.5,0.25", None, None) == {"keep_ratio": (0.5, 0.25)}
    assert values.removal(None, None, 9) == {"tokens": 9} and values.removal(None, None, None) == {}
    with pytest.raises(ValueError, match="give one of --keep-ratio, --r and --tokens, got --keep-ratio, --tokens"):
        values.removal("0.5", None, 3)


def test_a_name_is_offered_once():
    offered = completion.several_of(("tome", "topk", "fastv"))
    assert offered("tome,to") == ["tome,topk"] and offered("tome,topk,") == ["tome,topk,fastv"]
    assert offered("") == ["tome", "topk", "fastv"]


def test_layers_of_one_method_overrule_those_of_all():
    labels = ["tome", "topk"]
    wanted = {"tome": (1, 2, 3, 4), "topk": (2, 3)}
    assert (
        evaluate_settings._layers(["tome=1-4", "2-3"], labels)
        == evaluate_settings._layers(["2-3", "tome=1-4"], labels)
        == wanted
    )


def test_values_are_set_for_a_method():
    assert evaluate_settings._hyperparameters(["topk.lam=0.5", "topk.k=2", "a.k=3"]) == {
        "topk": {"lam": 0.5, "k": 2},
        "a": {"k": 3},
    }
    with pytest.raises(ValueError, match=r"--set must be METHOD.KEY=VALUE, got 'lam=0.5'"):
        evaluate_settings._hyperparameters(["lam=0.5"])


def test_presets_alone_run_with_their_own_amounts():
    def amounts(methods, ratios=None):
        plain = {"baselines": False, "protocol": False, "equal": None}
        return [
            dict(one.amount) for one in evaluate_settings.settings(methods, ratios, None, None, "even", None, **plain)
        ]

    assert amounts("fast,balanced") == [{}, {}]
    assert amounts("topk") == [{"keep_ratio": ratio} for ratio in (0.5, 0.25, 0.15, 0.1)]
    assert amounts("fast,topk")[:2] == [{"keep_ratio": 0.5}] * 2 and amounts("fast", "0.3") == [{"keep_ratio": 0.3}]


def test_grid_scenes_are_as_many_as_asked_for():
    few = evaluate._dataset(None, "fail", split="dev", scenes=3, per_scene=None, kinds="exist, attr")
    assert (few.split, few.scenes, few.per_scene, few.kinds) == ("dev", 3, 12, ("exist", "attr"))
    assert evaluate._dataset(None, "fail", split=None, scenes=None, per_scene=None, kinds=None).scenes == 170


def test_cost_takes_a_methods_own_amount():
    own = dict(get_method("fast").amount)["keep_ratio"]
    found = document("cost", "llava-1.5-7b", "--method", "fast")["schedule"]
    assert found == document("cost", "llava-1.5-7b", "--method", "fast", "--keep-ratio", own)["schedule"]
    assert found["vision"]["final"] < 144  # which is a quarter


def test_plan_prints_lists_and_ranges():
    assert [plan._short(one) for one in ((1, 2), (1, 2, 3), (1, 3, 5), (3, 2, 1), (4, 4, 4))] == [
        "[1, 2]",
        "range(1, 4)",
        "[1, 3, 5]",
        "[3, 2, 1]",
        "[4, 4, 4]",
    ]


def test_data_draws_as_many_scenes_as_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    drawn = []
    monkeypatch.setattr("ficoco_ext.gridvqa.sheet.sheet", lambda dataset, rows: drawn.extend(rows))
    monkeypatch.setattr("ficoco_ext.viz.save", lambda *given: None)
    result = run("data", "--scenes", 3, "--per-scene", 2, "--shown", 2, "-o", tmp_path / "x.png")
    assert result.exit_code == 0 and {row.scene for row in drawn} == {0, 1}


# ---- numbers and tables


@pytest.mark.parametrize(
    ("value", "seconds", "amount"),
    [
        (0.000012, "12 us", "1.2e-05 B"),
        (0.0015, "1.5 ms", "0.0015 B"),
        (1, "1 s", "1 B"),
        (999, "999 s", "999 B"),
        (1000, "1e+03 s", "1 kB"),
        (1_230_000, "1.23e+06 s", "1.23 MB"),
        (1e9, "1e+09 s", "1 GB"),
        (4.56e12, "4.56e+12 s", "4.56 TB"),
    ],
)
def test_times_and_amounts_in_words(value, seconds, amount):
    assert (common.seconds(value), common.amount(value, "B")) == (seconds, amount)


def test_parts_of_a_table_fit_the_console():
    made = common.table("a name that is long", *(f">number {i}" for i in range(9)))
    made.add_row("one", *(str(10**i) for i in range(9)))
    console = Console(width=60)
    parts = common.fitted(console, made)
    assert len(parts) > 1
    assert all(Console(width=500).measure(part).maximum <= 60 for part in parts)  # as wide as it would be


def _prefill(runs):
    return timing.MeasuredPrefill(9, 8, (8,), Flops(4, 4, 0, 0, 0, 0), sorted(runs)[len(runs) // 2], tuple(runs))


def test_bench_prints_no_share_of_what_is_noise():
    full = _prefill([1.0] * 5)
    near, far = (bench.Timed.of("topk", {"r": 3}, full, _prefill([time] * 5)) for time in (0.99, 0.5))
    rows = _cells(bench_command._table(bench.Batch(1, (bench.Timed.of("all tokens", {}, full, full), near, far))))
    head = ["method", "time", "that is", "FLOPs", "reached"]
    assert [dict(zip(head, row, strict=False)) for row in rows] == [
        {"method": "all tokens", "time": "1 s", "that is": "", "FLOPs": "4 FLOP", "reached": ""},
        {"method": "topk r 3", "time": "990 ms", "that is": "1.01x faster, noise", "FLOPs": "the same", "reached": ""},
        {"method": "topk r 3", "time": "500 ms", "that is": "2.00x faster", "FLOPs": "the same", "reached": "200%"},
    ]


def test_two_equal_layers_are_explained_as_two():
    given = json.loads((PACKAGE / "data" / "tiny_llava" / "config.json").read_text())
    text = {**given["text_config"], "num_hidden_layers": 2}
    vision = SimpleNamespace(**given["vision_config"])
    shape = cost.architecture(
        SimpleNamespace(model_type="llava", text_config=SimpleNamespace(**text), vision_config=vision)
    )
    assert "decoder layer 0 to 1, each" in cost_tables.explained(compare.compare(shape))


def test_demo_groups_layers_that_are_alike():
    layers = [layer_tokens.LayerTokens(*one) for one in ((0, 9, 0, 9), (1, 9, 0, 9), (2, 9, 4, 5), (3, 5, 0, 5))]
    assert _cells(demo_command._layers(SimpleNamespace(layers=layers, crops=None))) == [
        ["0 to 1", "9", "0", "9"],
        ["2", "9", "4", "5"],
        ["3", "5", "0", "5"],
    ]
    numbers = ((0, 9, 0, 9, 8, 8), (1, 9, 4, 5, 8, 8), (2, 5, 0, 5, 8, 4), (3, 5, 0, 5, 8, 4))
    text = [layer_tokens.TextLayerTokens(*one) for one in numbers]
    sums = [SimpleNamespace(kv_bytes=value) for value in (32, 24)]
    found = SimpleNamespace(text_layers=text, all_tokens=sums[0], reduced=sums[1])
    assert _cells(demo_command._text_layers(found)) == [
        ["0", "9", "0", "9", "8 B", "8 B", "the same"],
        ["1", "9", "4", "5", "8 B", "8 B", "the same"],
        ["2 to 3, each", "5", "0", "5", "4 B", "8 B", "2.00x less"],
        ["all", "", "", "", "24 B", "32 B", "1.33x less"],
    ]


def test_demo_says_which_answers_are_wrong():
    answers = [
        questions.Answer("q ?", "k", "red", "red", "blue", True, False),
        questions.Answer("r ?", "k", "red", "red?", "", None, False),
        questions.Answer("s ?", "k", None, "a dog", "a cat", None, None),
    ]
    assert _cells(demo_command._answers(SimpleNamespace(answers=answers))) == [
        ["q ?", "red", "red  right", "blue  WRONG"],
        ["r ?", "red", "red?  undecided", "(nothing)  WRONG"],
        ["s ?", "", "a dog", "a cat"],
    ]


def test_doctor_shows_errors_that_are_too_large():
    precisions = (doctor.Precision("float32", 2e-5, 1e-5), doctor.Precision("float16", 5e-4, 1e-3))
    wrong = doctor.Operator("match", "cpu", 1, 1, 0, precisions, ("result 0",))
    assert _cells(doctor_command._table("cpu", [wrong])) == [["match", "2e-5 > 1e-5", "5e-4 < 1e-3", "exact", "WRONG"]]


def test_reduce_fails_if_tokens_are_lost(monkeypatch):
    lost = one_reduction.Conservation(3.0, 4.0, 0, False)
    monkeypatch.setattr(one_reduction, "conservation", lambda reduction: lost)
    result = run("reduce", "--shape", "1,17,8", "--heads", 2, "--repeats", 1)
    assert result.exit_code == 1 and "sizes do not add up" in result.stderr and "VIOLATED" in result.stdout


def _shown(**change):
    """What ``ficoco show`` found, on a grid of 2 x 3."""
    steps = (
        TraceStep("vision layer 0", (), 0.25, {4: 0.75}),
        TraceStep("vision layer 1", (), 0.25, {4: 0.5}),
        TraceStep("vision layer 2", (), 0.0, {4: 0.5}),
    )
    layers = [SimpleNamespace(side="vision", layer=layer) for layer in (0, 1, 2, 5)]
    method = SimpleNamespace(method="mine", keep_ratio=0.5, layers=layers, left=3, merged=2, dropped=1)
    method.answer, method.right, method.trace = "yes", False, Trace(4, steps, {4: 0.5}, 0.5)
    attention = SimpleNamespace(of="dog", side="text", layer=1, on_patches=0.5, patches=(0.0, 0.0, 0.1, 0.0, 0.1, 0.3))
    facts = {"model": "m", "image": "i", "question": "q ?", "truth": "no", "answer": "no", "right": True}
    facts |= {"picture": "p.png", "page": None, "refused": (), "grid": (2, 3)}
    return SimpleNamespace(**facts, crops=None, methods=[method], attention=[attention], **change)


def test_show_adds_up_what_was_dropped():
    table = show_command._traces(_shown())
    assert [column.header for column in table.columns] == ["method", "after", "patch 1,1 is"]
    assert _cells(table) == [
        ["mine", "vision layer 0", "75.0% in 1,1, 25.0% dropped"],
        ["mine", "vision layer 1", "50.0% in 1,1, 50.0% dropped"],
        ["mine", "vision layer 2", "50.0% in 1,1, 50.0% dropped"],
    ]


def test_show_says_where_attention_is(capsys):
    show_command.print_(_shown())
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "dog text layer 1 50.0% 0.3 1,2" in lines
    assert "mine vision 0-2, 5 3 2 1 yes (wrong)" in lines and "all tokens 6 0 0 no (right)" in lines


def test_show_names_layers_as_ranges():
    assert show_command._ranges([1, 4, 5, 6, 8, 9]) == "1, 4-6, 8-9"
    assert show_command._layers(["3,4", "fastv=1-2"]) == {"": (3, 4), "fastv": (1, 2)}


def test_times_are_faster_and_all_else_is_less():
    shape, method = cost.architecture("llava-1.5-7b"), get_method("ficoco-v")
    pair = cost.schedules.build(shape, method, keep_ratio=0.25)
    found = compare.compare(shape, method, pair, hardware=cost.hardware("h200"))
    said = {row[0]: row[-1].split()[-1] for row in _cells(cost_tables._totals(found))}
    assert {name for name, word in said.items() if word == "faster"} == {
        "time to first token, ms",
        "time per further token, ms",
        "answer of 100 tokens, ms",
    }
    assert set(said.values()) == {"faster", "less"} and len(said) == 7
