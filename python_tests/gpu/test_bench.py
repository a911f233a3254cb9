"""The programs for a GPU, rehearsed on the CPU with tiny shapes and planted faults: they survive, and say what was."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.ops import needs_kernels
from helpers.paths import PACKAGE, ROOT

import ficoco_ext

GPU = ROOT / "benchmarks" / "gpu"
PROGRAMS = ("contact", "whole", "kernels", "operators", "end to end", "compiled")
SECTIONS = ("contact", "whole", "kernels", "operators", "end_to_end", "compiled")

pytestmark = [pytest.mark.skipif(not GPU.exists(), reason="needs the source tree"), needs_kernels]


def environment(**more):
    """This interpreter, and the very package that is being tested."""
    package = str(PACKAGE.parent)
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", **more}


def start(*arguments, **more):
    return subprocess.run(
        [str(GPU / "run.sh"), *map(str, arguments)],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """(summary, results) of one rehearsal of everything."""
    out = tmp_path_factory.mktemp("gpu")
    run = start("--rehearse", out)
    logs = "".join(path.read_text()[-4000:] for path in sorted(out.glob("*.log")))
    assert run.returncode == 0, run.stdout + run.stderr + logs
    files = list(out.iterdir())
    assert {path.name for path in files} == {"summary.json", "results.json", "sanitize.log", "bench.log", "contact.log"}
    assert len(files) <= 8 and max(path.stat().st_size for path in files) < 16 * 2**20
    return json.loads((out / "summary.json").read_text()), json.loads((out / "results.json").read_text())


def test_summary_says_what_ran(rehearsal):
    summary, results = rehearsal
    assert summary["rehearsal"] is results["rehearsal"] is True
    assert summary["ok"] is True
    assert summary["seconds"] > 0
    assert sorted(step["name"] for step in summary["steps"]) == sorted((*PROGRAMS, "emulation", "operators once"))
    for step in summary["steps"]:
        assert step["status"] == "ok"
        assert step["exit"] == 0
        assert 0 < step["seconds"] <= step["limit_seconds"]
        assert results["commands"][step["name"]] == step["command"]
        assert str(ROOT) not in step["command"]


def test_planted_faults_are_reported_and_survived(rehearsal):
    for section in SECTIONS:
        lost = {row["task"]: row for row in rehearsal[1][section]["lost"]}
        assert set(lost) == {"planted crash", "planted hang"}, section
        assert lost["planted crash"]["exit"] == -signal.SIGSEGV
        assert lost["planted hang"]["lost"] == "hang"
    wrong = [row for row in rehearsal[1]["contact"]["probes"] if row["verdict"] != "right"]
    assert [row["task"] for row in wrong] == ["planted wrong"]
    assert wrong[0]["verdict"] == "wrong"


def test_sections_say_where_they_were_made(rehearsal):
    for section in SECTIONS:
        content = rehearsal[1][section]
        assert content["complete"] is True
        assert "not_reached" not in content
        made = content["environment"]
        assert {"gpu", "driver", "cuda", "torch", "commit", "source", "date", "command", "build"} <= set(made)
        assert made["torch"] == torch.__version__
        assert "--rehearse" in made["command"]


def test_contact_calls_every_operator_in_every_dtype(rehearsal):
    content = rehearsal[1]["contact"]
    seen = {(row["op"], row["task"].rsplit(", ", 1)[1]) for row in content["probes"] if row["task"] != "planted wrong"}
    dtypes = {"float32", "float16", "bfloat16"}
    ops = {op for op, _ in seen}
    from ficoco_ext.ops import library

    assert ops == {*library.SCHEMAS, "methods"} - {"reduce", "reduce.map"}
    assert seen == {(op, dtype) for op in ops for dtype in dtypes}
    assert all(row["stable"] for row in content["probes"])


def test_rows(rehearsal):
    for section in ("whole", "operators", "compiled"):
        content = rehearsal[1][section]
        assert content["ceilings"]["copy_bytes_per_second"] > 0
        for row in content["rows"]:
            assert "failed" not in row, row
            assert "left_out" not in row, row
            assert row["ours_against_float64"]["images"] == 1
            assert {"ours", "ours, graph", "ours, warm graph"} <= set(row["timings"])
            assert row["floors_ms"][row["floor"]] == max(row["floors_ms"].values()) >= 0
            for timing in row["timings"].values():
                assert 0 < timing["low_ms"] <= timing["median_ms"] <= timing["high_ms"]
    whole = {row["op"]: row for row in rehearsal[1]["whole"]["rows"]}
    assert {"reduce ficoco-v", "reduce ficoco-v paper", "reduce tome", "reduce fastv", "reduce ficoco-l"} <= set(whole)
    assert {"released", "torch"} <= set(whole["reduce ficoco-v"]["speedup_call"])
    assert all("compiled" in row["speedup_call"] for row in rehearsal[1]["compiled"]["rows"])
    names = {row["op"] for row in rehearsal[1]["operators"]["rows"]}
    assert {"filter", "compress", "to_sequence", "correlate.tokens probs", "attention_stats probs column"} <= names


def test_the_formulations_in_torch_give_what_ours_gives(rehearsal):
    """In float32, where rounding chooses no other tokens."""
    checked = 0
    for section in ("whole", "operators"):
        for row in rehearsal[1][section]["rows"]:
            for name, found in row.get("torch_against_float64", {}).items():
                if row["dtype"] == "float32":
                    assert found["images"] == 1, (row["op"], name)
                    assert found["relative_error"] < 1e-5, (row["op"], name)
                    checked += 1
    assert checked > 15


def test_memory(rehearsal):
    for row in rehearsal[1]["operators"]["memory"]:
        assert {"statistics, row", "scaled_dot_product_attention", "eager attention weights"} <= set(row["timings"])
        assert set(row["extra_bytes"]) == set(row["timings"])
        assert row["map_bytes"] > 0


def test_end_to_end(rehearsal):
    content = rehearsal[1]["end_to_end"]
    methods = {"without", *ficoco_ext.METHODS} - set(content["skipped"])
    made = {name: ficoco_ext.get_method(name) for name in methods - {"without"}}
    after = {name for name, one in made.items() if one.projector is not None}
    language = {name for name, one in made.items() if one.tower is None and one.projector is None}
    several = {name for name, one in made.items() if one.tower is not None and one.language_model is not None}
    assert {"ficoco-l", "fastv", "divprune", "stride", "ficoco-v", "ficoco-vl"} <= methods
    for table, wanted in (("prefill", methods), ("tower", methods - language - after)):
        assert {row["method"] for row in content[table]} == wanted
        assert not any("failed" in row for row in content[table]), content[table]
    plain = next(row for row in content["prefill"] if row["method"] == "without")
    for row in content["prefill"]:
        assert row["ttft_ms"] > 0
        if row is not plain:
            wanted = plain["tokens"] - 108  # a quarter of 144 patches
            if row["method"] in language:
                assert row["tokens"] == plain["tokens"] and row["tokens_of_layers"][-1] < plain["tokens"]
            elif row["method"] not in several:
                assert row["tokens"] == wanted
            layers = len(row["tokens_of_layers"])
            assert row["kv_bytes"] * plain["tokens"] * layers == plain["kv_bytes"] * sum(row["tokens_of_layers"])
            assert 0 < row["flops_ratio"] < 1
    assert all(row["images_per_second"] > 0 for row in content["tower"])


def test_a_killed_run_leaves_what_it_had(tmp_path):
    """Whole JSON at every moment, with the rows that were there."""
    out = tmp_path / "out"
    command = [str(GPU / "run.sh"), "--rehearse", "--part", "first", "--only", "whole", str(out)]
    run = subprocess.Popen(command, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL)
    stop = time.monotonic() + 300
    rows = []
    while not rows and time.monotonic() < stop and run.poll() is None:
        time.sleep(0.2)
        if (out / "results.json").exists():
            rows = json.loads((out / "results.json").read_text()).get("whole", {}).get("rows", [])
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert rows
    left = json.loads((out / "results.json").read_text())["whole"]
    assert left["rows"][: len(rows)] == rows
    assert "complete" not in left
    assert json.loads((out / "summary.json").read_text())["steps"][0]["status"] == "running"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_nothing_is_done(tmp_path):
    run = start(tmp_path / "out")
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--part", "second"], "usage:"),
        (["--wheel", "/nowhere.whl"], "there is no file '/nowhere.whl'"),
        (["--nonsense"], "usage:"),
        (["--rehearse", "--only", "contact,nonsense"], "nonsense is not among emulation, contact, whole"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, said):
    run = start(*arguments, tmp_path / "out")
    assert run.returncode in (1, 2)
    assert said in run.stderr
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("name", ["bench_gpu.py", "end_to_end.py", "contact.py", "kernel_times.py"])
def test_a_program_alone_refuses_too(tmp_path, name):
    command = [sys.executable, str(GPU / name), "--json", str(tmp_path / "results.json"), "--budget", "60"]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 1
    assert "need a GPU" in run.stderr


@pytest.fixture
def modules(monkeypatch):
    """The runner's modules."""
    monkeypatch.syspath_prepend(str(GPU))
    import parts
    import steps
    import tables

    yield parts, steps, tables
    for name in ("parts", "steps", "tables", "rows", "contained"):
        sys.modules.pop(name, None)


def test_a_step_that_hangs_is_ended_and_the_next_one_runs(tmp_path, monkeypatch, modules):
    parts, steps, _ = modules
    out = tmp_path / "out"

    def plan(part, site, wheel, rehearse):
        def program(text):
            return [sys.executable, "-c", text]

        wait = "import signal, time; print('begun', flush=True); signal.signal(2, 1); time.sleep(60)"
        return [
            parts.Step("hangs", program(wait), "a.log", 1, 4),
            parts.Step("fails", program("raise SystemExit(3)"), "b.log", 1, 12),
            parts.Step("waits for it", program(""), "b.log", 1, 12, needs=("fails",)),
            parts.Step("missing", program(""), "b.log", 1, 12, skip="it is not installed"),
            parts.Step("one", program("print('there')"), "b.log", 1, 12, beside="both"),
            parts.Step("another", program("print('too')"), "c.log", 1, 12, beside="both"),
        ]

    monkeypatch.setattr(steps, "plan", plan)
    monkeypatch.setattr(steps, "GRACE", 0.2)
    monkeypatch.setattr(steps, "LEAST", 0.0)
    monkeypatch.setattr(steps, "PATIENCE", 1.0)
    assert steps.run(out, "first", None, True, 30.0) == 1
    summary = json.loads((out / "summary.json").read_text())
    found = {step["name"]: step["status"] for step in summary["steps"]}
    assert found == {
        "hangs": "timed out",
        "fails": "failed",
        "waits for it": "not run",
        "missing": "skipped",
        "one": "ok",
        "another": "ok",
    }
    assert summary["ok"] is False
    assert "begun" in (out / "a.log").read_text()
    assert "there" in (out / "b.log").read_text()


def test_the_parts_fit_their_time(modules):
    """Of every group the longest minimum counts: steps beside each other run at the same time."""
    parts, _, _ = modules
    for part, whole in (("first", 240.0), ("rest", 480.0)):
        assert parts.SECONDS[part] == whole
        groups: dict[str, float] = {}
        for index, step in enumerate(parts.plan(part, Path("site"), Path("some.whl"), False)):
            key = step.beside or str(index)
            groups[key] = max(groups.get(key, 0.0), step.least)
        assert sum(groups.values()) <= whole - 8


def test_a_wheel_for_another_torch_is_refused(tmp_path, monkeypatch, modules):
    steps = modules[1]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    wheel = tmp_path / "some.whl"
    for name, said in (("_C_torch1_2.abi3.so", "was built for torch 1.2"), ("none.py", "for torch no kernels at all")):
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr(f"ficoco_ext/{name}", "")
        assert said in steps.refusal(wheel)
    release = "_".join(torch.__version__.split(".")[:2])
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"ficoco_ext/_C_torch{release}.abi3.so", "")
    assert steps.refusal(wheel) is None
    wheel.write_text("no zip")
    assert "is not a wheel" in steps.refusal(wheel)


def test_an_old_gpu_is_refused(monkeypatch, modules):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "T4")
    assert modules[1].refusal(None).startswith("T4 has compute capability 7.5; the kernels need 8.0")


def test_an_old_torch_is_refused(monkeypatch, modules):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch, "__version__", "2.7.1+cu126")
    assert modules[1].refusal(None).startswith("torch is 2.7.1+cu126; the extension needs 2.8 or newer")


def test_texts_hold_what_was_measured(modules):
    """README and docs are what the script makes of the committed results."""
    tables = modules[2]
    found = 0
    for text in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        content = text.read_text()
        assert tables.written(content, ROOT / "benchmarks" / "results") == content, f"run tables.py write on {text}"
        found += len(tables.MARK.findall(content))
    assert found


def test_a_rehearsal_is_no_result(tmp_path, modules):
    (tmp_path / "results.json").write_text(json.dumps({"rehearsal": True}))
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(SystemExit, match="is a rehearsal"):
        modules[2].collect([tmp_path])
