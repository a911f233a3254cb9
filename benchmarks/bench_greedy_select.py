"""Greedy selection alone: ours against torch, eager and with a compiled step, in one run.

    python benchmarks/bench_greedy_select.py --json benchmarks/results/greedy_select_cpu.json

``growing`` is how published code does it: every pick compares all tokens with all picked ones again. ``incremental``
remembers the largest similarity, or what is covered, and is the best torch that we could write; ``compiled`` is its
step under torch.compile. All must choose the same tokens before any is timed (with coverage, cover equally much). Every
row has the FLOPs of half of the cosines, which bound it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import interleave, require_kernels, save, timing_dict
from torch import Tensor

from ficoco_ext.ops import greedy_select

SHAPES = ((1, 257, 384, 64), (1, 576, 4096, 64), (8, 576, 1024, 64), (1, 1370, 384, 342))  # images, tokens, channels, T


def features(b: int, n: int, d: int) -> Tensor:
    """Tokens of some kinds, with noise: neighbours in a picture are alike."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(b, 40, d, generator=generator)
    which = torch.randint(40, (b, n), generator=generator)
    noise = torch.randn(b, n, d, generator=generator)
    return kinds.gather(1, which.unsqueeze(-1).expand(-1, -1, d)) + noise


def cosines(x: Tensor) -> Tensor:
    """(B, N, N)."""
    unit = torch.nn.functional.normalize(x, dim=-1)
    return unit @ unit.mT


def first_by_distance(similarity: Tensor) -> Tensor:
    """(B, 1) the token with the farthest nearest neighbour."""
    others = similarity - 4 * torch.eye(similarity.shape[1])
    return others.amax(2).argmin(1, keepdim=True)


def max_min_growing(x: Tensor, count: int) -> Tensor:
    """Every pick looks at the distances to all picked ones."""
    similarity = cosines(x)
    picked = first_by_distance(similarity)
    n = x.shape[1]
    for _ in range(count - 1):
        rows = similarity.gather(1, picked.unsqueeze(-1).expand(-1, -1, n))
        nearest = rows.amax(1).scatter(1, picked, 4.0)
        picked = torch.cat([picked, nearest.argmin(1, keepdim=True)], 1)
    return picked


def row(similarity: Tensor, best: Tensor) -> Tensor:
    """(B, N) of one token each."""
    return similarity.gather(1, best.unsqueeze(-1).expand(-1, -1, similarity.shape[2])).squeeze(1)


def max_min_step(similarity: Tensor, nearest: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """The largest similarity to a picked token, with one more, and the next."""
    nearest = torch.maximum(nearest, row(similarity, best)).scatter(1, best, 4.0)
    return nearest, nearest.argmin(1, keepdim=True)


def coverage_step(similarity: Tensor, covered: Tensor, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The token that covers most, and what is covered with it."""
    gain = (similarity - covered.unsqueeze(1)).clamp_min(0).sum(2)
    best = (gain + free).argmax(1, keepdim=True)
    return torch.maximum(covered, row(similarity, best)), free.scatter(1, best, float("-inf")), best


def max_min(x: Tensor, count: int, step: Callable[..., Any]) -> Tensor:
    similarity = cosines(x)
    best = first_by_distance(similarity)
    picked, nearest = [best], torch.full(x.shape[:2], -4.0)
    for _ in range(count - 1):
        nearest, best = step(similarity, nearest, best)
        picked.append(best)
    return torch.cat(picked, 1)


def coverage(x: Tensor, count: int, step: Callable[..., Any]) -> Tensor:
    similarity = cosines(x)
    covered, free, picked = torch.zeros(x.shape[:2]), torch.zeros(x.shape[:2]), []
    for _ in range(count):
        covered, free, best = step(similarity, covered, free)
        picked.append(best)
    return torch.cat(picked, 1)


def formulations(objective: str, x: Tensor, count: int) -> dict[str, Callable[[], Tensor]]:
    """Name to a function that picks."""
    ours = {"ours": lambda: greedy_select(x, count, objective=objective).order}
    if objective == "max-min":
        compiled = torch.compile(max_min_step, fullgraph=True, dynamic=False)
        return ours | {
            "growing": lambda: max_min_growing(x, count),
            "incremental": lambda: max_min(x, count, max_min_step),
            "compiled": lambda: max_min(x, count, compiled),
        }
    compiled = torch.compile(coverage_step, fullgraph=True, dynamic=False)
    return ours | {
        "incremental": lambda: coverage(x, count, coverage_step),
        "compiled": lambda: coverage(x, count, compiled),
    }


def alike(x: Tensor, found: Tensor, wanted: Tensor) -> bool:
    """Whether two choices cover equally much to a ten-thousandth: where gains are nearly equal, rounding decides."""
    similarity = cosines(x.double()).clamp_min(0)
    n = x.shape[1]
    covered = [
        similarity.gather(1, one.unsqueeze(-1).expand(-1, -1, n)).amax(1).sum(1) for one in (found.long(), wanted)
    ]
    return torch.allclose(*covered, rtol=1e-4, atol=0)


def bench(objective: str, shape: tuple[int, int, int, int], seconds: float) -> dict[str, Any]:
    """One row of the table."""
    torch._dynamo.reset()
    b, n, d, count = shape
    x = features(b, n, d)
    cases = formulations(objective, x, count)
    wanted = cases["ours"]()
    for name, run in cases.items():
        found = run()
        same = torch.equal(found, wanted) if objective == "max-min" else alike(x, found, wanted)
        if not same:
            raise SystemExit(f"{name} picks other tokens than ours in {shape}")
    timings = interleave(cases, seconds=seconds)
    ours = timings["ours"].median_ms
    return {
        "objective": objective,
        "shape": [b, n, d],
        "count": count,
        "ours_ms": round(ours, 4),
        "gflop": round(b * n * n * d / 1e9, 4),
        "speedup": {name: round(t.median_ms / ours, 2) for name, t in timings.items() if name != "ours"},
        "timings": timing_dict(timings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write results here instead of to the terminal")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row")
    args = parser.parse_args()
    require_kernels()
    torch.set_grad_enabled(False)
    results = []
    for objective in ("max-min", "coverage"):
        for shape in SHAPES:
            result = bench(objective, shape, args.seconds)
            results.append(result)
            rate = result["gflop"] / result["ours_ms"] * 1e3
            ratios = ", ".join(f"{name} {ratio:.1f}x" for name, ratio in result["speedup"].items())
            print(
                f"{objective} {shape}: ours {result['ours_ms']:.2f} ms ({rate:.0f} GFLOP/s), {ratios}", file=sys.stderr
            )
    save(args.json, results)


if __name__ == "__main__":
    main()
