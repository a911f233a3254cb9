"""What a reducing layer of a language model does: one operator against its five operators in turn, in one run.

    python benchmarks/bench_reduce_sequence.py --json benchmarks/results/reduce_sequence_cpu.json

``in turn`` is the chain of token_attention, filter, correlate.tokens, to_sequence and compress, by the same kernels,
with the small tensors between them made by torch: what a method does whose stages are not all plain ones. Both must
give the same tokens, bit for bit, before they are timed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from harness import interleave, require_kernels, save, timing_dict

from ficoco_ext import QueryKey, ops
from ficoco_ext.ops import _reduce_sequence

# visual tokens, text, heads, key heads, head width, channels, tokens that leave
SHAPES = {
    "small": (144, 30, 16, 16, 64, 1024, 20),
    "one picture": (576, 60, 16, 16, 64, 1024, 60),
    "one picture, 7B": (576, 60, 32, 32, 128, 4096, 60),
    "one picture, grouped": (576, 60, 28, 4, 128, 3584, 60),
}
METHODS: dict[str, dict[str, Any]] = {
    "ficoco-l": {"ranking": "probs", "correlation": "probs", "alpha": "ratio", "k": 2},
    "ficoco-l, released": {"ranking": "logits", "correlation": "logits", "alpha": "softmax", "k": 2},
    "fastv": {"ranking": "last", "k": 0},
}


def bench(shape: str, method: str, dtype: torch.dtype, seconds: float) -> dict[str, Any]:
    """One row."""
    visual, text, h, hk, d, c, r = SHAPES[shape]
    n, generator = visual + text + 5, torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    tokens = normal(1, n, c)
    attn = QueryKey(normal(1, n, h, d).transpose(1, 2), normal(1, n, hk, d).transpose(1, 2))
    columns = torch.arange(5, 5 + visual)[None]
    given = {"after": text} | METHODS[method]
    k = given.pop("k")
    chain = _composed(tokens, attn, columns, r, k, given)
    cases = {"one operator": lambda: ops.reduce_sequence(tokens, attn, columns, r, k, **given), "in turn": chain}
    with torch.inference_mode():
        one, other = (run() for run in cases.values())
        if not all(map(torch.equal, one, other)):
            sys.exit(f"{shape}, {method}: the results differ")
        timings = interleave(cases, seconds=seconds)
    ratio = timings["in turn"].median_ms / timings["one operator"].median_ms
    print(f"{shape}, {method}, {dtype}: {timings['one operator'].median_ms:.2f} ms, {ratio:.2f}x", flush=True)
    sizes = dict(zip(("visual", "text", "heads", "key_heads", "width", "channels", "r"), SHAPES[shape], strict=True))
    return {
        "shape": shape,
        **sizes,
        "method": method,
        "dtype": str(dtype).removeprefix("torch."),
        "speedup": ratio,
        "timings": timing_dict(timings),
    }


def _composed(
    tokens: torch.Tensor, attn: QueryKey, columns: torch.Tensor, r: int, k: int, given: dict[str, Any]
) -> Any:
    """The operators in turn on the arguments that ``ops.reduce_sequence`` would hand on."""
    ranked = (given["ranking"], 0.6, "mean", "mean", 1.0, 2, 0, 0)
    linked = (given.get("correlation", "logits"), 0.6, "sum", given.get("alpha", "softmax"), False)
    where = (columns, None, None, None, r, k, given["after"])
    return lambda: _reduce_sequence.composed(tokens, *attn[:2], attn.logit_scale, *where, *ranked, *linked)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the results go; printed if not given")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each row")
    options = parser.parse_args()
    require_kernels()
    rows = [
        bench(shape, method, dtype, options.seconds)
        for shape in SHAPES
        for dtype in (torch.float32, torch.bfloat16)
        for method in METHODS
    ]
    save(options.json, rows)


if __name__ == "__main__":
    main()
