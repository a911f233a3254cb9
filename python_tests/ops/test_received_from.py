"""received_from: against plain loops over heads and rows in float64, masks, rows that do not count, refusals."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from helpers.ops import DTYPES, LAYOUTS, assert_close, double, query_key

from ficoco_ext import QueryKey, ops
from ficoco_ext.cost import flop_counter
from ficoco_ext.ops import _received_from, reference

FORMS = list(product((True, False), (True, False)))  # probs, causal


def inputs(b=2, h=4, hk=2, tq=20, t=20, d=8, n=7, rows=5, dtype=torch.float32, masked=True, layout="contiguous"):
    """Arguments up to the mask: positions in any order, some twice, some rows not chosen, all of them of no item."""
    query, _ = query_key(b, h, hk, tq, d, dtype, layout)
    _, key = query_key(b, h, hk, t, d, dtype, layout)
    visual, text = torch.randint(0, t, (b, n)), torch.randint(t - tq, t, (b, rows))
    chosen = torch.rand(b, rows) < 0.7
    chosen[0, :1] = True
    mask = torch.rand(b, t) < 0.8
    return query, key, visual, text, chosen, mask if masked else None


def loops(query, key, visual, text, chosen, mask, scale, probs, causal):
    """The definition: one row after the other, its heads, its keys."""
    b, h, tq, _ = query.shape
    t, n = key.shape[2], visual.shape[1]
    total, peak = torch.zeros(b, n, dtype=torch.float64), torch.zeros(b, n, dtype=torch.float64)
    for item in range(b):
        rows = []
        for r in range(text.shape[1]):
            if not chosen[item, r]:
                continue
            at = int(text[item, r])
            mean = torch.zeros(t, dtype=torch.float64)
            for head in range(h):
                logits = (
                    key[item, head * key.shape[1] // h].double() @ query[item, head, at - (t - tq)].double() * scale
                )
                if probs:
                    seen = torch.ones(t, dtype=torch.bool) if mask is None else mask[item].clone()
                    if causal:
                        seen[at + 1 :] = False
                    row = torch.zeros(t, dtype=torch.float64)
                    if seen.any():
                        row[seen] = logits[seen].softmax(0)
                    logits = row
                mean += logits / h
            rows.append(mean[visual[item]])
        if rows:
            total[item], peak[item] = torch.stack(rows).sum(0), torch.stack(rows).amax(0)
    return total, peak


def check(backend, args, scale, probs, causal):
    got = backend("received_from", *args, scale, probs, causal)
    wanted = loops(*args, scale, probs, causal)
    query, key, text = args[0], args[1], args[3]
    length = max(query.shape[1] * query.shape[3], text.shape[1], key.shape[2])
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == torch.float32
        assert_close(one, other, length)
    return got


@pytest.mark.parametrize(("probs", "causal"), FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("t", [1, 2, 31, 33, 130])
def test_sizes(backend, t, dtype, probs, causal):
    for masked in (False, True):
        args = inputs(b=2, tq=t, t=t, n=min(t, 70), rows=max(1, t // 2), dtype=dtype, masked=masked)
        check(backend, args, 0.3, probs, causal)


@pytest.mark.parametrize("probs", [True, False])
@pytest.mark.parametrize(("n", "rows"), [(1, 1), (65, 1), (3, 97), (64, 24), (10, 130), (5, 300)])
def test_counts(backend, n, rows, probs):
    """More rows than a block has, in the CPU's kernel and in that of the GPU."""
    check(backend, inputs(tq=50, t=50, n=n, rows=rows), 0.5, probs, True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_and_grouped_heads(backend, dtype, layout):
    for (h, hk), probs in product(((4, 4), (6, 2), (1, 1), (9, 3)), (True, False)):
        args = inputs(b=2, h=h, hk=hk, d=12, tq=37, t=37, n=9, rows=11, dtype=dtype, layout=layout)
        check(backend, args, 0.3, probs, True)


@pytest.mark.parametrize("d", [1, 5, 9, 80, 128])
def test_widths(backend, d):
    for probs in (True, False):
        check(backend, inputs(d=d, tq=26, t=26), d**-0.5, probs, True)
        check(backend, inputs(d=d, tq=26, t=26, dtype=torch.bfloat16), -(d**-0.5), probs, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cached_prefix(backend, dtype):
    """The queries are those of the last tokens."""
    for probs in (True, False):
        check(backend, inputs(tq=9, t=30, rows=6, dtype=dtype), 0.4, probs, True)


def test_one_row_is_its_attention(backend):
    """Sum and largest of one row are equal bit for bit, and what token_attention says."""
    query, key, visual, text, _, mask = inputs(rows=1, n=19)
    text = torch.full_like(text, 19)
    total, peak = backend("received_from", query, key, visual, text, torch.ones(2, 1) > 0, mask, 0.3, True, True)
    assert torch.equal(total, peak)
    how = (torch.ones(2, 1, 1), mask, 0.3, True, True, True)
    (same,) = backend("token_attention", query, key, visual, text, *how)
    assert torch.allclose(same[:, 0], total, atol=1e-6)


def test_all_columns_of_a_row_add_up_to_one(backend):
    query, key, _, text, _, _ = inputs(tq=40, t=40, rows=12)
    visual, chosen = torch.arange(40).repeat(2, 1), torch.ones(2, 12) > 0
    total, peak = backend("received_from", query, key, visual, text, chosen, None, 0.3, True, True)
    assert torch.allclose(total.sum(1), torch.full((2,), 12.0), rtol=1e-5)
    assert bool((peak <= total + 1e-6).all()) and bool((total <= 12 * peak + 1e-6).all())


def test_the_mean_over_heads_comes_before_the_maximum(backend):
    """Two heads that look at different tokens: either gets half, in both statistics."""
    query, key = torch.ones(1, 2, 4, 2), torch.zeros(1, 2, 4, 2)
    key[0, 0, 0] = key[0, 1, 1] = 40
    args = (query, key, torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), torch.ones(1, 2) > 0, None)
    total, peak = backend("received_from", *args, 1.0, True, True)
    assert torch.allclose(total, torch.ones(1, 2), atol=1e-5) and torch.allclose(
        peak, torch.full((1, 2), 0.5), atol=1e-5
    )


@pytest.mark.parametrize("probs", [True, False])
def test_a_row_that_is_not_chosen_is_not_there(backend, probs):
    """Whatever it holds: the results are those of the rows without it, also NaN among queries."""
    query, key, visual, text, _, mask = inputs(b=3, tq=40, t=40, rows=33, n=21)
    text = torch.stack([torch.randperm(40)[:33] for _ in range(3)])
    chosen = torch.arange(33).repeat(3, 1) % 3 > 0
    query[:, :, :] = query.clone()
    for item in range(3):
        query[item, :, text[item, ~chosen[item]]] = float("nan")
    found = backend("received_from", query, key, visual, text, chosen, mask, 0.3, probs, True)
    assert all(bool(x.isfinite().all()) for x in found)
    few = text[:, chosen[0]]
    alone = backend("received_from", query, key, visual, few, torch.ones_like(few) > 0, mask, 0.3, probs, True)
    for one, other in zip(found, alone, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("probs", [True, False])
def test_no_chosen_row_gives_zeros(backend, probs):
    """Of one item, of all, without any row; in logits too, which may all be below 0."""
    query, key, visual, text, chosen, mask = inputs(rows=140, tq=20)
    chosen[:] = True
    chosen[1] = False
    total, peak = backend("received_from", query, -query[:, ::2], visual, text, chosen, mask, 0.3, probs, False)
    assert total[0].any() and peak[0].any() and not total[1].any() and not peak[1].any()
    nothing = torch.zeros(2, 140) > 0
    for rows, flags in ((text, nothing), (text[:, :0], nothing[:, :0])):
        assert not any(
            x.any() for x in backend("received_from", query, key, visual, rows, flags, mask, 0.3, probs, True)
        )


@pytest.mark.parametrize("where", [0, 100, 139])
def test_one_chosen_row_among_many(backend, where):
    """In any block of rows, with logits below 0 that a zero of another row must not outdo."""
    query, key, visual, text, chosen, _ = inputs(rows=140, tq=20)
    chosen[:] = False
    chosen[:, where] = True
    key = -torch.ones_like(key) * query.mean((1, 2), keepdim=True).abs()
    total, peak = check(backend, (query.abs(), key, visual, text, chosen, None), 0.3, False, True)
    assert torch.allclose(total, peak) and bool((peak < 0).all())


def test_hidden_keys_receive_nothing_and_change_nothing(backend):
    query, key, visual, text, chosen, mask = inputs(tq=30, t=30, rows=9, n=25)
    found = backend("received_from", query, key, visual, text, chosen, mask, 0.3, True, True)
    hidden = ~mask.gather(1, visual)
    assert not found[0][hidden].any() and not found[1][hidden].any()
    changed = key.masked_fill(~mask[:, None, :, None], 77.0)
    again = backend("received_from", query, changed, visual, text, chosen, mask, 0.3, True, True)
    assert all(map(torch.equal, found, again))


def test_later_tokens_receive_nothing(backend):
    query, key, _, _, _, _ = inputs(tq=30, t=30)
    visual, text = torch.arange(10, 30).repeat(2, 1), torch.tensor([[12, 15]] * 2)
    total, peak = backend("received_from", query, key, visual, text, torch.ones(2, 2) > 0, None, 0.3, True, True)
    assert total[:, :6].all() and not total[:, 6:].any() and not peak[:, 6:].any()
    assert torch.equal(total[:, 3:6], peak[:, 3:6])  # one of the rows alone sees these


def test_nan_of_a_chosen_row_shows_in_both(backend):
    query, key, visual, _, _, _ = inputs(tq=30, t=30, n=30)
    visual = torch.arange(30).repeat(2, 1)
    query[0, 1, 11] = float("nan")
    text = torch.tensor([[20, 11, 25]] * 2)
    total, peak = backend("received_from", query, key, visual, text, torch.ones(2, 3) > 0, None, 0.3, True, True)
    for found in (total, peak):
        assert bool(found[0, :12].isnan().all()) and bool(found[0, 12:].isfinite().all())
        assert bool(found[1].isfinite().all())


def test_an_order_of_rows_changes_rounding_alone(backend):
    query, key, visual, text, chosen, mask = inputs(tq=40, t=40, rows=130, n=20)
    order = torch.randperm(130)
    one = backend("received_from", query, key, visual, text, chosen, mask, 0.3, True, True)
    other = backend("received_from", query, key, visual, text[:, order], chosen[:, order], mask, 0.3, True, True)
    assert torch.allclose(one[0], other[0], rtol=1e-5) and torch.allclose(one[1], other[1], rtol=1e-5)


def test_a_batch_is_its_rows(backend):
    args = inputs(b=7, h=6, hk=3, tq=70, t=70, rows=33, n=40)
    together = backend("received_from", *args, 0.3, True, True)
    for i in range(7):
        alone = backend("received_from", *(x[i : i + 1] for x in args), 0.3, True, True)
        for one, other in zip(alone, together, strict=True):
            assert torch.allclose(one, other[i : i + 1], atol=1e-6)
            assert backend.name == "reference" or torch.equal(one, other[i : i + 1])


def test_nothing(backend):
    for b, t, n, d in ((0, 9, 4, 8), (2, 9, 0, 8), (2, 9, 4, 0)):
        query, key = torch.randn(b, 2, t, d), torch.randn(b, 2, t, d)
        visual, text = torch.arange(n).repeat(b, 1), torch.tensor([[7, 8]]).repeat(b, 1)
        for probs in (True, False):
            total, peak = backend("received_from", query, key, visual, text, text > 0, None, 1.0, probs, True)
            assert total.shape == peak.shape == (b, n)
            if d == 0 and probs:  # all keys are alike
                assert torch.allclose(peak, torch.full((b, n), 1 / 8)) and torch.allclose(total, peak + 1 / 9)
            elif d == 0:
                assert not total.any() and not peak.any()


def test_the_blocks_of_the_specification_are_one(monkeypatch):
    args = inputs(rows=23)
    whole = reference.received_from(*double(args), 0.3, True, True)
    monkeypatch.setattr(_received_from, "_CELLS", 2 * 20 * 5)
    parts = reference.received_from(*double(args), 0.3, True, True)
    assert all(torch.allclose(one, other, rtol=1e-14) for one, other in zip(parts, whole, strict=True))


def test_float64_and_the_call():
    query, key, visual, text, chosen, mask = inputs()
    attn = QueryKey(query.double(), key.double())
    found = ops.received_from(attn, visual, text, chosen, key_mask=mask)
    wanted = loops(query, key, visual, text, chosen, mask, 8**-0.5, True, True)
    assert found.total.dtype == torch.float64
    assert torch.allclose(found.total, wanted[0]) and torch.allclose(found.peak, wanted[1])
    logits = ops.received_from(attn, visual, text, chosen, probs=False, causal=False)
    wanted = loops(query, key, visual, text, chosen, None, 8**-0.5, False, False)
    assert torch.allclose(logits.total, wanted[0]) and torch.allclose(logits.peak, wanted[1])


@pytest.mark.parametrize(("probs", "keys"), [(True, 20), (False, 7)])
def test_cost(probs, keys):
    query, key, visual, text, chosen, _ = inputs()
    with flop_counter.counter() as counted:
        ops.received_from(QueryKey(query, key), visual, text, chosen, probs=probs)
    assert counted.get_total_flops() == 2 * 2 * 4 * 8 * 5 * keys


BAD = [
    ("query", {"query": torch.randn(2, 20, 8)}, ValueError, r"query must be \(B, H, N, d\)"),
    ("key", {"key": torch.randn(2, 3, 20, 8)}, ValueError, r"key must be \(2, Hk, 20 or more, 8\)"),
    ("visual", {"visual": torch.zeros(7, dtype=torch.int64)}, ValueError, r"visual must be \(2, count\) int64"),
    ("text", {"text": torch.zeros(1, 5, dtype=torch.int64)}, ValueError, r"text must be \(2, count\) int64"),
    ("text dtype", {"text": torch.zeros(2, 5, dtype=torch.int32)}, TypeError, r"text must be \(2, count\) int64"),
    ("chosen", {"chosen": torch.ones(2, 4) > 0}, ValueError, r"chosen must be \(2, 5\)"),
    ("chosen dtype", {"chosen": torch.ones(2, 5)}, TypeError, r"chosen must be \(2, 5\) bool"),
    ("mask", {"key_mask": torch.ones(2, 19) > 0}, ValueError, r"key_mask must be \(2, 20\)"),
    ("mask dtype", {"key_mask": torch.ones(2, 20)}, TypeError, r"key_mask must be \(2, 20\) bool"),
]


@pytest.mark.parametrize(("change", "kind", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_refusals(backend, change, kind, message):
    given = dict(zip(("query", "key", "visual", "text", "chosen", "key_mask"), inputs(), strict=True)) | change
    with pytest.raises(kind, match=rf"ficoco::received_from: {message}.*; "):
        backend("received_from", *given.values(), 0.3, True, True)


@pytest.mark.parametrize(("argument", "value"), [("visual", -1), ("visual", 20), ("text", 4), ("text", 20)])
def test_indices_are_checked_where_reading_is_free(backend, argument, value):
    if backend.name != "cpu":
        pytest.skip("reads no values, or has torch's own message")
    query, key, visual, text, chosen, mask = inputs(tq=15)
    {"visual": visual, "text": text}[argument][1, 2] = value
    with pytest.raises(ValueError, match=rf"ficoco::received_from: {argument} must be in \[.*got {value}; "):
        backend("received_from", query, key, visual, text, chosen, mask, 0.3, True, True)
