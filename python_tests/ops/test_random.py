"""Random shapes, layouts and options: kernel equals specification, and the properties hold."""

import torch
from helpers.backends import BACKENDS
from helpers.ops import (
    DTYPES,
    LAYOUTS,
    assert_close,
    assert_links,
    assert_merges,
    assert_selects,
    laid,
    links,
    oracle,
    partition,
    query_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ficoco_ext import QueryKey, reduce
from ficoco_ext.ops import reference

CPU = BACKENDS["cpu"]
bounded = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@st.composite
def heads(draw):
    hk = draw(st.integers(1, 4))
    return hk * draw(st.integers(1, 3)), hk


batches, counts, widths = st.integers(0, 4), st.integers(2, 90), st.integers(1, 40)
dtypes, layouts, flags, seeds = st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.booleans(), st.integers(0, 2**16)


@bounded
@given(batches, heads(), counts, widths, dtypes, layouts, flags, flags, flags, flags, seeds)
def test_attention_stats(b, heads, n, d, dtype, layout, class_token, probs, column, patches, seed):
    torch.manual_seed(seed)
    query, key = query_key(b, *heads, n, d, dtype, layout if b else "contiguous")
    args = (query, key, d**-0.5, class_token, probs, column, patches)
    terms = 0.0 if probs or not b else reference.attention_map(query, key, d**-0.5, False).abs().max().item()
    for got, wanted in zip(CPU("attention_stats", *args), oracle("attention_stats", *args), strict=True):
        assert_close(got, wanted, max(heads[0] * d, n), scale=terms)  # of the terms, which may cancel in a mean


def spoiled(data, values):
    """``values`` with up to two numbers that are not finite."""
    for _ in range(data.draw(st.integers(0, 2))):
        index = tuple(data.draw(st.integers(0, size - 1)) for size in values.shape)
        values[index] = data.draw(st.sampled_from((float("inf"), -float("inf"), float("nan"))))
    return values


@bounded
@given(heads(), counts, st.integers(1, 20), flags, flags, flags, st.integers(1, 30), flags, seeds, st.data())
def test_numbers_that_are_not_finite(heads, n, d, class_token, probs, column, count, causal, seed, data):
    """They make what they are part of NaN or infinite, as in the specification, and nothing else."""
    torch.manual_seed(seed)
    query, key = (spoiled(data, one) for one in query_key(2, *heads, n, d))
    args = (query, key, d**-0.5, class_token, probs, column, True)
    pairs = list(zip(CPU("attention_stats", *args), oracle("attention_stats", *args), strict=True))
    lists = torch.randint(n, (2, count)), torch.randint(n, (2, 9))
    mask = torch.rand(2, n) < data.draw(st.sampled_from((0.3, 0.8, 1.0)))
    args = (query, key, *lists, torch.rand(2, 2, 9), mask, d**-0.5, probs, column, causal)
    pairs.append((CPU("token_attention", *args)[0], oracle("token_attention", *args)))
    for got, wanted in pairs:
        finite = wanted.isfinite()
        assert torch.equal(got.isfinite(), finite)
        assert torch.allclose(got[finite].double(), wanted[finite], rtol=1e-4, atol=1e-4)


@bounded
@given(batches, st.integers(1, 3), counts, dtypes, layouts, flags, flags, flags, seeds)
def test_attention_stats_map(b, h, n, dtype, layout, class_token, column, patches, seed):
    torch.manual_seed(seed)
    attn = laid(torch.randn(b, h, n, n).to(dtype), layout if b else "contiguous")
    args = (attn, class_token, column, patches)
    for got, wanted in zip(CPU("attention_stats.map", *args), oracle("attention_stats.map", *args), strict=True):
        assert_close(got, wanted, h * n, scale=attn.double().abs().max().item() if b else 0.0)


@bounded
@given(
    batches,
    st.integers(2, 12),
    st.integers(2, 12),
    st.floats(0, 1),
    flags,
    st.floats(1, 4),
    st.integers(1, 2),
    dtypes,
    flags,
    flags,
    st.data(),
)
def test_filter(b, height, width, lam, normalize, penalty, window, dtype, class_token, with_ids, data):
    """Integer scores, so that ties are many and decisions are those of exact arithmetic or far from it."""
    torch.manual_seed(data.draw(seeds))
    cells = height * width
    p = data.draw(st.integers(1, cells)) if with_ids else cells
    r = data.draw(st.integers(0, p - 1))
    ids = torch.rand(b, cells).argsort(1)[:, :p] if with_ids else None
    scores = [torch.randint(-8, 9, (b, p)).to(dtype) for _ in range(2)]
    args = (*scores, ids, r, lam, normalize, penalty, window, height, width, class_token)
    redundancy, sources, kept = CPU("filter", *args)
    assert_selects(sources, kept, p + class_token, r, class_token)
    if b and r:  # whatever rounding decides, no kept patch is more redundant than a source
        worst = redundancy.gather(1, sources - int(class_token)).amin(1)
        best = redundancy.gather(1, kept[:, int(class_token) :] - int(class_token)).amax(1)
        assert (worst >= best).all()
    if penalty == 1:
        assert_close(redundancy, oracle("filter", *args)[0], p, scale=1.0)


@bounded
@given(batches, heads(), counts, widths, dtypes, layouts, flags, flags, st.data())
def test_correlate(b, heads, n, d, dtype, layout, class_token, probs, data):
    torch.manual_seed(data.draw(seeds))
    p = n - class_token
    r = data.draw(st.integers(0, p - 1))
    k = data.draw(st.integers(0, p - r))
    alpha = data.draw(st.sampled_from(("softmax", "average", "ratio") if probs else ("softmax", "average")))
    query, key = query_key(b, *heads, n, d, dtype, layout if b else "contiguous")
    sources, kept = partition(b, n, r, class_token)
    args = (query, key, sources, kept, k, d**-0.5, alpha, class_token, probs)
    assert_links("correlate", args, CPU("correlate", *args))
    if alpha != "ratio":
        args = (key, sources, kept, k, alpha, class_token)
        assert_links("correlate.key", args, CPU("correlate.key", *args))


@bounded
@given(st.integers(1, 4), counts, st.integers(1, 70), dtypes, layouts, flags, flags, flags, st.data())
def test_compress(b, n, c, dtype, layout, class_token, sized, size_weighted, data):
    torch.manual_seed(data.draw(seeds))
    p = n - class_token
    r = data.draw(st.integers(0, p - 1))
    k = data.draw(st.integers(0, min(p - r, 20)))
    sources, kept = partition(b, n, r, class_token)
    size = torch.randint(1, 9, (b, n, 1)).float() if sized else None
    tokens = laid(torch.randn(b, n, c).to(dtype), layout)
    assert_merges(CPU, tokens, sources, kept, *links(b, r, n - r, k, class_token), size, size_weighted)


@bounded
@given(st.integers(1, 3), heads(), st.integers(3, 80), st.integers(1, 40), dtypes, layouts, flags, flags, st.data())
def test_reduce(b, heads, n, c, dtype, layout, class_token, probs, data):
    """Any legal call keeps its promises: counts, order, conservation, convexity, the class token."""
    torch.manual_seed(data.draw(seeds))
    p = n - class_token
    r = data.draw(st.integers(0, p - 1))
    penalty = data.draw(st.sampled_from((1.0, 2.0)))
    targets = data.draw(st.sampled_from(("adaptive", 0, 1, 2)))
    targets = min(targets, p - r) if isinstance(targets, int) else targets
    variant = "paper" if probs and targets != 0 else "released"
    query, key = query_key(b, *heads, n, 8, dtype, layout)
    tokens = laid(torch.randn(b, n, c).to(dtype), layout)
    options = {"class_token": class_token, "grid": (1, p), "penalty": penalty, "targets": targets, "variant": variant}
    if penalty != 1:
        height = next(side for side in range(int(p**0.5), 0, -1) if p % side == 0)
        options["grid"] = (height, p // height)
        options["penalty"] = 1.0 if height == 1 else penalty
    result = reduce(tokens, QueryKey(query, key), r, return_reduction=True, **options)
    assert_selects(result.sources, result.kept, n, r, class_token)
    assert result.tokens.shape == (b, n - r, c)
    assert result.tokens.dtype == dtype
    assert result.tokens.is_contiguous()
    if targets != 0:
        assert_close(result.size.sum((1, 2)), torch.full((b,), float(n)).double(), n)
        assert (result.source_map >= 0).all()
        limit = tokens.abs().amax((1, 2), keepdim=True) * (1 + torch.finfo(dtype).eps)
        assert (result.tokens.abs() <= limit).all()
    if class_token:
        assert torch.equal(result.tokens[:, 0], tokens[:, 0])
        assert (result.targets != 0).all()
