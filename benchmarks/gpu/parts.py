"""The steps of each part of ``run.sh``, and the time they take."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

Command = list[str]
PARTS = ("first", "rest", "all")
SECONDS = {"first": 240.0, "rest": 480.0, "all": 590.0}  # for everything, on 16 cores


@dataclass(frozen=True)
class Step:
    """One program with its time: at least ``least`` seconds are kept for it by those before it, ``most`` it may take.

    Steps that follow each other with the same ``beside`` run at the same time. Nothing is timed there.
    """

    name: str
    command: Command
    log: str
    least: float
    most: float
    needs: tuple[str, ...] = ()
    skip: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    budget: bool = False  # takes --budget and ends by itself
    beside: str = ""


def install(site: Path, wheel: Path | None) -> Command:
    """Puts the extension into ``site``: a wheel, or compiled with the build tools at hand; nothing is fetched."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site)]
    return [*command, str(wheel)] if wheel else [*command, "-v", "--no-build-isolation", str(ROOT)]


def build_tools() -> str | None:
    """What is missing to compile without fetching anything."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return "setuptools is missing: pip install 'setuptools>=77' ninja"
    if int(version.split(".")[0]) < 77:
        return f"setuptools is {version}: pip install 'setuptools>=77' ninja"
    return None


def build_knobs() -> dict[str, str]:
    """Without kernels the build must fail, and they are needed for this machine's GPU alone."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return {"FICOCO_CUDA": "1", "FICOCO_EXT_CPU": "1", "FICOCO_CUDA_ARCHS": f"{major}{minor}"}


def pytest(chosen: str, report: str) -> Command:
    """The tests that need a GPU; in parallel where that is installed. The others are for README's test command."""
    files = [ROOT / "python_tests" / "gpu" / "test_cuda_only.py", ROOT / "python_tests" / "ops"]
    workers = ["-n", str(max(2, min(8, (os.cpu_count() or 1) // 2)))] if importlib.util.find_spec("xdist") else []
    patience = ["--timeout", "60"] if importlib.util.find_spec("pytest_timeout") else []
    where = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", "-v", *workers, *patience, *where, "-k", chosen, f"--junitxml={report}",
            *map(str, files)]  # fmt: skip


def sanitizer() -> str | None:
    """Where compute-sanitizer is: on the PATH or in the toolkit of nvcc."""
    nvcc = shutil.which("nvcc")
    beside = [str(Path(nvcc).resolve().parent)] if nvcc else []
    roots = [os.environ[name] + "/bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *beside, *roots]))


def program(name: str, *options: str) -> Command:
    """One of the programs beside this file, with its results."""
    return [sys.executable, str(HERE / name), "--json", "results.json", *options]


def _first(built: tuple[str, ...], rehearse: bool) -> list[Step]:
    tool, alone = sanitizer(), [sys.executable, str(HERE / "sanitize.py")]
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    steps = [
        Step("contact", program("contact.py"), "contact.log", 20, 50, built, budget=True, beside="a" * rehearse),
        Step("whole", program("bench_gpu.py", "--rows", "whole"), "bench.log", 35, 70, built, budget=True,
             beside="a" * rehearse),
        Step("kernels", program("kernel_times.py"), "bench.log", 15, 40, built, budget=True, beside="b" * rehearse),
    ]  # fmt: skip
    if rehearse:
        steps.insert(0, Step("emulation", program("contact.py", "--prepare"), "contact.log", 10, 200))
        return [*steps, Step("operators once", alone, "sanitize.log", 10, 60, budget=True, beside="b")]
    for kind in ("racecheck", "memcheck", "synccheck"):
        command = [tool or "compute-sanitizer", "--tool", kind, "--error-exitcode", "9", "--report-api-errors", "no"]
        skip = None if tool else "compute-sanitizer is not installed"
        steps.append(
            Step(kind, [*command, *alone], "sanitize.log", 40, 90, built, skip, uncached, budget=True, beside="tests")
        )
    tests = pytest("cuda and not compiles", "tests.xml")
    return [*steps, Step("tests", tests, "tests.log", 40, 90, built, beside="tests")]


def _rest(built: tuple[str, ...], rehearse: bool) -> list[Step]:
    rows = [("operators", 50.0, 110.0), ("compiled", 50.0, 110.0)]
    steps = [
        Step(name, program("bench_gpu.py", "--rows", name), "bench.log", least, most, built, budget=True,
             beside="c" * rehearse)
        for name, least, most in rows
    ]  # fmt: skip
    steps.insert(
        2 if rehearse else 1, Step("end to end", program("end_to_end.py"), "bench.log", 90, 190, built, budget=True)
    )
    if not rehearse:
        counters = program("kernel_times.py", "--counters")
        steps.append(Step("counters", counters, "bench.log", 30, 70, built, budget=True))
        tests = pytest("test_cuda_only and compiles", "compile_tests.xml")
        steps.append(Step("compile tests", tests, "tests.log", 20, 60, built))
    return steps


def plan(part: str, site: Path, wheel: Path | None, rehearse: bool) -> list[Step]:
    """The steps of a part in order."""
    built = () if rehearse else ("build",)
    steps = [] if rehearse else [Step("build", install(site, wheel), "build.log", 10, 200,
                                      environment={} if wheel else build_knobs())]  # fmt: skip
    if part in ("first", "all"):
        steps += _first(built, rehearse)
    if part in ("rest", "all"):
        steps += _rest(built, rehearse)
    return steps
