"""ToMe as a method: conservation, exact means over several steps, unmerging, where tokens went, what it refuses."""

from __future__ import annotations

import pytest
import torch
from helpers.reductions import inputs, record, same

from ficoco_ext import Method, QueryKey, get_method, reduce
from ficoco_ext.methods import tome
from ficoco_ext.stages import Compress, Correlate, Filter, Match


def chain(steps, n=65, **options):
    """Reductions in a row on random keys, each told in original tokens; and the tokens that went in."""
    torch.manual_seed(3)
    tokens, result = torch.randn(2, n, 12), None
    start, options = tokens, {"method": "tome", **options}
    for r in steps:
        q, k = torch.randn(2, 2, 4, tokens.shape[1], 8)
        result = reduce(tokens, QueryKey(q, k), r, previous=result, return_reduction=True, **options)
        tokens = result.tokens
    return start, result


def test_a_declaration():
    method = get_method("tome")
    assert method == tome() == Method("tome", Match(), None, Compress(True), "ToMe, arXiv 2210.09461", True)
    assert not get_method("tome", proportional_attention=False).proportional_attention
    assert get_method("tome", distill_token=True).filter == Match(distill_token=True)
    assert not get_method("ficoco-v").proportional_attention
    with pytest.raises(ValueError, match="tome: proportional_attention must be True or False, got 1"):
        tome(proportional_attention=1)
    with pytest.raises(ValueError, match="Match: distill_token must be one of True, False, got 'yes'"):
        Match(distill_token="yes")
    with pytest.raises(TypeError, match="no hyperparameter 'lam'; it has proportional_attention, distill_token"):
        get_method("tome", lam=1)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("n", [64, 65])
def test_what_is_conserved(n, class_token):
    """T1, T4: sizes and size-weighted sums are those of the input; every original token is held exactly once."""
    start, result = chain([16, 10, 7], n, class_token=class_token)
    assert result.tokens.shape[1] == n - 33
    assert torch.equal(result.size.sum((1, 2)), torch.full((2,), float(n)))
    assert torch.allclose((result.size * result.tokens).sum(1), start.sum(1), atol=1e-4)
    assert bool((result.kept.diff() > 0).all())
    holders = torch.nn.functional.one_hot(result.source_map, n - 33)
    assert torch.equal(holders.sum(1).float(), result.size.squeeze(-1))
    assert torch.equal(result.source_map.gather(1, result.kept), torch.arange(n - 33).expand(2, -1))
    means = holders.float().mT @ start / result.size  # of the original members, however many steps it took
    assert torch.allclose(result.tokens, means, atol=1e-5)
    if class_token:
        assert torch.equal(result.tokens[:, 0], start[:, 0])
        assert bool((result.size[:, 0] == 1).all())


@pytest.mark.parametrize("n", [30, 31])
def test_distillation_token_is_protected(n):
    start, result = chain([8, 5], n, distill_token=True)
    assert torch.equal(result.tokens[:, :2], start[:, :2])
    assert bool((result.size[:, :2] == 1).all())
    assert bool((result.kept[:, :2] == torch.arange(2)).all())


def test_the_example_of_twelve_tokens():
    """T = 12, r = 3: groups rooted at 0, 2, 4 and all odd ones; 6, 8, 10 merged away; output in raster order."""
    key = torch.eye(12)
    for even, odd in ((6, 5), (8, 11), (10, 1)):
        key[even] = 0.8 * key[odd] + 0.6 * key[even]
    key = key.view(1, 1, 12, 12)
    result = record(torch.arange(12.0).view(1, 12, 1), QueryKey(key, key), 3, method="tome")
    assert result.kept.tolist() == [[0, 1, 2, 3, 4, 5, 7, 9, 11]]
    assert result.sources.tolist() == [[6, 8, 10]]
    assert result.kept[0, result.targets[0, :, 0]].tolist() == [5, 11, 1]
    assert result.tokens.flatten().tolist() == [0, 5.5, 2, 3, 4, 5.5, 7, 9, 9.5]


def test_unmerge():
    """T5: tokens that merged with nobody come back bit for bit, the others as their group's mean."""
    start, result = chain([20])
    back = result.unmerge()
    size = result.size.gather(1, result.source_map.unsqueeze(-1))
    alone = (size == 1).expand_as(back)
    assert alone.any() and not alone.all()
    assert torch.equal(back[alone], start[alone])
    assert torch.equal(back, result.tokens.gather(1, result.source_map.unsqueeze(-1).expand_as(back)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_identical_tokens(dtype):
    """T6: merging equal tokens gives that token, in half precision too, with sizes whose sums would overflow it."""
    q, k = torch.randn(2, 2, 4, 65, 8).to(dtype)
    tokens = torch.full((2, 65, 4), 60.5, dtype=dtype)
    size = torch.full((2, 65, 1), 3000.0)
    assert bool((reduce(tokens, QueryKey(q, k), 30, method="tome", size=size) == 60.5).all())


def test_is_weighted_by_size_always():
    tokens, attn = inputs()
    size = torch.randint(1, 6, (2, 65, 1)).float()
    first = record(tokens, attn, 0, size=size, method="tome")
    given = record(tokens, attn, 20, size=size, method="tome")
    assert same(record(tokens, attn, 20, previous=first, method="tome"), given)
    assert same(record(tokens, attn, 20, method="tome"), record(tokens, attn, 20, method="tome", size=size / size))
    weighted = (given.size * given.tokens).sum(1)
    assert torch.allclose(weighted, (size * tokens).sum(1), rtol=1e-4, atol=1e-3)
    assert same(
        record(tokens, attn, 20, method="tome", proportional_attention=False), record(tokens, attn, 20, method="tome")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_batch_is_a_loop(dtype):
    tokens, attn = inputs()
    tokens, q, k = (t.to(dtype) for t in (tokens, *attn[:2]))
    together = record(tokens, QueryKey(q, k), 20, method="tome")
    alone = [record(tokens[i : i + 1], QueryKey(q[i : i + 1], k[i : i + 1]), 20, method="tome") for i in range(2)]
    for name in ("tokens", "size", "kept", "sources", "source_map", "targets", "weights"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))
    assert together.tokens.dtype == dtype


def test_float64_is_the_oracle():
    tokens, attn = inputs()
    wide = record(tokens.double(), QueryKey(attn.query.double(), attn.key.double()), 30, method="tome")
    result = record(tokens, attn, 30, method="tome")
    assert torch.equal(result.kept, wide.kept) and torch.equal(result.source_map, wide.source_map)
    assert torch.allclose(result.tokens.double(), wide.tokens, atol=1e-5)


def test_r_none_and_too_large():
    tokens, attn = inputs()
    result = record(tokens, attn, 0, method="tome")
    assert torch.equal(result.tokens, tokens) and result.tokens.data_ptr() != tokens.data_ptr()
    assert result.targets.shape == result.weights.shape == (2, 0, 1)
    assert record(tokens, attn, 32, method="tome").kept.shape == (2, 33)
    with pytest.raises(ValueError, match=r"ficoco::match: r must be in \[0, 32\] for 65 tokens.*largest legal r is 32"):
        reduce(tokens, attn, 33, method="tome")
    assert get_method("tome").filter.largest(65, class_token=True) == 32


def test_a_map_holds_no_keys():
    tokens, attn = inputs()
    with pytest.raises(ValueError, match=r"Match: matching compares keys, and a map holds none; pass attn=QueryKey"):
        reduce(tokens, attn.query @ attn.key.mT, 4, method="tome")


def test_stages_combine():
    """Sources by matching, targets by attention; and a filter that leaves its sources nowhere to go."""
    tokens, attn = inputs()
    mixed = Method("mixed", Match(), Correlate(targets=2), Compress())
    result = record(tokens, attn, 20, method=mixed)
    assert torch.equal(result.sources, record(tokens, attn, 20, method="tome").sources)
    assert result.targets.shape == (2, 20, 2)
    with pytest.raises(ValueError, match="Method: correlate is None, and the filter does not say"):
        reduce(tokens, attn, 20, method=Method("lost", Filter(), None, Compress()))


def test_gradients_reach_the_tokens():
    tokens, attn = inputs()
    q, k = attn.query.double().requires_grad_(), attn.key.double().requires_grad_()
    size = torch.randint(1, 4, (2, 65, 1)).double()
    wide = tokens[..., :3].double().requires_grad_()

    def run(x):
        return reduce(x, QueryKey(q, k), 20, method="tome", size=size)

    assert torch.autograd.gradcheck(run, wide)
    narrow = wide.detach().float().requires_grad_()
    reduce(narrow, QueryKey(q.float(), k.float()), 20, method="tome", size=size).square().sum().backward()
    run(wide).square().sum().backward()
    assert torch.allclose(narrow.grad.double(), wide.grad, atol=1e-5)
    assert q.grad is None and k.grad is None  # selection and weights are constants


def test_places_count_the_present_tokens():
    """Even and odd are places in the present sequence: the second step does not see original indices."""
    _, first = chain([21])
    q, k = torch.randn(2, 2, 4, 44, 8)
    second = reduce(first.tokens, QueryKey(q, k), 9, method="tome", previous=first, return_reduction=True)
    plain = record(first.tokens, QueryKey(q, k), 9, method="tome", size=first.size)
    assert torch.equal(second.tokens, plain.tokens)
    assert torch.equal(second.kept, first.kept.gather(1, plain.kept))
    assert bool((plain.sources % 2 == 0).all()) and bool((second.sources % 2 == 1).any())
