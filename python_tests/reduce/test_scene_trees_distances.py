"""What FlashVID's select compares, and how often: copies, masks, large channels, and the price of it."""

from __future__ import annotations

import pytest
import torch

from ficoco_ext import get_method
from ficoco_ext.ops.costs import evaluate
from ficoco_ext.stages import IntoTrees, SceneTrees, Selection, Shape, VisualFeatures

PLAIN = SceneTrees(weigh=0.0)


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def links_of(settings, visual, kept, notes=None):
    """Links of what leaves, and what that is."""
    gone = torch.stack([torch.tensor(sorted(set(range(visual.features.shape[1])) - set(own))) for own in kept.tolist()])
    return IntoTrees(settings)(visual, Selection(torch.empty(0), gone, kept, notes=notes)), gone


def test_of_copies_the_same_stay_with_a_mask_and_under_autocast():
    """Cosines of copies are equal bit for bit, so the lowest index decides and not rounding."""
    for seed in range(60):
        chosen = torch.randint(0, 10, (48,), generator=torch.Generator().manual_seed(seed))
        visual = VisualFeatures(draw(seed, 1, 10, 64)[:, chosen], frames=2)
        masked = visual._replace(mask=torch.ones(1, 48, dtype=torch.bool))
        wanted = PLAIN(visual, 16)
        padded = torch.nn.functional.pad(visual.features.view(2, 24, 64), (0, 0, 0, 5), value=float("nan"))
        there = (torch.arange(29) < 24).repeat(2).view(1, 58)
        longer = VisualFeatures(padded.view(1, 58, 64), mask=there, frames=2)
        assert torch.equal(PLAIN(masked, 16), wanted), seed
        assert torch.equal(PLAIN(longer, 16), wanted + 5 * (wanted >= 24)), seed
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(PLAIN(masked, 16), wanted), seed


@pytest.mark.parametrize(("diverse", "share", "picks"), [(0.6, 85, 51), (0.7, 30, 21), (0.55, 180, 99)])
def test_shares_that_are_integers_are_not_rounded_up(diverse, share, picks):
    """0.6 times 85 is 51, which in float32 is a little more."""
    settings, features = SceneTrees(diverse, weigh=0.0), draw(0, 1, 400, 4)
    for mask in (None, torch.ones(1, 400, dtype=torch.bool)):
        made = settings.trees(VisualFeatures(features, mask, frames=2), 2 * share)
        assert made.diverse.view(2, 200).sum(1).tolist() == [picks, picks]


def test_a_root_without_a_centre_in_its_frame_goes_to_the_nearest():
    """Also where one channel is so large that products of features would cancel."""
    settings, alone = SceneTrees(0.3, weigh=0.0), 0
    for seed in range(20):
        features = 0.05 * draw(seed, 1, 96, 64)
        features[:, :, 0] += 60.0
        visual = VisualFeatures(features, frames=8)
        made = settings.trees(visual, 12)
        links, gone = links_of(settings, visual, made.kept)
        kept, means = made.kept[0], made.means[0].double()
        with_centre = set((kept[~made.diverse[0, kept]] // 12).tolist())
        for target, root in zip(links.targets[0, :, 0].tolist(), made.root[0, gone[0]].tolist(), strict=True):
            if root // 12 not in with_centre and root not in kept.tolist():
                distance = (means[root] - means[kept]).norm(dim=1)
                assert float(distance[target]) <= float(distance.min()) * (1 + 1e-6)
                alone += 1
    assert alone > 300


@pytest.mark.parametrize(
    ("frames", "each", "count", "to_kept"),
    [(1, 150, 20, False), (4, 70, 40, False), (4, 70, 12, True), (1, 64, 3, True)],
)
@pytest.mark.parametrize("merge", [False, True])
def test_distances_are_made_once_and_priced(frames, each, count, to_kept, merge, monkeypatch):
    """Merging uses those of the select, and needs others only where a frame may have no centre."""
    real, counted = torch.cdist, []

    def counting(one, other, **mode):
        assert mode == {"compute_mode": "donot_use_mm_for_euclid_dist"}
        counted.append(3 * one.shape[0] * one.shape[1] * other.shape[1] * one.shape[2])
        return real(one, other, **mode)

    monkeypatch.setattr(torch, "cdist", counting)
    tokens, method = frames * each, get_method("flashvid", merge=merge, weigh=0.0)
    method(VisualFeatures(draw(0, 2, tokens, 16), frames=frames), count)
    shape = Shape(2, tokens, tokens, tokens - count, 16, 1, 1, 16, frames=frames)
    found = {one.name: evaluate(one.operations, values) for one, values in method.operations(shape)}
    assert sum(counted) == found["density_peaks"] + found.get("to_kept", 0)
    assert ("to_kept" in found) == (merge and to_kept)
    assert found.get("cosines", 0) == (2 * 2 * frames * each * each * 16 if frames > 1 else 0)


@pytest.mark.parametrize("count", [1, 7, 30, 60])
def test_with_what_the_select_noted_links_are_the_same(count):
    """Notes of other settings are not used."""
    visual = VisualFeatures(draw(0, 2, 90, 8).cumsum(1), frames=9)
    kept, made = PLAIN.noted(visual, count)
    assert torch.equal(kept, PLAIN(visual, count))
    for settings in (PLAIN, SceneTrees(0.4, scenes=2, neighbours=3, weigh=0.0)):
        kept = settings(visual, count)
        (wanted, _), (found, _) = (links_of(settings, visual, kept, notes) for notes in (None, made))
        assert torch.equal(wanted.targets, found.targets)
