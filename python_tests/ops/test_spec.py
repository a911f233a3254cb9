"""The specification itself, against plain loops over tiny cases, written from the equations (arXiv 2411.17686)."""

import math
from fractions import Fraction
from itertools import product

import pytest
import torch
from helpers.ops import merge_matrix, partition, query_key

from ficoco_ext.ops import reference
from ficoco_ext.stages import adaptive_targets


def loops_map(query, key, scale, probs):
    """A[b][i][j]: mean over heads of <q_i, k_j> * scale, or of its softmax over j."""
    b, h, n, _ = query.shape
    group = h // key.shape[1]
    out = torch.zeros(b, n, n, dtype=torch.float64)
    for item, head, i in product(range(b), range(h), range(n)):
        q = query[item, head, i].tolist()
        keys = key[item, head // group].tolist()
        logits = [scale * sum(x * y for x, y in zip(q, k, strict=True)) for k in keys]
        if probs:
            exps = [math.exp(logit) for logit in logits]
            logits = [value / sum(exps) for value in exps]
        out[item, i] += torch.tensor(logits, dtype=torch.float64) / h
    return out


def tiny(h=4, hk=2, n=7, d=3, b=2):
    return [one.double() for one in query_key(b, h, hk, n, d)]


@pytest.mark.parametrize("probs", [False, True])
def test_attention_map(probs):
    query, key = tiny()
    assert torch.allclose(reference.attention_map(query, key, 0.4, probs), loops_map(query, key, 0.4, probs))


def test_attention_map_is_that_of_sdpa():
    """The probabilities that scaled_dot_product_attention uses: with the identity as values it returns them."""
    query, key = tiny()
    eye = torch.eye(7, dtype=torch.float64).expand(2, 2, 7, 7)
    maps = torch.nn.functional.scaled_dot_product_attention(query, key, eye, enable_gqa=True)
    assert torch.allclose(reference.attention_map(query, key, 3**-0.5, True), maps.mean(1))


@pytest.mark.parametrize("probs", [False, True])
def test_attention_rows(probs):
    query, key = tiny()
    index = torch.tensor([[1, 4], [0, 6]])
    rows = loops_map(query, key, 0.4, probs)
    wanted = torch.stack([rows[item][index[item]] for item in range(2)])
    assert torch.allclose(reference.attention_rows(query, key, 0.4, probs, index), wanted)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("probs", [False, True])
def test_attention_stats(probs, column, class_token):
    query, key = tiny()
    attn, first = loops_map(query, key, 0.4, probs), int(class_token)
    class_attention, patch_attention = reference.attention_stats(query, key, 0.4, class_token, probs, column, True)
    patches = range(first, 7)
    for b, i in product(range(2), patches):
        given = [float(attn[b, j, i] if column else attn[b, i, j]) for j in patches]
        assert patch_attention[b, i - first].item() == pytest.approx(sum(given) / len(given))
        if class_token:
            assert class_attention[b, i - 1].item() == pytest.approx(float(attn[b, 0, i]))
    by_map = reference.attention_stats_map(attn, class_token, column, True)
    assert torch.allclose(by_map[1], patch_attention)
    if class_token:
        assert torch.allclose(by_map[0], class_attention)
    else:
        assert torch.equal(by_map[0], torch.zeros(2, 7, dtype=torch.float64))


def test_row_means_of_probabilities_say_little():
    """Fact F3: (1 - A_i,cls) / P."""
    query, key = tiny()
    attn = loops_map(query, key, 0.4, True)
    rows = reference.attention_stats(query, key, 0.4, True, True, False, True)[1]
    assert torch.allclose(rows, (1 - attn[:, 1:, 0]) / 6)


def test_without_a_class_token_unlike_keys_stand_in():
    """-cos(mean over patches of the head-mean keys, head-mean key) (eq. 9-13)."""
    query, key = tiny()
    class_attention = reference.attention_stats(query, key, 0.4, False, False, False, True)[0]
    for b in range(2):
        keys = [[sum(key[b, h, i, c].item() for h in range(2)) / 2 for c in range(3)] for i in range(7)]
        mean = [sum(k[c] for k in keys) / 7 for c in range(3)]
        for i, k in enumerate(keys):
            dot = sum(x * y for x, y in zip(mean, k, strict=True))
            assert class_attention[b, i].item() == pytest.approx(-dot / math.hypot(*mean) / math.hypot(*k))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("lam", [0.35, 0.65])
def test_redundancy(lam, normalize):
    """s = lam p - (1 - lam) a; 0.65 and both normalised is what the authors' code computes (T4)."""
    patch, cls = torch.randn(2, 12).double(), torch.randn(2, 12).double()
    redundancy, sources, _ = reference.filter(patch, cls, None, 5, lam, normalize, 1.0, 2, 3, 4, True)
    for b in range(2):
        norms = [math.hypot(*one[b].tolist()) if normalize else 1.0 for one in (patch, cls)]
        wanted = [
            lam * x / norms[0] - (1 - lam) * y / norms[1]
            for x, y in zip(patch[b].tolist(), cls[b].tolist(), strict=True)
        ]
        assert redundancy[b].tolist() == pytest.approx(wanted)
        highest = sorted(range(12), key=lambda i: -wanted[i])[:5]
        assert sources[b].tolist() == sorted(i + 1 for i in highest)


def loops_penalty(scores, ids, grid, window, penalty):
    """Section 3.2: the highest of each whole window is multiplied if positive, divided if negative."""
    at = dict(zip(ids, range(len(ids)), strict=True))
    out = list(scores)
    for top, left in product(range(0, grid[0] - window + 1, window), range(0, grid[1] - window + 1, window)):
        alive = [
            at[place]
            for place in (
                row * grid[1] + column for row in range(top, top + window) for column in range(left, left + window)
            )
            if place in at
        ]
        if alive:
            best = max(alive, key=lambda i: (scores[i], -ids[i]))
            out[best] = scores[best] * penalty if scores[best] > 0 else scores[best] / penalty
    return out


@pytest.mark.parametrize("grid", [(4, 4), (5, 5), (5, 6), (4, 7), (9, 3)])
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("penalty", [2.0, 3.0, 1.0])
def test_local_penalty(grid, window, penalty):
    """T6, with odd grids, cells that are dead, windows without anyone alive, and shuffled ids."""
    cells = grid[0] * grid[1]
    for alive in (cells, cells // 2, 2):
        ids = torch.rand(2, cells).argsort(1)[:, :alive]
        scores = torch.randn(2, alive).double()
        got = reference.local_penalty(scores, ids, grid, window, penalty)
        for b in range(2):
            wanted = loops_penalty(scores[b].tolist(), ids[b].tolist(), grid, window, penalty)
            assert got[b].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (7, 1), (2, 2)])
def test_a_grid_thinner_than_a_window_has_no_penalty(grid):
    cells = grid[0] * grid[1]
    scores, ids = torch.randn(2, cells), torch.arange(cells).expand(2, cells)
    assert torch.equal(reference.local_penalty(scores, ids, grid, 3, 2.0), scores)


def test_local_penalty_by_sign():
    scores = torch.tensor([[3.0, -1.0, -4.0, -2.0, 0.0, -1.0, 5.0, 5.0]])
    wanted = [[6.0, -1.0, -4.0, -1.0, 0.0, -1.0, 10.0, 5.0]]
    ids = torch.tensor([[0, 1, 2, 3, 8, 9, 10, 11]])
    assert reference.local_penalty(scores, ids, (4, 4), 2, 2.0).tolist() == [
        [6.0, -1.0, -4.0, -1.0, 0.0, -1.0, 10.0, 5.0]
    ] == wanted  # fmt: skip
    zero = torch.zeros(1, 4)
    assert torch.equal(reference.local_penalty(zero, torch.arange(4)[None], (2, 2), 2, 2.0), zero)


def test_a_raised_maximum_stays_in_its_window():
    """T6: doubling the highest of one window changes no other window's score."""
    scores = torch.rand(1, 36) + 0.1
    ids = torch.arange(36)[None]
    before = reference.local_penalty(scores, ids, (6, 6), 2, 2.0)
    window = [0, 1, 6, 7]
    best = window[scores[0, window].argmax()]
    scores[0, best] *= 2
    changed = (reference.local_penalty(scores, ids, (6, 6), 2, 2.0) != before).nonzero()[:, 1].tolist()
    assert changed == [best]


@pytest.mark.parametrize(
    "eps", ["0", "0.07", "0.29", "0.5", "0.55", "0.57", "0.9", "0.99", "0.992", "0.994", "0.996", "0.998", "1"]
)
def test_adaptive_count_is_that_of_the_quantile(eps):
    """#(row >= quantile(row, eps)) of distinct values, with exact fractions, and as torch.quantile finds it."""
    for m in [*range(1, 130), 500, 501, 502, 576, 577, 1000, 1001, 1002, 2880]:
        got = adaptive_targets(m, float(eps))
        place = Fraction(eps) * (m - 1)  # of the quantile among the sorted values, by linear interpolation
        assert got == m - math.ceil(place)
        assert 1 <= got <= m
        row = torch.randperm(m).double()
        quantile = torch.quantile(row, float(eps))
        if place.denominator > 1:  # on a value itself, rounding decides on which side torch's quantile falls
            assert got == (row >= quantile).sum()


def test_adaptive_counts_of_the_paper():
    assert [adaptive_targets(m, 0.998) for m in (1, 2, 500, 501, 1000, 1001)] == [1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("alpha", ["softmax", "ratio", "average"])
@pytest.mark.parametrize("class_token", [False, True])
def test_correlate(alpha, class_token):
    """Targets are kept patches, weights follow eq. 2; the row maximum is always among them."""
    first = int(class_token)
    query, key = tiny(n=12)
    attn = loops_map(query, key, 1.0, True)
    sources, kept = partition(2, 12, 4, class_token)
    calls = {
        "map": reference.correlate_map(attn, sources, kept, 3, alpha, class_token),
        "probs": reference.correlate(query, key, sources, kept, 3, 1.0, alpha, class_token, True),
    }
    for targets, weights in calls.values():
        for b, i in product(range(2), range(4)):
            row = {j: float(attn[b, sources[b, i], kept[b, j]]) for j in range(first, 8)}
            best = sorted(row, key=lambda j: (-row[j], j))[:3]
            chosen = [row[j] for j in best]
            if alpha == "softmax":
                chosen = [math.exp(value) for value in chosen]
            elif alpha == "average":
                chosen = [1.0] * 3
            assert targets[b, i].tolist() == best
            assert weights[b, i].tolist() == pytest.approx([value / sum(chosen) for value in chosen])


def test_correlate_by_key():
    _, key = tiny(n=9)
    sources, kept = partition(2, 9, 3, True)
    targets, weights = reference.correlate_key(key, sources, kept, 2, "softmax", True)
    mean = key.mean(1)
    for b, i in product(range(2), range(3)):
        row = [
            torch.cosine_similarity(mean[b, sources[b, i]], mean[b, token], dim=0).item()
            for token in kept[b, 1:].tolist()
        ]
        best = sorted(range(5), key=lambda j: -row[j])[:2]
        assert (targets[b, i] - 1).tolist() == best
        assert weights[b, i].tolist() == pytest.approx(
            torch.tensor([row[j] for j in best]).double().softmax(0).tolist()
        )


def test_compress_in_numbers():
    """Two sources into one of two survivors: (1 + .5 * 3 + 1 * 5) / (1 + .5 + 1), (10 + .5 * 3) / 1.5."""
    tokens = torch.tensor([[[1.0], [3.0], [10.0], [5.0]]]).double()
    sources, kept = torch.tensor([[1, 3]]), torch.tensor([[0, 2]])
    targets, weights = torch.tensor([[[0, 1], [0, 1]]]), torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]).double()
    out, size, source_map = reference.compress(tokens, sources, kept, targets, weights, None, False)
    assert out.flatten().tolist() == pytest.approx([7.5 / 2.5, 11.5 / 1.5])
    assert size.flatten().tolist() == [2.5, 1.5]
    assert source_map.tolist() == [[0, 0, 1, 0]]
    z = torch.tensor([[[2.0], [4.0], [1.0], [1.0]]]).double()
    out, size, _ = reference.compress(tokens, sources, kept, targets, weights, z, True)
    assert out.flatten().tolist() == pytest.approx([(2 + 2 * 3 + 5) / 5, (10 + 2 * 3) / 3])
    assert size.flatten().tolist() == [5.0, 3.0]
    out, size, _ = reference.compress(tokens, sources, kept, targets, weights, z, False)
    assert out.flatten().tolist() == pytest.approx([7.5 / 2.5, 11.5 / 1.5])
    assert size.flatten().tolist() == [5.0, 3.0]


@pytest.mark.parametrize("size_weighted", [False, True])
def test_compress_is_a_matrix(size_weighted):
    sources, kept = partition(2, 15, 5, True)
    targets = torch.rand(2, 5, 9).argsort(-1)[..., :3] + 1
    weights = torch.rand(2, 5, 3).double().softmax(-1)
    tokens, size = torch.randn(2, 15, 4).double(), torch.randint(1, 9, (2, 15, 1)).double()
    out, new_size, _ = reference.compress(tokens, sources, kept, targets, weights, size, size_weighted)
    for b in range(2):
        matrix, sums = merge_matrix(15, sources[b], kept[b], targets[b], weights[b], size[b], size_weighted)
        assert torch.allclose(matrix.sum(1), torch.ones(10).double())
        assert torch.allclose(out[b], matrix @ tokens[b])
        assert torch.allclose(new_size[b, :, 0], sums)
