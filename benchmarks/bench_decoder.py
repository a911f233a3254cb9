"""Prefill with reduction inside the language model: measured speed-up against the ratio of FLOPs, cost included.

    python benchmarks/bench_decoder.py --json benchmarks/results/decoder_cpu.json

A LLaVA-1.5 of true proportions and random weights: 576 visual and 60 text tokens into a decoder of 8 layers of width
1024 (16 heads, MLP 2752), two layers of its tower. The prefill is timed whole, from pixels to the last logits, without
and with each method in turns. FLOPs are counted on the real forward, the reduction's own among them. The share is the
measured speed-up over the ratio of FLOPs: 1 would be a reduction whose every saved FLOP is saved time.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import interleave, require_kernels, save, timing_dict

import ficoco_ext
from ficoco_ext.apps import timing
from ficoco_ext.cost import flop_counter
from ficoco_ext.models.transformers_api import output_cache

LAYERS, HIDDEN, HEADS, MLP, TEXT = 8, 1024, 16, 2752, 60
METHODS: dict[str, dict[str, Any]] = {
    "ficoco-l": {"method": "ficoco-l", "keep_ratio": 0.25, "layers": range(1, LAYERS)},
    "ficoco-l, late": {"method": "ficoco-l", "keep_ratio": 0.25, "layers": range(4, LAYERS)},
    "ficoco-l, released": {"method": "ficoco-l", "keep_ratio": 0.25, "layers": range(1, LAYERS), "variant": "released"},
    "ficoco-l, pruning": {"method": "ficoco-l", "keep_ratio": 0.25, "layers": range(1, LAYERS), "targets": 0},
    "ficoco-l, one layer": {"method": "ficoco-l", "keep_ratio": 0.25, "layers": (1,)},
    "fastv": {"method": "fastv", "keep_ratio": 0.25},
    "pyramiddrop": {"method": "pyramiddrop"},
}


def model_and_inputs(rows: int) -> tuple[Any, dict[str, Any]]:
    """The model, and a prompt of one picture between words in every row."""
    timing.GEOMETRIES["benchmark"] = timing.TextShape(layers=LAYERS, hidden=HIDDEN, heads=HEADS, mlp=MLP)
    model = timing.shapes("benchmark", 2, LAYERS, torch.float32)
    timing.materialize(model, torch.device("cpu"))
    one = timing.random_inputs(model, TEXT)
    return model, {name: torch.cat([value] * rows) for name, value in one.items()}


def bench(rows: int, seconds: float) -> list[dict[str, Any]]:
    """One result a method."""
    model, inputs = model_and_inputs(rows)

    def prefill() -> Any:
        with torch.inference_mode():
            return model(**inputs, use_cache=True, logits_to_keep=1)

    results = []
    for name, options in METHODS.items():

        def attached(options: dict[str, Any] = options) -> Any:
            return ficoco_ext.attach(model, **options)

        full, output = flop_counter.count(model, prefill)
        full_bytes = cache_bytes(output)
        with attached():
            reduced, output = flop_counter.count(model, prefill)
        timings = interleave({"all tokens": prefill, name: within(attached, prefill)}, seconds=seconds, warm_up=2)
        speedup = timings["all tokens"].median_ms / timings[name].median_ms
        ratio = full.total / reduced.total
        results.append(
            {
                "method": name,
                "options": {key: list(value) if isinstance(value, range) else value for key, value in options.items()},
                "rows": rows,
                "gflops": [full.total / 1e9, reduced.total / 1e9],
                "reduction_gflops": reduced.reduction / 1e9,
                "cache_bytes": [full_bytes, cache_bytes(output)],
                "flops_ratio": ratio,
                "speedup": speedup,
                "share": speedup / ratio,
                "timings": timing_dict(timings),
            }
        )
        print(f"{rows} rows, {name}: {speedup:.2f} of {ratio:.2f}, share {speedup / ratio:.2f}", flush=True)
    return results


def cache_bytes(output: Any) -> int:
    """Keys and values of all layers."""
    layers = output_cache(output).layers
    return sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))


def within(attached: Callable[[], Any], run: Callable[[], Any]) -> Callable[[], Any]:
    """``run`` with the reduction; attaching takes a fraction of a millisecond and is part of the time."""

    def timed() -> Any:
        with contextlib.ExitStack() as stack:
            stack.enter_context(attached())
            return run()

    return timed


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the results go; printed if not given")
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each method")
    options = parser.parse_args()
    require_kernels()
    save(options.json, [result for rows in options.rows for result in bench(rows, options.seconds)])


if __name__ == "__main__":
    main()
