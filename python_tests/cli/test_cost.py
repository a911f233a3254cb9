"""ficoco cost and ficoco plan: JSON with the promised keys, tables, formulas, pictures, advice, and clear errors."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from helpers.cli import document, run
from helpers.paths import PACKAGE
from PIL import Image

import ficoco_ext
from ficoco_ext import cost
from ficoco_ext.apps import checkpoint
from ficoco_ext.cli import cost_tables
from ficoco_ext.cli.plan import attach_call
from ficoco_ext.cost import advice, compare, reproduce, schedules, scope
from ficoco_ext.stages import needs

KEYS = ("tflops", "kv_mb", "memory_access_gb", "resident_gb", "ttft_ms", "layers")
TINY = PACKAGE / "data" / "tiny_llava"
JOINED = ("divprune+ficoco-l", "topk+scope", "tome+divprune+fastv")


def _text(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stdout.split())


def test_without_reduction_the_papers_first_row():
    found = document("cost", "llava-1.5-7b")
    assert set(KEYS) <= set(found)
    assert found["tflops"] == pytest.approx(8.4533, rel=1e-4)
    assert found["kv_mb"] == pytest.approx(333.45, rel=1e-4)
    assert found["memory_access_gb"] == pytest.approx(22.207, rel=1e-4)
    assert found["resident_gb"] == pytest.approx(13.412, rel=1e-4)
    assert found["hardware"]["name"] == "a100-80g"
    assert found["method"] is None
    assert found["schedule"] == {"vision": None, "projector": None, "decoder": None}
    assert found["after_projector"] is None
    assert all(found[key] == found["all_tokens"][key] for key in KEYS[:-1])


def test_the_document_adds_up():
    found = document("cost", "llava-1.5-7b", "--method", "ficoco-l", "--tokens", 64, "--gpu", "h200")
    layers = found["layers"]
    assert [one["layer"] for one in layers] == list(range(32))
    head = 4096 * 32000
    assert sum(one["operations"] for one in layers) + head == pytest.approx(found["tflops"] * 1e12)
    assert sum(one["kv_cache_bytes"] for one in layers) == pytest.approx(found["kv_mb"] * 1e6)
    assert sum(part["seconds"] for part in found["parts"].values()) * 1e3 == pytest.approx(found["ttft_ms"])
    assert found["answer_ms"] == pytest.approx(found["ttft_ms"] + 99 * found["tpot_ms"])
    tokens = found["visual_tokens"]
    assert tokens["final"] == 64
    assert tokens["entering"] == 576
    assert tokens["average"] == pytest.approx(sum(one["tokens"] - 60 for one in layers) / 32)
    assert found["schedule"]["decoder"]["final"] == 64
    assert found["ttft_ms"] < found["all_tokens"]["ttft_ms"]


def test_matmul_is_everything():
    given = ["--method", "ficoco-v", "--r", 40, "--layers", "13-22", "--convention", "matmul"]
    found = document("cost", "llava-1.5-7b", *given)
    assert set(found["parts"]) == {"tower", "projector", "decoder", "head", "reduction"}
    operations = sum(part["operations"] for part in found["parts"].values())
    assert operations == pytest.approx(found["tflops"] * 1e12)
    assert found["schedule"]["vision"]["r"] == [40] * 10
    schedule = ficoco_ext.Schedule.build(576, layers=range(13, 23), r=40)
    assert found["tflops"] == cost.prefill("llava-1.5-7b", vision=schedule, method="ficoco-v").tflops
    tower = [one for one in found["layers"] if one["part"] == "tower"]
    assert [one["tokens"] for one in tower[-2:]] == [217, 177]


# With pictures of crops: what attach refuses there, and what it refuses elsewhere.
NOT_OF_CROPS = {"mustdrop": "single patches", **dict.fromkeys(JOINED[1:], "a single part")}
OF_CROPS_ALONE = [name for name in ficoco_ext.METHODS if needs.CROPS in ficoco_ext.get_method(name).needs]
OF_A_GRID = [name for name in ficoco_ext.METHODS if name not in OF_CROPS_ALONE]


@pytest.mark.parametrize("method", NOT_OF_CROPS)
def test_what_attach_refuses_for_crops_is_not_billed(method):
    result = run("cost", "llava-next-13b", "--method", method)
    assert result.exit_code == 2 and NOT_OF_CROPS[method] in " ".join(result.stderr.split())


@pytest.mark.parametrize("method", OF_CROPS_ALONE)
def test_what_needs_crops_is_not_billed_without(method):
    result = run("cost", "llava-1.5-7b", "--method", method)
    assert result.exit_code == 2 and "cut into crops" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("model", "method"),
    [
        *(("llava-1.5-7b", method) for method in [*OF_A_GRID, *JOINED]),
        *(("llava-next-13b", method) for method in [*ficoco_ext.METHODS, *JOINED] if method not in NOT_OF_CROPS),
    ],
)
def test_every_method(model, method):
    found = document("cost", model, "--method", method, "--images", 2)
    assert found["tflops"] < found["all_tokens"]["tflops"]
    assert found["visual_tokens"]["final"] < found["all_tokens"]["visual_tokens"]["final"]


def test_an_amount_alone_means_ficoco_v():
    assert document("cost", "llava-1.5-7b", "--keep-ratio", 0.5)["method"] == "ficoco-v"
    assert document("cost", "llava-1.5-7b", "--set", "lam=0.5")["schedule"]["vision"]["final"] == 144


def test_ratios_one_a_layer():
    found = document("cost", "llava-1.5-7b", "--method", "pyramiddrop", "--keep-ratio", "0.75,0.5,0.25")
    assert found["schedule"]["decoder"]["r"] == [144, 144, 144]
    assert found["schedule"]["decoder"]["before_attention"]


def test_precision():
    found = document("cost", "llava-1.5-13b", "--text-tokens", 512, "--precision", "int4")
    assert found["bit_scaled_tflops"] == pytest.approx(28.592 / 4, rel=1e-4)
    assert found["kv_mb"] == pytest.approx(222.82, rel=1e-4)
    assert document("cost", "llava-1.5-7b", "--precision", "w4a16kv4")["precision"] == "W4A16KV4"
    assert "TFLOPs x 4 / 16 bits" in _text("cost", "llava-1.5-7b", "--precision", "int4")


def test_tables():
    said = _text("cost", "llava-1.5-7b", "--method", "ficoco-v", "--keep-ratio", 0.25, "--gpu", "h200")
    for words in (
        "576 - 432 = 144",
        "NVIDIA H200 SXM data sheet",
        "mean over its layers",
        "decoder 0-31",
        "reduction",
        "as papers count",
        "a lower bound, not measured",
        "modelled, not measured",
    ):
        assert words in said, words


def test_explain_prints_every_formula_and_its_letters():
    found = document("cost", "llava-1.5-7b", "--explain", "--tokens", 100, "--convention", "matmul")["explain"]
    text = "\n".join(found)
    bill = scope.bill(
        "llava-1.5-7b",
        "matmul",
        vision=ficoco_ext.Schedule.build(576, layers=range(12, 23), tokens=100),
        method="ficoco-v",
    )
    assert all(line.explain() in text for line in bill.lines if line.operations)
    assert all(line.explain_bytes().partition(": ")[2] in text for line in bill.lines)
    assert f"total: {bill.total.operations:,} operations, {bill.total.bytes:,.0f} bytes" in text
    letters = set(re.findall(r"\b[a-z]\b", " ".join(line.formula + line.bytes_formula for line in bill.lines)))
    assert letters <= {line.partition(":")[0] for line in found}
    shown = [line for line in found if not line.startswith(" ")]
    assert "decoder layer 0 to 31, each" in shown
    assert "tower layer 0 to 11, each" in shown
    assert "  up_proj: 2*b*q*h*i" in run("cost", "llava-1.5-7b", "--explain").stdout


@pytest.mark.parametrize("options", [[], ["--method", "ficoco-vl", "--keep-ratio", 0.1]])
def test_plot(tmp_path, options):
    picture = tmp_path / "stairs.png"
    assert document("cost", "llava-1.5-7b", "--plot", picture, *options)["picture"] == str(picture)
    drawn = Image.open(picture).convert("RGB")
    assert drawn.width > 1000
    assert len(drawn.getcolors(maxcolors=2**24)) > 50


def test_a_directory_with_a_config():
    found = document("cost", TINY, "--method", "ficoco-v", "--keep-ratio", 0.25)
    assert found["visual_tokens"]["final"] == 36
    assert found["all_tokens"]["visual_tokens"]["entering"] == 144


def test_reproduce():
    found = document("cost", "--reproduce")
    assert len(found["cells"]) == 151
    off = [cell for cell in found["cells"] if cell["note"]]
    assert len(off) == 6
    assert all(abs(cell["error"]) > 0.05 for cell in off)
    said = _text("cost", "--reproduce")
    for table in filter(str.isdigit, reproduce.TABLES):
        assert f"Table {table}: LLaVA-" in said or f"Table {table}: Open-LLaVA-" in said
    assert said.count("OFF [") == 6
    assert "105 of 151 cells are predictions: 86 are within 1 %, 99 within 5 %, 6 are not reproduced" in said
    for table in ("GlobalCom2: LLaVA-NeXT-7B", "GlobalCom2: LLaVA-NeXT-13B", "MustDrop: LLaVA-1.5-7B"):
        assert table in said
    assert "ours, so rounded: 2457.6, 1843.2, 1228.8, 590, 236" in said
    assert "predicted 5%" in said and "post hoc 1%" in said


@pytest.mark.parametrize(("options", "final"), [([], 62), (["--method", "tome"], 62), (["--method", "topk"], 62)])
def test_plan_a_tower(options, final):
    found = document("plan", "llava-1.5-7b", "--tflops", 1.6, *options)
    assert found["schedule"]["vision"]["final"] == pytest.approx(final, abs=1)
    assert found["tflops"] == found["budget"]["reached"] == pytest.approx(1.6, abs=0.007)
    low, high = found["budget"]["reachable"]
    assert low < 1.6 < high
    assert set(KEYS) <= set(found)


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [("--tflops", 3.0, "tflops"), ("--kv-mb", 120, "kv_mb"), ("--ttft-ms", 5, "ttft_ms")],
)
@pytest.mark.parametrize("method", ["ficoco-v", "ficoco-l", "ficoco-vl"])
def test_plan_each_budget(option, value, key, method):
    found = document("plan", "llava-1.5-7b", "--method", method, option, value, "--gpu", "h200")
    assert found[key] == pytest.approx(value, rel=0.005)


def test_plan_average_tokens_and_floor():
    found = document("plan", "llava-1.5-7b", "--method", "ficoco-l", "--average-tokens", 192, "--floor", 64)
    assert found["visual_tokens"]["average"] == pytest.approx(192, abs=0.5)
    assert found["visual_tokens"]["final"] == 64


def test_plan_says_how_to_apply_it():
    said = _text("plan", "llava-1.5-7b", "--tflops", 3.3)
    assert "wanted 3.3 TFLOPs, found 3.298" in said
    assert "within reach: 0.7923 to 8.453" in said
    call = 'ficoco_ext.attach(model, "ficoco-v", r=[35, 35, 35, 35, 35, 35, 35, 35, 35, 35, 34], layers=range(12, 23))'
    assert call in said
    steps = ficoco_ext.Schedule(9, (3, 5), (1, 2))
    both = attach_call("ficoco-vl", {"lam": 0.5}, schedules.Schedules(vision=steps, decoder=steps))
    sides = 'vision={"r": [1, 2], "layers": [3, 5]}, decoder={"r": [1, 2], "layers": [3, 5]}'
    assert both == f'ficoco_ext.attach(model, "ficoco-vl", {sides}, lam=0.5)'


@pytest.mark.parametrize("method", [*OF_A_GRID, *JOINED])
def test_attach_takes_what_plan_says(method):
    pytest.importorskip("transformers")
    model = checkpoint.load(None, torch.float32, torch.device("cpu")).model
    found = document("plan", TINY, "--method", method, "--average-tokens", 100, "--text-tokens", 12)
    with eval(found["attach"], {"ficoco_ext": ficoco_ext, "model": model}) as handle:
        vision, projector, decoder = found["schedule"].values()
        assert (handle.schedule is None) == (vision is None)
        assert (handle.plan is None) == (decoder is None)
        assert (handle.attach_plan.projector is None) == (projector is None)
        if projector is not None:
            assert handle.attach_plan.per_image == projector["final"]
        if vision is not None:
            assert list(handle.schedule.layers) == vision["layers"]
            assert list(handle.schedule.r) == vision["r"]
        if decoder is not None:
            schedule = handle.plan.schedule(decoder["patches"])
            assert list(schedule.layers) == decoder["layers"]
            assert list(schedule.r) == decoder["r"]
            assert schedule.before_attention == decoder["before_attention"]


@pytest.mark.parametrize("method", [*OF_A_GRID, *JOINED])
@pytest.mark.parametrize("amount", [{"keep_ratio": 0.4}, {"tokens": 50}])
def test_schedules_are_those_of_attach(method, amount):
    pytest.importorskip("transformers")
    model = checkpoint.load(None, torch.float32, torch.device("cpu")).model
    vision, projector, decoder = schedules.build(
        cost.architecture(model.config), ficoco_ext.get_method(method), **amount
    )
    if method == "pyramiddrop" and "keep_ratio" in amount:
        assert decoder.final == 57  # rounded down
    with ficoco_ext.attach(model, method, **amount) as handle:
        assert handle.schedule == vision
        assert projector == (None if handle.attach_plan.projector is None else handle.attach_plan.per_image)
        if decoder is not None:
            assert handle.plan.schedule(decoder.patches) == decoder


def _advice(model="llava-1.5-7b", method="ficoco-v", amount=None, gpu="h200", **given):
    shape, chosen = cost.architecture(model), ficoco_ext.get_method(method)
    pair = schedules.build(shape, chosen, **(amount or {"keep_ratio": 0.25}))
    return " ".join(advice.advice(compare.compare(shape, chosen, pair, hardware=cost.hardware(gpu), **given)))


def test_honest_words():
    assert "modelled, not measured" in _advice(new_tokens=1)
    assert "Decoding takes" not in _advice(new_tokens=1)
    assert "Decoding takes 99% of an answer of 100 tokens" in _advice()
    assert "Few of the prompt's tokens are visual, 576 of 2576" in _advice(text_tokens=2000)
    assert "Few of" not in _advice(text_tokens=60)
    assert "The vision tower takes" in _advice("qwen2-vl-7b", "ficoco-l")
    assert "The vision tower takes" not in _advice(method="ficoco-l", amount={"keep_ratio": 0.9})
    assert "single visual token is left" in _advice(method="ficoco-l", amount={"r": 100})
    assert "removing more tokens saves little" in _advice(amount={"tokens": 8})
    assert "does not help here" in _advice(method="ficoco-l", amount={"r": 1, "layers": [31]}, text_tokens=2000)
    assert "attach does not reduce in the tower" in _advice("video-llava-7b")
    tiny = cost.architecture(TINY)
    alone = compare.compare(tiny, hardware=cost.hardware("h200"), text_tokens=10)
    assert "The prompt is short" in " ".join(advice.advice(alone))
    assert advice.advice(compare.compare(tiny)) == []  # no hardware, no time, no advice


def test_tables_without_hardware(capsys):
    found = compare.compare(cost.architecture("llava-1.5-7b"))
    cost_tables.show(found, [], None)
    assert "8.453" in capsys.readouterr().out


def test_the_cpu_is_measured(monkeypatch):
    slow = cost.Hardware("cpu", 1e10, 1e11, None, None, 1e10, 1e6, "measured: here")
    monkeypatch.setattr(sys.modules["ficoco_ext.cost.hardware"], "measure_cpu", lambda: slow)
    assert document("cost", "llava-1.5-7b", "--gpu", "cpu")["hardware"]["source"] == "measured: here"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("cost", "give a MODEL, such as llava-1.5-7b, or --reproduce"),
        ("cost llava-9", "model must be one of llava-1.5-7b"),
        ("cost llava-1.5-7b --gpu abacus", "hardware must be one of a100-80g"),
        ("cost llava-1.5-7b --method nope", "method must be"),
        ("cost llava-1.5-7b --precision int3", "precision must be one of"),
        ("cost llava-1.5-7b --convention mine", "convention must be one of matmul, llmviewer"),
        ("cost llava-1.5-7b --keep-ratio x", "--keep-ratio must be numbers"),
        ("cost llava-1.5-7b --keep-ratio 2", "--keep-ratio must be in (0, 1]"),
        ("cost llava-1.5-7b --keep-ratio 0.5 --tokens 3", "give one of"),
        ("cost llava-1.5-7b --r 100", "remove at most 575"),
        ("cost llava-1.5-7b --layers 23", "layers must be in 0 ... 22 of the tower"),
        (
            "cost llava-1.5-7b --method ficoco-l --layers 30-40 --r 3",
            "layers must be in 0 ... 31 of the language model",
        ),
        ("cost llava-1.5-7b --method tome --tokens 100 --layers 22", "at most half"),
        ("cost llava-1.5-7b --method ficoco-vl --r 3", "one of --keep-ratio and tokens"),
        ("cost qwen2-vl-7b --keep-ratio 0.5", "joins blocks of patches"),
        ("cost llava-1.5-7b --text-tokens -1", "--text-tokens must be in 0 ... 1000000000"),
        ("cost llava-1.5-7b --images 0", "images must be in 1 ... 1000000000"),
        ("cost llava-1.5-7b --method fastv --images 0", "images must be an integer in 1 ... 1000000000"),
        ("plan llava-1.5-7b --tflops 1 --images 0", "images must be an integer in 1 ... 1000000000"),
        ("cost llava-1.5-7b --new-tokens 0", "--new-tokens must be in 1 ... 1000000000"),
        (f"cost llava-1.5-7b --new-tokens {10**30}", "--new-tokens must be in 1 ... 1000000000"),
        (f"cost llava-1.5-7b --images {10**30}", "images must be in 1 ... 1000000000"),
        (f"cost llava-1.5-7b --text-tokens {10**30}", "--text-tokens must be in 0 ... 1000000000"),
        (f"plan llava-1.5-7b --tflops 1 --images {10**30}", "images must be an integer in 1 ... 1000000000"),
        (
            "cost llava-1.5-7b --r 1 --layers 0-1000000000000",
            "--layers must be integers separated by commas, or ranges",
        ),
        ("cost llava-1.5-7b --plot x.foo", "must end in"),
        ("cost llava-1.5-7b --plot /nowhere/x.png", "no folder"),
        ("cost llava-1.5-7b --reproduce", "give no model"),
        ("plan llava-1.5-7b", "exactly one of --tflops, --kv-mb, --average-tokens, --ttft-ms"),
        ("plan llava-1.5-7b --tflops 1 --kv-mb 60", "exactly one of"),
        ("plan llava-1.5-7b --method ficoco-l --tflops 1.5 --layers 3-31", "reaches 1.594 to 8.453 TFLOPs"),
        ("plan llava-1.5-7b --tflops 9", "8.453 is what it costs when nothing is removed"),
        ("plan llava-1.5-7b --tflops 1 --layers 23", "layers must be in 0 ... 22"),
        ("plan llava-9 --tflops 1", "model must be one of"),
        ("plan llava-1.5-7b --ttft-ms 1 --gpu abacus", "hardware must be one of"),
        ("plan llava-1.5-7b --tflops 1 --plot x.foo", "must end in"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(arguments, message):
    result = run(*arguments.split())
    assert result.exit_code == 2, result.stdout
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("ficoco: error: ")
    assert message in lines[0]


def test_times_of_layers_are_those_of_what_runs():
    """Fused attention, and the reduction within its layer, whatever is counted."""
    found = document("cost", "llava-1.5-7b", "--method", "ficoco-l", "--tokens", 64, "--gpu", "h200")
    shape, method = cost.architecture("llava-1.5-7b"), ficoco_ext.get_method("ficoco-l")
    decoder = schedules.build(shape, method, tokens=64).decoder
    runs = scope.bill(shape, "matmul", method=method, decoder=decoder, hardware="h200").layers
    wanted = [one.total.seconds for one in runs if one.part == "decoder"]
    assert [one["seconds"] for one in found["layers"]] == wanted
