"""filter: redundancy, local penalty and selection, against the specification in float64."""

from itertools import product

import pytest
import torch
from helpers.backends import tolerance
from helpers.ops import DTYPES, LAYOUTS, SIZES, assert_close, assert_selects, laid, oracle

GRIDS = {1: (1, 1), 2: (1, 2), 31: (1, 31), 32: (4, 8), 33: (3, 11), 575: (23, 25), 576: (24, 24), 577: (1, 577)}
GRIDS |= {2880: (48, 60), 30: (5, 6), 574: (14, 41), 2879: (1, 2879)}


def gaps(redundancy, ids, r, window, grid):
    """The narrowest decision: between the best two of a window, and between the last source and the first kept."""
    narrowest = float("inf")
    for scores, places in zip(redundancy.tolist(), ids.tolist(), strict=True):
        windows = {}
        for score, place in zip(scores, places, strict=True):
            windows.setdefault((place // grid[1] // window, place % grid[1] // window), []).append(score)
        for members in windows.values():
            best = sorted(members)[-2:]
            narrowest = min(narrowest, best[-1] - best[0] if len(best) == 2 else narrowest)
    return narrowest


def boundary(redundancy, r):
    """The gap between the last source and the first kept patch, the narrowest of the batch."""
    ranked = redundancy.sort(1, descending=True).values
    return (ranked[:, r - 1] - ranked[:, r]).min().item() if 0 < r < ranked.shape[1] else float("inf")


def decisive(b, p, dtype, ids, rest, slack=8e-6):
    """Scores for which float32 takes every decision as float64 does: no gap is narrower than ``slack``."""
    r, lam, normalize, penalty, window, *grid, class_token = rest
    places = torch.arange(p).expand(b, p) if ids is None else ids
    for seed in range(500):
        generator = torch.Generator().manual_seed(seed)
        scores = [(torch.randn(b, p, generator=generator) + 0.3).to(dtype) for _ in range(2)]
        before = oracle("filter", *scores, places, r, lam, normalize, 1.0, window, *grid, class_token)[0]
        after = oracle("filter", *scores, places, r, lam, normalize, penalty, window, *grid, class_token)[0]
        limit = slack * max(before.abs().max().item(), after.abs().max().item())
        clear = penalty == 1 or gaps(before, places, r, window, grid) > limit
        if clear and boundary(after, r) > limit:
            return scores
    raise AssertionError("no seed gives clear decisions")


def check(backend, b, p, dtype, ids, *rest, layout="contiguous"):
    r, *_, class_token = rest
    scores = [laid(one, layout) for one in decisive(b, p, dtype, ids, rest)]
    redundancy, sources, kept = backend("filter", *scores, ids, *rest)
    wanted = oracle("filter", *scores, ids, *rest)
    assert redundancy.dtype == torch.float32
    assert_close(redundancy, wanted[0], p if rest[2] else 1)
    assert_selects(sources, kept, p + class_token, r, class_token)
    assert torch.equal(sources, wanted[1])
    assert torch.equal(kept, wanted[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", SIZES)
def test_sizes(backend, p, dtype):
    b = 1 if p > 2000 else 3
    # bfloat16 has so few values that windows of many patches hold equal ones: those have their own test.
    penalties = (1.0,) if dtype == torch.bfloat16 and p > 100 else (1.0, 2.0)
    if dtype == torch.float16 and p > 2000:
        penalties = (1.0,)
    for r, penalty, class_token in product({0, min(1, p - 1), p // 4, p - 1}, penalties, (False, True)):
        check(backend, b, p, dtype, None, r, 0.35, True, penalty, 2, *GRIDS[p], class_token)


@pytest.mark.parametrize("lam", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_weights_and_windows(backend, lam, normalize, window):
    for penalty, grid in product((1.0, 1.5, 4.0), ((6, 6), (5, 7), (4, 9))):
        check(backend, 2, grid[0] * grid[1], torch.float32, None, 9, lam, normalize, penalty, window, *grid, True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(backend, dtype, layout):
    if layout == "transposed":
        layout = "strided"  # two dimensions have none
    check(backend, 3, 36, dtype, None, 10, 0.6, True, 1.0, 2, 6, 6, True, layout=layout)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("grid", [(8, 8), (7, 9), (1, 40), (40, 1), (5, 8)])
def test_ids(backend, grid, shuffled):
    """Some cells are empty, and patches need not stand in the order of their places."""
    places = torch.rand(3, grid[0] * grid[1]).argsort(1)[:, :29]
    ids = places if shuffled else places.sort(1).values
    for window in (2, 3):
        check(backend, 3, 29, torch.float32, ids, 7, 0.35, True, 2.0, window, *grid, True)
        strided = laid(ids.double(), "strided").nan_to_num().long()
        check(backend, 3, 29, torch.float32, strided, 7, 0.35, True, 2.0, window, *grid, False)


@pytest.mark.parametrize("class_token", [False, True])
def test_equal_scores_go_by_lowest_index(backend, class_token):
    first = int(class_token)
    scores = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0, 1.0, 1.0], [0.0] * 7])
    for r, wanted in (
        (2, [[1, 2], [0, 1]]),
        (4, [[0, 1, 2, 4], [0, 1, 2, 3]]),
        (5, [[0, 1, 2, 4, 5], [0, 1, 2, 3, 4]]),
    ):
        args = (scores, torch.zeros_like(scores), None, r, 1.0, False, 1.0, 2, 1, 7, class_token)
        redundancy, sources, kept = backend("filter", *args)
        assert torch.equal(redundancy, scores)
        assert (sources - first).tolist() == wanted
        assert_selects(sources, kept, 7 + first, r, class_token)


def test_negative_zero_equals_zero(backend):
    scores = torch.tensor([[0.0, -0.0, 0.0, -0.0, 1.0]])
    sources = backend("filter", scores, scores.clone(), None, 2, 1.0, False, 1.0, 2, 1, 5, False)[1]
    assert sources.tolist() == [[0, 4]]


def test_equal_scores_of_a_window_go_by_lowest_id(backend):
    """All equal: the first cell of every window is penalised, so the first cells are the sources."""
    flat = torch.ones(1, 16)
    redundancy, sources, _ = backend("filter", flat, flat, None, 4, 1.0, False, 2.0, 2, 4, 4, False)
    wanted = torch.ones(16)
    wanted[[0, 2, 8, 10]] = 2
    assert torch.equal(redundancy[0], wanted)
    assert sources.tolist() == [[0, 2, 8, 10]]
    ids = torch.arange(15, -1, -1)[None]  # the same places, listed backwards: lowest id, not lowest index
    redundancy, sources, _ = backend("filter", flat, flat, ids, 4, 1.0, False, 2.0, 2, 4, 4, False)
    assert torch.equal(redundancy[0], wanted.flip(0))
    assert sources.tolist() == [[5, 7, 13, 15]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_equal_scores(backend, dtype):
    """Eight values among 576 patches: ties in nearly every window and at the boundary, all by rule."""
    scores = torch.randint(-4, 4, (3, 576)).to(dtype)
    for r, penalty in product((1, 42, 288, 575), (1.0, 2.0)):
        args = (scores, scores, None, r, 1.0, False, penalty, 2, 24, 24, True)
        got, wanted = backend("filter", *args), oracle("filter", *args)
        assert torch.equal(got[0].double(), wanted[0])
        assert torch.equal(got[1], wanted[1])
        assert torch.equal(got[2], wanted[2])


def test_scores_of_zeros_are_normalized(backend):
    zeros = torch.zeros(2, 12)
    redundancy, sources, _ = backend("filter", zeros, zeros.clone(), None, 5, 0.35, True, 2.0, 2, 3, 4, False)
    assert torch.equal(redundancy, zeros)
    assert torch.equal(sources, torch.arange(5).expand(2, 5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_must_be_finite(backend, dtype, value):
    if not backend.reads_values:
        pytest.skip("reading the scores would synchronise")
    for term, normalize, penalty in product((0, 1), (False, True), (1.0, 2.0)):
        scores = [torch.rand(3, 9).to(dtype) for _ in range(2)]
        scores[term][1, 4] = value
        args = (*scores, None, 3, 0.5, normalize, penalty, 2, 3, 3, True)
        with pytest.raises(ValueError, match=r"ficoco::filter: redundancy must be finite"):
            backend("filter", *args)


@pytest.mark.parametrize("term", [0, 1])
def test_a_term_without_weight_is_not_read(backend, term):
    scores = [torch.rand(2, 9), torch.rand(2, 9)]
    scores[term].fill_(float("nan"))
    redundancy, _, _ = backend("filter", *scores, None, 3, float(term), False, 2.0, 2, 3, 3, True)
    assert redundancy.isfinite().all()


def test_no_items(backend):
    for r, penalty, class_token in product((0, 3, 8), (1.0, 2.0), (False, True)):
        empty = torch.zeros(0, 9)
        results = backend("filter", empty, empty, None, r, 0.5, True, penalty, 2, 3, 3, class_token)
        assert [tuple(result.shape) for result in results] == [(0, 9), (0, r), (0, 9 + class_token - r)]


@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1e30])
def test_normalized_scores_of_any_magnitude(backend, magnitude):
    """Squares of the scores leave the range of float32, the scores themselves do not."""
    if backend.name == "reference":
        pytest.skip("in float32 the specification takes the norm in float32")
    scores = torch.randn(2, 64) * magnitude
    args = (scores, scores.flip(1), None, 16, 0.35, True, 1.0, 2, 8, 8, True)
    assert_close(backend("filter", *args)[0], oracle("filter", *args)[0], 64)


def test_the_tolerance_keeps_its_promise():
    assert max(tolerance(length) for length in (1, 577, 1024, 2880, 10**6)) <= 1e-5
