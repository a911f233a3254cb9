"""top_of_segments: exactly what sorting each segment by hand gives; ties, promises, refusals."""

from __future__ import annotations

import pytest
import torch
from helpers.ops import DTYPES

from ficoco_ext import ops


def wanted(scores, segments, counts):
    """Sorted by falling score, then by index: the first of each segment, together and ascending."""
    rows = []
    for item in range(scores.shape[0]):
        of = segments if segments.dim() == 1 else segments[item]
        kept = []
        for g in range(counts.shape[1]):
            members = [i for i in range(scores.shape[1]) if int(of[i]) == g]
            members.sort(key=lambda i: (-float(scores[item, i]), i))
            kept += members[: int(counts[item, g])]
        rows.append(sorted(kept))
    return torch.tensor(rows, dtype=torch.int64).view(scores.shape[0], -1)


def drawn(b, n, groups, shared, levels=None):
    """Random segments and counts that add up to the same total in every row."""
    segments = torch.randint(0, groups, (n,) if shared else (b, n))
    scores = torch.randn(b, n) if levels is None else torch.randint(0, levels, (b, n)).float() - levels // 2
    counts = torch.zeros(b, groups, dtype=torch.int64)
    total = int(torch.randint(0, n + 1, ()))
    for item in range(b):
        of = segments if shared else segments[item]
        for i in torch.randperm(n)[:total]:
            counts[item, of[i]] += 1
    return scores, segments, counts, total


def check(backend, scores, segments, counts, total):
    (found,) = backend("top_of_segments", scores, segments, counts, total)
    assert found.dtype == torch.int64 and found.shape == (scores.shape[0], total)
    assert torch.equal(found, wanted(scores, segments, counts))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("n", "groups"), [(1, 1), (2, 3), (31, 4), (33, 33), (130, 5), (576, 7)])
def test_sizes(backend, n, groups, shared, dtype):
    for levels in (None, 3):
        scores, segments, counts, total = drawn(3, n, groups, shared, levels)
        check(backend, scores.to(dtype), segments, counts, total)


def test_many_small_cases(backend):
    """Each a different count of tokens, segments and ties."""
    for case in range(40):
        n, groups = 1 + case % 13, 1 + case % 5
        check(backend, *drawn(2, n, groups, case % 2 == 0, 2 + case % 3))


@pytest.mark.parametrize("n", [1023, 1024, 1025, 2100])
def test_more_tokens_than_a_tile(backend, n):
    check(backend, *drawn(1, n, 3, True, 5))


def test_crops_of_a_picture(backend):
    """Five crops one after the other; each keeps its own number, the thumbnail all."""
    scores, segments = torch.rand(2, 5 * 576), torch.arange(5).repeat_interleave(576)
    counts = torch.tensor([[576, 10, 200, 0, 90], [576, 75, 75, 75, 75]])
    found = check(backend, scores, segments, counts, 876)
    assert torch.equal(found[:, :576], torch.arange(576).expand(2, 576))


def test_ties_take_the_lowest_index(backend):
    segments = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    for value in (0.0, 1.0, -2.0, float("inf"), -float("inf")):
        found = check(backend, torch.full((1, 8), value), segments, torch.tensor([[2, 1]]), 3)
        assert found.tolist() == [[0, 1, 2]]


def test_zeros_of_both_signs_are_equal(backend):
    scores = torch.tensor([[-0.0, 0.0, -0.0, 0.0]])
    check(backend, scores, torch.zeros(4, dtype=torch.int64), torch.tensor([[2]]), 2)


def test_infinity_is_a_score(backend):
    scores = torch.tensor([[0.0, float("inf"), -float("inf"), 1.0, -1.0]])
    for count in range(6):
        check(backend, scores, torch.zeros(5, dtype=torch.int64), torch.tensor([[count]]), count)


def test_all_and_none(backend):
    scores, segments = torch.randn(2, 9), torch.arange(9) % 2
    assert torch.equal(check(backend, scores, segments, torch.tensor([[5, 4]] * 2), 9), torch.arange(9).expand(2, 9))
    check(backend, scores, segments, torch.zeros(2, 2, dtype=torch.int64), 0)


def test_segments_of_no_token(backend):
    counts = torch.tensor([[0, 0, 3, 0, 2, 0]])
    check(backend, torch.randn(1, 7), torch.tensor([2, 4, 2, 4, 2, 4, 2]), counts, 5)


def test_nothing(backend):
    index = {"dtype": torch.int64}
    for b, n, groups in ((0, 5, 2), (2, 0, 2), (2, 0, 0)):
        args = (torch.randn(b, n), torch.zeros(n, **index), torch.zeros(b, groups, **index), 0)
        assert backend("top_of_segments", *args)[0].shape == (b, 0)
    given = (torch.randn(0, 5), torch.zeros(5, **index), torch.zeros(0, 1, **index), 3)
    assert backend("top_of_segments", *given)[0].shape == (0, 3)


def test_a_batch_is_its_rows(backend):
    scores, segments, counts, total = drawn(7, 60, 4, False, 6)
    (together,) = backend("top_of_segments", scores, segments, counts, total)
    for i in range(7):
        rows = (x[i : i + 1] for x in (scores, segments, counts))
        assert torch.equal(backend("top_of_segments", *rows, total)[0], together[i : i + 1])


def test_layouts(backend):
    """Scores, segments and counts that are not contiguous, and a list of segments that is expanded."""
    scores, segments, counts, total = drawn(3, 40, 4, False, 6)
    apart = (torch.stack([x, x], -1)[..., 0] for x in (scores, segments, counts))
    assert torch.equal(backend("top_of_segments", *apart, total)[0], wanted(scores, segments, counts))
    scores, segments, counts, total = drawn(3, 40, 4, True)
    check(backend, scores, segments.expand(3, 40), counts, total)


def test_float64_tells_scores_apart_that_float32_does_not():
    scores = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert ops.top_of_segments(scores, torch.tensor([0, 0]), torch.tensor([[1]]), 1).tolist() == [[1]]


def test_broken_promises_still_give_distinct_tokens(backend):
    """Where nothing is read: too few counts are filled up from the front, too many are cut."""
    scores, segments = torch.tensor([[1.0, 5.0, 2.0, 4.0, 3.0]]), torch.tensor([0, 0, 1, 1, 7])
    if backend.reads_values:
        pytest.skip("such counts are refused")
    few = backend("top_of_segments", scores, segments, torch.tensor([[1, 0]]), 3)[0]
    many = backend("top_of_segments", scores, segments, torch.tensor([[9, 9]]), 3)[0]
    assert few.tolist() == [[1, 0, 2]] and many.tolist() == [[0, 1, 2]]


BAD = [
    ("scores", {"scores": torch.randn(4)}, ValueError, r"scores must be \(B, N\)"),
    ("scores dtype", {"scores": torch.ones(2, 4, dtype=torch.int64)}, TypeError, "scores must be float32"),
    ("segments", {"segments": torch.tensor([0, 1, 0])}, ValueError, r"segments must be \(4,\) or \(2, 4\) int64"),
    ("segments dtype", {"segments": torch.zeros(4)}, TypeError, r"segments must be \(4,\) or \(2, 4\) int64"),
    ("counts", {"counts": torch.tensor([1, 1])}, ValueError, r"counts must be \(2, G\) int64"),
    ("counts dtype", {"counts": torch.ones(2, 2)}, TypeError, r"counts must be \(2, G\) int64"),
    ("total", {"total": 5}, ValueError, r"total must be in \[0, 4\], the number of tokens, got 5"),
    ("negative", {"total": -1}, ValueError, r"total must be in \[0, 4\]"),
]
ARGUMENTS = {
    "scores": torch.randn(2, 4),
    "segments": torch.tensor([0, 1, 0, 1]),
    "counts": torch.tensor([[1, 1], [2, 0]]),
    "total": 2,
}


@pytest.mark.parametrize(("change", "kind", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_refusals(backend, change, kind, message):
    with pytest.raises(kind, match=rf"ficoco::top_of_segments: {message}.*; "):
        backend("top_of_segments", *(ARGUMENTS | change).values())


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("scores", {"scores": torch.tensor([[0.0, float("nan"), 1.0, 2.0]] * 2)}),
        ("segments", {"segments": torch.tensor([0, 1, 2, 1])}),
        ("segments", {"segments": torch.tensor([0, 1, -1, 1])}),
        ("counts", {"counts": torch.tensor([[1, 0], [2, -1]]), "total": 1}),
        ("counts", {"counts": torch.tensor([[1, 1], [3, 0]]), "total": 3}),
        ("total", {"counts": torch.tensor([[1, 1], [1, 2]])}),
        ("total", {"total": 3}),
    ],
)
def test_values_are_checked_where_reading_is_free(backend, argument, change):
    if not backend.reads_values:
        pytest.skip("reads no values")
    with pytest.raises(ValueError, match=f"ficoco::top_of_segments: {argument} must be.*; "):
        backend("top_of_segments", *(ARGUMENTS | change).values())
