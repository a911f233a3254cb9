"""Runs the steps of a part, each within its own time and written down before the next one begins."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import Any

from parts import HERE, PARTS, ROOT, SECONDS, Command, Step, build_tools, plan
from rows import put, write_json

GRACE = 8.0  # seconds to write what is left to write after an interrupt
PATIENCE = 3.0  # of a rehearsal, on a machine that may be slow and busy
LEAST = 10.0  # below that a step is not begun
OURS = ("summary.json", "results.json", "build.log", "contact.log", "bench.log", "tests.log", "sanitize.log")


def refusal(wheel: Path | None) -> str | None:
    """Why nothing can be run here, in one line with the remedy."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        name = torch.cuda.get_device_name()
        return f"{name} has compute capability {major}.{minor}; the kernels need 8.0 (A100) or newer: use another GPU"
    release = ".".join(torch.__version__.split("+")[0].split(".")[:2])
    if tuple(map(int, release.split("."))) < (2, 8):
        return f"torch is {torch.__version__}; the extension needs 2.8 or newer: install one (pip install -U torch)"
    if wheel is None:
        return build_tools()
    try:
        names = zipfile.ZipFile(wheel).namelist()
    except (OSError, zipfile.BadZipFile) as error:
        return f"{wheel} is not a wheel ({error}): build one with pip wheel --no-deps --no-build-isolation ."
    built = [Path(n).name.split(".")[0].removeprefix("_C_torch") for n in names if "_C_torch" in n]
    if release.replace(".", "_") not in built:
        held = ", ".join(built).replace("_", ".") or "no kernels at all"
        return f"{wheel.name} was built for torch {held} and torch {release} is installed: leave --wheel out"
    return None


class Record:
    """summary.json: rewritten whenever something changes."""

    def __init__(self, out: Path, part: str, rehearse: bool) -> None:
        self.path = out / "summary.json"
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.content: dict[str, Any] = {"part": part, "rehearsal": rehearse, "started": now, "ok": None}
        self.content |= {"seconds": None, "steps": []}
        self._lock = threading.Lock()

    def write(self) -> None:
        """Written atomically, also where steps run side by side."""
        with self._lock:
            write_json(self.path, self.content)


def shown(command: Command) -> str:
    """As one would type it at the root of the tree: no paths of this machine."""
    names = {sys.executable: "python", str(ROOT): "."}
    short = [names.get(word, word.removeprefix(f"{ROOT}{os.sep}")) for word in command]
    if "--target" in short:
        short[short.index("--target") + 1] = "SITE"
        short[-1] = Path(short[-1]).name
    return shlex.join(short)


def execute(step: Step, limit: float, log: Path, environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run one step; after ``limit`` seconds interrupt it, then end it."""
    command = [*step.command, "--budget", str(max(round(limit - GRACE), 1))] if step.budget else step.command
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


class Runner:
    """One run of a part."""

    def __init__(self, out: Path, part: str, steps: list[Step], whole: float, environment: dict[str, str]) -> None:
        self.out, self.steps, self.whole, self.environment = out, steps, whole, environment
        self.rehearse = "build" not in {step.name for step in steps}
        self.record = Record(out, part, self.rehearse)
        self.begun, self.bad = time.monotonic(), set[str]()

    def run(self) -> int:
        """All steps; 0 if all that ran is well."""
        for _, group in groupby(enumerate(self.steps), key=lambda item: item[1].beside or item[0]):
            together = list(group)
            with ThreadPoolExecutor(len(together)) as pool:
                list(pool.map(lambda item, end=together[-1][0]: self._one(item[1], end), together))
        return self._finish()

    def _one(self, step: Step, last: int) -> None:
        entry: dict[str, Any] = {"name": step.name, "status": "running"}
        self.record.content["steps"].append(entry)
        self.record.write()
        later: dict[str, float] = {}  # by group: steps beside each other need the time of the longest
        for index, other in enumerate(self.steps[last + 1 :]):
            if other.skip is None:
                key = other.beside or str(index)
                later[key] = max(later.get(key, 0.0), other.least)
        limit = min(step.most, self.whole - GRACE - (time.monotonic() - self.begun) - sum(later.values()))
        missing = [name for name in step.needs if name in self.bad]
        if step.skip or missing or limit < LEAST:
            why = step.skip or (f"{missing[0]} failed" if missing else "no time was left")
            entry |= {"status": "skipped" if step.skip else "not run", "reason": why, "seconds": 0.0}
        else:
            print(f"=== {step.name} (at most {limit:.0f} s)", flush=True)
            entry |= execute(step, limit, self.out / step.log, {**self.environment, **step.environment}, self.out)
        self._after(step, entry)
        print(f"    {step.name}: {entry['status']} {entry['seconds']} s {entry.get('reason', '')}", flush=True)
        self.record.content["seconds"] = round(time.monotonic() - self.begun, 1)
        self.record.write()

    def _after(self, step: Step, entry: dict[str, Any]) -> None:
        if step.name == "build" and entry["status"] == "ok":
            facts, problem = check_build(self.environment, self.out)
            if problem:
                entry |= {"status": "failed", "reason": problem}
            put(self.out / "results.json", environment=facts)
        report = self.out / f"{step.name.replace(' ', '_')}.xml"
        if report.exists():  # pytest's; the log names what failed
            entry["tests"] = counts(report)
            report.unlink()
        if entry["status"] not in ("ok", "skipped"):
            self.bad.add(step.name)

    def _finish(self) -> int:
        entries = self.record.content["steps"]
        if (self.out / "results.json").exists():
            ran = {e["name"]: e["command"] for e in entries if "command" in e}
            put(self.out / "results.json", rehearsal=self.rehearse, commands=ran)
        self.record.content |= {"ok": not self.bad, "seconds": round(time.monotonic() - self.begun, 1)}
        self.record.write()
        print(json.dumps({e["name"]: e["status"] for e in entries}), flush=True)
        return int(bool(self.bad))


def chosen(steps: list[Step], only: str | None) -> list[Step]:
    """The steps named in ``only``, and the build that they need."""
    if only is None:
        return steps
    names, known = set(only.split(",")), {step.name for step in steps}
    if unknown := names - known:
        raise SystemExit(f"--only: {', '.join(sorted(unknown))} is not among {', '.join(s.name for s in steps)}")
    return [step for step in steps if step.name in names | {"build"}]


def run(
    out: Path, part: str, wheel: Path | None, rehearse: bool, whole: float | None = None, only: str | None = None
) -> int:
    """All steps of a part into ``out``; the exit code."""
    if not rehearse and (why := refusal(wheel)):
        print(f"{why}. Nothing was done.", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    for old in OURS:
        (out / old).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as work:
        site = Path(work, "site")
        steps = chosen(plan(part, site, wheel, rehearse), only)
        base = {**os.environ, "PYTHONUNBUFFERED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}
        base["HYPOTHESIS_STORAGE_DIRECTORY"] = str(Path(work, "hypothesis"))  # not among the results
        if rehearse:
            base["OMP_NUM_THREADS"] = "1"
            steps = [replace(s, command=[*s.command, "--rehearse"], most=PATIENCE * s.most) for s in steps]
            whole = PATIENCE * SECONDS[part] if whole is None else whole
        else:
            base["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
            base["PATH"] = os.pathsep.join([str(site / "bin"), os.environ.get("PATH", "")])
        return Runner(out, part, steps, SECONDS[part] if whole is None else whole, base).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, default="all")
    parser.add_argument("--wheel", type=Path, help="install this instead of compiling")
    parser.add_argument("--only", metavar="STEP,STEP", help="of the part's steps only these")
    parser.add_argument("--whole", type=float, help="seconds for everything")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    if args.out.resolve() == ROOT:
        parser.error("--out must not be the root of the tree, where python would import the sources")
    wheel = args.wheel.resolve() if args.wheel else None
    raise SystemExit(run(args.out.resolve(), args.part, wheel, args.rehearse, args.whole, args.only))


if __name__ == "__main__":
    main()
