"""One FiCoCo-V reduction: ours against the best eager torch and ``torch.compile`` of it, in one run.

    python benchmarks/bench_ops.py --json benchmarks/results/ops_cpu.json

Every row gives the bytes that must move at least (each input read once, the output written once) at the measured copy
bandwidth, the arithmetic, and the ratio of each time to ours. Results of all formulations are compared before any is
timed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import copy_bandwidth, extra_memory, interleave, require_kernels, save, timing_dict
from torch_formulations import (
    reduce_concatenated_dense,
    reduce_concatenated_scatter,
    reduce_heads_scatter,
    reduce_map,
    reduce_map_dense,
)

import ficoco_ext

HEADS, WIDTH, R = 16, 64, 42


def inputs(batch: int, tokens: int, dtype: torch.dtype, layout: str) -> tuple[torch.Tensor, ...]:
    """Tokens, query and key; keys share a direction, so that attention is as uneven as in a trained model."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    shape = (batch, HEADS, tokens, WIDTH)
    x, q, k = normal(batch, tokens, HEADS * WIDTH), normal(*shape), normal(*shape) + normal(batch, HEADS, 1, WIDTH)
    if layout == "tokens-first":  # (B, N, H, d) in memory, as Hugging Face attention has it
        q, k = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k))
    return x.to(dtype), q.to(dtype), k.to(dtype)


def _formulations(batch: int, dtype: torch.dtype, layout: str, source: str) -> dict[str, Callable[[], torch.Tensor]]:
    x, q, k = inputs(batch, 577, dtype, layout)
    if source == "map":
        attn = (q.float() @ k.float().mT * WIDTH**-0.5).mean(1).to(dtype)
        torch_ways: dict[str, Callable[..., torch.Tensor]] = {"scatter": reduce_map, "dense": reduce_map_dense}
        arguments: tuple[Any, ...] = (x, attn, R)
        ours = lambda: ficoco_ext.reduce(x, attn, R)  # noqa: E731
    else:
        torch_ways = {
            "heads, scatter": reduce_heads_scatter,
            "concatenated, scatter": reduce_concatenated_scatter,
            "concatenated, dense": reduce_concatenated_dense,
        }
        arguments = (x, q, k, R)
        ours = lambda: ficoco_ext.reduce(x, ficoco_ext.QueryKey(q, k), R)  # noqa: E731
    cases: dict[str, Callable[[], torch.Tensor]] = {"ours": ours}
    for name, way in torch_ways.items():
        cases[f"eager: {name}"] = lambda way=way: way(*arguments)
        compiled = torch.compile(way, fullgraph=True, dynamic=False)
        cases[f"compiled: {name}"] = lambda compiled=compiled: compiled(*arguments)
    return cases


def _bytes(batch: int, dtype: torch.dtype, source: str) -> int:
    item = dtype.itemsize
    read = 577 * 577 if source == "map" else 2 * 577 * HEADS * WIDTH
    return batch * item * (read + (577 + 577 - R) * HEADS * WIDTH)


def bench(batch: int, dtype: torch.dtype, layout: str, source: str, bandwidth: float, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    torch._dynamo.reset()
    cases = _formulations(batch, dtype, layout, source)
    wanted = cases["ours"]().float()
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for name, run in cases.items():
        error = (run().float() - wanted).abs().max().item()
        # In half precision torch's rounded scores may choose other tokens; only fp32 can be compared.
        if dtype == torch.float32 and not error < tolerance:
            raise SystemExit(f"{name} disagrees with ours by {error}")
    timings = interleave(cases, seconds=seconds)
    ours = timings["ours"].median_ms
    best = {kind: min(t.median_ms for n, t in timings.items() if n.startswith(kind)) for kind in ("eager", "compiled")}
    moved = _bytes(batch, dtype, source)
    return {
        "shape": [batch, 577, HEADS * WIDTH],
        "r": R,
        "attn": source,
        "layout": layout,
        "dtype": str(dtype).removeprefix("torch."),
        "ours_ms": round(ours, 4),
        "bytes": moved,
        "gigabytes_per_second": round(moved / ours / 1e6, 2),
        "bytes_floor_ms": round(moved / bandwidth * 1e3, 4),
        "correlation_gflop": 0 if source == "map" else round(2 * batch * R * (576 - R) * HEADS * WIDTH / 1e9, 4),
        "speedup_over_best_eager": round(best["eager"] / ours, 2),
        "speedup_over_best_compiled": round(best["compiled"] / ours, 2),
        "timings": timing_dict(timings),
    }


def peak_memory(tokens: int = 2881) -> dict[str, Any]:
    """Extra resident memory at the peak of one reduction, in fresh processes, beside the size of the N x N map."""
    results: dict[str, Any] = {"tokens": tokens, "map_bytes": 4 * tokens**2, "output_bytes": 4 * (tokens - R) * 1024}
    for name in ("ours", "torch map"):
        run = [sys.executable, __file__, "--measure-memory", name, "--tokens", str(tokens)]
        results[name] = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    return results


def _measure_memory(name: str, tokens: int) -> int:
    """Extra resident bytes at the peak of one reduction."""
    x, q, k = inputs(1, tokens, torch.float32, "heads-first")
    small = ficoco_ext.QueryKey(q[:, :, :65].contiguous(), k[:, :, :65].contiguous())
    ficoco_ext.reduce(x[:, :65], small, 4)  # libraries loaded, thread pools made
    torch.ones(64, 64) @ torch.ones(64, 64)
    if name == "ours":
        return extra_memory(lambda: ficoco_ext.reduce(x, ficoco_ext.QueryKey(q, k), R, penalty=1))
    return extra_memory(lambda: ficoco_ext.reduce(x, (q @ k.mT * WIDTH**-0.5).mean(1), R, penalty=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write results here instead of to the terminal")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row")
    parser.add_argument("--quick", action="store_true", help="the fp32 rows of B = 1 only")
    parser.add_argument("--measure-memory", choices=("ours", "torch map"), help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=2881, help=argparse.SUPPRESS)
    args = parser.parse_args()
    require_kernels()
    if args.measure_memory:
        print(_measure_memory(args.measure_memory, args.tokens))
        return
    torch.set_grad_enabled(False)
    bandwidth = copy_bandwidth()
    rows = [(1, torch.float32, "heads-first", "query, key"), (1, torch.float32, "heads-first", "map")]
    if not args.quick:
        rows += [
            (1, torch.float32, "tokens-first", "query, key"),
            (8, torch.float32, "heads-first", "query, key"),
            (8, torch.float32, "tokens-first", "query, key"),
            (8, torch.float32, "heads-first", "map"),
            (8, torch.bfloat16, "tokens-first", "query, key"),
        ]
    results = []
    for row in rows:
        result = bench(*row, bandwidth, args.seconds)
        results.append(result)
        print(
            f"B={row[0]} {result['dtype']:>8} {result['attn']:>10} {result['layout']:>12}: "
            f"ours {result['ours_ms']:8.3f} ms "
            f"({result['gigabytes_per_second']:5.1f} GB/s, bytes floor {result['bytes_floor_ms']:.3f} ms), eager "
            f"{result['speedup_over_best_eager']:5.2f}x, compiled {result['speedup_over_best_compiled']:5.2f}x",
            file=sys.stderr,
        )
    memory = peak_memory()
    print(f"peak extra memory at N = {memory['tokens']}: {memory}", file=sys.stderr)
    save(args.json, results, copy_bandwidth_bytes_per_second=round(bandwidth), peak_memory=memory)


if __name__ == "__main__":
    main()
