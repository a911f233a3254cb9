"""The time of each kernel of a reduction and how it was launched, from torch.profiler, and from ncu where that works.

    python benchmarks/gpu/kernel_times.py --json gpu_results/results.json
    python benchmarks/gpu/kernel_times.py --counters --json gpu_results/results.json

torch.profiler gives the time, grid, block, registers and shared memory of every kernel of ten reductions on warm
caches. ncu (--counters, clocks left alone) says how busy memory, multiprocessors and warps were. Its replays are slow:
times are the profiler's.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cases
import decoder_cases
import torch
from cases import Inputs, Work
from contained import Program, Task, options
from measure import Stopwatch, hardware, need_kernels
from rows import Recorder

RUNS = 10
COUNTERS = {
    "gpu__time_duration.sum": "ns",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory_percent",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "multiprocessor_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "active_warps_percent",
    "lts__t_sector_hit_rate.pct": "l2_hit_percent",
    "dram__bytes.sum": "dram_bytes",
}


def works(watch: Stopwatch) -> Iterator[tuple[str, Callable[[], list[Work]]]]:
    """Whole reductions by name; inputs are made when one is wanted."""
    if watch.rehearse:
        shape = cases.tiny(True, torch.float32)
        yield "logits B 2", lambda: [cases.whole(Inputs.make(shape, watch.device))]
        return
    kinds = {"logits": cases.whole, "probs": cases.whole_probs, "tome": cases.tome}
    for batch in (1, 64):
        for name, make in kinds.items():
            shape = cases.vision(batch, torch.bfloat16)
            yield f"{name} B {batch}", lambda make=make, shape=shape: [make(Inputs.make(shape, watch.device))]
    sequence = decoder_cases.sequence(1, torch.bfloat16)
    yield "decoder", lambda: list(decoder_cases.reductions(Inputs.make(sequence, watch.device)))


def profile(recorder: Recorder, watch: Stopwatch, name: str, make: Callable[[], list[Work]]) -> None:
    """A row for each kernel of each work, and one for the work: launches and the device's idle time between them."""
    for work in make():
        for _ in range(3):
            work.ours()
        watch.synchronize()
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if not watch.rehearse:
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=kinds) as recorded:
            for _ in range(RUNS):
                work.ours()
            watch.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            recorded.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        for row in _kernels(events, {"kernel", "gpu_memset", "gpu_memcpy"}):
            recorder.add("kernels", {"work": name, "op": work.name, **row})


def _kernels(events: list[dict[str, Any]], wanted: set[str]) -> Iterator[dict[str, Any]]:
    """In the order of their first launch, each with how often it ran in one reduction."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for event in sorted((e for e in events if e.get("cat") in wanted), key=lambda e: e["ts"]):
        found[(event["name"], str(event["args"].get("grid")))].append(event)
    for (name, _), each in found.items():
        args = each[0]["args"]
        yield {
            "kernel": name[:160],
            "launches": len(each) / RUNS,
            "us": round(median(event["dur"] for event in each), 2),
            "grid": args.get("grid"),
            "block": args.get("block"),
            "registers": args.get("registers per thread"),
            "shared_bytes": args.get("shared memory"),
            "occupancy_percent": args.get("est. achieved occupancy %"),
        }


def once(name: str) -> None:
    """One reduction between two markers, for ncu."""
    watch = Stopwatch(False)
    for found, make in works(watch):
        if found == name:
            for work in make():
                work.ours()
                torch.cuda.synchronize()
                torch.cuda.profiler.start()
                work.ours()
                torch.cuda.synchronize()
                torch.cuda.profiler.stop()


def counters(recorder: Recorder, name: str) -> None:
    """A row for each kernel that ncu counted."""
    beside = [os.environ[home] + "/bin" for home in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(home)]
    ncu = shutil.which("ncu", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin", *beside]))
    if ncu is None:
        recorder.facts(ncu="not installed")
        return
    command = [ncu, "--profile-from-start", "off", "--clock-control", "none", "-k", "regex:ficoco"]
    command += ["--csv", "--page", "raw", "--kernel-name-base", "demangled"]
    command += ["--metrics", ",".join(COUNTERS), sys.executable, __file__, "--once", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    table = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if done.returncode or len(table) < 3:
        raise RuntimeError(f"ncu: exit {done.returncode}: {(done.stdout + done.stderr).strip()[-300:]}")
    for row in list(csv.DictReader(io.StringIO("\n".join(table))))[1:]:  # the first one holds the units
        values = {short: row.get(long) for long, short in COUNTERS.items()}
        recorder.add("counters", {"work": name, "kernel": row.get("Kernel Name", "")[:160], **values})


def tasks(args: argparse.Namespace, recorder: Recorder) -> Iterator[Task]:
    """The profiler for every work, or ncu for some of them."""
    need_kernels(args.rehearse)
    torch.set_grad_enabled(False)
    watch = Stopwatch(args.rehearse)
    recorder.facts(environment=hardware())
    if args.counters:
        for name in ("logits B 1", "probs B 1", "logits B 64", "probs B 64", "tome B 1", "tome B 64", "decoder"):
            yield f"ncu: {name}", partial(counters, recorder, name)
        return
    for name, make in works(watch):
        yield f"profiler: {name}", partial(profile, recorder, watch, name, make)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser, budget=60.0)
    parser.add_argument("--counters", action="store_true", help="ncu's counters instead of the profiler's times")
    parser.add_argument("--once", metavar="NAME", help="run one reduction and nothing else, under ncu")
    args = parser.parse_args()
    if args.once:
        with torch.no_grad():
            once(args.once)
        return
    section, patience = ("counters", 105.0) if args.counters else ("kernels", 40.0)
    raise SystemExit(Program(section, tasks, 6.0 if args.rehearse else patience).main(args))


if __name__ == "__main__":
    main()
