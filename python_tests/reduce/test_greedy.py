"""GreedyFilter: what stays is what greedy selection picks by the keys; it combines with the other stages."""

import pytest
import torch

import ficoco_ext
from ficoco_ext import Method, QueryKey, ops
from ficoco_ext.cost import flop_counter
from ficoco_ext.ops import costs
from ficoco_ext.stages import Compress, Correlate, GreedyFilter, Shape

OBJECTIVES = ("max-min", "coverage", "log-det", "mmr")


def layer(b=2, n=38, heads=3, width=16, channels=24):
    query, key = torch.randn(b, heads, n, width), torch.randn(b, heads, n, width)
    return torch.randn(b, n, channels), QueryKey(query, key)


def stage(objective, weigh=1.0):
    return GreedyFilter(objective, weigh=weigh, trade=0.3)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_stays_is_what_is_picked(objective, class_token):
    _, attn = layer()
    first, patches, r = int(class_token), 38 - class_token, 25
    found = stage(objective)(attn, r, class_token=class_token, ids=None, grid=None)
    seen, _ = ops.attention_stats(attn, class_token=class_token, probs=True, column=False, patches=False)
    seen = seen if class_token else seen - seen.amin(1, keepdim=True)
    saliency = seen / seen.amax(1, keepdim=True)
    features = attn.key.mean(1)[:, first:]
    wanted = ops.greedy_select(features, patches - r, objective=objective, saliency=saliency, trade=0.3).order
    assert torch.equal(found.kept[:, first:], wanted.sort(1).values + first)
    assert torch.equal(found.class_attention, seen) if class_token else found.class_attention is None
    assert not class_token or bool((found.kept[:, 0] == 0).all())
    everyone = torch.cat([found.sources, found.kept], 1).sort(1).values
    assert torch.equal(everyone, torch.arange(38).expand(2, 38))
    turns = found.redundancy.gather(1, wanted)
    assert torch.allclose(turns, (torch.arange(patches - r) / patches).expand(2, -1))
    assert bool((found.redundancy.gather(1, found.sources - first) == 1).all())


def test_class_attention_decides_only_if_asked():
    _, attn = layer()
    other = QueryKey(torch.randn_like(attn.query), attn.key)
    alone = [stage("coverage", 0)(a, 20, class_token=True, ids=None, grid=None).kept for a in (attn, other)]
    weighed = [stage("coverage", 4)(a, 20, class_token=True, ids=None, grid=None).kept for a in (attn, other)]
    assert torch.equal(*alone) and not torch.equal(*weighed)


def test_the_power_of_class_attention():
    """Orthogonal keys cover themselves alone, so gains are saliency: shares of the largest, to a power."""
    attn = QueryKey(torch.randn(1, 1, 9, 9), torch.eye(9)[None, None] * 3)
    seen, _ = ops.attention_stats(attn, class_token=True, probs=True, column=False, patches=False)
    filtered = stage("log-det", 3)
    assert torch.allclose(filtered._saliency(seen), (seen / seen.amax(1, keepdim=True)) ** 3)
    assert torch.equal(filtered._saliency(seen * 0), torch.ones(1, 8))


def test_blank_patches_count_alike():
    """Keys of one direction: without a class token no patch is more typical, and the lowest indices stay."""
    query = torch.randn(1, 2, 10, 8)
    attn = QueryKey(query, torch.ones(1, 2, 10, 8))
    found = stage("coverage")(attn, 6, class_token=False, ids=None, grid=None)
    assert found.kept.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("r", [0, 1, 36])
def test_any_number_can_leave(r):
    _, attn = layer()
    found = stage("max-min")(attn, r, class_token=True, ids=None, grid=None)
    assert found.sources.shape == (2, r) and found.kept.shape == (2, 38 - r)


def test_it_merges_as_any_filter_does():
    """A filter of its own with FiCoCo's Correlate by keys and Compress: all tokens are somewhere, sizes add up."""
    tokens, attn = layer()
    method = Method("cover and merge", stage("coverage"), Correlate("key"), Compress(size_weighted=True))
    found = ficoco_ext.reduce(tokens, attn, 20, method=method, return_reduction=True)
    assert found.tokens.shape == (2, 18, 24)
    assert torch.allclose(found.size.sum(1), torch.full((2, 1), 38.0))
    prune = Method("cover", stage("coverage"), Correlate(targets=0), Compress())
    alone = ficoco_ext.reduce(tokens, attn, 20, method=prune, return_reduction=True)
    assert torch.equal(alone.tokens, tokens.gather(1, alone.kept.unsqueeze(-1).expand(-1, -1, 24)))
    assert torch.equal(alone.kept, found.kept)


def test_gradients_go_to_the_tokens():
    tokens, attn = layer()
    tokens, key = tokens.requires_grad_(), attn.key.requires_grad_()
    method = Method("differ", stage("max-min"), Correlate(targets=0), Compress())
    ficoco_ext.reduce(tokens, QueryKey(attn.query, key), 20, method=method).sum().backward()
    assert tokens.grad.sum().item() == 2 * 18 * 24


@pytest.mark.parametrize("weigh", [0.0, 1.0])
@pytest.mark.parametrize("objective", ["max-min", "coverage", "log-det"])
def test_cost(objective, weigh):
    """What it prices is what is counted."""
    _, attn = layer(b=3)
    shape = Shape(3, 38, 37, 20, channels=24, heads=3, kv_heads=3, head_dim=16, class_token=True)
    operations = stage(objective, weigh).operations(shape)
    priced = sum(costs.evaluate(operation.operations, values) for operation, values in operations)
    with flop_counter.counter() as counted:
        stage(objective, weigh)(attn, 20, class_token=True, ids=None, grid=None)
    assert counted.get_total_flops() == priced > 0


def test_what_it_says():
    assert stage("max-min", 0).describe() == "patches whose keys are nearest to those that stay"
    assert stage("coverage", 2).describe().endswith("that stay do not, by class attention to the power of 2")
    assert stage("max-min", 0).needs == ("query and key",)
    assert stage("coverage").needs == ("query and key", "class token, or keys in its place")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "max"}, "objective"),
        ({"weigh": -1.0}, "weigh"),
        ({"objective": "mmr"}, "weigh"),
        ({"trade": 2.0}, "trade"),
    ],
)
def test_refusals(given, message):
    with pytest.raises((ValueError, TypeError), match=f"GreedyFilter: {message}"):
        GreedyFilter(**given)


def test_a_map_has_no_keys():
    with pytest.raises(ValueError, match=r"GreedyFilter: picking compares keys, .*; pass attn=QueryKey"):
        GreedyFilter()(torch.rand(1, 5, 5), 2, class_token=True, ids=None, grid=None)
