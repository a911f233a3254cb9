"""compress: an explicit merge matrix in float64, exact copies, rounding, sizes, and where tokens went."""

from itertools import product

import pytest
import torch
from helpers.ops import DTYPES, LAYOUTS, SIZES, assert_close, assert_merges, laid, links, partition


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_sizes(backend, n, dtype):
    b = 1 if n > 2000 else 3
    for class_token in (False, True):
        p = n - class_token
        for r in sorted({0, min(1, p - 1), min(42, p - 1), p - 1} if n < 100 else {42, p - 1}):
            if r < 0:
                continue
            sources, kept = partition(b, n, r, class_token)
            for k in sorted({0, 1, min(2, p - r), min(17, p - r)}) if n < 100 else (min(2, p - r),):
                if k > p - r:
                    continue
                tokens = torch.randn(b, n, 24).to(dtype)
                assert_merges(backend, tokens, sources, kept, *links(b, r, n - r, k, class_token))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(backend, dtype, layout):
    for size_weighted, sized in product((False, True), repeat=2):
        tokens = laid(torch.randn(3, 34, 20).to(dtype), layout)
        sources, kept = partition(3, 34, 9, True)
        targets, weights = links(3, 9, 25, 3, True)
        size = laid(torch.randint(1, 9, (3, 34, 1)).float(), layout) if sized else None
        weights = laid(weights, layout)
        assert_merges(backend, tokens, sources, kept, targets, weights, size, size_weighted)


@pytest.mark.parametrize("c", [1, 3, 7, 8, 9, 1024, 4097])
def test_channels(backend, c):
    sources, kept = partition(2, 20, 6, True)
    for dtype in DTYPES:
        assert_merges(backend, torch.randn(2, 20, c).to(dtype), sources, kept, *links(2, 6, 14, 2, True))


def test_strided_indices(backend):
    def spread(index):
        return torch.stack([index, torch.full_like(index, 10**9)], -1).flatten(-2)[..., ::2]

    sources, kept = partition(2, 20, 6, True)
    targets, weights = links(2, 6, 14, 3, True)
    assert_merges(
        backend, torch.randn(2, 20, 5), spread(sources), spread(kept), spread(targets), laid(weights, "strided")
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_weights_and_sizes_of_any_dtype(backend, dtype):
    sources, kept = partition(2, 20, 6, True)
    targets, weights = links(2, 6, 14, 3, True)
    size = torch.randint(1, 60, (2, 20, 1)).to(dtype)
    assert_merges(backend, torch.randn(2, 20, 5), sources, kept, targets, weights.to(dtype), size, True)


def test_everyone_into_one(backend):
    """A sum as long as a picture: r = P - 1 sources in a single survivor, in the order of the sources."""
    sources = torch.arange(2, 577)[None]
    kept = torch.tensor([[0, 1]])
    targets, weights = torch.ones(1, 575, 1, dtype=torch.int64), torch.ones(1, 575, 1)
    tokens = torch.randn(1, 577, 33) + 1
    out, size, _ = assert_merges(backend, tokens, sources, kept, targets, weights)
    assert size.flatten().tolist() == [1, 576]
    assert torch.equal(out[0, 0], tokens[0, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sources_are_added_in_their_order(backend, dtype):
    """Bit for bit the sum in float32, one source after the other, where neighbours receive hundreds, as text does."""
    if backend.name == "reference":
        pytest.skip("a matrix product has an order of its own")
    n, r, k, c = 900, 400, 4, 264
    sources, kept = partition(1, n, r, True)
    targets, _ = links(1, r, n - r, k, True)
    targets[:, ::2, 0], targets[:, ::2, 1], targets[:, ::2, 2:] = 40, 41, torch.tensor([48, 499])
    targets[:, 1::2, 0] = 41  # of two edges to one survivor the second is one more
    tokens = torch.randn(1, n, c).to(dtype)
    out, size, _ = backend("compress", tokens, sources, kept, targets, torch.ones(1, r, k), None, False)
    sums, counts = tokens[0, kept[0]].float(), torch.ones(n - r)
    for i in range(r):
        for j in targets[0, i]:
            sums[j] += tokens[0, sources[0, i]].float()
            counts[j] += 1
    assert torch.equal(out[0], (sums / counts[:, None]).to(dtype))
    assert torch.equal(size.flatten(), counts)


def test_first_of_equal_weights_holds_the_source(backend):
    targets, weights = torch.tensor([[[3, 1, 2]]]), torch.tensor([[[0.25, 0.375, 0.375]]])
    source_map = assert_merges(
        backend, torch.randn(1, 5, 2), torch.tensor([[2]]), torch.tensor([[0, 1, 3, 4]]), targets, weights
    )[2]
    assert source_map.tolist() == [[0, 1, 1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number_is_copied(backend, dtype):
    """Subnormal, infinite and NaN bit patterns survive a token that receives nothing."""
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 1, -1).expand(1, 2, -1)
    none = torch.zeros(1, 0, 1, dtype=torch.int64)
    everyone = torch.tensor([[0, 1]])
    out = backend("compress", patterns, none[..., 0], everyone, none, torch.zeros(1, 0, 1), None, False)[0]
    number = ~patterns.isnan()
    assert torch.equal(out.isnan(), ~number)
    assert torch.equal(out.view(torch.int16)[number], patterns.view(torch.int16)[number])
    if backend.name != "reference":  # which goes through float32 and may set a bit of a NaN
        assert torch.equal(out.view(torch.int16), patterns.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number_is_read_and_rounded(backend, dtype):
    """(a + b) / 2 for all a and many b: exactly what torch computes in float32 and rounds to nearest even."""
    a = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    ones = torch.ones(1, 1, 1)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    for step in (0, 1, 2, 1023, 4099, 30001, 65535):
        b = a.roll(step)
        tokens = torch.stack([a, b])[None]
        out = backend("compress", tokens, zero + 1, zero, zero.unsqueeze(-1), ones, None, False)[0][0, 0]
        wanted = ((a.float() + b.float()) / 2).to(dtype)
        assert torch.equal(out.isnan(), wanted.isnan())
        assert torch.equal(out[~out.isnan()], wanted[~wanted.isnan()])
    assert (wanted.abs() < torch.finfo(dtype).tiny).any()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_bad_source_spoils_its_own_targets_only(backend, value):
    """Eq. 2 sums over a survivor's own sources: 0 * inf of somebody else's is no part of it."""
    tokens = torch.randn(1, 6, 4)
    tokens[0, 4] = value
    sources, kept = torch.tensor([[4, 5]]), torch.tensor([[0, 1, 2, 3]])
    out = backend("compress", tokens, sources, kept, torch.tensor([[[1], [2]]]), torch.ones(1, 2, 1), None, False)[0]
    assert not out[0, 1].isfinite().any()
    assert out[0, [0, 2, 3]].isfinite().all()
    assert torch.allclose(out[0, 2], (tokens[0, 2] + tokens[0, 5]) / 2)


def test_a_token_that_is_nowhere(backend):
    """Sources and kept that do not name token 2: the specification maps it to -1."""
    none = torch.zeros(1, 1, 0, dtype=torch.int64)
    for _ in range(3):
        torch.full((1, 4), 7)  # memory that an unwritten result would show
        args = (torch.randn(1, 4, 2), torch.tensor([[1]]), torch.tensor([[0, 1, 3]]), none, torch.zeros(1, 1, 0))
        assert backend("compress", *args, None, False)[2][0, 2] == -1


@pytest.mark.parametrize(("r", "k"), [(51, 5), (128, 2), (257, 1), (256, 5), (427, 3), (520, 5)])
def test_as_many_edges_as_one_list_holds_and_more(backend, r, k):
    """255, 256, 257, 1280, 1281 and 2600 edges, most of them in three survivors: sums go on from list to list."""
    n = 600
    sources, kept = partition(1, n, r, True)
    popular = torch.tensor([1, 40, n - r - 1])
    targets = torch.rand(1, r, n - r - 1).argsort(-1)[..., :k] + 1
    for i in range(0, r, 2):
        chosen = popular[torch.randperm(3)[: min(k, 3)]]
        others = targets[0, i][~torch.isin(targets[0, i], chosen)][: k - len(chosen)]
        targets[0, i] = torch.cat([chosen, others])
    weights = torch.rand(1, r, k)
    size = torch.randint(1, 5, (1, n, 1)).float()
    assert_merges(
        backend, torch.randn(1, n, 9), sources, kept, targets, weights / weights.sum(-1, keepdim=True), size, True
    )


@pytest.mark.parametrize("size_weighted", [False, True])
def test_conservation(backend, size_weighted):
    """T1, T2: nothing is lost, equal tokens stay equal."""
    n, r, k = 577, 140, 3
    sources, kept = partition(2, n, r, True)
    targets, weights = links(2, r, n - r, k, True)
    size = torch.randint(1, 5, (2, n, 1)).float()
    tokens = torch.randn(2, n, 16)
    out, new_size, _ = backend("compress", tokens, sources, kept, targets, weights, size, size_weighted)
    assert torch.allclose(new_size.sum(1), size.sum(1), rtol=1e-6)
    if size_weighted:
        assert_close((new_size * out).double().sum(1), (size * tokens).double().sum(1), 577, scale=20.0)
    else:
        ones = backend("compress", tokens, sources, kept, targets, weights, None, False)[1]
        assert_close((ones * out).double().sum(1), tokens.double().sum(1), 577, scale=20.0)
    low, high = tokens.amin((1, 2), keepdim=True), tokens.amax((1, 2), keepdim=True)
    assert ((out >= low - 1e-5) & (out <= high + 1e-5)).all()
    flat = torch.full((2, n, 3), 2.5)
    assert_close(
        backend("compress", flat, sources, kept, targets, weights, size, size_weighted)[0], flat.double()[:, r:], 9
    )


def test_no_items_and_no_channels(backend):
    for b, r, k, c in ((0, 4, 2, 3), (2, 4, 2, 0), (0, 0, 0, 0)):
        sources, kept = partition(b, 12, r, True)
        targets, weights = links(b, r, 12 - r, k, True)
        shapes = [
            tuple(t.shape)
            for t in backend("compress", torch.randn(b, 12, c), sources, kept, targets, weights, None, False)
        ]
        assert shapes == [(b, 12 - r, c), (b, 12 - r, 1), (b, 12)]
