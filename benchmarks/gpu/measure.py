"""Times of work on a GPU that can be believed, and a results file that survives whatever comes later.

A call as a program makes it is timed from an idle device, so what it costs to launch is in its time; a replay of a CUDA
graph is timed on the device alone. The level 2 cache is flushed before every run. Cases are run in a locked order, in
turns. With ``smoke`` everything runs on the CPU with a wall clock: that tests the programs and measures nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import Timing, environment, timing_dict

Run = Callable[[], Any]
NO_KERNELS = "benchmarks time the CUDA kernels, and none are live: {}"


class Stopwatch:
    """Runs and times functions on one device."""

    def __init__(self, smoke: bool) -> None:
        self.smoke = smoke
        self.device = torch.device("cpu" if smoke else "cuda")
        if smoke:
            torch.set_num_threads(1)  # threads that wait for each other on a busy machine take ever so long
        else:
            cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
            self._scratch = torch.empty(max(4 * cache, 2**28), dtype=torch.int8, device=self.device)
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def synchronize(self) -> None:
        """Wait for the device."""
        if not self.smoke:
            torch.cuda.synchronize()

    def once(self, run: Run, idle: bool = True) -> float:
        """Seconds of one run on cold caches; ``idle``: from an idle device, so that launching counts."""
        if self.smoke:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        self._scratch.zero_()
        if idle:
            torch.cuda.synchronize()
        self._start.record()
        run()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3

    def turns(self, cases: dict[str, Run], seconds: float) -> dict[str, Timing]:
        """Every case in turn, in the order given, for about ``seconds``. Names that end in "graph" are replays."""
        for _ in range(1 if self.smoke else 3):
            for run in cases.values():
                run()
        self.synchronize()
        times: dict[str, list[float]] = {name: [] for name in cases}
        stop, least, most = time.perf_counter() + seconds, *((2, 2) if self.smoke else (11, 200))
        for turn in range(most):
            if turn >= least and time.perf_counter() > stop:
                break
            for name, run in cases.items():
                times[name].append(self.once(run, idle=not name.endswith("graph")))
        return {name: Timing.of(values) for name, values in times.items()}

    def graph(self, run: Run) -> Run:
        """A replay of ``run`` as a CUDA graph; in a smoke run, ``run`` itself."""
        if self.smoke:
            return run
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            held = run()

        def replay() -> Any:
            graph.replay()
            return held

        return replay

    def extra_memory(self, run: Run) -> int | None:
        """Bytes allocated at the peak of ``run`` beyond what was allocated before; None in a smoke run."""
        if self.smoke:
            run()
            return None
        run()  # libraries take their workspace once
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def ceilings(self) -> dict[str, float]:
        """Copy bandwidth in bytes/s, read plus written, and products of square matrices in FLOP/s, on this device."""
        source = torch.randn(2**14 if self.smoke else 2**28, device=self.device)
        target = torch.empty_like(source)
        seconds = 0.01 if self.smoke else 0.5
        copy = self.turns({"copy": lambda: target.copy_(source)}, seconds)["copy"].median_ms / 1e3
        found = {"copy_bytes_per_second": 2 * source.nbytes / copy}
        side = 64 if self.smoke else 8192
        for dtype in (torch.bfloat16, torch.float32):
            a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
            product = self.turns({"product": partial(torch.matmul, a, b)}, seconds)["product"].median_ms / 1e3
            found[f"{str(dtype).removeprefix('torch.')}_flop_per_second"] = 2 * side**3 / product
        return {name: float(f"{value:.4g}") for name, value in found.items()}


class Deadline:
    """How much of the time that a program was given is left."""

    def __init__(self, seconds: float) -> None:
        self._given, self._start = seconds, time.perf_counter()

    def left(self, share: float = 1.0) -> bool:
        """Whether less than ``share`` of the time is used."""
        return time.perf_counter() - self._start < share * self._given


def _driver() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return (
            subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0].strip()
        )
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """GPU, driver, CUDA, torch, commit, date and command."""
    found: dict[str, Any] = environment()
    found |= {"gpu": None, "driver": None, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "driver": _driver(),
        }
    return found


def need_kernels(smoke: bool) -> None:
    """Refuse to time the specification as if it were ours."""
    import ficoco_ext

    info = ficoco_ext.build_info()
    if not smoke and not torch.cuda.is_available():
        raise SystemExit("benchmarks need a GPU that torch can use; --smoke runs the same code on the CPU")
    if not smoke and info["cuda"] != "kernels":
        raise SystemExit(NO_KERNELS.format(info["reasons"].get("cuda", "the build does not say why")))


class Results:
    """One section of the results file, written anew after every row."""

    def __init__(self, path: Path | None, section: str, smoke: bool, **facts: Any) -> None:
        self.path, self.section = path, section
        self.content: dict[str, Any] = {"smoke": smoke, "environment": hardware(), **facts, "complete": False}

    def add(self, table: str, row: dict[str, Any]) -> None:
        """Append a row to a table of the section."""
        self.content.setdefault(table, []).append(row)
        self.write()

    def finish(self) -> None:
        """Everything that was wanted is there."""
        self.content["complete"] = True
        self.write()
        if self.path is None:
            print(json.dumps({self.section: self.content}, indent=2))

    def write(self) -> None:
        """Put the section into the file; other sections stay."""
        if self.path is None:
            return
        document = json.loads(self.path.read_text()) if self.path.exists() else {}
        document[self.section] = self.content
        write_json(self.path, document)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all: a reader never finds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(document, indent=2) + "\n")
    os.replace(fresh, path)


def said(error: BaseException) -> str:
    """One line of an exception."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}"[:400]


if __name__ == "__main__":
    print(json.dumps(hardware()))

__all__ = ["Deadline", "Results", "Stopwatch", "need_kernels", "said", "timing_dict", "write_json"]
