"""Every operator and the whole reduction on a GPU, against the released formulation and the best torch of it.

    python benchmarks/gpu/bench_gpu.py --json gpu_results/results.json

Ours as a call and as a replayed CUDA graph; the released formulations, image by image; batched torch as calls, as
graphs and compiled; the bytes floor at the measured copy bandwidth. Results are compared with the specification in
float64 before any is timed. Rows are written as they come, the most telling first; --budget ends in good time.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cases
import torch
import torch.nn.functional as F
from cases import Inputs, Shape, Work
from measure import Deadline, Results, Stopwatch, need_kernels, said, timing_dict
from torch import Tensor

import ficoco_ext
from ficoco_ext import QueryKey, ops

BF16, FP32 = torch.bfloat16, torch.float32
OURS, GRAPH = "ours", "ours, graph"


def agreement(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> dict[str, float]:
    """Share of images that agree, and the largest error relative to the largest value on those that do.

    An image agrees if 99 % of its elements do: where two scores are closer than float32 can tell apart, another token
    may be chosen, rightly. Rounding to the result's dtype is allowed for.
    """
    images = torch.ones(wanted[0].shape[0], dtype=torch.bool, device=wanted[0].device)
    errors = []
    for one, other in zip(got, wanted, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"shape {tuple(one.shape)}, wanted {tuple(other.shape)}")
        off = (one.double() - other.double()).flatten(1).abs().nan_to_num(nan=torch.inf)
        if one.is_floating_point():
            scale = other.double().abs().max().clamp_min(1e-30)
            allowed = (1e-4 if one.dtype == FP32 else 4 * torch.finfo(one.dtype).eps) * scale
            images &= (off <= allowed).double().mean(1) >= 0.99
            errors.append((off.amax(1) if off.shape[1] else off.sum(1)) / scale)
        else:
            images &= (off == 0).double().mean(1) >= 0.99
    worst = [float(error[images].max()) for error in errors] if images.any() else []
    return {"images": float(images.double().mean()), "relative_error": max(worst, default=float("inf"))}


class Bench:
    """Turns a :class:`Work` into a row."""

    def __init__(self, watch: Stopwatch, results: Results, ceilings: dict[str, float], seconds: float) -> None:
        self.watch, self.results, self.ceilings, self.seconds = watch, results, ceilings, seconds

    def row(self, shape: Shape, work: Work, compiled: Callable[[], bool] | None, overhead: bool = False) -> None:
        """Check, time and record one piece of work; what cannot be timed says why.

        ``compiled`` says whether there is time for one more compilation; None: not wanted.
        """
        rate = self.ceilings["copy_bytes_per_second"]
        products = self.ceilings[f"{'float32' if shape.dtype == FP32 else 'bfloat16'}_flop_per_second"]
        row: dict[str, Any] = {
            "op": work.name,
            **shape.described(),
            "bytes": work.bytes,
            "flop": work.flop,
            "bytes_floor_ms": round(work.bytes / rate * 1e3, 5),
            "arithmetic_floor_ms": round(work.flop / products * 1e3, 5),
        }
        try:
            self._fill(row, shape, work, compiled, overhead)
        except Exception as error:  # one kernel's failure must not cost the other rows
            row["failed"] = said(error)
        self.results.add("rows", row)
        _print(row)

    def _fill(
        self, row: dict[str, Any], shape: Shape, work: Work, compiled: Callable[[], bool] | None, more: bool
    ) -> None:
        wanted = work.wanted()
        row["ours_against_float64"] = agreement(work.ours(), wanted)
        if row["ours_against_float64"]["images"] < 0.9:
            row["failed"] = "ours disagrees with the specification in float64; not timed"
            return
        ways: dict[str, Callable[[], Any]] = {OURS: work.ours}
        if work.released is not None:
            ways["released"] = work.released
        ways |= {f"torch: {name}": run for name, run in work.torch.items()}
        ways = {name: run for name, run in ways.items() if self._usable(row, name, run, work, wanted, shape.dtype)}
        eager = [name for name in ways if name.startswith("torch: ")]
        for name in [OURS, *eager]:
            self._try(row, ways, f"{name}, graph", partial(self.watch.graph, ways[name]))
        first = {n: t.median_ms for n, t in self.watch.turns({n: ways[n] for n in eager}, 0.1).items()}
        fastest = sorted(first, key=lambda name: first[name])
        wishes = [("default", name) for name in fastest[:2]] + [
            ("reduce-overhead", name) for name in fastest[:1] if more
        ]
        for mode, name in wishes:
            if compiled is not None and compiled():
                self._compile(row, ways, name, mode, ways[name])
            elif compiled is not None:
                row.setdefault("left_out", {})[f"compiled {mode}: {name.removeprefix('torch: ')}"] = "no time was left"
        del wanted
        found = self.watch.turns(ways, self.seconds)
        timings = {name: timing.median_ms for name, timing in found.items()}
        row["timings"] = timing_dict(found)
        row["ours_over_bytes_floor"] = round(timings.get(GRAPH, timings[OURS]) / row["bytes_floor_ms"], 2)
        for what, mine in (("call", timings[OURS]), ("graph", timings.get(GRAPH))):
            if mine is None:
                continue
            calls = {name: ms for name, ms in timings.items() if name.endswith("graph") == (what == "graph")}
            kinds = {"released": "released", "torch": "torch: ", "compiled": "compiled"}
            best = {k: min((ms for n, ms in calls.items() if n.startswith(p)), default=None) for k, p in kinds.items()}
            row[f"speedup_{what}"] = {kind: round(ms / mine, 2) for kind, ms in best.items() if ms is not None}

    def _usable(
        self, row: dict[str, Any], name: str, run: Callable[[], Any], work: Work, wanted: Any, dtype: torch.dtype
    ) -> bool:
        """Whether a formulation gives the specification's result; half precision may round to other tokens."""
        if name == OURS or not work.comparable:
            return True
        try:
            found = agreement(run(), wanted)
        except Exception as error:
            row.setdefault("left_out", {})[name] = said(error)
            return False
        row.setdefault("torch_against_float64", {})[name] = found
        if dtype == FP32 and found["images"] < 0.9:
            row.setdefault("left_out", {})[name] = "disagrees with the specification"
            return False
        return True

    def _try(self, row: dict[str, Any], ways: dict[str, Any], name: str, make: Callable[[], Any]) -> None:
        try:
            ways[name] = make()
        except Exception as error:
            row.setdefault("left_out", {})[name] = said(error)

    def _compile(self, row: dict[str, Any], ways: dict[str, Any], name: str, mode: str, run: Callable[[], Any]) -> None:
        def make() -> Callable[[], Any]:
            backend = "eager" if self.watch.smoke else "inductor"
            fast = torch.compile(run, fullgraph=True, dynamic=False, backend=backend, mode=mode)
            for _ in range(3):
                fast()
            self.watch.synchronize()
            return fast

        self._try(row, ways, f"compiled {mode}: {name.removeprefix('torch: ')}", make)


def _print(row: dict[str, Any]) -> None:
    head = f"{row['op']:26} {row['shape']} B={row['batch']} {row['dtype']}:"
    if "failed" in row:
        print(head, row["failed"], file=sys.stderr)
        return
    times = {name: timing["median_ms"] for name, timing in row["timings"].items()}
    shown = [f"{name} {times[name]:.4f} ms" for name in (OURS, GRAPH) if name in times]
    speedups = f"call {row.get('speedup_call')}, graph {row.get('speedup_graph')}"
    print(head, ", ".join(shown), f"(bytes floor {row['bytes_floor_ms']:.4f}), {speedups}", file=sys.stderr)


def memory_of_statistics(watch: Stopwatch, shape: Shape, seconds: float) -> dict[str, Any]:
    """Peak extra memory and time of the probabilities' statistics, beside attention itself and its written map."""
    inputs = Inputs.make(shape, watch.device)
    q, k, v = inputs.query, inputs.key, inputs.value
    attn = QueryKey(q, k)

    def statistics(column: bool) -> Callable[[], Any]:
        return lambda: ops.attention_stats(attn, class_token=shape.class_token, probs=True, column=column)

    runs: dict[str, Callable[[], Any]] = {
        "statistics, row": statistics(False),
        "statistics, column": statistics(True),
        "scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(q, k, v),
        "eager attention weights": lambda: (q @ k.mT * shape.width**-0.5).softmax(-1),
    }
    memory = {name: watch.extra_memory(run) for name, run in runs.items()}
    timings = timing_dict(watch.turns(runs, seconds))
    return {
        **shape.described(),
        "map_bytes": shape.batch * shape.heads * shape.tokens**2 * shape.dtype.itemsize,
        "extra_bytes": memory,
        "timings": timings,
    }


def _clean() -> None:
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _phases(smoke: bool) -> Iterator[tuple[str, Shape, bool]]:
    """(what, shape, compile it): the most telling first."""
    vision, decoder = cases.vision, cases.decoder
    if smoke:
        shapes = [cases.tiny(True, FP32), cases.tiny(False, BF16)]
        compiled, remembered = shapes[:1], shapes
    else:
        shapes = [vision(8, BF16), vision(1, BF16), decoder(1, BF16), vision(64, BF16)]
        shapes += [vision(1, FP32), vision(8, FP32), decoder(4, BF16), decoder(1, FP32)]
        compiled, remembered = [vision(8, BF16), decoder(1, BF16)], [decoder(1, BF16), decoder(4, BF16)]
    yield from (("whole", shape, True) for shape in shapes)
    yield from (("memory", shape, False) for shape in remembered)
    yield from (("operators", shape, False) for shape in shapes)
    if "tome" in ficoco_ext.METHODS:
        yield from (("tome", shape, shape in compiled) for shape in shapes)
    yield from (("operators, compiled", shape, True) for shape in compiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="results file; only the section 'ops' of it is written")
    parser.add_argument("--seconds", type=float, default=0.4, help="timing of each row, after compilation")
    parser.add_argument("--budget", type=float, default=900.0, help="seconds after which no more rows are begun")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU: tests this program")
    args = parser.parse_args()
    need_kernels(args.smoke)
    torch.set_grad_enabled(False)
    watch, deadline = Stopwatch(args.smoke), Deadline(args.budget)
    seconds = 0.01 if args.smoke else args.seconds
    ceilings = watch.ceilings()
    results = Results(args.json, "ops", args.smoke, ceilings=ceilings)
    results.content["float32_products"] = torch.get_float32_matmul_precision()
    bench = Bench(watch, results, ceilings, seconds)
    for what, shape, compiled in _phases(args.smoke):
        if not deadline.left():
            results.add("not_reached", {"what": what, **shape.described()})
            continue
        _clean()
        if what == "memory":
            try:
                results.add("memory", memory_of_statistics(watch, shape, seconds))
            except Exception as error:
                results.add("memory", {**shape.described(), "failed": said(error)})
            continue
        inputs = Inputs.make(shape, watch.device)
        # Compilation may take most of the time: whole reductions leave half of it to what comes after.
        may = partial(deadline.left, 0.5 if what == "whole" else 1.0) if compiled else None
        if what in ("whole", "tome"):
            work = cases.whole(inputs) if what == "whole" else cases.tome(inputs)
            bench.row(shape, work, may, overhead=what == "whole" and shape.batch == 1)
            continue
        for work in cases.operators(inputs):
            if deadline.left():
                bench.row(shape, work, may)
            else:
                results.add("not_reached", {"what": work.name, **shape.described()})
    results.finish()


if __name__ == "__main__":
    main()
