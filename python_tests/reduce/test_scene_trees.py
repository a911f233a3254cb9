"""FlashVID's select and its trees against loops written from the description, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.ops import DTYPES

from ficoco_ext import get_method, merge, ops, select
from ficoco_ext.ops.costs import evaluate
from ficoco_ext.stages import IntoTrees, SceneTrees, Selection, Shape, VisualFeatures, needs

PLAIN = SceneTrees(weigh=0.0)
SETTINGS = {
    "published": SceneTrees(),
    "plain": SceneTrees(0.3, 0.5, 2, 0.6, 3, 0.0),
    "squared": SceneTrees(0.5, -1.0, 1, 0.3, 2, 2.0),
}


def video(frames, each, b=1, d=16, drift=0.5, cuts=(), dtype=torch.float32):
    """Tokens that move a little from frame to frame, and begin anew at ``cuts``; with saliency."""
    scene, found = torch.randn(b, each, d), []
    for frame in range(frames):
        scene = torch.randn(b, each, d) if frame in cuts else scene + drift * torch.randn(b, each, d)
        found.append(scene)
    features = torch.cat(found, 1).to(dtype)
    return VisualFeatures(features, saliency=torch.rand(b, frames * each) + 0.01, frames=frames)


def cosine(one, other):
    return float(one @ other) / (max(float(one.norm()), 1e-12) * max(float(other.norm()), 1e-12))


def picked(tokens, saliency, count):
    """Max-min diversity times saliency, one by one."""
    n = len(tokens)
    alike = [[1.0 if i == j else cosine(tokens[i], tokens[j]) for j in range(n)] for i in range(n)]
    chosen = []
    while len(chosen) < count:
        others = chosen or range(n)
        gains = {
            j: saliency[j] * (1 - max((alike[j][c] for c in others if c != j), default=-1.0))
            for j in range(n)
            if j not in chosen
        }
        chosen.append(max(gains, key=lambda j: (gains[j], -j)))
    return chosen


def scenes_of(tokens, frames, settings):
    """The frames at which a scene begins."""
    means = tokens.view(frames, -1, tokens.shape[1]).mean(1)
    alike = {f: cosine(means[f - 1], means[f]) for f in range(1, frames)}
    lowest = sorted(alike, key=lambda f: (alike[f], f))[: settings.scenes - 1]
    return {0, *lowest, *(f for f in alike if alike[f] < settings.cut)}


def trees(visual, count, settings, item=0):
    """Picks and the parent of each token that is linked, by hand."""
    tokens, frames = visual.features[item].double(), visual.frames
    n, each = len(tokens), len(tokens) // frames
    saliency = [1.0] * n if not settings.weigh else (visual.saliency[item].double() ** settings.weigh).tolist()
    picks = set()
    for f in range(frames):
        share = count * (f + 1) // frames - count * f // frames
        own = slice(f * each, (f + 1) * each)
        many = math.ceil(settings.diverse * share - 1e-9)
        picks |= {f * each + j for j in picked(tokens[own], saliency[own], many)}
    begins, wishes = scenes_of(tokens, frames, settings), {}
    for i in sorted(set(range(each, n)) - picks):
        f = i // each
        before = [j for j in range((f - 1) * each, f * each) if j not in picks]
        if f not in begins and before:
            best = max(before, key=lambda j: (cosine(tokens[i], tokens[j]), -j))
            strength = cosine(tokens[i], tokens[best])
            if strength > settings.link:
                wishes[i] = (strength, best)
    strongest = sorted(wishes, key=lambda i: (-wishes[i][0], i))[: n - count]
    return picks, {i: wishes[i][1] for i in strongest}


def by_hand(visual, count, settings, item=0):
    """Kept tokens, and for each token which of them holds it."""
    tokens, frames = visual.features[item].double(), visual.frames
    n, each = len(tokens), len(tokens) // frames
    picks, parents = trees(visual, count, settings, item)
    root = list(range(n))
    for i in range(n):
        while root[i] in parents:
            root[i] = parents[root[i]]
    mean = {r: torch.stack([tokens[i] for i in range(n) if root[i] == r]).mean(0) for r in sorted(set(root))}
    roots = [[r for r in mean if r // each == f and r not in picks] for f in range(frames)]
    ranked = [density_ranked(own, mean, settings.neighbours) for own in roots]
    wanted, got = count - len(picks), [0] * frames
    claims = [wanted * len(own) / max(1, sum(map(len, roots))) for own in roots]
    for f in sorted((f for f in range(frames) if roots[f]), key=lambda f: (-len(roots[f]), f))[:wanted]:
        got[f] = 1
    while sum(got) < wanted:
        free = [f for f in range(frames) if got[f] < len(roots[f])]
        got[max(free, key=lambda f: (claims[f] - got[f], -f))] += 1
    centres = [sorted(own[:many]) for own, many in zip(ranked, got, strict=True)]
    kept = sorted([*picks, *(c for own in centres for c in own)])
    holder = []
    for i in range(n):
        among = [root[i]] if root[i] in kept else centres[root[i] // each] or kept
        holder.append(min(among, key=lambda c: (float((mean[root[i]] - mean[c]).norm()), c)))
    return kept, holder


def density_ranked(own, mean, neighbours):
    """Roots of a frame, by density times separation."""
    width = math.sqrt(len(next(iter(mean.values()))))
    distance = {(i, j): float((mean[i] - mean[j]).norm()) / width for i in own for j in own}
    log = {}
    for i in own:
        near = sorted(distance[i, j] for j in own)[:neighbours]
        log[i] = -sum(x * x for x in near) / len(near)
    largest = max(distance.values(), default=0.0)
    score = {}
    for i in own:
        denser = [j for j in own if (log[j], -j) > (log[i], -i)]
        apart = min((distance[i, j] for j in denser), default=largest)
        score[i] = log[i] + (math.log(apart) if apart else -1e300)
    return sorted(own, key=lambda i: (-score[i], i))


def holders(settings, visual, count):
    """Kept tokens, and which of them holds each token, as the stages say."""
    kept = settings(visual, count)
    b, n, _ = visual.features.shape
    gone = torch.stack([torch.tensor([i for i in range(n) if i not in set(own)]) for own in kept.tolist()]).long()
    links = IntoTrees(settings)(visual, Selection(torch.empty(0), gone.view(b, n - count), kept))
    assert torch.equal(links.weights, torch.ones(b, n - count, 1, dtype=links.weights.dtype))
    found = torch.zeros(b, n, dtype=torch.int64).scatter(1, kept, kept)
    return kept, found.scatter(1, gone, kept.gather(1, links.targets.squeeze(2)))


@pytest.mark.parametrize(("frames", "each"), [(1, 24), (12, 6), (10, 1), (9, 11)])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_equals_the_description(frames, each, share, settings):
    visual = video(frames, each, b=2, cuts=(4,))
    count = max(1, round(share * frames * each))
    kept, found = holders(settings, visual, count)
    for item in range(2):
        wanted, wanted_holders = by_hand(visual, count, settings, item)
        assert kept[item].tolist() == wanted
        assert found[item].tolist() == wanted_holders


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_description_in_every_dtype(dtype):
    visual = video(10, 7, cuts=(3, 6), dtype=dtype)
    assert SceneTrees(scenes=3)(visual, 21)[0].tolist() == by_hand(visual, 21, SceneTrees(scenes=3))[0]


@pytest.mark.parametrize(("frames", "each"), [(1, 20), (10, 2), (5, 4), (20, 1)])
@pytest.mark.parametrize("drift", [0.0, 0.3, 3.0])
def test_exactly_as_many_as_asked_for(frames, each, drift):
    """Whatever is alike: ascending, distinct, and each frame has its diverse tokens."""
    visual = video(frames, each, b=2, drift=drift)
    for settings in (SceneTrees(), SceneTrees(scenes=1), SceneTrees(diverse=0.0, scenes=1), SceneTrees(diverse=1.0)):
        for count in range(1, 21):
            kept = settings(visual, count)
            assert kept.dtype == torch.int64 and kept.shape == (2, count) and kept.is_contiguous()
            assert bool((kept.diff() > 0).all()) and int(kept.min()) >= 0 and int(kept.max()) < 20
            for f in range(frames):
                share = count * (f + 1) // frames - count * f // frames
                least = math.ceil(settings.diverse * share - 1e-9)
                assert int((kept // each == f).sum(1).min()) >= least


def test_a_scene_that_stands_still():
    """Ten equal frames: what is not picked in its own frame is in a tree that begins in the first, and all go there."""
    visual = video(10, 8, drift=0.0)
    settings = SceneTrees(diverse=0.0, scenes=1)
    kept, found = holders(settings, visual, 5)
    assert int(kept.max()) < 8 and int(settings.trees(visual, 5).root.max()) < 8
    assert torch.equal(found.view(10, 8), found.view(10, 8)[:1].expand(10, 8))
    cut = SceneTrees(diverse=0.0, scenes=10)  # each frame is a scene: nothing is linked
    assert torch.bincount(cut(visual, 20)[0] // 8, minlength=10).tolist() == [2] * 10


def test_a_cut_ends_trees():
    visual = video(6, 8, drift=0.01, cuts=(3,))
    settings = SceneTrees(diverse=0.0, scenes=1, cut=0.9, link=-1.0)
    kept, found = holders(settings, visual, 8)
    assert set((kept // 8).flatten().tolist()) == {0, 3}
    assert bool(((found // 24) == (torch.arange(48) // 24)).all())
    no_cut = SceneTrees(diverse=0.0, scenes=1, cut=-1.0, link=-1.0)
    assert set((no_cut(visual, 8) // 8).flatten().tolist()) == {0}


def test_as_many_roots_stay_as_are_wanted():
    """All frames are equal and one scene, so all could be linked to the first: the strongest links alone are made."""
    visual, settings = video(10, 8, drift=0.0), SceneTrees(diverse=0.0, scenes=1)
    for count in (7, 8, 9, 30, 79, 80):
        _, parents = trees(visual, count, settings)
        made = settings.trees(visual, count)
        assert len(parents) == min(72, 80 - count) == int((made.root != torch.arange(80)).sum())
        assert torch.equal(made.root.gather(1, made.kept), made.kept)


def test_what_is_in_the_tree_of_a_centre_goes_there():
    """Not to another one that is about as near: tokens that are long and nearly equal have no exact distance."""
    visual = video(4, 12, b=3, drift=0.1)
    visual = visual._replace(features=visual.features * 0.01 + 1000.0)
    settings = SceneTrees(diverse=0.0, scenes=1, link=-1.0)
    kept, found = holders(settings, visual, 11)
    root = settings.trees(visual, 11).root
    stays = torch.stack([torch.isin(one, own) for one, own in zip(root, kept, strict=True)])
    assert int(stays.sum()) > 40 and torch.equal(found[stays], root[stays])


def test_diverse_tokens_are_those_that_the_operator_picks():
    visual, each = video(9, 10, b=2), 10
    made = SceneTrees(diverse=1.0).trees(visual, 27)
    rows = visual.features.view(18, each, -1)
    wanted = ops.greedy_select(rows, 3, objective="max-min", saliency=visual.saliency.view(18, each)).order
    found = made.diverse.view(18, each)
    assert torch.equal(found, torch.zeros_like(found).scatter(1, wanted, True))
    assert torch.equal(made.kept, made.diverse.nonzero()[:, 1].view(2, 27))


def test_a_mask_of_all_tokens_changes_nothing():
    """Without one an operator picks, with one a loop."""
    visual = video(9, 10, b=2)
    for count in (1, 8, 30, 60):
        masked = visual._replace(mask=torch.ones(2, 90, dtype=torch.bool))
        assert torch.equal(SceneTrees()(visual, count), SceneTrees()(masked, count))


@pytest.mark.parametrize("where", ["after", "before", "among"])
def test_padding_is_not_there(where):
    """Videos of 9, 12 and 10 frames of 5 real tokens among 12 frames of 8, whatever the others hold."""
    lengths, mask = (9, 12, 10), torch.zeros(3, 12, 8, dtype=torch.bool)
    for item, frames in enumerate(lengths):
        choice = {"after": torch.arange(12), "before": torch.arange(11, -1, -1), "among": torch.randperm(12)}[where]
        places = {"after": torch.arange(8), "before": torch.arange(7, -1, -1), "among": torch.randperm(8)}[where]
        mask[item, choice[:frames, None], places[None, :5]] = True
    visual = video(12, 8, b=3)._replace(mask=mask.flatten(1))
    visual.features[~visual.mask], visual.saliency[~visual.mask] = float("nan"), float("nan")
    for count in (4, 17, 30):
        together = SceneTrees(scenes=3)(visual, count)
        assert bool(visual.mask.gather(1, together).all())
        for item, frames in enumerate(lengths):
            there = visual.mask[item]
            real = (one[item : item + 1, there] for one in (visual.features, visual.saliency))
            features, saliency = real
            alone = SceneTrees(scenes=3)(VisualFeatures(features, saliency=saliency, frames=frames), count)
            assert torch.equal(there.nonzero().squeeze(1)[alone[0]], together[item])


def test_a_batch_is_a_loop():
    visual = video(9, 8, b=4, cuts=(5,))
    kept, found = holders(SceneTrees(), visual, 20)
    for item in range(4):
        part = slice(item, item + 1)
        alone = visual._replace(features=visual.features[part], saliency=visual.saliency[part])
        one, held = holders(SceneTrees(), alone, 20)
        assert torch.equal(kept[part], one) and torch.equal(found[part], held)


def test_equal_tokens_by_lowest_index():
    for value in (0.0, 0.1):
        visual = VisualFeatures(torch.full((1, 12, 4), value), saliency=torch.zeros(1, 12), frames=3)
        assert SceneTrees()(visual, 6).tolist() == [[0, 1, 4, 5, 8, 9]]  # two of each frame are diverse


def test_the_unit_of_saliency_does_not_matter():
    visual = video(9, 8)
    for unit in (2.0**-100, 2.0**100):
        assert torch.equal(SceneTrees()(visual._replace(saliency=visual.saliency * unit), 20), SceneTrees()(visual, 20))
    assert not torch.equal(SceneTrees()(visual, 20), PLAIN(visual, 20))


@pytest.mark.parametrize("count", [14, 40])
def test_merged_is_the_mean_of_all_that_a_token_holds(count):
    """Diverse tokens hold themselves alone where every frame has a centre, as with 40 of 60 tokens."""
    visual = video(10, 6, b=2, drift=0.1)
    made = get_method("flashvid")(visual, count)
    kept, found = holders(SceneTrees(), visual, count)
    assert torch.equal(made.kept, kept)
    for item in range(2):
        for slot, token in enumerate(kept[item].tolist()):
            mine = found[item] == token
            torch.testing.assert_close(made.features[item, slot], visual.features[item, mine].mean(0))
            assert float(made.reduction.size[item, slot]) == int(mine.sum())
            if count == 40 and SceneTrees().trees(visual, count).diverse[item, token]:
                assert int(mine.sum()) == 1 and torch.equal(made.features[item, slot], visual.features[item, token])
    dropped = get_method("flashvid", merge=False)(visual, count)
    assert torch.equal(dropped.kept, kept) and float(dropped.reduction.size.max()) == 1


def test_by_name():
    visual = video(9, 6)
    given = {"method": "flashvid", "saliency": visual.saliency, "frames": 9}
    assert torch.equal(select(visual.features, 12, **given), SceneTrees()(visual, 12))
    assert merge(visual.features, 12, **given).reduction.size.sum() == 54
    others = SceneTrees(diverse=0.3, cut=0.2, scenes=2, link=-0.5, neighbours=2, weigh=3.0)
    assert torch.equal(select(visual.features, 12, **given, **vars(others)), others(visual, 12))


def test_nothing_is_read():
    features, saliency = torch.empty(2, 24, 8, device="meta"), torch.empty(2, 24, device="meta")
    for mask in (None, torch.ones(2, 24, dtype=torch.bool, device="meta")):
        visual = VisualFeatures(features, mask, saliency=saliency, frames=4)
        made = get_method("flashvid")(visual, 7)
        assert made.features.shape == (2, 7, 8)


def test_what_is_given_stays_as_it_is():
    visual = video(4, 6)
    features, saliency = visual.features.clone(), visual.saliency.clone()
    get_method("flashvid")(visual, 7)
    assert torch.equal(visual.features, features) and torch.equal(visual.saliency, saliency)


def test_price_words_and_needs():
    shape = Shape(batch=1, tokens=100, visual=100, r=80, channels=8, heads=1, kv_heads=1, head_dim=8)
    found = {one.name: evaluate(one.operations, values) for one, values in SceneTrees().operations(shape)}
    distances = 64 * 100 + 36 * 36
    assert found == {"greedy_select": 100 * (100 * 8 + 2 * 14), "density_peaks": 3 * distances * 8}
    names = [one.name for one, _ in get_method("flashvid").operations(shape)]
    assert names == ["greedy_select", "density_peaks", "compress"]
    alone = get_method("flashvid", diverse=1.0).operations(shape)
    assert {one.name: evaluate(one.operations, values) for one, values in alone}["to_kept"] == 3 * 80 * 20 * 8
    assert get_method("flashvid").needs == (needs.SALIENCY,) and get_method("flashvid", weigh=0.0).needs == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SceneTrees(diverse=1.1), "SceneTrees: diverse must be a number in"),
        (lambda: SceneTrees(cut=2), "SceneTrees: cut must be a number in"),
        (lambda: SceneTrees(link=-2), "SceneTrees: link must be a number in"),
        (lambda: SceneTrees(scenes=0), "SceneTrees: scenes must be an integer >= 1, got 0"),
        (lambda: SceneTrees(neighbours=1.5), "SceneTrees: neighbours must be an integer >= 1, got 1.5"),
        (lambda: SceneTrees(weigh=-1), "SceneTrees: weigh must be a finite number >= 0"),
        (lambda: SceneTrees()(VisualFeatures(torch.ones(1, 6, 2), frames=2), 2), "SceneTrees: saliency is needed"),
        (lambda: PLAIN(VisualFeatures(torch.ones(1, 10, 2), frames=3), 2), "frames must be a divisor of the 10"),
        (lambda: get_method("flashvid", merge=1.5), "flashvid: merge must be one of True, False"),
        (lambda: select(torch.ones(1, 4, 2), 2, method="flashvid"), "saliency must be given"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
