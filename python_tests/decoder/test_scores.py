"""Reductions among text, against loops in float64; and what a method promises whatever the numbers are."""

import pytest
import torch
from helpers.backends import tolerance
from helpers.reductions import same
from helpers.scores import (
    LENGTH,
    START,
    VISUAL,
    B,
    C,
    N,
    assert_equals,
    ficoco_l,
    heads_mean,
    last_token,
    loud,
    padded,
    sequence,
)

from ficoco_ext import QueryKey, Reduction, get_method, reduce

METHODS = ("ficoco-l", "fastv", "pyramiddrop")
R = 8


def record(tokens, attn, r=R, *, visual=VISUAL, **options) -> Reduction:
    return reduce(tokens, attn, r, visual=visual, return_reduction=True, **options)


OPTIONS = {
    "default": {},
    "beta": {"beta": 0.2},
    "gamma": {"gamma": 0.1},
    "no text in the filter": {"text_relevance": False},
    "text alone in the filter": {"visual_redundancy": False},
    "no way by the text": {"indirect": False},
    "by the text alone": {"direct": False},
    "by the text alone, everywhere": {"direct": False, "visual_redundancy": False, "targets": 4},
    "sums": {"visual_reduce": "sum", "text_reduce": "mean"},
    "sums of the text": {"text_reduce": "sum", "indirect_reduce": "sum"},
    "means by the text": {"indirect_reduce": "mean"},
    "means by the text, two targets": {"indirect_reduce": "mean", "gamma": 0.3, "targets": 2},
    "three targets": {"targets": 3},
    "three targets, averaged": {"targets": 3, "alpha": "average"},
    "two targets by softmax": {"alpha": "softmax", "targets": 2},
    "pruning": {"targets": 0},
    "low quantile": {"eps": 0.7},
    "penalty": {"penalty": 3.0, "grid": (5, 5)},
    "penalty in wide windows": {"penalty": 2.0, "window": 3, "grid": (5, 5)},
    "probabilities": {"attention": "probs", "beta": 0.9},
    "logits": {"attention": "logits", "targets": 2},
    "correlation by logits": {"correlation_attention": "logits", "targets": 2},
    "correlation by probabilities": {"correlation_attention": "probs", "gamma": 0.2, "targets": 2},
}


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("case", OPTIONS)
def test_ficoco_l_by_hand(case, variant, padding):
    tokens, attn = sequence(seed=3)
    real = padded() if padding else None
    attn = loud(attn, real) if padding else attn
    options = {"variant": variant, **OPTIONS[case]}
    result = record(tokens, attn, method="ficoco-l", mask=real, **options)
    assert_equals(result, ficoco_l(tokens, attn, R, VISUAL, real, **options))
    assert not result.class_token and result.grid is None


def test_the_reading_of_the_paper_is_the_default():
    assert get_method("ficoco-l") == get_method("ficoco-l", variant="paper")
    assert get_method("ficoco-l") != get_method("ficoco-l", variant="released")


@pytest.mark.parametrize("hk", [1, 2, 4])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_ficoco_l_by_hand_for_other_places_and_heads(variant, hk):
    for visual in ((0, 20), (35, 10), (N - 20, 20), (1, N - 2)):  # the third has no text behind it
        tokens, attn = sequence(seed=5, hk=hk)
        result = record(tokens, attn, 7, visual=visual, method="ficoco-l", variant=variant)
        assert_equals(result, ficoco_l(tokens, attn, 7, visual, variant=variant))


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_a_row_without_text_uses_the_first_term_alone(variant):
    tokens, attn = sequence(seed=5)
    visual = (N - 20, 20)
    wanted = record(tokens, attn, visual=visual, method="ficoco-l", variant=variant)
    for options in ({"text_relevance": False}, {"beta": 0.1}, {"visual_redundancy": False}):
        result = record(tokens, attn, visual=visual, method="ficoco-l", variant=variant, **options)
        assert torch.equal(result.sources, wanted.sources)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_a_mean_over_no_text_is_nothing(variant):
    """By way of the text: with none, sum and mean are both 0, and the direct attention decides."""
    tokens, attn = sequence(seed=5)
    options = {"visual": (N - 20, 20), "method": "ficoco-l", "variant": variant, "targets": 2}
    mean, total = (record(tokens, attn, **options, indirect_reduce=how) for how in ("mean", "sum"))
    assert same(mean, total) and mean.weights.isfinite().all() and mean.tokens.isfinite().all()


def test_text_behind_the_picture_may_be_padding_in_one_row_only():
    tokens, attn = sequence(seed=7)
    real = padded(left=(0, 0), right=(N - sum(VISUAL), 2))
    for variant in ("released", "paper"):
        result = record(tokens, attn, method="ficoco-l", variant=variant, mask=real)
        assert_equals(result, ficoco_l(tokens, attn, R, VISUAL, real, variant=variant))


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_last_token_by_hand(method, padding):
    tokens, attn = sequence(seed=4)
    real = padded() if padding else None
    attn = loud(attn, real) if padding else attn
    result = record(tokens, attn, method=method, mask=real)
    assert_equals(result, last_token(tokens, attn, R, VISUAL, real))
    last = [N - 1, N - 1] if real is None else [N - 4, N - 1]
    for item, attention in enumerate(heads_mean(attn, real, probs=True)):
        row = attention[last[item], START : START + LENGTH]
        best = row.topk(LENGTH - R).indices.sort().values + START
        left = result.kept[item]
        assert torch.equal(left[(left >= START) & (left < START + LENGTH)], best)
    assert result.targets.shape == (B, R, 0) and result.weights.shape == (B, R, 0)


def test_scale_of_a_query_key_is_used():
    tokens, attn = sequence(seed=8)
    hot = QueryKey(attn.query, attn.key, 2.0)
    assert_equals(record(tokens, hot, method="fastv"), last_token(tokens, hot, R, VISUAL))
    wanted = ficoco_l(tokens, hot, R, VISUAL, variant="paper", eps=0.6)
    assert_equals(record(tokens, hot, method="ficoco-l", variant="paper", eps=0.6), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    tokens, attn = sequence(seed=9, dtype=dtype)
    for method, by_hand in (("ficoco-l", ficoco_l), ("fastv", last_token)):
        result = record(tokens, attn, method=method)
        assert result.tokens.dtype == dtype
        assert_equals(result, by_hand(tokens, attn, R, VISUAL), max(2 * tolerance(N, dtype), 1e-6))


def test_given_sizes_weigh_the_merge():
    tokens, attn = sequence(seed=10)
    size = torch.rand(B, N, 1) * 3 + 1
    result = record(tokens, attn, method="ficoco-l", eps=0.8, size=size)
    assert_equals(result, ficoco_l(tokens, attn, R, VISUAL, eps=0.8, size=size))


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("form", ["(B, H, N, N)", "(B, N, N)"])
def test_a_map_equals_the_query_and_key_that_made_it(variant, form):
    tokens, attn = sequence(seed=11)
    real = padded()
    attn = loud(attn, real)
    query, key = attn.query.double(), attn.key.double().repeat_interleave(2, 1)
    attention = query @ key.mT * 8**-0.5
    if variant == "paper":
        allowed = torch.ones(N, N, dtype=torch.bool).tril() & real[:, None, None]
        attention = attention.masked_fill(~allowed, float("-inf")).softmax(-1).nan_to_num(0.0)
    given = (attention if form == "(B, H, N, N)" else attention.mean(1)).float()
    options = {"method": "ficoco-l", "variant": variant, "targets": 3, "mask": real}
    assert same(record(tokens, given, **options), record(tokens, attn, **options), 1e-5)
    if variant == "paper":
        for method in ("fastv", "pyramiddrop"):
            one, other = (record(tokens, a, method=method, mask=real) for a in (given, attn))
            assert same(one, other, 1e-5)


def test_a_map_cannot_be_read_in_two_ways():
    tokens, attn = sequence(seed=11)
    given = (attn.query @ attn.key.repeat_interleave(2, 1).mT).softmax(-1)
    for options in ({"correlation_attention": "logits"}, {"variant": "released", "correlation_attention": "probs"}):
        with pytest.raises(ValueError, match=r"ficoco-l: attn must be a QueryKey.*pass ficoco_ext.QueryKey"):
            record(tokens, given, method="ficoco-l", **options)
        pruned = record(tokens, given, method="ficoco-l", targets=0, **options)  # nothing is correlated
        assert pruned.targets.shape == (B, R, 0)


@pytest.mark.parametrize("method", METHODS)
def test_mass_and_convexity(method):
    tokens, attn = sequence(seed=12)
    result = record(tokens, attn, 15, method=method)
    merges = method == "ficoco-l"
    assert torch.allclose(result.size.sum((1, 2)), torch.full((B,), N - (0.0 if merges else 15.0)))
    share = torch.ones(B, N - 15).scatter_add(1, result.targets.flatten(1), result.weights.flatten(1))
    left = tokens.scatter(1, result.sources[..., None].expand(-1, -1, C), 0.0)
    whole = tokens.sum(1) if merges else left.sum(1)
    assert torch.allclose((share[..., None] * result.tokens).sum(1), whole, atol=1e-4)
    low, high = tokens.amin(1, keepdim=True) - 1e-6, tokens.amax(1, keepdim=True) + 1e-6
    assert ((result.tokens >= low) & (result.tokens <= high)).all()
    same_ = tokens.clone()
    same_[:, START : START + LENGTH] = 1.7
    out = record(same_, attn, 15, method=method).tokens
    assert torch.allclose(out[:, START : START + LENGTH - 15], torch.tensor(1.7), rtol=1e-6)


@pytest.mark.parametrize("visual", [VISUAL, (35, 12), (0, N - 1), (N - 12, 12)])
@pytest.mark.parametrize("method", METHODS)
def test_text_is_copied_bit_for_bit(method, visual):
    tokens, attn = sequence(seed=13)
    tokens[0, 0, 0] = float("nan") if visual[0] else 1.0  # not even a NaN spreads
    start, length = visual
    out = reduce(tokens, attn, R, method=method, visual=visual)
    bits = out.view(torch.int32), tokens.view(torch.int32)
    assert torch.equal(bits[0][:, :start], bits[1][:, :start])
    assert torch.equal(bits[0][:, start + length - R :], bits[1][:, start + length :])


def permuted(tokens, attn, first, count, seed=0):
    """Tokens and attention with ``count`` columns from ``first`` in another order, and that order."""
    order = torch.arange(N)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    order[first : first + count] = first + shuffled
    return tokens[:, order], QueryKey(attn.query[:, :, order], attn.key[:, :, order]), order


def test_order_of_the_visual_tokens_does_not_matter():
    tokens, attn = sequence(seed=14)
    shuffled, other, order = permuted(tokens, attn, START, LENGTH)
    options = {"method": "ficoco-l", "variant": "released", "eps": 0.8}  # a causal mask would know the order
    one = record(tokens, attn, **options)
    two = record(shuffled, other, **options)
    assert not torch.equal(one.sources, two.sources)
    assert torch.equal(order[two.sources].sort(1).values, one.sources)
    assert torch.allclose(two.unmerge(), one.unmerge()[:, order], atol=1e-5)
    one, two = (record(*x, method="fastv") for x in ((tokens, attn), (shuffled, other)))
    assert torch.equal(order[two.sources].sort(1).values, one.sources)


def test_order_of_the_text_does_not_matter_to_logits():
    tokens, attn = sequence(seed=15)
    shuffled, other, _ = permuted(tokens, attn, sum(VISUAL), N - sum(VISUAL))
    options = {"method": "ficoco-l", "variant": "released", "eps": 0.8}
    one, two = (record(*x, **options) for x in ((tokens, attn), (shuffled, other)))
    for name in ("sources", "kept", "targets", "source_map"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    end = sum(VISUAL) - R
    assert torch.allclose(one.tokens[:, :end], two.tokens[:, :end], atol=1e-5)


def test_beta_and_gamma_of_one_ignore_the_text():
    tokens, attn = sequence(seed=16)
    other = QueryKey(attn.query.clone(), attn.key.clone())
    for part in (other.query, other.key):
        part[:, :, sum(VISUAL) :] = torch.randn(*part.shape[:2], N - sum(VISUAL), part.shape[3])
    for variant in ("released", "paper"):  # under a causal mask nobody's probabilities know later text
        options = {"method": "ficoco-l", "variant": variant, "eps": 0.8}
        one, two = (record(tokens, a, beta=1.0, gamma=1.0, **options) for a in (attn, other))
        assert same(one, two)
        for changed in ({"beta": 0.1, "gamma": 1.0}, {"beta": 1.0, "gamma": 0.1}):
            one, two = (record(tokens, a, **changed, **options) for a in (attn, other))
            assert not same(one, two)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_rows(method):
    tokens, attn = sequence(seed=17)
    real = padded()
    whole = record(tokens, attn, method=method, mask=real)
    for b in range(B):
        row = slice(b, b + 1)
        one = record(tokens[row], QueryKey(attn.query[row], attn.key[row]), method=method, mask=real[row])
        assert torch.equal(whole.tokens[row], one.tokens) and torch.equal(whole.sources[row], one.sources)
    everybody = torch.ones(B, N, dtype=torch.bool)
    assert same(record(tokens, attn, method=method, mask=everybody), record(tokens, attn, method=method))


@pytest.mark.parametrize("method", METHODS)
def test_padding_does_not_matter(method):
    """A row with padding on either side chooses and merges as it does alone."""
    tokens, attn = sequence(seed=18)
    real = padded(left=(5, 5), right=(2, 2))
    inner = slice(5, N - 2)
    whole = record(tokens, loud(attn, real), method=method, mask=real)
    short = QueryKey(attn.query[:, :, inner], attn.key[:, :, inner])
    alone = record(tokens[:, inner], short, visual=(START - 5, LENGTH), method=method)
    assert torch.equal(whole.sources, alone.sources + 5)
    assert torch.allclose(whole.tokens[:, 5 : N - 2 - R], alone.tokens, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_visual_as_a_mask(method):
    tokens, attn = sequence(seed=19)
    flags = torch.zeros(B, N, dtype=torch.bool)
    flags[:, START : START + LENGTH] = True
    assert same(record(tokens, attn, method=method, visual=flags), record(tokens, attn, method=method))
    scattered = torch.zeros(B, N, dtype=torch.bool)
    for b in range(B):
        scattered[b, torch.randperm(N - 5)[:20]] = True
    result = record(tokens, attn, method=method, visual=scattered)
    assert scattered.gather(1, result.sources).all()
    for b in range(B):
        left = [k for k in range(N) if k not in result.sources[b].tolist()]
        assert result.kept[b].tolist() == left
        text = torch.tensor([place for place, k in enumerate(left) if not scattered[b, k]])
        assert torch.equal(result.tokens[b, text], tokens[b, result.kept[b, text]])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_remove(method):
    tokens, attn = sequence(seed=20)
    result = record(tokens, attn, 0, method=method)
    assert torch.equal(result.tokens, tokens) and result.tokens.data_ptr() != tokens.data_ptr()
    assert torch.equal(result.kept, torch.arange(N).expand(B, -1))
    assert result.sources.shape == (B, 0) and (result.size == 1).all()
    assert torch.equal(
        record(tokens, attn, LENGTH - 1, method=method).kept[:, :START], torch.arange(START).expand(B, -1)
    )


@pytest.mark.parametrize("method", METHODS)
def test_several_reductions_in_a_row(method):
    tokens, attn = sequence(seed=21)
    first = record(tokens, attn, method=method)
    short = QueryKey(*(x.gather(2, first.kept[:, None, :, None].expand(-1, x.shape[1], -1, 8)) for x in attn[:2]))
    visual = (START, LENGTH - R)
    alone = record(first.tokens, short, 5, visual=visual, method=method, size=None)
    second = record(first.tokens, short, 5, visual=visual, method=method, previous=first)
    assert torch.equal(second.tokens, alone.tokens)
    assert torch.equal(second.kept, first.kept.gather(1, alone.kept))
    assert torch.equal(second.sources, first.kept.gather(1, alone.sources))
    assert torch.allclose(second.size.sum((1, 2)), torch.full((B,), N - (0.0 if method == "ficoco-l" else R + 5.0)))
    for b in range(B):
        for place in range(N):
            through = int(first.source_map[b, place])
            heir = -1 if through < 0 else int(alone.source_map[b, through])
            assert int(second.source_map[b, place]) == heir


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_not_written(method):
    tokens, attn = sequence(seed=22)
    size, real = torch.ones(B, N, 1), padded()
    flags = torch.zeros(B, N, dtype=torch.bool)
    flags[:, START : START + LENGTH] = True
    held = (tokens, attn.query, attn.key, size, real, flags)
    before = [x.clone() for x in held]
    reduce(tokens, attn, R, method=method, visual=flags, mask=real, size=size)
    assert all(map(torch.equal, held, before))


def test_a_method_of_ones_own_is_taken():
    tokens, attn = sequence(seed=23)
    mine = get_method("ficoco-l", beta=0.2)
    assert same(record(tokens, attn, method=mine), record(tokens, attn, method="ficoco-l", beta=0.2))
