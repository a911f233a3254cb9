"""README is short, its script runs as it stands, and each of its numbers is what a result or a command gives."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT

import ficoco_ext
from ficoco_ext import cost
from ficoco_ext.cost import schedules, scope
from ficoco_ext.methods import get_method

README = (ROOT / "README.md").read_text()
FLAT = " ".join(README.split())
CHOOSE = (ROOT / "docs" / "choose.md").read_text()
PRESETS = {"quality": 0.5, "balanced": 0.25, "fast": 0.1}
LOADS = {"one picture": {"images": 1, "text_tokens": 60}, "five pictures": {"images": 5, "text_tokens": 512}}


def bill(keep_ratio=None, convention="llmviewer", **load):
    vision = None
    if keep_ratio is not None:
        shape = cost.architecture("llava-1.5-7b")
        vision = schedules.build(shape, get_method("prune-then-merge"), keep_ratio=keep_ratio).vision
    return scope.bill("llava-1.5-7b", convention, vision=vision, **load)


def times(keep_ratio=None, **load):
    """Time to the first token and of an answer of 100 tokens on an H200, by the roofline."""
    vision = None
    if keep_ratio is not None:
        shape = cost.architecture("llava-1.5-7b")
        vision = schedules.build(shape, get_method("prune-then-merge"), keep_ratio=keep_ratio).vision
    at = {"vision": vision, "hardware": "h200", **load}
    first = cost.prefill("llava-1.5-7b", **at).ttft_ms
    return first, first + 99 * cost.decode("llava-1.5-7b", **at).tpot_ms


def measured():
    return json.loads((ROOT / "benchmarks" / "results" / "gpu_h200.json").read_text())


def first_token(method, images, words):
    for row in measured()["end_to_end"]["prefill"]:
        if (row["batch"], row["images"], row["text_tokens"], row["method"]) == (1, images, words, method):
            return row["time_ratio"]
    raise AssertionError(f"{method} with {images} images was not measured")


def test_it_is_short():
    assert README.count("\n") <= 150


def test_its_pictures_are_files_beside_it():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert len(pictures) == 2
    for picture in pictures:
        assert not Path(picture).is_absolute() and (ROOT / picture).is_file()


def test_its_script_runs():
    pytest.importorskip("transformers")
    [script] = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(script, "README.md", "exec"), {})
    assert "36 left (keep ratio 0.250)" in said.getvalue()
    assert said.getvalue().splitlines()[-1] == "taxi" and "prints `taxi`" in README


def test_what_it_says_of_the_gpu():
    document = measured()
    tests = next(step["tests"] for run in document["runs"] for step in run["steps"] if "tests" in step)
    assert not tests["failures"] and not tests["errors"]
    assert f"{tests['tests'] - tests['skipped']:,} tests pass" in README
    assert document["environment"]["gpu"] == "NVIDIA H200" and "one NVIDIA H200" in README
    assert f"on the GPU torch {document['environment']['torch'].split('+')[0]}." in README
    faster, slower = 1 / first_token("prune-then-merge", 5, 512), first_token("prune-then-merge", 1, 64)
    assert f"**First token {faster:.2f}x faster** in LLaVA-1.5-7B with five pictures and 512 words" in FLAT
    assert f"but {slower:.2f}x slower with one picture and 64 words" in FLAT


def test_what_it_says_of_cache_and_flops():
    before, after = bill(), bill(0.25)
    assert f"**Cache {before.kv_mb / after.kv_mb:.1f}x less, FLOPs {before.tflops / after.tflops:.1f}x less**" in FLAT
    assert f"the cache of one picture falls from {before.kv_mb:.0f} to {after.kv_mb:.0f} MB" in FLAT
    assert f"the whole from {before.resident_gb:.1f} to {after.resident_gb:.1f} GB" in FLAT


def test_what_it_says_of_a_whole_answer():
    ratios = {name: times(**load)[1] / times(0.25, **load)[1] for name, load in LOADS.items()}
    one, five = (f"{ratio:.2f}x" for ratio in ratios.values())
    assert f"An answer of 100 tokens comes only {one} faster" in FLAT
    assert f"{one} faster with one picture and 60 words, {five} faster with five pictures and 512 words" in FLAT


def test_the_table_of_presets():
    rows = {row[0].strip('`"'): row[1:] for row in _table(CHOOSE, "preset")}
    full, none = bill(), rows.pop("none")
    assert none[2:5] == [f"{full.tflops:.2f} TFLOP", f"{full.kv_mb:.0f} MB", f"{times()[0]:.2f} ms"]
    assert set(rows) == set(PRESETS)
    for name, keep in PRESETS.items():
        found = bill(keep)
        assert rows[name][:2] == [f"{keep:.0%}".replace("%", " %"), f"{found.tokens.final:.0f}"]
        ratios = (full.tflops / found.tflops, full.kv_mb / found.kv_mb, times()[0] / times(keep)[0])
        said = [float(re.match(r"[\d.]+", cell)[0]) for cell in rows[name][2:5]]
        assert said == pytest.approx(ratios, abs=0.016)  # times here are without the reduction's own few microseconds


def test_the_presets_accuracy_is_that_of_the_study():
    rows = {row[0].strip('`"'): row[-1] for row in _table(CHOOSE, "preset")}
    lines = [line for line in README.splitlines() if "(the presets)" in line]
    cells = re.findall(r"([\d.]+) ±", lines[0])
    by_budget = dict(zip((0.5, 0.25, 0.15, 0.1), cells, strict=True))
    assert {name: rows[name] for name in PRESETS} == {name: f"{by_budget[keep]} %" for name, keep in PRESETS.items()}


def test_the_presets_keep_what_the_tables_say():
    pytest.importorskip("transformers")
    from ficoco_ext.apps import checkpoint

    model = checkpoint.load(None, torch.float32, torch.device("cpu")).model
    for name, keep in PRESETS.items():
        assert re.search(rf'^\| .*`"{name}"` \| {100 * keep:.0f} %', README, re.MULTILINE)
        with ficoco_ext.attach(model, name) as handle:
            assert handle.schedule.final == round(144 * keep)


def _table(text, first):
    """The body of the table of ``text`` whose first heading is ``first``."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_supported_models_are_those_that_are_declared():
    """Their number, and for each what its declaration says of tower, projector and language model."""
    pytest.importorskip("transformers")
    from ficoco_ext.models.families import FAMILIES

    assert f"| Models | {len(FAMILIES)} families of transformers" in README
    part = README[README.index("## Supported models") :].split("\n\n")[1]
    said = {}
    for line in part.splitlines()[2:]:
        names, *flags = (cell.strip() for cell in line.strip("|").split("|"))
        said |= {name.split(" with ")[0]: flags for name in names.split(", ")}

    def word(has):
        return "yes" if has else "no"

    assert said == {one.name: [word(one.towers), "yes", word(one.language_models)] for one in FAMILIES}
