"""divprune and scope after the projector, and in the tower, against their definitions in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

import ficoco_ext
from ficoco_ext import Method, QueryKey, get_method, reduce, select
from ficoco_ext.stages import Compress, Correlate, Filter, GreedyFilter, VisualFeatures, needs


def cosines(features):
    """(N, N) in float64."""
    x = features.double()
    x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return x @ x.mT


def diverse(features, count):
    """Max-min of distances 1 - cos, one by one; the first has the farthest nearest neighbour. Lowest index of equal."""
    distance, n = 1 - cosines(features), len(features)
    chosen: list[int] = []
    for _ in range(count):
        gains = {}
        for j in range(n):
            if j not in chosen:
                others = chosen or [i for i in range(n) if i != j]
                gains[j] = min((float(distance[i, j]) for i in others), default=2.0)
        chosen.append(max(gains, key=lambda j: (gains[j], -j)))
    return chosen


def covered_more(features, chosen, saliency=None, alpha=0.0):
    """What each other token adds to coverage by max(0, cos), times its saliency to the power alpha."""
    similarity, n = cosines(features), len(features)
    weight = torch.ones(n, dtype=torch.float64) if saliency is None else saliency.double() ** alpha
    held = [max([0.0, *(float(similarity[i, c]) for c in chosen)]) for i in range(n)]
    return {
        j: float(weight[j]) * sum(max(0.0, float(similarity[i, j]) - held[i]) for i in range(n))
        for j in range(n)
        if j not in chosen
    }


def check_coverage(features, weight=None, **given):
    """Each larger number adds the token that covers most, or one of those that cover equally much."""
    chosen: set[int] = set()
    for count in range(1, features.shape[1] + 1):
        kept = set(select(features, count, method="scope", **given)[0].tolist())
        (new,) = kept - chosen
        gains = covered_more(features[0], chosen, weight, given["alpha"])
        assert chosen < kept and gains[new] >= max(gains.values()) - 1e-12
        chosen = kept


def drawn():
    n, d = int(torch.randint(2, 13, ())), int(torch.randint(3, 9, ()))
    return torch.randn(1, n, d, dtype=torch.float64), int(torch.randint(1, n + 1, ()))


def test_divprune_is_brute_force():
    for _ in range(200):
        features, count = drawn()
        assert select(features, count, method="divprune")[0].tolist() == sorted(diverse(features[0], count))


def test_scope_without_saliency_is_facility_location():
    """T1: alpha 0 needs none, and saliency that is there is not read."""
    for _ in range(50):
        features, count = drawn()
        check_coverage(features, alpha=0)
        other = torch.rand(1, features.shape[1], dtype=torch.float64)
        without = select(features, count, method="scope", alpha=0)
        assert torch.equal(without, select(features, count, method="scope", alpha=0, saliency=other))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_scope_is_coverage_times_saliency(alpha):
    for _ in range(30):
        features, _ = drawn()
        saliency = torch.rand(features.shape[1], dtype=torch.float64) + 1e-3
        check_coverage(features, saliency, alpha=alpha, saliency=saliency[None])


def test_greedy_coverage_is_near_the_best():
    """At least 1 - 1/e of what the best of all choices covers."""
    for _ in range(20):
        features = torch.randn(1, 9, 4, dtype=torch.float64)
        positive = cosines(features[0]).clamp_min(0)
        kept = select(features, 3, method="scope", alpha=0)[0]
        best = max(float(positive[:, list(some)].amax(1).sum()) for some in itertools.combinations(range(9), 3))
        assert float(positive[:, kept].amax(1).sum()) >= (1 - 1 / torch.e) * best


@pytest.mark.parametrize("method", ["divprune", "scope"])
def test_one_of_each_kind(method):
    """T2: of two clusters one token each, of five kinds all."""
    for kinds in (2, 5):
        centres = torch.eye(kinds, 16) * 4
        which = torch.randperm(30) % kinds
        features = centres[which][None] + 0.05 * torch.randn(1, 30, 16)
        kept = select(features, kinds, method=method, saliency=torch.ones(1, 30))
        assert sorted(which[kept[0]].tolist()) == list(range(kinds))


@pytest.mark.parametrize("method", ["divprune", "scope"])
def test_duplicates_stay_last(method):
    features = torch.randn(1, 10, 8).repeat(1, 2, 1)
    kept = select(features, 10, method=method, saliency=torch.ones(1, 20))
    assert sorted((kept[0] % 10).tolist()) == list(range(10))
    assert len(set(select(features, 15, method=method, saliency=torch.ones(1, 20))[0].tolist())) == 15


@pytest.mark.parametrize("method", ["divprune", "scope"])
def test_a_vector_counts_by_its_direction(method):
    features, saliency = torch.randn(2, 25, 8), torch.rand(2, 25)
    longer = features * torch.rand(2, 25, 1).add(0.5).log2().round().exp2()  # powers of two: exact
    for other in (features * 64, longer):
        assert torch.equal(
            select(other, 9, method=method, saliency=saliency), select(features, 9, method=method, saliency=saliency)
        )


@pytest.mark.parametrize("method", ["divprune", "scope"])
def test_permuted_tokens_give_the_same_ones(method):
    features, saliency, order = torch.randn(1, 25, 12), torch.rand(1, 25), torch.randperm(25)
    kept = select(features, 9, method=method, saliency=saliency)[0].tolist()
    moved = select(features[:, order], 9, method=method, saliency=saliency[:, order])[0]
    assert sorted(order[moved].tolist()) == kept


@pytest.mark.parametrize("method", ["divprune", "scope"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_float32_rounded(method, dtype):
    """Long vectors too: 4096 channels of 200 overflow a sum of squares in float16."""
    features, saliency = (torch.randn(1, 60, 4096) * 200).to(dtype), torch.rand(1, 60)
    half = select(features, 20, method=method, saliency=saliency)
    assert torch.equal(half, select(features.float(), 20, method=method, saliency=saliency))


def test_diverse_tokens_are_farther_apart_than_random_ones():
    features = torch.randn(4, 80, 16)
    least = {}
    for method in ("divprune", "random"):
        kept = select(features, 12, method=method)
        for item in range(4):
            apart = 1 - cosines(features[item, kept[item]]) + 9 * torch.eye(12)
            least[method, item] = float(apart.min())
    assert all(least["divprune", item] > least["random", item] for item in range(4))


def test_zero_saliency_is_coverage_alone():
    """T5."""
    features = torch.randn(2, 20, 8)
    kept = select(features, 7, method="scope", saliency=torch.zeros(2, 20))
    assert torch.equal(kept, select(features, 7, method="scope", alpha=0))
    assert not torch.equal(kept, torch.arange(7).expand(2, 7))


def test_kernels_and_specification_select_the_same():
    """T6: the lazy CPU kernel against the specification, which computes every gain at every pick."""
    from ficoco_ext.ops import reference

    features, saliency = torch.randn(2, 144, 32), torch.rand(2, 144) + 0.01
    relative = saliency / saliency.amax(1, keepdim=True)
    order, _ = reference.greedy_select(features, 48, "coverage", relative, None, 0.5)
    assert torch.equal(select(features, 48, method="scope", saliency=saliency), order.sort(1).values)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(("name", "objective", "weigh"), [("divprune", "max-min", 0.0), ("scope", "coverage", 1.0)])
def test_in_the_tower(name, objective, weigh, merge):
    """By keys; merging with sizes and proportional attention, as it was measured best."""
    made = get_method(name, part="tower", merge=merge)
    assert made.projector is None and made.tower is made
    assert made.proportional_attention == merge
    correlate = Correlate(by="key", targets=1) if merge else Correlate(targets=0)
    own = Method("own", GreedyFilter(objective, weigh), correlate, Compress(size_weighted=merge))
    tokens, attn = torch.randn(2, 50, 12), QueryKey(*torch.randn(2, 2, 3, 50, 8))
    found, wanted = (reduce(tokens, attn, 30, method=one, return_reduction=True) for one in (made, own))
    assert torch.equal(found.tokens, wanted.tokens) and torch.equal(found.kept, wanted.kept)
    assert torch.equal(found.size, wanted.size) and bool((found.source_map >= 0).all()) == merge


def test_the_tower_of_random_and_topk_is_as_ever():
    attn, tokens = QueryKey(*torch.randn(2, 2, 3, 50, 8)), torch.randn(2, 50, 12)
    by_class = Filter(lam=0.0, attention="probs", normalize=False, penalty=1.0)
    topk = Method("own", by_class, Correlate(targets=0), Compress())
    assert torch.equal(reduce(tokens, attn, 30, method="topk"), reduce(tokens, attn, 30, method=topk))
    assert get_method("topk") == get_method("topk", part="tower") and get_method("random").projector is None
    found = reduce(tokens, attn, 30, method="random", class_token=False, return_reduction=True)
    assert torch.equal(found.kept, select(torch.randn(2, 50, 4), 20, method="random"))


def test_needs_follow_from_hyperparameters():
    assert get_method("scope").needs == (needs.SALIENCY,) and get_method("scope", alpha=0).needs == ()
    assert get_method("scope", part="tower").needs == (needs.CLASS_TOKEN_OR_KEYS, needs.QUERY_AND_KEY)
    assert get_method("divprune", part="tower").needs == (needs.QUERY_AND_KEY,)
    assert get_method("topk", part="projector").needs == (needs.SALIENCY,)
    visual = VisualFeatures(torch.randn(1, 9, 4))
    assert get_method("scope", alpha=0)(visual, 3).kept.shape == (1, 3)
    wanted = {"alpha": 1.0, "part": "projector", "merge": False, "saliency": "auto"}
    assert ficoco_ext.describe("scope").hyperparameters == wanted
