"""ficoco_ext.reduce: what it promises, every hyperparameter, several reductions in a row, bad input."""

from dataclasses import fields

import pytest
import torch
from helpers.backends import tolerance
from helpers.ops import LAYOUTS, assert_selects, laid, needs_kernels
from helpers.reductions import C, N, P, inputs, record, same

import ficoco_ext
from ficoco_ext import Method, QueryKey, Reduction, reduce
from ficoco_ext.ops import reference
from ficoco_ext.stages import Compress, Correlate, Filter


def test_result():
    tokens, attn = inputs()
    out = reduce(tokens, attn, 16)
    result = record(tokens, attn)
    assert isinstance(out, torch.Tensor)
    assert torch.equal(out, result.tokens)
    assert out.shape == (2, N - 16, C)
    assert out.is_contiguous()
    assert out.data_ptr() != tokens.data_ptr()
    assert_selects(result.sources, result.kept, N, 16, True)
    assert torch.equal(out[:, 0], tokens[:, 0])
    assert result.grid == (8, 8)
    assert result.class_token
    assert result.targets.shape == result.weights.shape == (2, 16, 1)
    assert torch.equal(result.patch_ids, result.kept[:, 1:] - 1)


def test_is_the_three_stages_of_the_specification():
    """By hand, from the released preset: logits, row means, lam 0.65, normalised, penalty 2, adaptive, softmax."""
    tokens, attn = inputs(n=577, c=8)
    result = record(tokens, attn, 42)
    q, k = attn.query.double(), attn.key.double()
    stats = reference.attention_stats(q, k, 8**-0.5, True, False, False, True)
    redundancy, sources, kept = reference.filter(stats[1], stats[0], None, 42, 0.65, True, 2.0, 2, 24, 24, True)
    links = reference.correlate(q, k, sources, kept, 2, 8**-0.5, "softmax", True, False)
    out = reference.compress(tokens.double(), sources, kept, *links, None, False)
    ranked = redundancy.sort(1, descending=True).values
    assert (ranked[:, 41] - ranked[:, 42]).min() > 1e-6 * ranked.abs().max()  # the decision is clear
    assert torch.equal(result.sources, sources)
    assert torch.equal(result.kept, kept)
    assert torch.equal(result.targets, links[0])
    assert torch.allclose(result.weights.double(), links[1], atol=1e-6)
    assert torch.allclose(result.tokens.double(), out[0], atol=1e-6)
    assert torch.equal(result.source_map, out[2])


def test_paper_variant_is_the_equations():
    tokens, attn = inputs(n=577, c=8, seed=1)
    result = record(tokens, attn, 42, variant="paper")
    q, k = attn.query.double(), attn.key.double()
    stats = reference.attention_stats(q, k, 8**-0.5, True, True, False, True)
    redundancy, sources, kept = reference.filter(stats[1], stats[0], None, 42, 0.35, False, 2.0, 2, 24, 24, True)
    links = reference.correlate(q, k, sources, kept, 2, 8**-0.5, "ratio", True, True)
    ranked = redundancy.sort(1, descending=True).values
    assert (ranked[:, 41] - ranked[:, 42]).min() > 1e-6 * ranked.abs().max()
    assert torch.equal(result.sources, sources)
    assert torch.equal(result.targets, links[0])
    assert torch.allclose(result.weights.double(), links[1], atol=1e-6)


DEFAULT = {"variant": "released"}
CHANGES = [
    ("variant", "paper", "weights"),
    ("lam", 0.1, "sources"),
    ("eps", 0.9, "targets"),
    ("penalty", 4.0, "sources"),
    ("penalty", 1.0, "sources"),
    ("window", 4, "sources"),
    ("normalize", False, "sources"),
    ("alpha", "average", "weights"),
    ("attention", "probs", "weights"),
    ("redundancy", "column", "sources"),
    ("targets", 3, "targets"),
    ("targets", 0, "targets"),
    ("correlation", "key", "targets"),
    ("class_attention", False, "sources"),
    ("local_redundancy", False, "sources"),
]


@pytest.mark.parametrize(("name", "value", "field"), CHANGES)
def test_every_hyperparameter_changes_what_it_should(name, value, field):
    tokens, attn = inputs()
    base = {"eps": 0.95} if name in ("alpha", "attention", "variant") else {}
    before, after = record(tokens, attn, **base), record(tokens, attn, **{**base, name: value})
    one, other = getattr(before, field), getattr(after, field)
    assert one.shape != other.shape or not torch.equal(one, other)
    if name in ("eps", "alpha", "targets", "correlation"):  # not the filter's
        assert torch.equal(before.sources, after.sources)
    assert same(record(tokens, attn, **base), before)  # nothing is remembered


def test_explicit_values_override_the_variant():
    tokens, attn = inputs()
    paper = {"lam": 0.35, "attention": "probs", "normalize": False, "alpha": "ratio"}
    released = {"lam": 0.65, "attention": "logits", "normalize": True, "alpha": "softmax"}
    assert same(record(tokens, attn, variant="paper"), record(tokens, attn, variant="released", **paper))
    assert same(record(tokens, attn), record(tokens, attn, variant="paper", **released))
    assert same(record(tokens, attn, variant="released"), record(tokens, attn))  # the default
    assert same(record(tokens, attn, class_attention=False), record(tokens, attn, lam=1.0))
    assert same(record(tokens, attn, local_redundancy=False), record(tokens, attn, lam=0.0))
    assert not same(record(tokens, attn, variant="paper"), record(tokens, attn))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_map_and_query_key_agree(variant):
    """With its own map, with heads or without; the values of a map are used as they are."""
    tokens, attn = inputs()
    probs = variant == "paper"
    mean = reference.attention_map(attn.query.double(), attn.key.double(), 8**-0.5, probs).float()
    logits = attn.query @ attn.key.mT * 8**-0.5
    heads = logits.softmax(-1) if probs else logits
    by_key = record(tokens, attn, variant=variant)
    assert same(by_key, record(tokens, mean, variant=variant), tol=1e-5)
    assert same(by_key, record(tokens, heads, variant=variant), tol=1e-5)
    shifted = record(tokens, mean + 1, variant="released", normalize=False)
    assert not torch.equal(shifted.sources, by_key.sources) or not same(shifted, by_key)


def test_scale_of_query_key():
    tokens, attn = inputs()
    assert same(record(tokens, attn), record(tokens, attn._replace(scale=8**-0.5)))
    assert not same(record(tokens, attn, variant="paper"), record(tokens, attn._replace(scale=3.0), variant="paper"))
    flat = attn._replace(scale=0.0)  # a scale like any other: all logits are 0
    assert flat.logit_scale == 0.0 and attn.logit_scale == 8**-0.5
    assert record(tokens, flat, lam=0.0, penalty=1.0).sources.tolist() == [list(range(1, 17))] * 2  # equals, in order


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_layouts(dtype, layout):
    tokens, attn = inputs(b=3, dtype=dtype)
    if layout == "expanded":
        tokens, attn = laid(tokens, layout), QueryKey(laid(attn.query, layout), laid(attn.key, layout))
        straight = QueryKey(attn.query.contiguous(), attn.key.contiguous())
        assert same(record(tokens, attn), record(tokens.contiguous(), straight))
        return
    other = QueryKey(laid(attn.query, layout), laid(attn.key, layout))
    assert same(record(laid(tokens, layout), other), record(tokens, attn), tol=tolerance(32, dtype))


@needs_kernels
@pytest.mark.parametrize("options", [{}, {"variant": "paper"}, {"correlation": "key"}, {"class_token": False}], ids=str)
def test_batch_equals_loop(options):
    """U2: bit for bit."""
    tokens, attn = inputs(b=3, n=P if options.get("class_token") is False else N)
    together = record(tokens, attn, **options)
    for item in range(3):
        part = slice(item, item + 1)
        alone = record(tokens[part], QueryKey(attn.query[part], attn.key[part]), **options)
        for field in fields(Reduction):
            value = getattr(together, field.name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value[part], getattr(alone, field.name)), field.name


@pytest.mark.parametrize("method", ["ficoco-v", "topk"])
@pytest.mark.parametrize("class_token", [False, True])
def test_nothing_to_remove(method, class_token):
    """U1: r = 0 is the identity, in a new tensor."""
    tokens, attn = inputs(n=P + class_token)
    result = record(tokens, attn, 0, method=method, class_token=class_token)
    assert torch.equal(result.tokens, tokens)
    assert result.tokens.data_ptr() != tokens.data_ptr()
    everyone = torch.arange(tokens.shape[1]).expand(2, -1)
    assert torch.equal(result.kept, everyone)
    assert torch.equal(result.source_map, everyone)
    assert torch.equal(result.size, torch.ones(2, tokens.shape[1], 1))
    assert result.sources.shape == (2, 0)
    assert result.targets.shape[:2] == result.weights.shape[:2] == (2, 0)
    transposed = record(tokens.transpose(0, 1).contiguous().transpose(0, 1), attn, 0, class_token=class_token)
    assert transposed.tokens.is_contiguous()


def test_sizes_of_nothing_to_remove_are_new():
    """What a model does to its sizes later must not reach the caller's tensor, r = 0 or not."""
    tokens, attn = inputs()
    size = torch.ones(2, N, 1)
    for r in (0, 4):
        result = record(tokens, attn, r, size=size)
        result.size.zero_()
        assert torch.equal(size, torch.ones(2, N, 1))


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("n", [1, 2, 31, 32, 33])
def test_as_much_as_possible(n, class_token):
    if n == 1 and class_token:
        pytest.skip("no patch")
    tokens, attn = inputs(n=n)
    p = n - class_token
    result = record(tokens, attn, p - 1, class_token=class_token, grid=(1, p), penalty=1.0)
    assert result.tokens.shape[1] == 1 + class_token
    assert result.size[:, -1].flatten().tolist() == pytest.approx([p, p])
    assert torch.allclose(result.tokens[:, -1], tokens[:, int(class_token) :].mean(1), atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_grids_thinner_than_a_window(n):
    """With the default penalty: there is no whole window, so there is no penalty."""
    tokens, attn = inputs(n=n + 1)
    for r in range(n):
        assert same(record(tokens, attn, r, grid=(1, n)), record(tokens, attn, r, grid=(1, n), penalty=1.0))


def test_equal_tokens_stay_equal():
    _, attn = inputs()
    out = reduce(torch.full((2, N, C), 0.1), attn, 30, targets=3)
    assert torch.allclose(out, torch.full_like(out, 0.1), rtol=1e-6)


def test_equal_attention():
    """U5: all tokens equal: finite, and the lowest indices leave."""
    tokens = torch.ones(1, N, C)
    flat = torch.ones(1, 2, N, 8)
    for attn in (QueryKey(flat, flat), QueryKey(torch.zeros_like(flat), flat), flat.new_ones(1, N, N)):
        result = record(tokens, attn, 10, penalty=1.0, normalize=False)
        assert torch.equal(result.tokens, tokens[:, 10:])
        assert result.sources.tolist() == [list(range(1, 11))]


def test_permutation_of_patches():
    """T3, without the penalty: permuted patches give the same tokens in permuted order."""
    tokens, attn = inputs()
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(P)])
    shuffled = record(tokens[:, order], QueryKey(attn.query[:, :, order], attn.key[:, :, order]), penalty=1.0)
    straight = record(tokens, attn, penalty=1.0)
    original = order[shuffled.kept]
    back = original.argsort(1)
    assert torch.equal(original.gather(1, back), straight.kept)
    assert torch.equal(order[shuffled.sources].sort(1).values, straight.sources)
    moved = shuffled.tokens.gather(1, back.unsqueeze(-1).expand(-1, -1, C))
    assert torch.allclose(moved, straight.tokens, atol=1e-5)


def test_size():
    """Given: merging is weighted by it. Not given: only counted."""
    tokens, attn = inputs()
    size = torch.randint(1, 5, (2, N, 1)).float()
    given = record(tokens, attn, size=size)
    assert torch.allclose(given.size.sum(1), size.sum(1))
    assert not torch.allclose(given.tokens, reduce(tokens, attn, 16))
    assert torch.equal(record(tokens, attn, size=torch.ones(2, N, 1)).tokens, reduce(tokens, attn, 16))
    assert torch.equal(record(tokens, attn, 0, size=size).size, size)
    half = record(tokens, attn, size=size.half())
    assert half.size.dtype == torch.float32
    assert torch.equal(half.size, given.size)
    weighted = Method("tome-like", Filter(), Correlate(), Compress(size_weighted=True))
    assert torch.equal(
        record(tokens, attn, method=weighted, previous=record(tokens, attn, 0, size=size)).tokens, given.tokens
    )


def test_grid():
    tokens, attn = inputs(n=61)
    tall, wide = (record(tokens, attn, grid=grid) for grid in ((10, 6), [6, 10]))
    assert tall.grid == (10, 6)
    assert wide.grid == (6, 10)
    assert not torch.equal(tall.sources, wide.sources)
    with pytest.raises(ValueError, match=r"grid=\(height, width\).*penalty=1"):
        reduce(tokens, attn, 16)
    assert record(tokens, attn, penalty=1.0).grid is None
    square = inputs()
    assert same(record(*square), record(*square, grid=(8, 8)))


def test_without_class_token():
    tokens, attn = inputs(n=P)
    result = record(tokens, attn, class_token=False)
    assert_selects(result.sources, result.kept, P, 16, False)
    assert 0 in result.sources[0].tolist() + result.sources[1].tolist() or (result.kept[:, 0] == 0).all()
    logits = attn.query @ attn.key.mT * 8**-0.5
    with pytest.raises(ValueError, match=r"class token.*QueryKey\(query, key\)"):
        reduce(tokens, logits, 16, class_token=False)
    by_map = record(tokens, logits, class_token=False, class_attention=False)
    assert same(by_map, record(tokens, attn, class_token=False, class_attention=False), tol=1e-5)


def test_topk_prunes_by_class_attention():
    tokens, attn = inputs()
    result = record(tokens, attn, 20, method="topk")
    scores = reference.attention_map(attn.query, attn.key, 8**-0.5, True)[:, 0, 1:]
    best = scores.topk(P - 20).indices.sort(1).values + 1
    assert torch.equal(result.kept[:, 1:], best)
    assert torch.equal(result.tokens[:, 1:], tokens.gather(1, best.unsqueeze(-1).expand(-1, -1, C)))
    by_map = record(tokens, (attn.query @ attn.key.mT * 8**-0.5).softmax(-1), 20, method="topk")
    assert same(result, by_map, tol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype):
    tokens, attn = inputs()
    half = record(tokens.to(dtype), attn)  # tokens and attention need not have the same dtype
    full = record(tokens.to(dtype).float(), attn)
    assert half.tokens.dtype == dtype
    assert half.size.dtype == half.weights.dtype == torch.float32
    assert torch.equal(half.kept, full.kept)
    assert torch.equal(half.tokens, full.tokens.to(dtype))


def test_float64():
    """By the specification, also where tokens and attention differ."""
    tokens, attn = inputs()
    wide = QueryKey(attn.query.double(), attn.key.double())
    full = record(tokens.double(), wide)
    assert full.tokens.dtype == full.size.dtype == full.weights.dtype == torch.float64
    assert same(record(tokens.double(), attn), record(tokens.double(), attn))
    for result in (record(tokens.double(), attn), record(tokens, wide)):
        assert torch.equal(result.kept, full.kept)
        assert torch.allclose(result.tokens.double(), full.tokens, atol=1e-6)


def test_no_items():
    tokens, attn = inputs(b=0)
    assert reduce(tokens, attn, 16).shape == (0, N - 16, C)


def test_inputs_are_not_written():
    tokens, attn = inputs()
    size = torch.ones(2, N, 1)
    held = (tokens, *attn[:2], size)
    copies = [one.clone() for one in held]
    first = record(tokens, attn, size=size)
    snapshot = [getattr(first, field.name) for field in fields(Reduction)]
    snapshot = [value.clone() if isinstance(value, torch.Tensor) else value for value in snapshot]
    record(first.tokens, inputs(n=49)[1], previous=first)
    assert all(map(torch.equal, held, copies))
    for field, old in zip(fields(Reduction), snapshot, strict=True):
        now = getattr(first, field.name)
        assert torch.equal(now, old) if isinstance(old, torch.Tensor) else now == old


def test_public_names():
    assert [name for name in ficoco_ext.__all__ if not hasattr(ficoco_ext, name)] == []
    assert set(ficoco_ext.__all__) <= set(dir(ficoco_ext))
    assert set(ficoco_ext.METHODS) >= {"ficoco-v", "topk"}
