"""The references themselves: published counts, and answers that can be found by other means than the reference's."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracles import downsample, greedy, language, pivots, tower, video
from oracles.basic import cosines, shared_out, unit


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_divprune_starts_with_the_most_lonely_and_spreads():
    corners = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0], [-1.0, 0.05]])
    assert greedy.divprune(corners, 1) == [2]
    assert greedy.divprune(corners, 2) == [0, 2] and greedy.divprune(corners, 3) == [0, 2, 3]
    assert greedy.divprune(draw(9, 4), 9) == list(range(9))


def test_coverage_is_the_greedy_maximum_of_its_sum():
    """The sum over tokens of the largest cosine to a kept one, at least 0, looked at from scratch in every round."""
    features = draw(10, 3)
    likeness, kept = cosines(features), []
    for _ in range(6):
        values = {j: float(likeness[:, [*kept, j]].amax(1).clamp(min=0).sum()) for j in set(range(10)) - set(kept)}
        kept.append(max(values, key=values.__getitem__))
    assert greedy.scope(features, torch.ones(10), 6, alpha=0.0) == sorted(kept)


def test_scope_takes_one_of_each_of_two_groups():
    groups = torch.cat([draw(5, 6) * 0.05 + torch.eye(6)[0], draw(5, 6, seed=1) * 0.05 + torch.eye(6)[1]])
    assert {index // 5 for index in greedy.scope(groups, torch.ones(10), 2)} == {0, 1}
    assert greedy.scope(groups, torch.zeros(10), 4) == greedy.scope(groups, torch.ones(10), 4, alpha=0.0)


def test_log_det_is_the_greedy_maximum_of_the_determinant():
    features, rho = draw(9, 12), draw(9, seed=1).abs() + 0.1
    for theta, blend in ((0.5, "exp"), (0.5, "linear"), (0.5, "product"), (0.0, "exp")):
        kernel, kept = greedy.cdpruner_kernel(features, rho, theta, blend), []
        for _ in range(6):
            others = set(range(9)) - set(kept)
            values = {j: float(torch.linalg.det(kernel[[*kept, j]][:, [*kept, j]])) for j in others}
            kept.append(max(values, key=values.__getitem__))
        assert greedy.determinant_picks(kernel, 6, rho) == kept


def test_cdpruner_on_orthogonal_features_is_the_relevance():
    features, words = torch.eye(8), torch.tensor([[8.0, 1, 7, 2, 6, 3, 5, 4]])
    for blend in ("exp", "linear", "product"):
        assert greedy.cdpruner(features, words, 4, blend=blend) == [0, 2, 4, 6]
        assert greedy.cdpruner(features, words, 4, blend=blend, sign=-1.0) == [1, 3, 5, 7]


def test_cdpruner_past_the_rank_goes_on_by_relevance():
    features = draw(12, 3)
    rho = greedy.word_relevance(features, draw(2, 3, seed=1))
    picks = greedy.determinant_picks(greedy.cdpruner_kernel(features, rho, 0.5, "exp"), 8, rho)
    assert len(set(picks)) == 8
    best = sorted((i for i in range(12) if i not in picks[:3]), key=lambda i: -rho[i])
    assert picks[3:] == best[:5]


def test_cdpruner_in_two_blocks_has_half_of_each():
    kept = greedy.cdpruner(draw(20, 6), draw(3, 6, seed=1), 8, blocks=2)
    assert sum(index < 10 for index in kept) == 4
    assert greedy.cdpruner(draw(20, 6), None, 8, theta=0.9) == greedy.cdpruner(draw(20, 6), None, 8, theta=0.0)


def test_mmtok_first_takes_what_is_asked_for():
    features = torch.eye(8)
    assert greedy.mmtok(features, features[5:6], 1) == [5]
    rows = torch.softmax(cosines(features) / 0.2, 1)
    assert greedy.mmtok(features, None, 3) == sorted(greedy.coverage_picks(rows, 3))


@pytest.mark.parametrize(("count", "contextual"), [(64, 10), (128, 20), (192, 30), (16, 2), (1, 0), (2, 1)])
def test_published_shares_of_visionzip(count, contextual):
    assert tower.contextual_count(count) == contextual


def test_visionzip_by_hand():
    """Of 8 tokens 5 stay: 3 by saliency; of the other 5 every second is a centre, until there are 2."""
    features, saliency = draw(8, 3), torch.tensor([9.0, 1, 8, 2, 7, 3, 4, 5])
    keys = torch.tensor([[0.0, 0], [1, 0], [0, 0], [1, 0.1], [0, 0], [0, 1], [0.1, 1], [1, 0.2]])
    found = tower.visionzip(features, saliency, keys, 5, 2)
    assert found.kept == [0, 1, 2, 4, 5] and found.centres == [1, 5]
    assert found.inherits == {3: 1, 6: 5, 7: 1}
    assert torch.allclose(found.features[1], features[1] + (features[3] + features[7]) / 2)
    mean = tower.visionzip(features, saliency, keys, 5, 2, "mean").features
    assert torch.allclose(mean[1], (features[1] + features[3] + features[7]) / 3)
    assert torch.equal(mean[[0, 2, 3]], features[[0, 2, 4]])


def test_vispruner_by_hand():
    """Even [4, 2, 0], odd [3, 1]: the even one that is most like an odd one leaves, and the order changes."""
    similarity = torch.zeros(5, 5)
    for a, b, value in ((4, 3, 0.5), (2, 1, 0.9), (0, 1, 0.7)):
        similarity[a, b] = similarity[b, a] = value
    assert tower.thin(similarity, [4, 3, 2, 1, 0], 4, 1) == [0, 4, 3, 1]
    assert tower.thin(similarity, [4, 3, 2, 1, 0], 2, 8) == [3, 1]
    assert tower.vispruner(torch.tensor([1.0, 5, 2, 4, 3]), draw(5, 3), 3, share=1.0) == [1, 3, 4]


@pytest.mark.parametrize(("p", "important"), [(192, 96), (128, 64), (64, 32)])
def test_vispruner_keeps_the_published_numbers(p, important):
    saliency = torch.arange(576.0)
    kept = tower.vispruner(saliency, draw(576, 8), p)
    assert len(kept) == p and set(range(576 - important, 576)) <= set(kept)


def test_hiprune_does_not_go_around_the_end_of_a_row():
    deep, shallow = torch.zeros(12), torch.zeros(12)
    shallow[3] = 1.0
    assert tower.hiprune(deep, shallow, (3, 4), 5, alpha=1.0) == [0, 1, 2, 3, 7]
    deep[8] = 1.0
    assert tower.hiprune(deep, shallow, (3, 4), 5, alpha=1.0) == [0, 2, 3, 7, 8]
    assert tower.hiprune(deep, shallow, (3, 4), 5, alpha=0.0) == [0, 1, 2, 3, 8]


def test_dart_has_exact_counts_where_the_published_code_has_132_for_128():
    features, words = draw(576, 16), draw(30, 16, seed=1)
    for count in (1, 3, 4, 5, 64, 128, 192, 575, 576):
        assert len(set(pivots.dart_after_projector(features, words, count))) == count
    norms = features.abs().sum(-1).argsort(descending=True)[:4]
    assert set(norms.tolist()) <= set(pivots.dart_after_projector(features, words, 4))


def test_dart_takes_what_differs():
    features = torch.tensor([[9.0, 0], [1, 0], [1, 0.1], [-1, 0], [0, 1]])
    assert pivots.dart_after_projector(features, torch.zeros(0, 2), 2, (1, 0)) == [0, 3]
    assert pivots.dart_after_projector(features, torch.tensor([[0.0, -5]]), 3, (1, 1)) == [0, 3, 4]


def test_vidcom2_shares():
    same = draw(4, 6).repeat(3, 1)
    kept = video.vidcom2(same, 3, 6)
    assert [sum(i // 4 == frame for i in kept) for frame in range(3)] == [2, 2, 2]
    odd = torch.cat([torch.ones(8, 6) + 0.01 * draw(8, 6), draw(4, 6)])
    kept = video.vidcom2(odd, 3, 6)
    counts = [sum(i // 4 == frame for i in kept) for frame in range(3)]
    assert counts[2] == max(counts) and sum(counts) == 6 and min(counts) >= 1


def test_vidcom2_of_one_frame_is_a_picture():
    features = draw(12, 6)
    tokens = unit(video.steady_channels(features))
    far = ((tokens - tokens.mean(0)) ** 2).sum(-1)
    assert video.vidcom2(features, 1, 5) == sorted(far.argsort(descending=True)[:5].tolist())


def test_what_is_claimed_becomes_whole_numbers():
    assert shared_out([1.5, 1.5, 3.0], 6, [4, 4, 4]) == [2, 1, 3]
    assert shared_out([0.2, 0.2, 5.6], 6, [4, 4, 4]) == [1, 1, 4]
    assert shared_out([0.1, 0.1, 2.8], 3, [4, 4, 4]) == [1, 1, 1]
    claims = torch.rand(50, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    for claim in claims.tolist():
        total = round(sum(claim))
        claim[0] += total - sum(claim)
        if claim[0] >= 1:
            counts, down = shared_out(claim, total, [9] * 5), [int(one) for one in claim]
            best = sorted(range(5), key=lambda i: -(claim[i] - down[i]))[: total - sum(down)]
            assert counts == [one + (i in best) for i, one in enumerate(down)]


@pytest.mark.parametrize(
    ("levels", "mean"),
    [((300, 200, 110), 192.03), ((303, 110, 36), 128.63), ((238, 48, 26), 96.94), ((66, 30, 17), 64.81)],
)
def test_published_counts_of_sparsevlm(levels, mean):
    """Kept and recycled in layers 2, 6 and 15 of 32: the mean over all layers, by which its tables are named."""
    tokens, total = 576, 0
    for layer in range(32):
        if layer in (2, 6, 15):
            kept = levels[(2, 6, 15).index(layer)]
            tokens = kept + len(language.sparsevlm(draw(tokens, 2), draw(tokens, seed=1), kept).features)
        total += tokens
    assert total / 32 == pytest.approx(mean, abs=0.01)


def test_every_recycled_token_is_in_the_nearest_cluster():
    features = draw(60, 4)
    found = language.sparsevlm(features, draw(60, seed=1), 10)
    assert len(found.chosen) == 16 and set(found.owner) == set(found.chosen) and len(found.features) == 2
    for token, centre in found.owner.items():
        others = {other: float((features[token] - features[other]).norm()) for other in set(found.owner.values())}
        assert others[centre] == min(others.values())


def test_density_peaks_find_separate_groups():
    groups = torch.cat([draw(6, 3, seed=i) * 0.1 + 10 * torch.eye(3)[i] for i in range(3)])
    found = language.dpc_knn(groups, 3, 3)
    assert {centre // 6 for centre in found.centres} == {0, 1, 2}
    assert all(i // 6 == owner // 6 for i, owner in enumerate(found.owner))


def test_text_raters():
    text = torch.tensor([[4.0, 0], [0, 4], [-1, 0]])
    assert language.text_raters(torch.tensor([[1.0, 0], [1, 0]]), text) == [0]
    assert language.text_raters(torch.zeros(2, 2), text) == [0, 1, 2]


def test_fitprune_multiplies_the_largest_head():
    attention = torch.zeros(2, 5, 5)
    attention[0, 2, 0], attention[1, 4, 0] = 0.5, 0.5
    attention[0, 2, 1], attention[1, 3, 1] = 0.9, 0.9
    attention[0, 4, 2] = 1.0
    assert language.fitprune(attention, [0, 1, 2], [3, 4], 1) == [1]
    assert language.fitprune(attention, [0, 1, 2], [3, 4], 2) == [0, 1]


@pytest.mark.parametrize(("size", "wanted"), list(itertools.product((1, 5, 12, 24), (1, 3, 4, 12))))
def test_downsampling(size, wanted):
    """Area: every cell cut into ``wanted`` pieces, ``size`` pieces averaged. Bilinear: as torch resizes."""
    row = draw(size)
    pieces = row.repeat_interleave(wanted).view(wanted, size).mean(1)
    assert torch.allclose(downsample.overlap(size, wanted) @ row, pieces)
    resized = torch.nn.functional.interpolate(row[None, None], wanted, mode="linear", align_corners=False)[0, 0]
    assert torch.allclose(downsample.linear(size, wanted) @ row, resized)
    picture = draw(size * 5, 3, seed=1)
    for how in ("area", "bilinear"):
        assert torch.allclose(downsample.downsample(picture, (size, 5), (size, 5), how), picture)
        found = downsample.downsample(picture, (size, 5), (wanted, 1), how)
        alone = downsample.downsample(picture, (size, 5), (size, 1), how)
        assert torch.allclose(found, downsample.downsample(alone, (size, 1), (wanted, 1), how))


def test_centres_of_a_smaller_grid():
    assert downsample.centres(24, 12) == list(range(1, 24, 2)) and downsample.centres(9, 3) == [1, 4, 7]
    assert downsample.grid_centres((4, 6), (2, 3)) == [7, 9, 11, 19, 21, 23]
