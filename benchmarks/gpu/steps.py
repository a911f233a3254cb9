"""What ``run.sh`` does, step by step, each within its own time and written down before the next one begins."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WHOLE = 555.0  # seconds, of ten minutes
GRACE = 8.0  # to write what is left to write after an interrupt
LEAST = 10.0  # below that a step is not begun

Command = list[str]


@dataclass(frozen=True)
class Step:
    """One program with its time: at least ``least`` seconds are kept for it by those before it."""

    name: str
    command: Command
    log: str
    least: float
    most: float
    needs: tuple[str, ...] = ()
    skip: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    budget: bool = False  # takes --budget and ends by itself


def pip(site: Path) -> Command:
    """Compiles the extension into ``site``; with the build tools at hand, without fetching them."""
    try:
        tools = int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except (importlib.metadata.PackageNotFoundError, ValueError):
        tools = False
    isolation = ["--no-build-isolation"] if tools else []
    return [sys.executable, "-m", "pip", "install", "-v", *isolation, "--no-deps", "--target", str(site), str(ROOT)]


def build_knobs() -> dict[str, str]:
    """Without kernels the build must fail, and they are needed for this machine's GPU alone."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return {"FICOCO_CUDA": "1", "FICOCO_EXT_CPU": "1", "FICOCO_CUDA_ARCHS": f"{major}{minor}"}


def pytest() -> Command:
    """The tests that a GPU is for, and their like on the CPU; in parallel where that is installed.

    The others need none and take minutes: they are for README's test command.
    """
    files = [str(path) for start in ("test_cuda", "test_ops") for path in (ROOT / "python_tests").glob(f"{start}*.py")]
    workers = ["-n", str(max(2, min(8, (os.cpu_count() or 1) // 2)))] if importlib.util.find_spec("xdist") else []
    where = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    chosen = ["-k", "not emulated and not launches_of_one", "--junitxml=junit.xml", *sorted(files)]
    return [sys.executable, "-m", "pytest", "-q", *workers, *where, *chosen]


def sanitizer() -> str | None:
    """Where compute-sanitizer is: on the PATH or in the toolkit of nvcc."""
    nvcc = shutil.which("nvcc")
    beside = [str(Path(nvcc).resolve().parent)] if nvcc else []
    roots = [os.environ[name] + "/bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *beside, *roots]))


def plan(site: Path, smoke: bool) -> list[Step]:
    """The steps in order."""
    tool, results = sanitizer(), ["--json", "results.json"]
    program = [sys.executable, str(HERE / "sanitize.py")]
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    built = () if smoke else ("build",)
    ops, whole = ([sys.executable, str(HERE / name), *results] for name in ("bench_gpu.py", "end_to_end.py"))
    if smoke:
        return [
            Step("operators once", [*program, "--smoke"], "sanitize.log", 30, 60),
            Step("operators", [*ops, "--smoke"], "bench.log", 60, 120, budget=True),
            Step("end to end", [*whole, "--smoke"], "bench.log", 60, 120, budget=True),
        ]
    steps = [
        Step("build", pip(site), "build.log", 60, 200, environment=build_knobs()),
        Step("tests", pytest(), "tests.log", 60, 180, built, environment={"HF_HUB_OFFLINE": "1"}),
    ]
    for kind in ("memcheck", "racecheck"):
        command = [tool or "compute-sanitizer", "--tool", kind, "--error-exitcode", "9", *program]
        skip = None if tool else "compute-sanitizer is not installed"
        steps.append(Step(kind, command, "sanitize.log", 30, 60, built, skip, uncached))
    steps.append(Step("operators", ops, "bench.log", 110, 200, built, budget=True))
    steps.append(Step("end to end", whole, "bench.log", 90, 150, built, budget=True))
    return steps


class Record:
    """summary.json: rewritten whenever something changes."""

    def __init__(self, out: Path, smoke: bool) -> None:
        self.path = out / "summary.json"
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.content: dict[str, Any] = {"smoke": smoke, "started": now, "ok": None, "seconds": None, "steps": []}

    def write(self) -> None:
        """Whole or not at all."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.content, indent=2) + "\n")
        os.replace(fresh, self.path)


def shown(command: Command) -> str:
    """As one would type it at the root of the tree: no paths of this machine."""
    names = {sys.executable: "python", str(ROOT): "."}
    short = [names.get(word, word.removeprefix(f"{ROOT}{os.sep}")) for word in command]
    if "--target" in short:
        short[short.index("--target") + 1] = "SITE"
    return shlex.join(short)


def execute(step: Step, limit: float, log: Path, environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run one step; after ``limit`` seconds interrupt it, then end it."""
    command = [*step.command, "--budget", str(round(limit - 20))] if step.budget else step.command
    found: dict[str, Any] = {"command": shown(command), "limit_seconds": round(limit), "log": log.name}
    start = time.monotonic()
    with log.open("a") as stream:
        stream.write(f"$ {found['command']}\n")
        stream.flush()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            found["exit"] = process.wait(limit)
            found["status"] = "ok" if found["exit"] == 0 else "failed"
        except subprocess.TimeoutExpired:
            found["status"], found["exit"] = "timed out", None
            for kind, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, 2.0)):
                try:
                    os.killpg(process.pid, kind)  # the step's own process group
                    process.wait(patience)
                    break
                except (subprocess.TimeoutExpired, ProcessLookupError):
                    continue
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    found["seconds"] = round(time.monotonic() - start, 1)
    return found


def counts(junit: Path) -> dict[str, int] | None:
    """Tests by outcome, from pytest's report."""
    try:
        suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return None
    return {name: sum(int(s.get(name, 0)) for s in suites) for name in ("tests", "failures", "errors", "skipped")}


def check_build(environment: dict[str, str], folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """GPU, software and commit as the installed extension sees them, and why it cannot be benchmarked."""
    run = [sys.executable, str(HERE / "measure.py")]
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return None, f"the extension does not import: {done.stderr.strip().splitlines()[-1:]}"
    facts: dict[str, Any] = json.loads(done.stdout)
    build = facts["build"]
    live = build["cuda"] == "kernels"
    return facts, None if live else f"built without live CUDA kernels: {build['reasons'].get('cuda')}"


def note(path: Path, **facts: Any) -> None:
    """Put facts into the results file beside its sections."""
    document = json.loads(path.read_text()) if path.exists() else {}
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({**document, **facts}, indent=2) + "\n")
    os.replace(fresh, path)


def run(out: Path, smoke: bool, whole: float) -> int:
    """All steps; 0 if all that ran is well."""
    out.mkdir(parents=True, exist_ok=True)
    for old in ("summary.json", "results.json", "junit.xml", "build.log", "tests.log", "sanitize.log", "bench.log"):
        (out / old).unlink(missing_ok=True)
    begun, record, bad = time.monotonic(), Record(out, smoke), set[str]()
    with tempfile.TemporaryDirectory() as work:
        site = Path(work, "site")
        steps = plan(site, smoke)
        base = {**os.environ, "PYTHONUNBUFFERED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        if smoke:
            base["OMP_NUM_THREADS"] = "1"
        else:
            base["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
            base["PATH"] = os.pathsep.join([str(site / "bin"), os.environ.get("PATH", "")])
        for place, step in enumerate(steps):
            entry: dict[str, Any] = {"name": step.name, "status": "running"}
            record.content["steps"].append(entry)
            record.write()
            reserved = sum(later.least for later in steps[place + 1 :] if later.skip is None)
            limit = min(step.most, whole - GRACE - (time.monotonic() - begun) - reserved)
            missing = [name for name in step.needs if name in bad]
            if step.skip or missing or limit < LEAST:
                why = step.skip or (f"{missing[0]} failed" if missing else "no time was left")
                entry |= {"status": "skipped" if step.skip else "not run", "reason": why, "seconds": 0.0}
            else:
                print(f"=== {step.name} (at most {limit:.0f} s)", flush=True)
                entry |= execute(step, limit, out / step.log, {**base, **step.environment}, out)
            if step.name == "build" and entry["status"] == "ok":
                facts, problem = check_build(base, out)
                if problem:
                    entry |= {"status": "failed", "reason": problem}
                note(out / "results.json", environment=facts)
            if step.name == "tests":
                record.content["tests"] = counts(out / "junit.xml")
            if entry["status"] not in ("ok", "skipped"):
                bad.add(step.name)
            print(f"    {entry['status']} {entry['seconds']} s {entry.get('reason', '')}", flush=True)
            record.content["seconds"] = round(time.monotonic() - begun, 1)
            record.write()
    if (out / "results.json").exists():
        ran = {e["name"]: e["command"] for e in record.content["steps"] if "command" in e}
        note(out / "results.json", smoke=smoke, commands=ran)
    record.content |= {"ok": not bad, "seconds": round(time.monotonic() - begun, 1)}
    record.write()
    print(json.dumps({e["name"]: e["status"] for e in record.content["steps"]}), flush=True)
    return int(bool(bad))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--whole", type=float, default=WHOLE, help="seconds for everything")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.out.resolve() == ROOT:
        parser.error("--out must not be the root of the tree, where python would import the sources")
    raise SystemExit(run(args.out.resolve(), args.smoke, args.whole))


if __name__ == "__main__":
    main()
