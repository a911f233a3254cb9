"""What MustDrop and GlobalCom2 choose by: our operators against torch, eager and compiled, in one run.

    python benchmarks/bench_choices.py --json benchmarks/results/choices_cpu.json

``eager`` is the best torch that we could write, ``compiled`` the same under torch.compile. ``pairs`` compares every two
patches of a window, as published code does. All must agree before any is timed. One thread, and the time of the
processor: other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import interleave, require_kernels, save, timing_dict
from torch import Tensor

from ficoco_ext import ops
from ficoco_ext.ops import QueryKey

Cases = dict[str, Callable[[], Any]]
FLOATS = (torch.float32, torch.bfloat16)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def unit_windows(x: Tensor, side: int, window: int) -> Tensor:
    """(B, W, window ** 2, C) patches at unit length, window by window."""
    x = x.float()
    x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    down = side // window
    cells = x.view(x.shape[0], side, side, -1)[:, : down * window, : down * window]
    cells = cells.reshape(x.shape[0], down, window, down, window, -1).transpose(2, 3)
    return cells.reshape(x.shape[0], down * down, window * window, -1)


def by_sums(x: Tensor, side: int, window: int) -> Tensor:
    """No pair is formed."""
    unit, pairs = unit_windows(x, side, window), window**2 * (window**2 - 1)
    return (unit.sum(2).square().sum(-1) - unit.square().sum((2, 3))) / pairs


def by_pairs(x: Tensor, side: int, window: int) -> Tensor:
    """Every two patches of a window."""
    unit, pairs = unit_windows(x, side, window), window**2 * (window**2 - 1)
    cosines = unit @ unit.mT
    return (cosines.sum((2, 3)) - cosines.diagonal(dim1=2, dim2=3).sum(2)) / pairs


def windows(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Cases:
    """Images, side of the grid, channels, side of a window."""
    b, side, channels, window = shape
    x = (torch.randn(b, side * side, channels, generator=generator()) + 1).to(dtype)
    compiled = torch.compile(by_sums, fullgraph=True, dynamic=False)
    return {
        "ours": lambda: ops.window_similarity(x, (side, side), window),
        "eager": lambda: by_sums(x, side, window),
        "compiled": lambda: compiled(x, side, window),
        "pairs": lambda: by_pairs(x, side, window),
    }


def received(query: Tensor, key: Tensor, visual: slice, text: slice, scale: float) -> tuple[Tensor, Tensor]:
    """Rows of text against all keys, their softmax, the mean over heads, then sum and maximum."""
    asking = query[:, :, text].float()
    b, h, r, d = asking.shape
    key = key.float()
    logits = (asking.reshape(b, key.shape[1], -1, d) @ key.mT).view(b, h, r, -1) * scale
    rows = torch.arange(text.start, text.stop)[:, None]
    logits = logits.masked_fill(torch.arange(key.shape[2]) > rows, float("-inf"))
    mean = logits.softmax(-1)[..., visual].mean(1)
    return mean.sum(1), mean.amax(1)


def receivers(shape: tuple[int, int, int, int, int, int], dtype: torch.dtype) -> Cases:
    """Images, heads, key heads, width of a head, visual tokens, rows of text."""
    b, h, hk, d, n, r = shape
    before, t, draw = 35, 35 + n + r, generator()
    query = torch.randn(b, t, h, d, generator=draw).to(dtype).transpose(1, 2)
    key = torch.randn(b, t, hk, d, generator=draw).to(dtype).transpose(1, 2)
    visual, text = slice(before, before + n), slice(before + n, t)
    places = [torch.arange(one.start, one.stop).repeat(b, 1) for one in (visual, text)]
    chosen = torch.ones(b, r, dtype=torch.bool)
    compiled = torch.compile(received, fullgraph=True, dynamic=False)
    return {
        "ours": lambda: ops.received_from(QueryKey(query, key), *places, chosen),
        "eager": lambda: received(query, key, visual, text, d**-0.5),
        "compiled": lambda: compiled(query, key, visual, text, d**-0.5),
    }


def by_sorting(scores: Tensor, segments: Tensor, counts: Tensor, total: int) -> Tensor:
    """Two stable sorts put each segment's tokens in a row, a third one the survivors in front."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    of = segments.expand_as(order)
    segment, at = of.gather(1, order).sort(dim=1, stable=True)
    order = order.gather(1, at)
    sizes = torch.zeros_like(counts).scatter_add(1, of, torch.ones_like(of))
    rank = torch.arange(order.shape[1]) - (sizes.cumsum(1) - sizes).gather(1, segment)
    leaves = torch.ones_like(order).scatter(1, order, (rank >= counts.gather(1, segment)).long())
    return leaves.sort(dim=1, stable=True).indices[:, :total]


def segments(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Cases:
    """Images, crops, tokens of a crop, tokens that stay."""
    b, crops, size, total = shape
    scores = torch.randn(b, crops * size, generator=generator()).to(dtype)
    of = torch.arange(crops).repeat_interleave(size)
    counts = torch.full((b, crops), total // crops)
    counts[:, 0] += total - int(counts[0].sum())
    compiled = torch.compile(by_sorting, fullgraph=True, dynamic=False)
    return {
        "ours": lambda: ops.top_of_segments(scores, of, counts, total),
        "eager": lambda: by_sorting(scores, of, counts, total),
        "compiled": lambda: compiled(scores, of, counts, total),
    }


ROWS: tuple[tuple[str, Callable[..., Cases], tuple[tuple[int, ...], ...]], ...] = (
    ("window_similarity", windows, ((1, 24, 1024, 3), (8, 24, 1024, 3), (1, 24, 1024, 2))),
    ("received_from", receivers, ((1, 32, 32, 128, 576, 60), (1, 28, 4, 128, 576, 60), (1, 32, 32, 128, 2880, 60))),
    ("top_of_segments", segments, ((1, 1, 576, 144), (1, 5, 576, 720), (8, 5, 576, 720))),
)


def bench(name: str, make: Callable[..., Cases], shape: tuple[int, ...], dtype: torch.dtype, seconds: float) -> Any:
    """One row of the table."""
    torch._dynamo.reset()
    cases = make(shape, dtype)
    wanted = cases["ours"]()
    for other, run in cases.items():
        for one, ours in zip(*(x if isinstance(x, tuple) else (x,) for x in (run(), wanted)), strict=True):
            if not torch.allclose(one.double(), ours.double(), rtol=1e-3, atol=1e-5):
                raise SystemExit(f"{other} finds something else than our {name} in {shape}")
    timings = interleave(cases, seconds=seconds, clock=time.process_time)
    ours_ms = timings["ours"].median_ms
    return {
        "operator": name,
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "ours_ms": round(ours_ms, 4),
        "speedup": {other: round(t.median_ms / ours_ms, 2) for other, t in timings.items() if other != "ours"},
        "timings": timing_dict(timings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write results here instead of to the terminal")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row")
    args = parser.parse_args()
    require_kernels()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    results = []
    for name, make, shapes in ROWS:
        for shape in shapes:
            for dtype in FLOATS:
                result = bench(name, make, shape, dtype, args.seconds)
                results.append(result)
                ratios = ", ".join(f"{other} {ratio:.2f}x" for other, ratio in result["speedup"].items())
                print(f"{name} {shape} {result['dtype']}: ours {result['ours_ms']:.3f} ms, {ratios}", file=sys.stderr)
    save(args.json, results)


if __name__ == "__main__":
    main()
