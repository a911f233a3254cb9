"""Times of work on a GPU that can be believed, and what they are compared with.

A call as a program makes it is timed from an idle device, so what it costs to launch is in its time. A replay of a CUDA
graph is timed on the device alone: once on cold caches, and warm, as the mean of many runs in one graph, where neither
the start of a graph nor the flush of the level 2 cache counts. Cases run in a fixed order, in turns. In a rehearsal
everything runs on the CPU with a wall clock: that tests the programs and measures nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import Timing, environment, timing_dict

Run = Callable[[], Any]
NO_KERNELS = "benchmarks time the CUDA kernels, and none are live: {}"
WARM_RUNS = 20


@dataclass(frozen=True)
class Replay:
    """A captured graph of ``runs`` equal runs. ``warm``: without flushing the level 2 cache before it."""

    replay: Run
    runs: int = 1
    warm: bool = False

    def __call__(self) -> Any:
        return self.replay()


class Stopwatch:
    """Runs and times functions on one device."""

    def __init__(self, rehearse: bool) -> None:
        self.rehearse = rehearse
        self.device = torch.device("cpu" if rehearse else "cuda")
        if rehearse:
            torch.set_num_threads(1)  # threads that wait for each other on a busy machine take very long
        else:
            cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
            self._scratch = torch.empty(max(4 * cache, 2**28), dtype=torch.int8, device=self.device)
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def synchronize(self) -> None:
        """Wait for the device."""
        if not self.rehearse:
            torch.cuda.synchronize()

    def once(self, run: Run) -> float:
        """Seconds of one run: a call from an idle device and cold caches, a replay on the device alone."""
        runs, warm = (run.runs, run.warm) if isinstance(run, Replay) else (1, False)
        if self.rehearse:
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) / runs
        if not warm:
            self._scratch.zero_()
        if not isinstance(run, Replay):
            torch.cuda.synchronize()
        self._start.record()
        run()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / runs

    def turns(self, cases: dict[str, Run], seconds: float) -> dict[str, Timing]:
        """Every case in turn, in the order given, for about ``seconds``."""
        for _ in range(1 if self.rehearse else 3):
            for run in cases.values():
                run()
        self.synchronize()
        times: dict[str, list[float]] = {name: [] for name in cases}
        stop, least, most = time.perf_counter() + seconds, *((2, 2) if self.rehearse else (11, 200))
        for turn in range(most):
            if turn >= least and time.perf_counter() > stop:
                break
            for name, run in cases.items():
                times[name].append(self.once(run))
        return {name: Timing.of(values) for name, values in times.items()}

    def graph(self, run: Run, warm: bool = False) -> Replay:
        """A replay of ``run`` as a CUDA graph; in a rehearsal, ``run`` itself."""
        runs = WARM_RUNS if warm else 1
        if self.rehearse:
            return Replay(lambda: [run() for _ in range(runs)][-1], runs, warm)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph, held = torch.cuda.CUDAGraph(), None
        with torch.cuda.graph(graph):
            for _ in range(runs):
                held = run()

        def replay() -> Any:
            graph.replay()
            return held

        return Replay(replay, runs, warm)

    def extra_memory(self, run: Run) -> int | None:
        """Bytes allocated at the peak of ``run`` beyond what was allocated before; None in a rehearsal."""
        if self.rehearse:
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
        """What this device can do at best: bytes/s of a copy (read plus written), FLOP/s of products of square
        matrices, exponentials/s by its special-function units at the highest clock, ms of a graph of one tiny kernel.
        """
        source = torch.randn(2**14 if self.rehearse else 2**28, device=self.device)
        target = torch.empty_like(source)
        seconds = 0.01 if self.rehearse else 0.3
        copy = self.turns({"copy": lambda: target.copy_(source)}, seconds)["copy"].median_ms / 1e3
        found = {"copy_bytes_per_second": 2 * source.nbytes / copy}
        side = 64 if self.rehearse else 8192
        for dtype in (torch.bfloat16, torch.float32):
            a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
            product = self.turns({"product": partial(torch.matmul, a, b)}, seconds)["product"].median_ms / 1e3
            found[f"{str(dtype).removeprefix('torch.')}_flop_per_second"] = 2 * side**3 / product
        found["exponentials_per_second"] = _exponentials(self.rehearse)
        one = torch.zeros(1, device=self.device)
        found["least_graph_ms"] = self.turns({"one": self.graph(lambda: one.add_(0))}, seconds)["one"].median_ms
        return {name: float(f"{value:.4g}") for name, value in found.items()}


def _exponentials(rehearse: bool) -> float:
    """16 a clock and multiprocessor on every architecture since sm_80 (CUDA C++ programming guide, throughput of native
    arithmetic instructions)."""
    if rehearse:
        return 1e9
    megahertz = float(query_smi("clocks.max.sm") or 1980)
    return 16 * torch.cuda.get_device_properties(0).multi_processor_count * megahertz * 1e6


def query_smi(what: str) -> str | None:
    """One number or name from nvidia-smi, of the first GPU."""
    try:
        query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.split("\n")[0].strip()
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
            "driver": query_smi("driver_version"),
        }
    return found


def need_kernels(rehearse: bool) -> None:
    """Refuse to time the specification as if it were ours."""
    import ficoco_ext

    info = ficoco_ext.build_info()
    if not rehearse and not torch.cuda.is_available():
        raise SystemExit("benchmarks need a GPU that torch can use; --rehearse runs the same code on the CPU")
    if not rehearse and info["cuda"] != "kernels":
        raise SystemExit(NO_KERNELS.format(info["reasons"].get("cuda", "the build does not say why")))


def agreement(got: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Share of images that agree, and the largest error relative to the largest value on those that do.

    An image agrees if 99 % of its elements do: where two scores are too close for float32 to distinguish, another
    token may rightly be chosen. Rounding to the result's dtype is allowed for.
    """
    images = torch.ones(wanted[0].shape[0], dtype=torch.bool, device=wanted[0].device)
    errors = []
    for one, other in zip(got, wanted, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"shape {tuple(one.shape)}, wanted {tuple(other.shape)}")
        if not other.numel():
            continue
        off = (one.double() - other.double()).abs().nan_to_num(nan=torch.inf)
        off = off.masked_fill(one.double() == other.double(), 0.0).flatten(1)  # equal infinities are no difference
        if one.is_floating_point():
            scale = other.double().abs().max().clamp_min(1e-30)
            allowed = (1e-4 if one.dtype == torch.float32 else 4 * torch.finfo(one.dtype).eps) * scale
            images &= (off <= allowed).double().mean(1) >= 0.99
            errors.append(off.amax(1) / scale)
        else:
            images &= (off == 0).double().mean(1) >= 0.99
    worst = [float(error[images].max()) for error in errors] if images.any() else []
    return {"images": float(images.double().mean()), "relative_error": max(worst, default=0.0)}


def main() -> None:
    import json

    print(json.dumps(hardware()))


if __name__ == "__main__":
    main()

__all__ = ["Replay", "Stopwatch", "agreement", "hardware", "need_kernels", "timing_dict"]
