"""Timing that can be believed: interleaved rounds, medians with spread, and everything needed to run it again."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import ficoco_ext

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Timing:
    """Milliseconds over the rounds of one case."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Median, first and last decile."""
        ordered = sorted(seconds)
        tenth = len(ordered) // 10
        return cls(statistics.median(ordered) * 1e3, ordered[tenth] * 1e3, ordered[-1 - tenth] * 1e3, len(ordered))


def interleave(
    cases: dict[str, Callable[[], Any]],
    *,
    seconds: float = 4.0,
    warm_up: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every case in turn, round by round, so that a change of the machine's speed meets all of them alike.

    Args:
        cases: name to function without arguments.
        seconds: about how long to go on; at least 15 rounds are made.
        warm_up: untimed rounds before (compilation, allocator, caches).
        clock: what times a case; ``time.process_time`` leaves out what other programs take, and adds up threads.
    """
    for _ in range(warm_up):
        for run in cases.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in cases}
    stop = time.perf_counter() + seconds
    while min(map(len, times.values())) < 15 or time.perf_counter() < stop:
        for name, run in cases.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: Timing.of(values) for name, values in times.items()}


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes per second, read plus written, of copying a buffer too large for the caches."""
    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.empty_like(source)
    timing = interleave({"copy": lambda: target.copy_(source)}, seconds=2.0)["copy"]
    return 2 * source.nbytes / (timing.median_ms / 1e3)


def extra_memory(run: Callable[[], Any]) -> int:
    """Bytes by which the peak of this process's resident memory during ``run`` exceeds what it holds before (Linux).

    Freed memory is given back to the system first, or ``run`` would use it unseen; huge pages are switched off, or one
    touched byte would count as 2 MiB.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present
    before = _resident("VmRSS")
    result = run()
    peak = _resident("VmHWM")
    del result
    return peak - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _commit() -> str:
    """FICOCO_COMMIT if it is set: a copy of the tree has no history, or another one."""
    if named := os.environ.get("FICOCO_COMMIT"):
        return named
    try:
        run = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _source() -> str:
    """A digest of the sources of package and kernels: says which commit a copy without its history is."""
    digest = hashlib.sha256()
    files = [path for folder in ("csrc", "ficoco_ext") for path in (ROOT / folder).rglob("*")]
    for path in sorted(path for path in files if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Hardware, software, commit and the command that made the figures."""
    return {
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "commit": _commit(),
        "source": _source(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "build": dict(ficoco_ext.build_info()),
    }


def require_kernels() -> None:
    """Refuse to time the specification as if it were ours."""
    info = ficoco_ext.build_info()
    if info["cpu"] != "kernels":
        raise SystemExit(f"benchmarks time the kernels, and none are live: {info['reasons']['cpu']}")


def save(path: Path | None, results: list[dict[str, Any]], **extra: Any) -> None:
    """Write the results with their environment as JSON, or print them."""
    document = {"environment": environment(), **extra, "results": results}
    text = json.dumps(document, indent=2)
    if path is None:
        print(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        print(f"wrote {path}", file=sys.stderr)


def timing_dict(timings: dict[str, Timing]) -> dict[str, Any]:
    """Timings as plain data, rounded to what they are worth."""
    return {name: {k: round(v, 4) for k, v in asdict(timing).items()} for name, timing in timings.items()}
