"""Reductions and operators on a GPU, against the released formulation and the best torch of the same mathematics.

    python benchmarks/gpu/bench_gpu.py --rows whole --json gpu_results/results.json

``--rows``: ``whole`` reductions at B = 1, 8, 64; single ``operators``, those of decoders among them, and the memory of
the statistics; ``compiled``: whole reductions beside torch.compile of the same. Ours as a call and as a replayed CUDA
graph, cold and warm; the released formulations, image by image; batched torch as calls and as graphs. Floors are bytes
over the measured copy bandwidth, FLOPs over the measured rate of matrix products, exponentials over what the
special-function units can do. Results are compared with the specification in float64 before any is timed.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import cases
import decoder_cases
import torch
import torch.nn.functional as F
from cases import Inputs, Shape, Work
from contained import Program, Task, options, said
from measure import Stopwatch, agreement, hardware, need_kernels, timing_dict
from rows import Recorder, fold

from ficoco_ext import QueryKey, ops

BF16, FP32 = torch.bfloat16, torch.float32
OURS, GRAPH, WARM = "ours", "ours, graph", "ours, warm graph"
KINDS = ("whole", "operators", "compiled")


class Bench:
    """Turns a :class:`Work` into a row."""

    def __init__(self, watch: Stopwatch, recorder: Recorder, ceilings: dict[str, float], seconds: float) -> None:
        self.watch, self.recorder, self.ceilings, self.seconds = watch, recorder, ceilings, seconds

    def row(self, task: str, shape: Shape, work: Work, modes: tuple[str, ...] = ()) -> None:
        """Check, time and record one piece of work; ``modes`` of torch.compile are timed beside it."""
        name = "float32" if shape.dtype == FP32 else "bfloat16"
        floors = {
            "bytes": work.bytes / self.ceilings["copy_bytes_per_second"],
            "arithmetic": work.flop / self.ceilings[f"{name}_flop_per_second"],
            "exponentials": work.exponentials / self.ceilings["exponentials_per_second"],
        }
        row: dict[str, Any] = {
            "task": task,
            "op": work.name,
            **shape.described(),
            "bytes": work.bytes,
            "flop": work.flop,
            "exponentials": work.exponentials,
            "floors_ms": {kind: round(seconds * 1e3, 5) for kind, seconds in floors.items()},
            "floor": max(floors, key=lambda kind: floors[kind]),
        }
        try:
            self._fill(row, shape, work, modes)
        except Exception as error:
            row["failed"] = said(error)
            self.recorder.add("rows", row)
            raise
        self.recorder.add("rows", row)
        _print(row)

    def _fill(self, row: dict[str, Any], shape: Shape, work: Work, modes: tuple[str, ...]) -> None:
        wanted = work.wanted()
        row["ours_against_float64"] = agreement(work.ours(), wanted)
        row["agrees"] = row["ours_against_float64"]["images"] >= 0.9
        ways: dict[str, Callable[[], Any]] = {OURS: work.ours}
        if work.released is not None:
            ways["released"] = work.released
        ways |= {f"torch: {name}": run for name, run in work.torch.items()}
        ways = {name: run for name, run in ways.items() if self._usable(row, name, run, work, wanted, shape.dtype)}
        del wanted
        eager = [name for name in ways if name.startswith("torch: ")]
        for name in [OURS, *eager]:
            self._try(row, ways, f"{name}, graph", partial(self.watch.graph, ways[name]))
        self._try(row, ways, WARM, partial(self.watch.graph, ways[OURS], warm=True))
        first = {n: t.median_ms for n, t in self.watch.turns({n: ways[n] for n in eager}, 0.05).items()}
        for mode, name in zip(modes, sorted(first, key=lambda name: first[name])[:1] * len(modes), strict=True):
            self._compile(row, ways, name, mode, ways[name])
        found = self.watch.turns(ways, self.seconds)
        timings = {name: timing.median_ms for name, timing in found.items()}
        row["timings"] = timing_dict(found)
        floor = max(row["floors_ms"].values())
        row["ours_over_floor"] = round(timings.get(GRAPH, timings[OURS]) / floor, 2) if floor else None
        for what, mine in (("call", timings[OURS]), ("graph", timings.get(GRAPH))):
            if mine is None:
                continue
            calls = {n: ms for n, ms in timings.items() if n.endswith("graph") == (what == "graph")}
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
            backend = "eager" if self.watch.rehearse else "inductor"
            fast = torch.compile(run, fullgraph=True, dynamic=False, backend=backend, mode=mode)
            for _ in range(3):
                fast()
            self.watch.synchronize()
            return fast

        self._try(row, ways, f"compiled {mode}: {name.removeprefix('torch: ')}", make)


def _print(row: dict[str, Any]) -> None:
    times = {name: timing["median_ms"] for name, timing in row["timings"].items()}
    shown = [f"{name} {times[name]:.4f} ms" for name in (OURS, GRAPH, WARM) if name in times]
    floor = f"{row['floor']} floor {max(row['floors_ms'].values()):.4f}"
    speedups = f"call {row.get('speedup_call')}, graph {row.get('speedup_graph')}"
    right = "" if row["agrees"] else " DISAGREES"
    print(f"    {', '.join(shown)} ({floor}), {speedups}{right}", file=sys.stderr, flush=True)


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


Made = tuple[str, Shape, Callable[[Inputs], Iterable[Work]], tuple[str, ...]]


def _alone(make: Callable[[Inputs], Work]) -> Callable[[Inputs], Iterable[Work]]:
    return lambda inputs: [make(inputs)]


def _plan(rows: str, rehearse: bool) -> Iterator[Made]:
    """(what, shape, its works, modes of torch.compile): the most telling first."""
    vision, decoder, sequence = cases.vision, cases.decoder, decoder_cases.sequence
    whole = (("logits", cases.whole), ("probs", cases.whole_probs), ("tome", cases.tome))
    tiny, small = (cases.tiny(True, FP32), cases.tiny(False, BF16)), decoder_cases.tiny()
    if rows == "whole":
        for batch in (1, 64, 8):
            for name, make in whole:
                shape = tiny[0] if rehearse else vision(batch, BF16)
                if not rehearse or batch == 1:
                    yield name, shape, _alone(make), ()
        shape, visual = small if rehearse else (sequence(1, BF16), decoder_cases.VISUAL)
        yield "decoder", shape, partial(decoder_cases.reductions, visual=visual), ()
        for shape in () if rehearse else (vision(8, FP32), decoder(1, BF16), decoder(4, BF16)):
            yield "logits", shape, _alone(cases.whole), ()
    elif rows == "operators":
        shape, visual = small if rehearse else (sequence(1, BF16), decoder_cases.VISUAL)
        yield "decoder", shape, partial(decoder_cases.operators, visual=visual), ()
        for shape in tiny if rehearse else (vision(8, BF16), vision(1, BF16), vision(64, BF16), vision(8, FP32)):
            yield "vision", shape, cases.operators, ()
    else:
        for shape, modes in (
            ((tiny[0], ("default",)),)
            if rehearse
            else (
                (vision(8, BF16), ("default", "reduce-overhead")),
                (vision(1, BF16), ("default", "reduce-overhead")),
                (vision(64, BF16), ("default",)),
            )
        ):
            yield "logits", shape, _alone(cases.whole), modes
            if not rehearse:
                yield "tome", shape, _alone(cases.tome), modes[:1]


def tasks(args: argparse.Namespace, recorder: Recorder) -> Iterator[Task]:
    """One task for each piece of work."""
    need_kernels(args.rehearse)
    torch.set_grad_enabled(False)
    watch = Stopwatch(args.rehearse)
    known = fold(recorder.lines).get("ceilings")
    ceilings = known or watch.ceilings()  # measured once, also where a fault makes another process go on
    if known is None:
        precision = torch.get_float32_matmul_precision()
        recorder.facts(environment=hardware(), ceilings=ceilings, float32_products=precision)
    seconds = 0.01 if args.rehearse else args.seconds
    bench = Bench(watch, recorder, ceilings, seconds)
    for what, shape, make, modes in _plan(args.rows, args.rehearse):
        _clean()
        inputs = Inputs.make(shape, watch.device)
        for work in make(inputs):
            key = f"{what}: {work.name}, {shape.name}, B {shape.batch}, {str(shape.dtype).removeprefix('torch.')}"
            yield key, partial(bench.row, key, shape, work, modes)
        del inputs
    if args.rows == "operators":
        remembered = [cases.tiny(True, FP32)] if args.rehearse else [cases.decoder(1, BF16), cases.decoder(4, BF16)]
        for shape in remembered:
            _clean()
            yield (
                f"memory: {shape.name}, B {shape.batch}",
                lambda shape=shape: recorder.add("memory", memory_of_statistics(watch, shape, seconds)),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser, budget=900.0)
    parser.add_argument("--rows", choices=KINDS, default="whole")
    parser.add_argument("--seconds", type=float, default=0.3, help="timing of each row, after compilation")
    args = parser.parse_args()
    patience = 6.0 if args.rehearse else 150.0 if args.rows == "compiled" else 40.0
    bad = lambda row: "failed" in row or row.get("agrees") is False  # noqa: E731
    raise SystemExit(Program(args.rows, tasks, patience, bad=bad).main(args))


if __name__ == "__main__":
    main()
