"""match: pairs found by loops in float64, ties, protected tokens, the largest r, layouts, flops."""

from __future__ import annotations

import pytest
import torch
from helpers.backends import tolerance
from helpers.ops import DTYPES, LAYOUTS, SIZES, assert_selects, laid, needs_kernels, query_key

from ficoco_ext import ops
from ficoco_ext.cost import flop_counter
from ficoco_ext.ops import match, reference

PROTECTED = [(False, False), (True, False), (True, True)]


def largest(n, class_token, distill_token):
    return max((n - class_token - distill_token) // 2, 0)


def cosines(key):
    """(B, N, N) in float64."""
    metric = key.double().mean(1)
    metric = metric / metric.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return metric @ metric.mT


def pairs_by_hand(cosine, class_token, distill_token):
    """(even, odd) of one item in the order in which they merge, by comparing numbers one by one."""
    n = cosine.shape[0]
    odd = range(3 if distill_token else 1, n, 2)
    found = []
    for i in range(2 if class_token else 0, n, 2):
        partner = None
        for j in odd:
            if partner is None or cosine[i, j] > cosine[i, partner]:
                partner = j
        if partner is not None:
            found.append((i, partner))
    return sorted(found, key=lambda pair: -cosine[pair])


def check(backend, key, r, class_token, distill_token):
    """All that match promises, against loops in float64 wherever float32 cannot change the answer."""
    redundancy, sources, kept, targets, weights = backend("match", key, r, class_token, distill_token)
    b, _, n, d = key.shape
    first, slack = int(class_token), 2 * tolerance(d * key.shape[1])
    assert_selects(sources, kept, n, r, class_token)
    assert targets.dtype == torch.int64
    assert targets.shape == weights.shape == (b, r, 1)
    assert redundancy.dtype == weights.dtype == torch.float32
    assert redundancy.shape == (b, n - first)
    assert bool((weights == 1).all())
    merged = kept.gather(1, targets.squeeze(-1))
    assert bool((sources % 2 == 0).all())
    assert bool((merged % 2 == 1).all())
    if distill_token:
        assert bool((merged > 1).all())
    cosine = cosines(key)
    exact = 0
    for i in range(b):
        pairs = pairs_by_hand(cosine[i].numpy(), class_token, distill_token)
        wanted = {even: float(cosine[i, even, odd]) for even, odd in pairs}
        for token in range(first, n):
            score = float(redundancy[i, token - first])
            assert abs(score - wanted[token]) <= slack if token in wanted else score == -float("inf")
        ranked = [wanted[even] for even, _ in pairs]
        chosen = dict(zip(sources[i].tolist(), merged[i].tolist(), strict=True))
        assert all(wanted[even] >= ranked[r - 1] - slack for even in chosen) if r else not chosen
        partner = dict(pairs)
        for even, odd in chosen.items():
            assert cosine[i, even, odd] >= wanted[even] - slack
            exact += odd == partner[even]
    assert exact >= 0.99 * b * r
    return sources, merged


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [n for n in SIZES if n < 1000])
def test_sizes(backend, n, dtype):
    """Odd and even lengths, r from none to the largest, with and without protected tokens."""
    b = 1 if n > 100 else 3
    for protected in PROTECTED:
        most = largest(n, *protected)
        for r in sorted({0, min(1, most), most}) if n < 100 else (42, most):
            check(backend, query_key(b, 4, 2, n, 16, dtype)[1], r, *protected)


def test_the_longest(backend):
    check(backend, query_key(1, 2, 1, 2880, 8)[1], 1000, False, False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [1, 3])
def test_layouts(backend, dtype, layout, heads):
    check(backend, query_key(3, heads, heads, 70, 20, dtype, layout)[1], 20, True, False)


@pytest.mark.parametrize("d", [3, 7, 8, 64, 130])
def test_widths(backend, d):
    check(backend, laid(torch.randn(2, 2, 61, d), "transposed"), 30, True, False)


def one_hot(*columns):
    """(1, 1, N, 8) keys along coordinate axes: cosines are exactly 0 or 1 in every precision."""
    return torch.eye(8)[list(columns)].view(1, 1, -1, 8)


def test_blocks_of_narrow_keys(backend):
    """More odd tokens than are compared at once, in keys that bytes do not screen."""
    check(backend, query_key(1, 1, 1, 301, 8)[1], 150, False, False)


def test_wide_twins_go_by_lowest_index(backend):
    """Of odd tokens with the same key the first is the nearest, wherever even tokens lie among tasks and vectors."""
    n = 203
    distinct = torch.randn(1, 1, 70, 32)
    kind = torch.randint(70, (n,))
    key = distinct[:, :, kind]
    _, sources, kept, targets, _ = backend("match", key, n // 2, True, False)
    cosine = cosines(distinct)[0]
    odd = range(1, n, 2)
    first = {}
    for j in odd:
        first.setdefault(int(kind[j]), j)
    nearest = {i: first[max(first, key=lambda one: float(cosine[kind[i], one]))] for i in range(2, n, 2)}
    merged = kept[0, targets[0, :, 0]].tolist()
    assert dict(zip(sources[0].tolist(), merged, strict=True)) == nearest


def test_every_token_has_its_own_rounding(backend):
    """A key most of which bytes cannot hold, after keys that they hold exactly: what is nearest by bytes is not."""
    key = torch.zeros(1, 1, 40, 32)
    for token in range(0, 40, 2):
        key[0, 0, token] = torch.arange(-127, 128, 8)[torch.randperm(32)]
        key[0, 0, token + 1, token % 32] = -127
    by_bytes, nearest, even = 3, 31, 26
    key[0, 0, [by_bytes, nearest, even]] = 0
    key[0, 0, nearest, :17] = torch.tensor([63.0, *[28.0] * 15, 20.0])  # whole numbers, of length 127
    key[0, 0, by_bytes, 16:20] = torch.tensor([109.0, 12.0, 2.0, 2.0])
    key[0, 0, by_bytes, 0] = 64
    key[0, 0, even, :16] = torch.tensor([127.0, *[0.45] * 15])
    assert key[0, 0, [by_bytes, nearest]].square().sum(-1).tolist() == [127**2] * 2
    _, sources, kept, targets, _ = backend("match", key, 20, False, False)
    merged = dict(zip(sources[0].tolist(), kept[0, targets[0, :, 0]].tolist(), strict=True))
    assert merged[even] == nearest


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_lowest_index(backend, dtype):
    """Among equal partners and among equal pairs; a score of 0 is a tie too."""
    key = one_hot(0, 5, 1, 1, 1, 1, 2, 2, 6, 7, 2, 4).to(dtype)
    results = [backend("match", key, r, False, False) for r in range(7)]
    merged = [
        list(zip(sources[0].tolist(), kept[0, targets[0, :, 0]].tolist(), strict=True))
        for _, sources, kept, targets, _ in results
    ]
    pairs = [(2, 3), (4, 3), (6, 7), (10, 7), (0, 1), (8, 1)]  # cosines 1, 1, 1, 1, 0, 0
    assert merged == [sorted(pairs[:r]) for r in range(7)]
    assert results[0][0].tolist() == [[v if i % 2 == 0 else -float("inf") for i, v in enumerate(
        [0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1, 0])]]  # fmt: skip


def test_minus_zero_is_zero(backend):
    """A product too small for float32 is as near as a product of 0, so the lower index leaves first."""
    key = torch.tensor([[0, 1, 1e-30], [1, 0, -1e-30], [0, 1, 0], [1, 0, -1e-30]]).view(1, 1, 4, 3)
    redundancy, sources, *_ = backend("match", key, 1, False, False)
    assert redundancy[0, ::2].tolist() == [0, 0]
    assert sources.tolist() == [[0]]


def test_everyone_equal(backend):
    """All keys the same: the first sources leave, all into the first partner, panels and blocks notwithstanding."""
    for protected in PROTECTED:
        _, sources, kept, targets, _ = backend("match", torch.ones(2, 2, 577, 16), 100, *protected)
        assert torch.equal(sources, torch.arange(100).mul(2).add(2 * protected[0]).expand(2, -1))
        assert bool((kept.gather(1, targets.squeeze(-1)) == (3 if protected[1] else 1)).all())


def test_zero_keys_are_safe(backend):
    """A key of length 0 has cosine 0 with everyone, also after averaging heads that cancel."""
    key = one_hot(0, 1, 1, 3, 3, 3, 4, 6).repeat(1, 2, 1, 1)
    key[0, :, 1] = 0
    key[0, 1, 2] *= -1
    redundancy, _, kept, targets, _ = backend("match", key, 4, False, False)
    assert redundancy.isnan().sum() == 0
    assert redundancy[0, [0, 2, 4, 6]].tolist() == [0, 0, 1, 0]
    assert kept[0, targets[0, :, 0]].tolist() == [1, 1, 3, 1]


@pytest.mark.parametrize(
    ("n", "protected", "most"),
    [(1, 0, 0), (1, 1, 0), (1, 2, 0), (2, 0, 1), (2, 1, 0), (2, 2, 0), (3, 0, 1), (3, 1, 1), (10, 1, 4), (10, 0, 5),
     (11, 0, 5), (12, 2, 5), (13, 2, 5), (3, 2, 0), (12, 1, 5), (577, 1, 288), (577, 0, 288), (576, 0, 288)],
)  # fmt: skip
def test_largest_r(backend, n, protected, most):
    """T2 of the clamp table: N - r tokens are left at the largest r, and one more is an error that names it."""
    key, flags = query_key(2, 2, 2, n, 4)[1], PROTECTED[protected]
    sources, _ = check(backend, key, most, *flags)
    assert sources.shape == (2, most)
    for r in (most + 1, 99, -1):
        if r > most or r < 0:
            with pytest.raises(
                ValueError, match=rf"ficoco::match: r must be in \[0, {most}\].*largest legal r is {most}"
            ):
                backend("match", key, r, *flags)


def test_no_items_no_tokens_no_width(backend):
    for shape in ((0, 2, 12, 4), (2, 2, 12, 0), (2, 1, 0, 4)):
        n = shape[2]
        shapes = [tuple(t.shape) for t in backend("match", torch.randn(shape), n // 2, False, False)]
        b, r = shape[0], n // 2
        assert shapes == [(b, n), (b, r), (b, n - r), (b, r, 1), (b, r, 1)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_keys_that_are_not_finite(backend, value):
    if not backend.reads_values:
        pytest.skip("a GPU's values are not read")
    for token in (5, 8):
        key = torch.randn(2, 2, 40, 4)
        key[1, 1, token, 2] = value
        with pytest.raises(ValueError, match="ficoco::match: key must be finite"):
            backend("match", key, 4, True, False)
    key = torch.randn(2, 2, 40, 4)
    key[:, :, :2] = value  # class and distillation token are compared with nobody
    redundancy = backend("match", key, 4, True, True)[0]
    assert bool(redundancy[:, 1::2].isfinite().all())


def test_errors(backend):
    key = torch.randn(2, 2, 10, 4)
    with pytest.raises(ValueError, match=r"ficoco::match: key must be \(B, Hk, N, d\)"):
        backend("match", key[0], 1, False, False)
    with pytest.raises(TypeError, match="ficoco::match: key must be float32"):
        backend("match", key.long(), 1, False, False)
    with pytest.raises(ValueError, match="ficoco::match: distill_token must be False without a class token"):
        backend("match", key, 1, False, True)


def test_permuting_within_the_sets(backend):
    """Pairs follow the tokens when even ones trade places among themselves, and odd ones likewise."""
    key = torch.randn(1, 2, 40, 16)
    order = torch.arange(40)
    order[2::2], order[1::2] = order[2::2][torch.randperm(19)], order[1::2][torch.randperm(20)]
    pairs = []
    for moved in (torch.arange(40), order):
        _, sources, kept, targets, _ = backend("match", key[:, :, moved], 12, True, False)
        pairs.append(set(zip(moved[sources[0]].tolist(), moved[kept[0, targets[0, :, 0]]].tolist(), strict=True)))
    assert pairs[0] == pairs[1]


def test_wrapper_and_float64():
    key = torch.randn(2, 3, 21, 8)
    got = match(key, 5, class_token=True)
    assert all(map(torch.equal, got, torch.ops.ficoco.match(key, 5, True, False)))
    wide = match(key.double(), 5, class_token=True, distill_token=True)
    assert wide.redundancy.dtype == wide.weights.dtype == torch.float64
    assert all(map(torch.equal, wide, reference.match(key.double(), 5, True, True)))


@needs_kernels
def test_links_are_those_of_correlate():
    """The metric is the one that correlate uses: its nearest among all odd tokens, if these are all that is kept."""
    key = torch.randn(2, 4, 62, 16)
    matched = match(key, 31, class_token=False)
    targets, _ = ops.correlate_key(key, matched.sources, matched.kept, 1, alpha="average", class_token=False)
    assert torch.equal(targets, matched.targets)


def test_flops():
    """2 B |A| |B| d, protected tokens left out."""
    key = torch.randn(2, 4, 21, 8)
    for flags, even, odd in ((PROTECTED[0], 11, 10), (PROTECTED[1], 10, 10), (PROTECTED[2], 10, 9)):
        with flop_counter.counter() as mode:
            torch.ops.ficoco.match(key, 3, *flags)
        assert mode.get_total_flops() == 2 * 2 * even * odd * 8
