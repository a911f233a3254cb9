"""Inputs in every layout, the float64 oracle, and comparisons for tests of the operators."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from ficoco_ext.ops import reference
from helpers.backends import KERNELS, tolerance

SIZES = (1, 2, 31, 32, 33, 575, 576, 577, 2880)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "transposed", "offset", "sliced", "strided", "expanded")

needs_opcheck = pytest.mark.skipif(find_spec("expecttest") is None, reason="torch.library.opcheck needs expecttest")
needs_kernels = pytest.mark.skipif(not KERNELS, reason="tests the compiled kernels")


def laid(values: torch.Tensor, layout: str) -> torch.Tensor:
    """``values`` in memory as ``layout`` says; what lies between the elements is NaN, so reading it shows.

    ``transposed`` swaps dimensions 1 and 2, as Hugging Face does with (B, N, H, d); ``offset`` starts one element late;
    ``sliced`` drops the first column of wider rows; ``strided`` takes every other column; ``expanded`` repeats the
    first item of the batch with stride 0.
    """
    *outer, width = values.shape
    if layout == "contiguous":
        return values.contiguous()
    if layout == "transposed":
        return values.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "expanded":
        return values[:1].contiguous().expand_as(values)
    if layout == "offset":
        flat = values.new_full((values.numel() + 1,), float("nan"))
        out = flat[1:].view(values.shape)
    elif layout == "sliced":
        out = values.new_full((*outer, width + 1), float("nan"))[..., 1:]
    else:
        out = values.new_full((*outer, 2 * width), float("nan"))[..., ::2]
    return out.copy_(values)


def query_key(b, h, hk, n, d, dtype=torch.float32, layout="contiguous"):
    """Query and key that share a direction: rows of the attention are far from flat, and so are columns."""
    common = torch.randn(b, 1, 1, d)
    query = torch.randn(b, h, n, d) + 0.5 * common
    key = torch.randn(b, hk, n, d) * torch.rand(b, 1, n, 1) + 0.5 * common
    return laid(query.to(dtype), layout), laid(key.to(dtype), layout)


def partition(b: int, n: int, r: int, class_token: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ascending sources (b, r) and kept (b, n - r); token 0 is kept if it is a class token."""
    first = int(class_token)
    order = torch.rand(b, n - first).argsort(1) + first
    kept = torch.cat([torch.zeros(b, first, dtype=torch.int64), order[:, r:]], dim=1)
    return order[:, :r].sort(1).values, kept.sort(1).values


def double(args):
    """Floating tensors of ``args`` in float64: the same values."""
    return [arg.double() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args]


def oracle(name: str, *args):
    """The specification in float64: the only oracle of a kernel."""
    return getattr(reference, name.replace(".", "_"))(*double(args))


def assert_close(got: torch.Tensor, wanted: torch.Tensor, length: int, scale: float = 0.0) -> None:
    """``got`` is ``wanted`` (float64) up to :func:`conftest.tolerance` of sums of ``length`` terms.

    The error is measured against the largest magnitude of ``wanted``, or ``scale`` if that is larger.
    """
    assert wanted.dtype == torch.float64
    assert got.shape == wanted.shape, f"{got.shape} != {wanted.shape}"
    if not wanted.numel():
        return
    assert torch.equal(got.isnan(), wanted.isnan())
    infinite = wanted.isinf()
    assert torch.equal(got[infinite].double(), wanted[infinite])
    finite = wanted.isfinite()
    if not finite.any():
        return
    largest = max(wanted[finite].abs().max().item(), scale)
    error = (got[finite].double() - wanted[finite]).abs().max().item()
    allowed = tolerance(length, got.dtype) * largest
    assert error <= allowed, f"off by {error:.3g}, allowed {allowed:.3g} (largest magnitude {largest:.3g})"


def assert_selects(sources: torch.Tensor, kept: torch.Tensor, n: int, r: int, class_token: bool) -> None:
    """Both ascending; together every token exactly once; the class token first among the kept."""
    assert sources.dtype == kept.dtype == torch.int64
    assert sources.shape[1] == r
    assert kept.shape[1] == n - r
    assert bool((sources.diff() > 0).all())
    assert bool((kept.diff() > 0).all())
    everyone = torch.cat([sources, kept], dim=1).sort(1).values
    assert torch.equal(everyone, torch.arange(n).expand(sources.shape[0], n))
    if class_token:
        assert bool((kept[:, 0] == 0).all())


def correlations(name: str, args) -> torch.Tensor:
    """(B, r, kept patches) in float64: what the overload ``name`` of correlate chooses from."""
    args = double(args)
    if name == "correlate":
        query, key, sources, kept, _, scale, _, class_token, probs = args
        attn = reference.attention_map(query, key, scale, probs)
    elif name == "correlate.map":
        attn, sources, kept, _, _, class_token = args
        attn = attn.mean(1) if attn.dim() == 4 else attn
    else:
        key, sources, kept, _, _, class_token = args
        metric = torch.nn.functional.normalize(key.mean(1), dim=-1, eps=1e-12)
        attn = metric @ metric.mT
    b, r = sources.shape
    candidates = kept[:, int(class_token) :]
    rows = attn.gather(1, sources.unsqueeze(-1).expand(b, r, attn.shape[-1]))
    return rows.gather(2, candidates[:, None].expand(b, r, -1))


def assert_links(name: str, args, got) -> float:
    """Targets and weights that ``name(*args)`` gave, against the oracle; returns the share of exactly fixed targets.

    A target is fixed where its correlation is further from its neighbours in the ranking than float32 can move it;
    elsewhere its correlation must be that of its rank. Targets of one source are distinct.
    """
    targets, weights = got
    wanted_targets, wanted_weights = oracle(name, *args)
    assert targets.dtype == torch.int64
    assert weights.dtype == torch.float32
    assert targets.shape == weights.shape == wanted_targets.shape
    if not targets.numel():
        return 1.0
    scores = correlations(name, args)
    first, k = int(args[-2] if name == "correlate" else args[-1]), targets.shape[-1]
    length = args[0].shape[-1] * (args[0].shape[1] if name == "correlate" else 1)
    finite = scores[scores.isfinite()]
    scale = finite.abs().max().item() if finite.numel() else 1.0
    slack = tolerance(length) * scale
    assert bool((targets >= first).all())
    assert bool((targets.sort(-1).values.diff() > 0).all()), "a target twice"
    ranked = scores.sort(dim=-1, descending=True, stable=True).values
    chosen = scores.gather(2, targets - first)
    assert torch.allclose(chosen, ranked[..., :k], rtol=0, atol=2 * slack)
    edge = ranked.new_full((*ranked.shape[:2], 1), float("inf"))
    gaps = (torch.cat([edge, ranked], -1) - torch.cat([ranked, -edge], -1)).nan_to_num(nan=0.0)  # -inf - -inf
    fixed = torch.minimum(gaps[..., :k], gaps[..., 1 : k + 1]) > 2 * slack
    assert torch.equal(targets[fixed], wanted_targets[fixed])
    assert_close(weights, wanted_weights, length, scale=max(1.0, scale))
    if k:
        assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:2]), rtol=0, atol=1e-5)
    return fixed.double().mean().item()


def merge_matrix(n, sources, kept, targets, weights, size, size_weighted):
    """One item's compress as a matrix (M, N) with rows that sum to 1, written out in loops; and its new sizes (M,)."""
    place = {int(token): j for j, token in enumerate(kept)}
    z = [1.0] * n if size is None else [float(value) for value in size.flatten()]
    matrix = torch.zeros(len(kept), n, dtype=torch.float64)
    new_size = torch.tensor([z[int(token)] for token in kept], dtype=torch.float64)
    for token, j in place.items():
        matrix[j, token] = z[token] if size_weighted else 1.0
    for i, source in enumerate(sources.tolist()):
        for target, weight in zip(targets[i].tolist(), weights[i].tolist(), strict=True):
            matrix[target, source] += weight * (z[source] if size_weighted else 1.0)
            new_size[target] += weight * z[source]
    return matrix / matrix.sum(1, keepdim=True), new_size


def links(b, r, m, k, class_token):
    """Distinct random targets (b, r, k) among the kept patches, and weights that sum to 1."""
    first = int(class_token)
    targets = torch.rand(b, r, m - first).argsort(-1)[..., :k] + first
    return targets, torch.rand(b, r, k).add(0.1).softmax(-1) if k else torch.rand(b, r, 0)


def assert_merges(backend, tokens, sources, kept, targets, weights, size=None, size_weighted=False):
    """What ``backend`` makes of compress is the explicit merge matrix's; returns it."""
    n, k = tokens.shape[1], targets.shape[2]
    out, new_size, source_map = backend("compress", tokens, sources, kept, targets, weights, size, size_weighted)
    b, m = kept.shape
    assert out.dtype == tokens.dtype
    assert new_size.dtype == torch.float32
    assert source_map.dtype == torch.int64
    assert new_size.shape == (b, m, 1)
    assert source_map.shape == (b, n)
    for i in range(b):
        sizes = None if size is None else size[i]
        matrix, sums = merge_matrix(n, sources[i], kept[i], targets[i], weights[i], sizes, size_weighted)
        assert_close(out[i], matrix @ tokens[i].double(), 1 + sources.shape[1] * k)
        assert_close(new_size[i, :, 0], sums, 1 + sources.shape[1])
        alone = torch.ones(m, dtype=torch.bool)
        alone[targets[i].flatten()] = False
        assert torch.equal(out[i][alone], tokens[i][kept[i][alone]])  # bit for bit
        assert torch.equal(source_map[i, kept[i]], torch.arange(m))
        largest = (
            targets[i].gather(1, weights[i].argmax(1, keepdim=True))[:, 0] if k else torch.full((sources.shape[1],), -1)
        )
        assert torch.equal(source_map[i, sources[i]], largest)
    return out, new_size, source_map
