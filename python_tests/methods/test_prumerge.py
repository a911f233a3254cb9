"""PruMerge and PruMerge+: the single head, the outliers, the neighbourhoods, the samples, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.reductions import inputs, record

from ficoco_ext import QueryKey, get_method, reduce
from ficoco_ext.stages import outlier_count, single_head_attention

P, C = 64, 12


def full_width(attn):
    """Class row of the softmax of one head as wide as all, (B, N), in float64, from its definition."""
    q, k = (t.double().transpose(1, 2).flatten(2) for t in attn[:2])
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[:, 0]


def in_loops(tokens, attn, r, *, neighbours=32, sampled=0, normalize=False):
    """One image after the other, one patch after the other: tokens and kept of each."""
    row, found = full_width(attn)[:, 1:], []
    key = attn.key.double().transpose(1, 2).flatten(2)[:, 1:]
    key = key / key.norm(dim=-1, keepdim=True)
    for a, x, k in zip(row, tokens.double(), key, strict=True):
        x, slots = x[1:], P - r - 1
        order = a.argsort(descending=True).tolist()
        chosen = set(order[: slots - sampled])
        rest = [i for i in range(P) if i not in chosen]
        chosen |= {rest[(2 * i + 1) * len(rest) // (2 * sampled)] for i in range(sampled)}
        pruned = [i for i in range(P) if i not in chosen]
        host = next(i for i in order if i in pruned)
        out = {0: tokens[len(found), 0].double()}
        for i in chosen:
            near = sorted((j for j in range(P) if j != i), key=lambda j: -float(k[i] @ k[j]))[:neighbours]
            added = x[i] + sum((a[j] * x[j] for j in near), torch.zeros(x.shape[1]).double())
            out[i + 1] = added / (1 + sum(float(a[j]) for j in near)) if normalize else added
        extra = sum(a[j] * x[j] for j in pruned)
        out[host + 1] = extra / sum(float(a[j]) for j in pruned) if normalize else extra
        found.append((torch.stack([out[i] for i in sorted(out)]), sorted(out), host + 1, len(pruned)))
    return found


def test_the_single_head():
    """sqrt(H) times the head-mean logits are the logits of full width; grouped keys count once for each query head."""
    _, attn = inputs()
    assert torch.allclose(single_head_attention(attn).double(), full_width(attn)[:, 1:], atol=1e-6)
    grouped = QueryKey(attn.query, attn.key[:, :2])
    spread = QueryKey(attn.query, attn.key[:, :2].repeat_interleave(2, dim=1))
    assert torch.allclose(single_head_attention(grouped), single_head_attention(spread), atol=1e-7)
    with pytest.raises(ValueError, match="reads query and key, and a map holds none"):
        single_head_attention(torch.rand(1, 5, 5))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("neighbours", [0, 1, 32, 63, 500])
@pytest.mark.parametrize("r", [1, 40, 62, 63])
def test_equals_loops(r, neighbours, normalize):
    tokens, attn = inputs()
    result = record(tokens, attn, r, method="prumerge", neighbours=neighbours, normalize=normalize)
    wanted = in_loops(tokens, attn, r, neighbours=neighbours, normalize=normalize)
    for item, (out, kept, host, pruned) in enumerate(wanted):
        assert result.kept[item].tolist() == kept
        assert torch.allclose(result.tokens[item].double(), out, atol=1e-5)
        assert result.size[item].flatten().tolist() == [pruned if i == host else 1 for i in kept]
        place = kept.index(host)
        assert bool((result.source_map[item, result.sources[item]] == place).all())


@pytest.mark.parametrize("spatial", [0.1, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("r", [1, 40, 60, 62, 63])
def test_plus_equals_loops(r, spatial):
    tokens, attn = inputs()
    sampled = int((P - r - 1) * spatial + 0.5)
    result = record(tokens, attn, r, method="prumerge+", spatial=spatial)
    for item, (out, kept, _, _) in enumerate(in_loops(tokens, attn, r, sampled=sampled)):
        assert result.kept[item].tolist() == kept
        assert torch.allclose(result.tokens[item].double(), out, atol=1e-5)


def test_samples_are_spread_over_the_picture():
    """Every row of the grid keeps one, where 32 samples alone are kept; none is kept for attention."""
    tokens, attn = inputs()
    places = record(tokens, attn, 31, method="prumerge+", spatial=1.0).patch_ids
    assert all(len(set((one // 8).tolist())) == 8 for one in places)
    top = record(tokens, attn, 31, method="prumerge+", spatial=0.0).patch_ids
    assert torch.equal(top, record(tokens, attn, 31, method="prumerge").patch_ids) and not torch.equal(top, places)


def test_outliers():
    """T1: numpy's linear percentiles, image by image; nothing for equal values."""
    values = torch.rand(3, 576) ** 8
    for row, count in zip(values, outlier_count(values).tolist(), strict=True):
        low, high = np.percentile(row.numpy(), [25, 75])
        assert count == int((row.numpy() > high + 1.5 * (high - low)).sum()) > 0
    assert outlier_count(torch.ones(2, 9)).tolist() == [0, 0]
    assert outlier_count(values.half()).shape == (3,)
    with pytest.raises(ValueError, match=r"outlier_count: class_attention must be \(B, P\) with P >= 1"):
        outlier_count(torch.ones(9))


def test_without_neighbours_it_is_a_selection():
    """T2: all but the extra token are copied bit for bit."""
    tokens, attn = inputs()
    result = record(tokens, attn, 40, method="prumerge", neighbours=0)
    place = result.targets[:, 0, 0]
    for item in range(2):
        kept = [i for i in range(25) if i != int(place[item])]
        assert torch.equal(result.tokens[item, kept], tokens[item, result.kept[item, kept]])


def test_the_extra_token():
    """T3: a . x over all that is not kept for its own sake."""
    tokens, attn = inputs()
    result, a = record(tokens, attn, 40, method="prumerge"), full_width(attn)
    for item in range(2):
        place = int(result.targets[item, 0, 0])
        inside = [*result.sources[item].tolist(), int(result.kept[item, place])]
        assert torch.allclose(result.tokens[item, place].double(), a[item, inside] @ tokens[item, inside].double())


def test_linear_in_the_tokens():
    """T4: for fixed attention."""
    tokens, attn = inputs()
    others = torch.randn_like(tokens)
    parts = [reduce(x, attn, 40, method="prumerge+") for x in (tokens, others, 2 * tokens - others)]
    assert torch.allclose(2 * parts[0] - parts[1], parts[2], atol=1e-5)


@pytest.mark.parametrize("method", ["prumerge", "prumerge+"])
@pytest.mark.parametrize("n", [3, 4, 33])
def test_any_budget(method, n):
    """T6: no share and no number of patches is out of range, fewer patches than neighbours included."""
    tokens, attn = inputs(n=n)
    for r in range(1, n - 1):
        result = record(tokens, attn, r, method=method, grid=(1, n - 1))
        assert result.tokens.shape == (2, n - r, C) and bool((result.size.sum((1, 2)) == n).all())


@pytest.mark.parametrize("method", ["prumerge", "prumerge+"])
def test_what_it_lacks(method):
    tokens, attn = inputs()
    with pytest.raises(ValueError, match="there is no class token; use a method that does without, such as 'tome'"):
        reduce(tokens, attn, 4, method=method, class_token=False)
    with pytest.raises(ValueError, match=r"a map holds none; pass attn=QueryKey"):
        reduce(tokens, attn.query @ attn.key.mT, 4, method=method)


def test_it_acts_once_by_default():
    for name in ("prumerge", "prumerge+", "pool"):
        assert get_method(name).layers(23) == (22,)
