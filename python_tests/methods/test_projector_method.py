"""A method after the projector: what stays, what it takes up, planes, padding; and several methods for one model."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from helpers.ops import DTYPES

from ficoco_ext import Reduction, describe, get_method, reduce
from ficoco_ext.methods import (
    ProjectorMethod,
)
from ficoco_ext.ops.costs import evaluate
from ficoco_ext.stages import Compress, Correlate, GreedySelect, SelectStage, Shape, StrideSelect, VisualFeatures, needs

METHODS = {
    "divprune": get_method("divprune"),
    "divprune merged": get_method("divprune", merge=True),
    "scope": get_method("scope"),
    "scope merged": get_method("scope", merge=True),
    "coverage": get_method("scope", alpha=0),
    "stride": get_method("stride"),
    "stride merged": get_method("stride", merge=True),
    "random": get_method("random", part="projector", seed=5),
    "topk": get_method("topk", part="projector"),
    "two targets": ProjectorMethod(
        "two targets", GreedySelect("log-det"), Correlate(by="key", targets=2), Compress(size_weighted=True)
    ),
}
MERGES = tuple(name for name, method in METHODS.items() if not method.drops)
every = pytest.mark.parametrize("name", METHODS)
single = pytest.mark.parametrize("name", [name for name in METHODS if name != "two targets"])


def visual(b=3, n=30, d=16, **given):
    return VisualFeatures(torch.randn(b, n, d), saliency=torch.rand(b, n) + 0.01, **given)


def planes(b=3, n=30):
    return torch.randn(b, n, 16), torch.randn(b, n, 7)


def taken(features, kept):
    return features.gather(1, kept.unsqueeze(-1).expand(-1, -1, features.shape[2]))


def by_hand(features, kept, mask=None):
    """Means of one picture's kept tokens with all that are most similar to them, and who holds each token."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1, eps=1e-12)
    holders = [-1] * len(features)
    for i in range(len(features)):
        if i in kept:
            holders[i] = kept.index(i)
        elif mask is None or mask[i]:
            holders[i] = max(range(len(kept)), key=lambda j: (float(unit[i] @ unit[kept[j]]), -j))
    groups = [[i for i, holder in enumerate(holders) if holder == j] for j in range(len(kept))]
    return torch.stack([features[group].double().mean(0) for group in groups]), holders


@every
def test_nothing_leaves(name):
    """Bit for bit, with every token holding itself."""
    given, others = visual(), planes()
    found = METHODS[name](given, 30, others)
    assert torch.equal(found.features, given.features)
    assert all(map(torch.equal, found.planes, others))
    everyone = torch.arange(30).expand(3, 30)
    assert torch.equal(found.kept, everyone) and torch.equal(found.reduction.source_map, everyone)
    assert bool((found.reduction.size == 1).all()) and found.reduction.sources.shape == (3, 0)


@every
def test_the_record(name):
    given = visual(grid=[5, 6])
    found = METHODS[name](given, 12)
    record = found.reduction
    assert record.tokens is None and record.grid == (5, 6) and not record.class_token
    assert torch.equal(record.kept, found.kept)
    everyone = torch.cat([record.sources, record.kept], 1).sort(1).values
    assert torch.equal(everyone, torch.arange(30).expand(3, 30)) and bool((record.sources.diff() > 0).all())
    assert torch.equal(record.source_map.gather(1, record.kept), torch.arange(12).expand(3, 12))
    held = record.source_map >= 0
    assert torch.allclose(record.size.sum((1, 2)), held.sum(1).float())
    assert bool(held.all()) == (name in MERGES) and record.size.shape == (3, 12, 1)
    assert record.targets.shape == record.weights.shape
    best = record.source_map.gather(1, record.sources)
    if name in MERGES:
        assert torch.allclose(record.weights.sum(2), torch.ones(()))
        assert torch.equal(record.targets.gather(2, record.weights.argmax(2, keepdim=True)).squeeze(2), best)
    else:
        assert record.targets.shape == (3, 18, 0) and bool((best == -1).all())


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(MERGES)))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_stays_is_copied(name, dtype):
    given, others = visual(), [plane.to(dtype) for plane in planes()]
    given = given._replace(features=given.features.to(dtype))
    found = METHODS[name](given, 9, others)
    assert found.features.dtype == dtype and torch.equal(found.features, taken(given.features, found.kept))
    for plane, other in zip(found.planes, others, strict=True):
        assert plane.dtype == dtype and torch.equal(plane, taken(other, found.kept))


@pytest.mark.parametrize("name", ["divprune merged", "scope merged", "stride merged"])
def test_merging_gives_means_of_the_most_similar(name):
    given, others = visual(), planes()
    found = METHODS[name](given, 9, others)
    for item in range(3):
        kept = found.kept[item].tolist()
        means, holders = by_hand(given.features[item], kept)
        assert found.reduction.source_map[item].tolist() == holders
        assert torch.allclose(found.features[item].double(), means, atol=1e-6)
        for plane, other in zip(found.planes, others, strict=True):
            wanted = [other[item][torch.tensor(holders) == j].double().mean(0) for j in range(9)]
            assert torch.allclose(plane[item].double(), torch.stack(wanted), atol=1e-6)


@every
def test_a_batch_is_a_loop(name):
    given, others = visual(), planes()
    together = METHODS[name](given, 11, others)
    for item in range(3):
        part = slice(item, item + 1)
        alone = METHODS[name](
            VisualFeatures(given.features[part], saliency=given.saliency[part]), 11, [p[part] for p in others]
        )
        same(together, alone, part)


def same(one, other, part):
    assert torch.equal(one.kept[part], other.kept) and torch.equal(one.features[part], other.features)
    assert all(torch.equal(a[part], b) for a, b in zip(one.planes, other.planes, strict=True))
    for field in fields(Reduction):
        a, b = getattr(one.reduction, field.name), getattr(other.reduction, field.name)
        assert not isinstance(a, torch.Tensor) or torch.equal(a[part], b), field.name


@every
@pytest.mark.parametrize("hidden", [float("nan"), float("inf"), 3.0])
def test_padding_goes_nowhere(name, hidden):
    """Rows of 30, 21 and 8 tokens: values bit for bit those of each row alone, whatever the padding holds."""
    counts = (30, 21, 8)
    mask = torch.arange(30) < torch.tensor(counts)[:, None]
    given, others = visual(mask=mask), planes()
    for tensor in (given.features, given.saliency, *others):
        tensor[~mask] = hidden
    together = METHODS[name](given, 8, others)
    for item, count in enumerate(counts):
        part = slice(item, item + 1)
        alone = METHODS[name](
            VisualFeatures(given.features[part, :count], saliency=given.saliency[part, :count]),
            8,
            [plane[part, :count] for plane in others],
        )
        assert torch.equal(together.kept[part], alone.kept)
        assert torch.equal(together.features[part], alone.features)
        assert all(torch.equal(a[part], b) for a, b in zip(together.planes, alone.planes, strict=True))
        record = together.reduction
        assert torch.equal(record.size[part], alone.reduction.size)
        assert torch.equal(record.source_map[part, :count], alone.reduction.source_map)
        assert bool((record.source_map[part, count:] == -1).all())
        there = mask[item].gather(0, record.sources[item])
        assert torch.equal(record.weights[item][there], alone.reduction.weights[0])
        assert bool((record.weights[item][~there] == 0).all())


@single  # weights of two targets depend on the features, and are constants all the same
def test_gradients_reach_features_and_planes(name):
    features = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    plane = torch.randn(2, 9, 2, dtype=torch.float64, requires_grad=True)
    saliency, mask = torch.rand(2, 9, dtype=torch.float64), torch.tensor([[True] * 9, [True] * 6 + [False] * 3])

    def run(features, plane):
        found = METHODS[name](VisualFeatures(features, mask=mask, saliency=saliency), 4, [plane])
        return found.features, *found.planes

    assert torch.autograd.gradcheck(run, (features, plane))


@every
def test_compiles_without_graph_breaks(name, fresh_compiler):
    given = visual(b=2, mask=torch.arange(30) < torch.tensor([[30], [19]]))

    def run(features, saliency, mask, plane):
        found = METHODS[name](VisualFeatures(features, mask=mask, saliency=saliency), 7, [plane])
        return found.kept, found.features, *found.planes, found.reduction.source_map

    tensors = given.features, given.saliency, given.mask, torch.randn(2, 30, 5)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors)
    assert all(map(torch.equal, compiled, run(*tensors)))


@every
def test_nothing_is_read_on_the_way(name):
    """On the meta device there is nothing to read: shapes alone decide what runs."""
    given = VisualFeatures(*(t.to("meta") for t in (torch.ones(2, 30, 4), torch.ones(2, 30, dtype=torch.bool))))
    found = METHODS[name](given._replace(saliency=torch.ones(2, 30, device="meta")), 7, [given.features])
    assert found.features.shape == found.planes[0].shape == (2, 7, 4) and found.kept.shape == (2, 7)


@every
def test_inputs_are_not_written(name):
    given, others = visual(mask=torch.arange(30).expand(3, 30) < 25), planes()
    held = given.features, given.mask, given.saliency, *others
    copies = [one.clone() for one in held]
    METHODS[name](given, 9, others)
    assert all(map(torch.equal, held, copies))


@single
def test_awkward_features(name):
    """Equal tokens, zero tokens and one token give neither NaN nor an index twice."""
    for features in (torch.ones(1, 12, 4), torch.zeros(1, 12, 4), torch.eye(12)[None].repeat(1, 2, 1)):
        n = features.shape[1]
        for count in (1, 5, n):
            given = VisualFeatures(features, saliency=torch.ones(1, n))
            found = METHODS[name](given, count)
            assert len(set(found.kept[0].tolist())) == count and bool(found.features.isfinite().all())
    one = VisualFeatures(torch.tensor([[[0.0, 2.0]]]), saliency=torch.zeros(1, 1))
    assert METHODS[name](one, 1).features.tolist() == [[[0.0, 2.0]]]


def test_a_method_says_what_it_does():
    words = METHODS["divprune merged"].describe()
    assert words == (
        "features nearest to those that stay",
        "the best one by cosine of features",
        "mean weighted by size",
    )
    assert METHODS["scope"].describe() == (
        "features that cover least that those that stay do not, by saliency to the power of 1",
        "none",
        "dropped",
    )
    assert METHODS["stride"].describe().filter == "all but every k-th token"
    found = {name: method.needs for name, method in METHODS.items()}
    saliency = {"scope", "scope merged", "topk"}
    assert found == {name: (needs.SALIENCY,) if name in saliency else () for name in METHODS}
    said = describe("divprune")
    assert (said.acts_in, said.layers) == ("projector", "none: after the projector")
    assert said.amount == "none: give keep_ratio or tokens"


def test_a_correlate_without_targets_drops():
    method = ProjectorMethod("own", StrideSelect(), Correlate(by="key", targets=0), Compress())
    assert method.drops and method.describe() == ("all but every k-th token", "none", "dropped")
    given = visual()
    assert torch.equal(method(given, 9).features, METHODS["stride"](given, 9).features)


def test_cost():
    """Of a quarter of 576 tokens of width 4096, in one head, whatever heads the model has."""
    shape = Shape(batch=1, tokens=640, visual=576, r=432, channels=4096, heads=32, kv_heads=8, head_dim=128, text=64)
    picks, links, merge = 576 * (576 * 4096 + 2 * 144), 2 * 432 * 144 * 4096, 2 * 432 * 4096

    def priced(name):
        found = METHODS[name].operations(shape)
        return {one.name: evaluate(one.operations, values) for one, values in found}, found

    assert priced("divprune merged")[0] == {"greedy_select": picks, "correlate": links, "compress": merge}
    assert priced("divprune")[0] == {"greedy_select": picks, "compress": 0}
    operations, found = priced("stride")
    assert operations == {"compress": 0} and evaluate(found[0][0].loads, found[0][1]) == 576 * 4096
    prefill = 2 * 6.7e9 * 640
    assert sum(priced("divprune merged")[0].values()) < 0.02 * prefill


def test_a_stage_of_ones_own():
    """A plain callable selects too; it is called by its name and has no known price."""

    def first(visual, count):
        return torch.arange(count).expand(visual.features.shape[0], -1)

    method = ProjectorMethod("first", first)
    assert method(visual(), 4).kept.tolist() == [[0, 1, 2, 3]] * 3
    assert method.describe().filter == "function" and method.needs == ()
    shape = Shape(batch=1, tokens=9, visual=9, r=3, channels=4, heads=1, kv_heads=1, head_dim=4)
    with pytest.raises(ValueError, match="the cost of the select function is not known"):
        method.operations(shape)
    assert SelectStage.of(StrideSelect()).operations(shape) == []


@pytest.mark.parametrize(
    ("gives", "kind"),
    [
        ([[2, 1]] * 3, ValueError),  # not ascending
        ([[1, 1]] * 3, ValueError),
        ([[-1, 1]] * 3, ValueError),
        ([[1, 30]] * 3, ValueError),
        ([[1, 29]] * 3, ValueError),  # hidden
        ([[1, 2]], ValueError),
        ([[1, 2, 3]] * 3, ValueError),
        ([[1.0, 2.0]] * 3, TypeError),
        (None, TypeError),
    ],
)
def test_a_select_that_does_not_keep_its_word(gives, kind):
    """It is named before the wrong tokens reach a language model."""
    method = ProjectorMethod("own", lambda visual, count: None if gives is None else torch.tensor(gives))
    with pytest.raises(kind, match="ficoco::own: what its select gives must be"):
        method(visual(mask=(torch.arange(30) < 29).expand(3, 30)), 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ProjectorMethod("own", StrideSelect(), Correlate(by="key")), "correlate and compress must be both"),
        (lambda: ProjectorMethod("own", StrideSelect(), None, Compress()), "correlate and compress must be both"),
        (lambda: ProjectorMethod("own", StrideSelect(), Correlate(), Compress()), "correlate must be by='key'"),
        (lambda: METHODS["divprune"](visual(), 31), r"divprune: count must be in \[1, 30\], .*, got 31 .*; lower it"),
        (lambda: METHODS["divprune"](visual(), 0), r"divprune: count must be in \[1, 30\], .*, got 0 .*; raise it"),
        (lambda: METHODS["stride"](visual(), 3, [torch.ones(3, 29, 4)]), r"planes must be \(3, 30, E\), got \(3, 29"),
        (
            lambda: METHODS["scope"](VisualFeatures(torch.ones(1, 4, 2)), 2),
            "scope: saliency must be given, as the method needs it, got None",
        ),
        (
            lambda: METHODS["stride"](VisualFeatures(torch.ones(2, 4, 2), mask=torch.eye(2, 4) > 0), 2),
            "stride: mask must be True for at least 2 tokens of every picture, .*, got one with 1",
        ),
        (lambda: METHODS["stride"](VisualFeatures(torch.ones(1, 4, 2) / 0), 2), "features must be finite, got NaN or"),
        (
            lambda: METHODS["topk"](VisualFeatures(torch.ones(1, 3, 2), saliency=-torch.ones(1, 3)), 2),
            "topk: saliency must be finite and at least 0",
        ),
        (lambda: get_method("divprune", part="decoder"), "divprune: part must be one of 'projector', 'tower', got 'de"),
        (lambda: get_method("random", part=1), "random: part must be one of 'projector', 'tower', got 1"),
        (lambda: get_method("topk", part="projector", attention="logits"), "topk: attention must be one of 'probs', g"),
        (lambda: get_method("divprune", merge=2), "divprune: merge must be one of True, False, got 2"),
        (lambda: get_method("divprune", merge=2, part="tower"), "divprune: merge must be one of True, False, got 2"),
        (lambda: get_method("stride", merge="yes"), "stride: merge must be one of True, False, got 'yes'"),
        (lambda: get_method("scope", alpha=-1), "scope: alpha must be a finite number >= 0, got -1"),
        (
            lambda: reduce(torch.ones(1, 5, 3), torch.ones(1, 5, 5), 2, method="divprune"),
            "method must be a method of layers with attention, got divprune; it acts after the projector: call select",
        ),
        (
            lambda: reduce(torch.ones(1, 5, 3), torch.ones(1, 5, 5), 2, method="divprune+topk"),
            r"method must be one reduction, got topk \+ divprune",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
