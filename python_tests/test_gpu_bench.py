"""The programs for a GPU, run on the CPU with tiny shapes: they work, and what they write has every field."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_helpers import needs_kernels

import ficoco_ext

ROOT = Path(__file__).parent.parent
GPU = ROOT / "benchmarks" / "gpu"

pytestmark = [pytest.mark.skipif(not GPU.exists(), reason="needs the source tree"), needs_kernels]


def environment(**more):
    """This interpreter, and the very package that is being tested."""
    package = str(Path(ficoco_ext.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", **more}


def start(*arguments, **more):
    return subprocess.run(
        [str(GPU / "run.sh"), *map(str, arguments)],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(summary, results) of one smoke run of everything."""
    out = tmp_path_factory.mktemp("gpu")
    run = start("--smoke", out)
    logs = "".join(path.read_text()[-4000:] for path in sorted(out.glob("*.log")))
    assert run.returncode == 0, run.stdout + run.stderr + logs
    assert {path.name for path in out.iterdir()} == {"summary.json", "results.json", "sanitize.log", "bench.log"}
    return json.loads((out / "summary.json").read_text()), json.loads((out / "results.json").read_text())


def test_summary_says_what_ran(written):
    summary, results = written
    assert summary["smoke"] is results["smoke"] is True
    assert summary["ok"] is True
    assert summary["seconds"] > 0
    assert [step["name"] for step in summary["steps"]] == ["operators once", "operators", "end to end"]
    for step in summary["steps"]:
        assert step["status"] == "ok"
        assert step["exit"] == 0
        assert 0 < step["seconds"] <= step["limit_seconds"]
        assert results["commands"][step["name"]] == step["command"]
        assert str(ROOT) not in step["command"]


def test_sections_say_where_they_were_made(written):
    for section in ("ops", "end_to_end"):
        content = written[1][section]
        assert content["smoke"] is content["complete"] is True
        assert "not_reached" not in content
        made = content["environment"]
        assert {"gpu", "driver", "cuda", "torch", "commit", "date", "command", "build"} <= set(made)
        assert made["torch"] == torch.__version__
        assert "--smoke" in made["command"]


def test_operators(written):
    content = written[1]["ops"]
    assert content["ceilings"]["copy_bytes_per_second"] > 0
    names = {row["op"] for row in content["rows"]}
    kinds = {"attention_stats": ("logits row", "probs row", "probs column", "map")}
    kinds["correlate"] = ("logits", "probs", "key", "map")
    assert {f"{op} {kind}" for op, some in kinds.items() for kind in some} <= names
    assert {"filter", "compress", "reduce ficoco-v"} <= names
    assert ("reduce tome" in names) == ("tome" in ficoco_ext.METHODS)
    for row in content["rows"]:
        assert "failed" not in row, row
        assert "left_out" not in row, row
        assert row["ours_against_float64"]["images"] == 1
        assert {"ours", "ours, graph"} <= set(row["timings"])
        assert row["bytes_floor_ms"] > 0
        assert {"torch"} <= set(row["speedup_call"])
        for timing in row["timings"].values():
            assert 0 < timing["low_ms"] <= timing["median_ms"] <= timing["high_ms"]
    whole = [row for row in content["rows"] if row["op"] == "reduce ficoco-v"]
    assert {row["dtype"] for row in whole} == {"float32", "bfloat16"}
    assert all({"released", "torch", "compiled"} <= set(row["speedup_call"]) for row in whole)


def test_the_formulations_in_torch_give_what_ours_gives(written):
    """In float32, where rounding chooses no other tokens."""
    checked = 0
    for row in written[1]["ops"]["rows"]:
        for name, found in row.get("torch_against_float64", {}).items():
            if row["dtype"] == "float32":
                assert found["images"] == 1, (row["op"], name)
                assert found["relative_error"] < 1e-5, (row["op"], name)
                checked += 1
    assert checked > 15


def test_memory(written):
    for row in written[1]["ops"]["memory"]:
        assert {"statistics, row", "scaled_dot_product_attention", "eager attention weights"} <= set(row["timings"])
        assert set(row["extra_bytes"]) == set(row["timings"])
        assert row["map_bytes"] > 0


def test_end_to_end(written):
    content = written[1]["end_to_end"]
    methods = {"without", *ficoco_ext.METHODS} - set(content.get("skipped", {}))
    assert "ficoco-v" in methods
    language = {"ficoco-l", "fastv", "pyramiddrop"}  # reduce in the language model alone
    assert language <= methods
    for table, wanted in (("prefill", methods), ("tower", methods - language)):
        assert {row["method"] for row in content[table]} == wanted
        assert not any("failed" in row for row in content[table]), content[table]
    plain = next(row for row in content["prefill"] if row["method"] == "without")
    for row in content["prefill"]:
        assert row["ttft_ms"] > 0
        if row is not plain:
            wanted = plain["tokens"] - 108  # a quarter of 144 patches
            if row["method"] in language:
                assert row["tokens"] == plain["tokens"] and row["tokens_of_layers"][-1] < plain["tokens"]
            elif row["method"] != "ficoco-vl":
                assert row["tokens"] == wanted
            layers = len(row["tokens_of_layers"])
            assert row["kv_bytes"] * plain["tokens"] * layers == plain["kv_bytes"] * sum(row["tokens_of_layers"])
            assert 0 < row["flops_ratio"] < 1
    assert all(row["images_per_second"] > 0 for row in content["tower"])


def test_without_a_gpu_nothing_is_done(tmp_path):
    run = start(tmp_path / "out", CUDA_VISIBLE_DEVICES="")
    assert run.returncode == 2
    assert "sees no GPU" in run.stderr
    assert not (tmp_path / "out").exists()


def test_without_torch_nothing_is_done(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
    bare.chmod(0o755)
    run = start(tmp_path / "out", PYTHON=str(bare))
    assert run.returncode == 2
    assert "torch is missing" in run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("name", ["bench_gpu.py", "end_to_end.py"])
def test_a_program_alone_refuses_too(tmp_path, name):
    command = [sys.executable, str(GPU / name), "--json", str(tmp_path / "results.json")]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1
    assert "need a GPU" in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    import steps

    yield steps
    sys.modules.pop("steps", None)


def test_a_step_that_hangs_is_ended_and_the_next_one_runs(tmp_path, monkeypatch, steps):
    out = tmp_path / "out"

    def plan(site, smoke):
        def program(text):
            return [sys.executable, "-c", text]

        wait = "import signal, time; print('begun', flush=True); signal.signal(2, 1); time.sleep(60)"
        return [
            steps.Step("hangs", program(wait), "a.log", 1, 12),
            steps.Step("fails", program("raise SystemExit(3)"), "b.log", 1, 12),
            steps.Step("waits for it", program(""), "b.log", 1, 12, needs=("fails",)),
            steps.Step("missing", program(""), "b.log", 1, 12, skip="it is not installed"),
            steps.Step("works", program("print('there')"), "b.log", 1, 12),
        ]

    monkeypatch.setattr(steps, "plan", plan)
    monkeypatch.setattr(steps, "GRACE", 0.2)
    monkeypatch.setattr(steps, "LEAST", 0.0)
    assert steps.run(out, True, 6.0) == 1
    summary = json.loads((out / "summary.json").read_text())
    found = [step["status"] for step in summary["steps"]]
    assert found == ["timed out", "failed", "not run", "skipped", "ok"]
    assert summary["ok"] is False
    assert "begun" in (out / "a.log").read_text()
    assert "there" in (out / "b.log").read_text()
    assert not (out / "results.json").exists()
