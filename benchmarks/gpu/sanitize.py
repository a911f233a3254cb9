"""Every operator once, at small odd shapes, in every dtype: to be run under compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python benchmarks/gpu/sanitize.py

Without torch's cache every tensor is an allocation of its own, so that a step over its edge is seen. Inputs are made on
the CPU: on the device nothing runs but our kernels, copies and fills.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

import ficoco_ext
from ficoco_ext import QueryKey, decoder_ops, ops
from ficoco_ext.matching import match
from ficoco_ext.methods import describe

# B, H, Hk, N, d, C, r, class token, grid
SHAPES = (
    (2, 3, 3, 37, 8, 13, 7, True, (6, 6)),
    (1, 4, 2, 131, 64, 70, 33, True, (10, 13)),
    (3, 2, 1, 66, 24, 5, 64, False, (6, 11)),
    (1, 1, 1, 2, 3, 1, 1, False, (1, 2)),
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def calls(device: str, dtype: torch.dtype) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """(what, results) of every operator and method for every shape."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    for b, h, hk, n, d, c, r, class_token, grid in SHAPES:
        first, name = int(class_token), f"{dtype} N={n}"
        query = normal(b, n, h, d).transpose(1, 2)
        key, tokens = normal(b, n, hk, d).transpose(1, 2), normal(b, n, c)
        attn, given = QueryKey(query, key), normal(b, h, n, n).abs()
        sized = torch.randint(1, 5, (b, n, 1), generator=generator).float().to(device)
        kind = {"class_token": class_token}
        for probs, column in ((False, False), (False, True), (True, False), (True, True)):
            yield f"attention_stats {name}", ops.attention_stats(attn, probs=probs, column=column, **kind)
            yield f"attention_stats.map {name}", ops.attention_stats(given, probs=probs, column=column, **kind)
        yield f"attention_stats {name}", ops.attention_stats(attn, probs=True, column=False, patches=False, **kind)
        cls, patch = ops.attention_stats(attn, probs=False, column=False, **kind)
        ids = torch.arange(n - first).flip(0).repeat(b, 1).to(device)
        for penalty, places in ((1.0, None), (2.0, None), (2.0, ids)):
            more = {"lam": 0.65, "normalize": True, "penalty": penalty, "grid": grid, "ids": places}
            selected = ops.filter(patch, cls, r, **more, **kind)  # type: ignore[arg-type]
            yield f"filter {name}", selected
        _, sources, kept = selected
        yield f"match {name}", match(key, min(r, (n - first) // 2), class_token=class_token)[1:]
        weights, mask = torch.rand(b, 5, r, generator=generator).to(device), torch.ones(b, n, dtype=torch.bool)
        mask[:, : n // 3] = False
        for probs, column in ((False, False), (False, True), (True, False), (True, True)):
            how = {"probs": probs, "column": column, "causal": True, "key_mask": mask.to(device)}
            yield (
                f"token_attention {name}",
                (decoder_ops.token_attention(attn, kept, sources, weights, **how),),
            )
            by_way = {**how, "gamma": 0.5, "alpha": "ratio" if probs else "softmax"}
            for k in {0, min(3, n - r - first)}:
                others = torch.arange(n // 2, n).repeat(b, 1).to(device)
                each = torch.rand(b, others.shape[1], generator=generator).to(device)
                chosen = decoder_ops.correlate_tokens(attn, sources, kept, others, each, k, **by_way)
                yield f"correlate.tokens {name}", chosen
                places = torch.arange(1, n + 1).repeat(b, 1).to(device), sources, kept, chosen[0]
                yield f"to_sequence {name}", decoder_ops.to_sequence(*places, n + 300)
        for k in {min(1, n - r - first), min(3, n - r - first)} - {0}:
            for alpha, probs in (("softmax", False), ("ratio", True)):
                links = ops.correlate(attn, sources, kept, k, alpha=alpha, probs=probs, **kind)
                yield f"correlate {name}", links
            yield f"correlate.map {name}", ops.correlate(given, sources, kept, k, alpha="average", **kind)
            yield f"correlate.key {name}", ops.correlate_key(key, sources, kept, k, alpha="softmax", **kind)
            targets, weights = links
            for size, weighted in ((None, False), (sized, False), (sized, True)):
                merged = ops.compress(tokens, sources, kept, targets, weights, size=size, size_weighted=weighted)
                yield f"compress {name}", merged
        for method in ficoco_ext.METHODS:
            usable, where = r, {"class_token": class_token, "grid": grid}
            needs = describe(method).needs
            if ("class token" in needs and not class_token) or ("whole grid" in needs and grid is None):
                continue
            if method == "tome":
                usable = min(r, (n - first) // 2)
            elif isinstance(ficoco_ext.get_method(method), ficoco_ext.VisionAndDecoder):
                continue  # two reductions, both of them here
            elif isinstance(ficoco_ext.get_method(method), ficoco_ext.DecoderMethod):
                usable, where = min(r, n // 2 - 1), {"visual": (n // 4, n // 2), "mask": mask.to(device)}
            reduced = ficoco_ext.reduce(tokens, attn, usable, method=method, return_reduction=True, **where)
            assert reduced.tokens is not None
            yield f"reduce {method} {name}", (reduced.tokens, reduced.source_map)
        without_keys = {"class_token": class_token, "grid": grid, "class_attention": class_token}
        yield f"reduce.map {name}", (ficoco_ext.reduce(tokens, given, r, **without_keys),)  # type: ignore[call-overload]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="on the CPU: tests this program")
    args = parser.parse_args()
    if not args.smoke and ficoco_ext.build_info()["cuda"] != "kernels":
        raise SystemExit("the CUDA kernels are not live, there is nothing to check")
    torch.set_grad_enabled(False)
    count = 0
    for dtype in DTYPES:
        for name, results in calls("cpu" if args.smoke else "cuda", dtype):
            count += 1
            for result in results:
                if result.is_floating_point() and not result.float().cpu().isfinite().all():
                    raise SystemExit(f"{name}: a result is not finite")
    print(f"{count} calls, all results finite")


if __name__ == "__main__":
    main()
