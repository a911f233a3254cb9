"""EViT's fused token, and FiCoCo's convergent correlation, which picks the same host."""

from __future__ import annotations

import pytest
import torch
from helpers.reductions import inputs, record, same

from ficoco_ext import Method, QueryKey, reduce
from ficoco_ext.ops import reference
from ficoco_ext.stages import Compress, Correlate, Filter, Fuse

P = 64


def class_row(attn):
    """(B, P) probabilities of the class token's row, mean over heads, in float64."""
    return reference.attention_map(attn.query.double(), attn.key.double(), 8**-0.5, True)[:, 0, 1:]


def three_patches():
    """One image, a class token and four patches whose class attention is .1, .4, .2, .3 of what is not its own."""
    share = torch.tensor([0.5, 0.05, 0.2, 0.1, 0.15])
    attn = torch.full((1, 5, 5), 0.2)
    attn[0, 0] = share
    return torch.tensor([[[9.0], [1.0], [2.0], [3.0], [4.0]]]), attn


def test_by_hand():
    """r = 2 of 4: patch 2 stays; of 1, 3 and 4 the most attended, 4, is the host of all three."""
    tokens, attn = three_patches()
    fused = 0.05 * 1 + 0.1 * 3 + 0.15 * 4
    result = record(tokens, attn, 2, method="evit", grid=(1, 4))
    assert result.kept.tolist() == [[0, 2, 4]] and result.sources.tolist() == [[1, 3]]
    assert result.tokens.flatten().tolist() == pytest.approx([9, 2, fused])
    assert result.size.flatten().tolist() == [1, 1, 3]
    assert result.source_map.tolist() == [[0, 2, 1, 2, 2]]
    mean = reduce(tokens, attn, 2, method="evit", fuse="mean", grid=(1, 4))
    assert mean.flatten().tolist() == pytest.approx([9, 2, fused / 0.3])


@pytest.mark.parametrize("r", [1, 20, 62])
def test_the_kept_are_the_top(r):
    """T1: all but the host are the P - r - 1 most attended patches, copied bit for bit; the host is the next."""
    tokens, attn = inputs()
    result = record(tokens, attn, r, method="evit")
    order = class_row(attn).argsort(1, descending=True) + 1
    for item in range(2):
        top, host = set(order[item, : P - r - 1].tolist()), int(order[item, P - r - 1])
        kept = result.kept[item].tolist()
        assert set(kept) == {0, host} | top
        place = kept.index(host)
        assert bool((result.targets[item] == place).all())
        others = [i for i in range(len(kept)) if i != place]
        assert torch.equal(result.tokens[item, others], tokens[item, [kept[i] for i in others]])
        assert float(result.size[item, place]) == r + 1


@pytest.mark.parametrize("fuse", ["sum", "mean"])
def test_the_fused_token(fuse):
    """T2: f = a x over everything that is not kept for its own sake."""
    tokens, attn = inputs()
    result, a = record(tokens, attn, 30, method="evit", fuse=fuse), class_row(attn)
    for item in range(2):
        place = int(result.targets[item, 0, 0])
        inside = [*result.sources[item].tolist(), int(result.kept[item, place])]
        weight = a[item, torch.tensor(inside) - 1]
        wanted = weight @ tokens[item, inside].double()
        wanted = wanted / weight.sum() if fuse == "mean" else wanted
        assert torch.allclose(result.tokens[item, place].double(), wanted, atol=1e-6)


def test_permutation():
    """T3: as a set of tokens."""
    tokens, attn = inputs()
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(P)])
    straight = record(tokens, attn, 30, method="evit")
    shuffled = record(tokens[:, order], QueryKey(attn.query[:, :, order], attn.key[:, :, order]), 30, method="evit")
    back = order[shuffled.kept].argsort(1)
    moved = shuffled.tokens.gather(1, back.unsqueeze(-1).expand(-1, -1, 12))
    assert torch.equal(order[shuffled.kept].sort(1).values, straight.kept)
    assert torch.allclose(moved, straight.tokens, atol=1e-5)


def test_sizes_weigh_if_they_are_given():
    tokens, attn = three_patches()
    size = torch.tensor([1.0, 1, 2, 5, 1]).view(1, 5, 1)
    result = record(tokens, attn, 2, method="evit", grid=(1, 4), size=size, fuse="mean")
    weight = torch.tensor([0.05, 0.5, 0.15])
    assert result.tokens[0, 2].item() == pytest.approx(float((weight * torch.tensor([1.0, 3, 4])).sum() / weight.sum()))
    assert result.size.flatten().tolist() == [1, 2, 7]


def test_it_needs_a_class_token_and_probabilities():
    tokens, attn = inputs()
    for options in ({"class_token": False, "grid": (5, 13)}, {}):
        filter = Filter(0.0, "probs" if options else "logits", normalize=False, penalty=1.0)
        method = Method("own", filter, Correlate(by="convergent"), Fuse())
        with pytest.raises(ValueError, match="Fuse: it weighs by class attention, which needs a class token and a"):
            reduce(tokens, attn, 4, method=method, **options)
    with pytest.raises(ValueError, match="needs a class token"):
        reduce(tokens, attn, 4, method="evit", class_token=False)


def test_a_map_is_used_as_it_is():
    tokens, attn = inputs()
    probs = (attn.query @ attn.key.mT * 8**-0.5).softmax(-1)
    assert same(record(tokens, probs, 20, method="evit"), record(tokens, attn, 20, method="evit"), tol=1e-5)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_convergent(class_token, variant):
    """All of them and their host are one plain average; the host is the next that would leave."""
    tokens, attn = inputs(n=P + class_token)
    options = {"correlation": "convergent", "variant": variant, "class_token": class_token}
    result, one_more = record(tokens, attn, 20, **options), record(tokens, attn, 21, **options)
    assert result.targets.shape == (2, 20, 1)
    for item in range(2):
        place = int(result.targets[item, 0, 0])
        host = int(result.kept[item, place])
        assert {host} == set(one_more.sources[item].tolist()) - set(result.sources[item].tolist())
        inside = [*result.sources[item].tolist(), host]
        assert torch.allclose(result.tokens[item, place], tokens[item, inside].mean(0), atol=1e-6)
        assert float(result.size[item, place]) == 21
        kept = [i for i in range(result.kept.shape[1]) if i != place]
        assert torch.equal(result.tokens[item, kept], tokens[item, result.kept[item, kept]])


def test_convergent_with_equal_scores():
    """The lowest index: sources are the first ones, the host is the next."""
    flat = torch.ones(1, 2, 10, 4)
    method = Method("one", Filter(lam=1.0, penalty=1.0, normalize=False), Correlate(by="convergent"), Compress())
    result = record(torch.randn(1, 10, 3), QueryKey(flat, flat), 4, method=method, grid=(3, 3))
    assert result.sources.tolist() == [[1, 2, 3, 4]] and result.targets.unique().tolist() == [1]
    assert result.kept[0, 1] == 5
