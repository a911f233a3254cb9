"""Selects of projected features: who stays, and that padding, batches and units have no say in it."""

from __future__ import annotations

import pytest
import torch
from helpers.ops import DTYPES

from ficoco_ext import get_method, ops
from ficoco_ext.ops.costs import evaluate
from ficoco_ext.stages import (
    GreedySelect,
    RandomFilter,
    RandomSelect,
    SaliencySelect,
    SelectStage,
    Shape,
    StrideSelect,
    VisualFeatures,
    needs,
)

SELECTS = {
    "max-min": GreedySelect("max-min"),
    "coverage": GreedySelect("coverage"),
    "log-det": GreedySelect("log-det"),
    "coverage by saliency": GreedySelect("coverage", weigh=1.0),
    "max-min by saliency": GreedySelect("max-min", weigh=0.5),
    "log-det by saliency": GreedySelect("log-det", weigh=2.0),
    "mmr": GreedySelect("mmr", weigh=1.0, trade=0.3),
    "saliency": SaliencySelect(),
    "random": RandomSelect(3),
    "stride": StrideSelect(),
}
NESTED = tuple(name for name in SELECTS if name != "stride")
SALIENT = tuple(name for name, select in SELECTS.items() if needs.SALIENCY in select.needs)
every = pytest.mark.parametrize("name", SELECTS)


def visual(b=3, n=40, d=24, dtype=torch.float32, **given):
    features, saliency = torch.randn(b, n, d).to(dtype), torch.rand(b, n) + 0.01
    return VisualFeatures(features, saliency=saliency, **given)


def real(one, item):
    """Picture ``item`` without what its mask hides."""
    there = one.mask[item]
    return VisualFeatures(one.features[item : item + 1, there], saliency=one.saliency[item : item + 1, there])


@every
@pytest.mark.parametrize("count", [1, 2, 17, 39, 40])
def test_ascending_distinct_and_as_many_as_asked_for(name, count):
    kept = SELECTS[name](visual(), count)
    assert kept.dtype == torch.int64 and kept.shape == (3, count) and kept.is_contiguous()
    assert bool((kept.diff() > 0).all()) and int(kept.min()) >= 0 and int(kept.max()) < 40
    if count == 40:
        assert torch.equal(kept, torch.arange(40).expand(3, 40))


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_batch_is_a_loop(name, dtype):
    given = visual(dtype=dtype)
    together = SELECTS[name](given, 11)
    for item in range(3):
        part = slice(item, item + 1)
        alone = VisualFeatures(given.features[part], saliency=given.saliency[part])
        assert torch.equal(together[part], SELECTS[name](alone, 11))


@every
@pytest.mark.parametrize("where", ["after", "before", "among"])
def test_padding_is_not_there(name, where):
    """Rows of 31, 40 and 12 real tokens, whatever the others hold: what each row keeps is what it keeps alone."""
    counts, mask = (31, 40, 12), torch.zeros(3, 40, dtype=torch.bool)
    for item, count in enumerate(counts):
        place = {"after": torch.arange(count), "before": torch.arange(40 - count, 40), "among": torch.randperm(40)}
        mask[item, place[where][:count]] = True
    given = visual(mask=mask)
    given.features[~mask], given.saliency[~mask] = float("nan"), float("nan")
    together = SELECTS[name](given, 12)
    assert bool(mask.gather(1, together).all())
    for item in range(3):
        alone = SELECTS[name](real(given, item), 12)
        assert torch.equal(mask[item].nonzero().squeeze(1)[alone[0]], together[item])


@pytest.mark.parametrize("name", NESTED)
def test_a_smaller_number_keeps_a_part(name):
    given = visual()
    larger = SELECTS[name](given, 40)
    for count in range(39, 0, -1):
        smaller = SELECTS[name](given, count)
        assert all(torch.isin(a, b).all() for a, b in zip(smaller, larger, strict=True))
        larger = smaller


@every
def test_stages_price_and_describe_themselves(name):
    select = SELECTS[name]
    shape = Shape(batch=2, tokens=576, visual=576, r=512, channels=4096, heads=1, kv_heads=1, head_dim=4096)
    greedy = isinstance(select, GreedySelect)
    found = {one.name: evaluate(one.operations, values) for one, values in select.operations(shape)}
    assert set(found) == ({"greedy_select"} if greedy else set())
    if greedy:
        least = 2 * 576 * 576 * 4096
        assert least < found["greedy_select"] < 1.01 * least
    assert select.describe() and set(select.needs) <= {needs.SALIENCY}
    assert SelectStage.of(select) is select


def test_what_the_operator_picks_stays():
    given = visual()
    saliency = given.saliency / given.saliency.amax(1, keepdim=True)
    for objective in ("max-min", "coverage", "log-det", "mmr"):
        select = GreedySelect(objective, weigh=2.0, trade=0.3)
        wanted = ops.greedy_select(given.features, 9, objective=objective, saliency=saliency**2, trade=0.3).order
        assert torch.equal(select(given, 9), wanted.sort(1).values)


@pytest.mark.parametrize("name", SALIENT)
def test_the_unit_of_saliency_does_not_matter(name):
    """Powers of two are exact; what is as small as saliency of many tokens to a power does not vanish."""
    given = visual()
    wanted = SELECTS[name](given, 13)
    for unit in (2.0**-100, 2.0**-20, 2.0**100):
        assert torch.equal(SELECTS[name](given._replace(saliency=given.saliency * unit), 13), wanted)


@pytest.mark.parametrize("name", SALIENT)
def test_where_all_saliency_is_zero_all_count_alike(name):
    """Of one picture of the batch; the other keeps what it keeps."""
    given = visual(b=2)
    given.saliency[0] = 0
    ones = torch.cat([torch.ones(1, 40), given.saliency[1:]])
    assert torch.equal(SELECTS[name](given, 13), SELECTS[name](given._replace(saliency=ones), 13))


def test_hidden_saliency_is_no_unit():
    """A token that is not there may hold the largest saliency of all: the power of the others does not vanish."""
    given = visual(b=1, mask=torch.arange(40)[None] < 30)
    huge = given.saliency.clone()
    huge[:, 30:] = 1e38
    select = GreedySelect("coverage", weigh=3.0)
    assert torch.equal(select(given._replace(saliency=huge), 9), select(given, 9))


def test_the_highest_saliency_stays_and_of_equal_ones_the_first():
    saliency = torch.tensor([[0.1, 0.5, 0.5, 0.0, 0.5, 0.9]])
    given = VisualFeatures(torch.randn(1, 6, 3), saliency=saliency)
    assert SaliencySelect()(given, 3).tolist() == [[1, 2, 5]]
    hidden = given._replace(mask=torch.tensor([[True, True, False, True, True, False]]))
    assert SaliencySelect()(hidden, 3).tolist() == [[0, 1, 4]]
    assert SaliencySelect()(hidden, 4).tolist() == [[0, 1, 3, 4]]  # none at all, but there


def test_random_is_that_of_the_tower():
    attn = torch.rand(2, 40, 40)
    for seed in (0, 9):
        tower = RandomFilter(seed)(attn, 28, class_token=False, ids=None, grid=None).kept
        assert torch.equal(RandomSelect(seed)(visual(b=2), 12), tower)
    assert not torch.equal(RandomSelect(0)(visual(), 12), RandomSelect(1)(visual(), 12))


def test_videos_of_any_length_pass_where_features_are_compared_with_few_others(monkeypatch):
    """The operator filter takes no more than 16384 tokens on a GPU, so nothing after the projector may call it."""

    def refused(*args, **kwargs):
        raise AssertionError("filter after the projector")

    monkeypatch.setattr(ops, "filter", refused)
    for hidden in (None, torch.rand(1, 20000) < 0.7):
        given = VisualFeatures(torch.randn(1, 20000, 4), mask=hidden, saliency=torch.rand(1, 20000), frames=20)
        for name in ("vidcom2", "random", "stride", "topk"):
            where = {"part": "projector"} if name in ("random", "topk") else {}
            method = get_method(name, **where)
            found = method.projector(given, 300)
            assert found.kept.shape == (1, 300)
            leaves = torch.ones(20000, dtype=torch.bool).scatter(0, found.kept[0], False)
            assert torch.equal(found.reduction.sources[0], leaves.nonzero()[:, 0])


def test_every_kth():
    """The middle of each of T equal parts."""
    three = StrideSelect()(visual(b=2, n=9), 3)
    assert three.tolist() == [[1, 4, 7], [1, 4, 7]]
    assert StrideSelect()(visual(b=1, n=10), 4).tolist() == [[1, 3, 6, 8]]
    for n in range(1, 70):
        for count in range(1, n + 1):
            wanted = [int((i + 0.5) * n / count + 1e-9) for i in range(count)]
            assert StrideSelect()(visual(b=1, n=n, d=1), count).tolist() == [wanted]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GreedySelect("farthest"), "GreedySelect: objective must be one of 'max-min', 'coverage'"),
        (lambda: GreedySelect("coverage", weigh=-1), "GreedySelect: weigh must be a finite number >= 0"),
        (lambda: GreedySelect("coverage", weigh=float("inf")), "GreedySelect: weigh must be finite"),
        (lambda: GreedySelect("mmr"), "GreedySelect: weigh must be"),
        (lambda: GreedySelect("mmr", weigh=1, trade=1.5), r"GreedySelect: trade must be a number in \[0, 1\]"),
        (lambda: RandomSelect(-1), r"RandomSelect: seed must be an integer in \[0, 2\*\*32\), got -1"),
        (lambda: SaliencySelect()(VisualFeatures(torch.ones(1, 2, 3)), 1), "SaliencySelect: saliency is needed"),
        (lambda: GreedySelect("mmr", weigh=1)(VisualFeatures(torch.ones(1, 2, 3)), 1), "GreedySelect: saliency is"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
