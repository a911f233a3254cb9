"""ToMe's bipartite matching alone: ours against the best eager torch and ``torch.compile`` of it, in one run.

    python benchmarks/bench_match.py --json benchmarks/results/match_cpu.json

From keys of 16 heads, or from a metric that is given. Every row has the bytes of the input at the measured copy
bandwidth and the arithmetic of the comparisons. All formulations must choose the same pairs before any is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import copy_bandwidth, interleave, require_kernels, save, timing_dict
from torch_formulations import match_late, match_unit, match_unit_topk

from ficoco_ext.ops import match

TOKENS, WIDTH, R = 577, 64, 42
Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def keys(batch: int, heads: int, dtype: torch.dtype, layout: str) -> torch.Tensor:
    """(B, heads, N, d) keys that share a direction; ``tokens-first`` is how Hugging Face attention has them."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, heads, TOKENS, WIDTH)
    key = torch.randn(shape, generator=generator) + torch.randn(batch, heads, 1, WIDTH, generator=generator)
    if layout == "tokens-first":
        key = key.transpose(1, 2).contiguous().transpose(1, 2)
    return key.to(dtype)


def formulations(key: torch.Tensor) -> dict[str, Callable[[], Pairs]]:
    """Name to a function that finds sources, kept and targets."""

    def ours() -> Pairs:
        found = match(key, R, class_token=True)
        return found.sources, found.kept, found.targets.squeeze(-1)

    cases: dict[str, Callable[[], Pairs]] = {"ours": ours}
    ways = {"unit, stable sort": match_unit, "unit, topk": match_unit_topk, "late, topk": match_late}
    for name, way in ways.items():
        cases[f"eager: {name}"] = lambda way=way: way(key, R)
        compiled = torch.compile(way, fullgraph=True, dynamic=False)
        cases[f"compiled: {name}"] = lambda compiled=compiled: compiled(key, R)
    return cases


def bench(batch: int, heads: int, dtype: torch.dtype, layout: str, bandwidth: float, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    torch._dynamo.reset()
    key = keys(batch, heads, dtype, layout)
    cases = formulations(key)
    wanted = cases["ours"]()
    for name, run in cases.items():
        # In half precision torch's rounded scores may choose other pairs; only fp32 can be compared.
        if dtype == torch.float32 and not all(map(torch.equal, run(), wanted)):
            raise SystemExit(f"{name} chooses other pairs than ours")
    timings = interleave(cases, seconds=seconds)
    ours = timings["ours"].median_ms
    best = {kind: min(t.median_ms for n, t in timings.items() if n.startswith(kind)) for kind in ("eager", "compiled")}
    even, odd = (TOKENS + 1) // 2 - 1, TOKENS // 2
    return {
        "shape": [batch, heads, TOKENS, WIDTH],
        "r": R,
        "layout": layout,
        "dtype": str(dtype).removeprefix("torch."),
        "ours_ms": round(ours, 4),
        "bytes": key.nbytes,
        "bytes_floor_ms": round(key.nbytes / bandwidth * 1e3, 4),
        "gflop": round(2 * batch * even * odd * WIDTH / 1e9, 4),
        "speedup_over_best_eager": round(best["eager"] / ours, 2),
        "speedup_over_best_compiled": round(best["compiled"] / ours, 2),
        "timings": timing_dict(timings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write results here instead of to the terminal")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row")
    parser.add_argument("--quick", action="store_true", help="the fp32 rows of B = 8, heads first, only")
    args = parser.parse_args()
    require_kernels()
    torch.set_grad_enabled(False)
    bandwidth = copy_bandwidth()
    rows = [(8, 1, torch.float32, "heads-first"), (8, 16, torch.float32, "heads-first")]
    if not args.quick:
        rows += [
            (8, 16, torch.float32, "tokens-first"),
            (8, 16, torch.bfloat16, "tokens-first"),
            (1, 1, torch.float32, "heads-first"),
            (1, 16, torch.float32, "tokens-first"),
        ]
    results = []
    for row in rows:
        result = bench(*row, bandwidth, args.seconds)
        results.append(result)
        rate = result["gflop"] / result["ours_ms"] * 1e3
        print(
            f"B={row[0]} Hk={row[1]:2} {result['dtype']:>8} {row[3]:>12}: ours {result['ours_ms']:7.3f} ms "
            f"(bytes floor {result['bytes_floor_ms']:.3f} ms, {rate:5.1f} GFLOP/s), eager "
            f"{result['speedup_over_best_eager']:5.2f}x, compiled {result['speedup_over_best_compiled']:5.2f}x",
            file=sys.stderr,
        )
    save(args.json, results, copy_bandwidth_bytes_per_second=round(bandwidth))


if __name__ == "__main__":
    main()
