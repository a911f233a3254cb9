"""correlate.tokens against a map written out in float64: direct and indirect correlation, masks, cached keys."""

from itertools import product

import pytest
import torch
from helpers.backends import BACKENDS, tolerance
from helpers.ops import DTYPES, LAYOUTS, needs_kernels, needs_opcheck, query_key

from ficoco_ext import QueryKey, ops
from ficoco_ext.cost import flop_counter

KINDS = [("softmax", False), ("average", False), ("softmax", True), ("ratio", True)]  # alpha, probs
FORMS = list(product((False, True), (False, True)))  # probs, column


def inputs(b=2, h=4, hk=2, tq=40, t=40, d=8, r=6, m=11, others=9, dtype=torch.float32, layout="contiguous", mask=True):
    """Sources, candidates and others are distinct tokens; the last token is real in every item."""
    query, _ = query_key(b, h, hk, tq, d, dtype, layout)
    _, key = query_key(b, h, hk, t, d, dtype, layout)
    order = torch.stack([torch.randperm(tq)[: r + m + others] for _ in range(b)]) + t - tq
    sources, candidates, rest = (part.sort(1).values for part in order.split([r, m, others], dim=1))
    real = torch.rand(b, t) < 0.9
    real[:, -1] = True
    return query, key, sources, candidates, rest, torch.rand(b, others), real if mask else None


def correlations(args, scale, gamma, probs, column, causal):
    """(B, r, m) in float64, from the whole map."""
    query, key, sources, candidates, others, weights, mask = args
    b, h, tq, _ = query.shape
    t = key.shape[2]
    logits = query.double() @ key.double().repeat_interleave(h // key.shape[1], dim=1).mT * scale
    if probs:
        seen = torch.ones(tq, t, dtype=torch.bool).tril(t - tq) if causal else torch.ones(tq, t, dtype=torch.bool)
        seen = seen.expand(b, 1, tq, t)
        seen = seen if mask is None else seen & mask[:, None, None]
        logits = logits.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0)
    attn = torch.zeros(b, t, t, dtype=torch.float64)
    attn[:, t - tq :] = logits.mean(1)
    out = []
    for item in range(b):
        s, c, o = sources[item], candidates[item], others[item]
        first = attn[item][o][:, s].T if column else attn[item][s][:, o]
        way = first * weights[item].double() @ attn[item][o][:, c]
        out.append(gamma * attn[item][s][:, c] + (1 - gamma) * way)
    return torch.stack(out)


def check(backend, args, k, scale, gamma, alpha, probs, column, causal):
    targets, weights = backend("correlate.tokens", *args, k, scale, gamma, alpha, probs, column, causal)
    scores = correlations(args, scale, gamma, probs, column, causal)
    assert (targets.dtype, weights.dtype) == (torch.int64, torch.float32)
    assert targets.shape == weights.shape == (*args[2].shape, k)
    assert bool((targets.sort(-1).values.diff() > 0).all()), "a target twice"
    query, others = args[0], args[4]
    sums = (others.shape[1] + 1) * max(scores.abs().max().item(), 1.0)  # errors of both factors of the way add up
    slack = 4 * tolerance(query.shape[1] * query.shape[3]) * sums
    chosen, ranked = scores.gather(2, targets), scores.sort(dim=-1, descending=True).values[..., :k]
    assert torch.allclose(chosen, ranked, rtol=0, atol=slack)
    if alpha == "softmax":
        wanted = chosen.softmax(-1)
    else:
        total = chosen.sum(-1, keepdim=True)
        even = torch.full_like(chosen, 1 / max(k, 1))
        wanted = even if alpha == "average" else torch.where(total > 0, chosen / total, even)
    small = alpha == "ratio" and bool((chosen.sum(-1) < 100 * slack).any())  # a ratio of what rounding left
    assert torch.allclose(weights.double(), wanted, rtol=0, atol=1e-4 if small else 50 * slack)


@pytest.mark.parametrize(("alpha", "probs"), KINDS)
@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("causal", [False, True])
def test_the_formula(backend, alpha, probs, gamma, causal):
    for mask, column in product((False, True), (False, True)):
        check(backend, inputs(mask=mask), 2, 0.3, gamma, alpha, probs, column, causal)


@pytest.mark.parametrize(("probs", "column"), FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_than_a_tile_of_everything(backend, dtype, probs, column):
    """Tiles of which causality leaves all, a part and nothing, and lists that end inside of one."""
    for d, causal in ((72, True), (136, False)):
        args = inputs(b=1, h=2, hk=1, tq=390, t=395, d=d, r=140, m=150, others=90, dtype=dtype)
        check(backend, args, 3, d**-0.5, 0.4, "softmax", probs, column, causal)


@pytest.mark.parametrize(("probs", "column"), FORMS)
@pytest.mark.parametrize(("r", "m", "others", "k"), [(1, 1, 1, 1), (30, 70, 3, 5), (5, 66, 65, 2), (70, 20, 1, 20)])
def test_counts(backend, r, m, others, k, probs, column):
    check(backend, inputs(t=150, tq=150, r=r, m=m, others=others), k, 0.3, 0.6, "softmax", probs, column, True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_and_grouped_heads(backend, dtype, layout):
    for (h, hk), (probs, column) in product(((4, 4), (6, 2), (1, 1)), FORMS):
        args = inputs(b=3, h=h, hk=hk, d=12, dtype=dtype, layout=layout)
        check(backend, args, 2, 0.3, 0.6, "softmax", probs, column, True)


@pytest.mark.parametrize("d", [1, 5, 9, 80, 128])
def test_widths(backend, d):
    for probs, column in FORMS:
        check(backend, inputs(d=d), 2, d**-0.5, 0.6, "softmax", probs, column, True)


@pytest.mark.parametrize(("probs", "column"), FORMS)
def test_behind_a_cached_prefix(backend, probs, column):
    """Queries of the last 20 of 60 tokens; candidates may lie in the prefix, whose queries are gone."""
    query, key, sources, _, others, weights, mask = inputs(t=60, tq=20, r=4, m=5, others=6)
    candidates = torch.stack([torch.randperm(40)[:7].sort().values for _ in range(2)])
    args = (query, key, sources, candidates, others, weights, mask)
    check(backend, args, 3, 0.3, 0.5, "softmax", probs, column, True)


def test_without_others_it_is_direct(backend):
    """gamma = 1 and all others' weights 0 choose alike; and alike to correlate where every token is in play."""
    query, key, sources, candidates, others, weights, _ = inputs(h=4, hk=4, r=6, m=34, others=0)
    for probs in (False, True):
        settings = (3, 0.3, 1.0, "softmax", probs, False, False)
        first = backend("correlate.tokens", query, key, sources, candidates, others, weights, None, *settings)
        second = backend("correlate", query, key, sources, candidates, 3, 0.3, "softmax", False, probs)
        assert torch.equal(first[0], second[0])
        assert torch.allclose(first[1], second[1], atol=1e-5)
    query, key, sources, candidates, others, weights, mask = inputs()
    none = torch.zeros_like(weights)
    tokens, settings = (query, key, sources, candidates, others), ("average", False, False, True)
    direct = backend("correlate.tokens", *tokens, weights, mask, 2, 0.3, 1.0, *settings)
    half = backend("correlate.tokens", *tokens, none, mask, 2, 0.3, 0.5, *settings)
    assert torch.equal(direct[0], half[0])


def test_equal_correlations_go_by_lowest_place(backend):
    query, key = torch.ones(1, 1, 20, 4), torch.ones(1, 1, 20, 4)
    places = [torch.arange(a, b)[None] for a, b in ((0, 3), (3, 13), (13, 20))]
    targets, weights = backend(
        "correlate.tokens", query, key, *places, torch.ones(1, 7), None, 4, 0.3, 0.6, "softmax", False, False, False
    )
    assert torch.equal(targets, torch.arange(4).expand(1, 3, 4))
    assert torch.allclose(weights, torch.full_like(weights, 0.25))


def before_text(b=2, visual=16, text=8, r=5):
    """A causal prompt: sources and candidates share the visual tokens, the first a source, and the text is behind."""
    query, key = query_key(b, 4, 2, visual + text, 8)
    order = torch.rand(b, visual).index_fill(1, torch.tensor([0]), -1.0).argsort(1)
    sources, candidates = order[:, :r].sort(1).values, order[:, r:].sort(1).values
    others = torch.arange(visual, visual + text).expand(b, -1)
    return query, key, sources, candidates, others, torch.ones(b, text), None


def test_only_the_column_form_hears_of_later_text(backend):
    """Under a causal mask nobody attends to later tokens: by way of the text A_it A_tj is exactly 0, A_ti A_tj is not.

    So without direct attention the row form chooses the lowest places, by weights that are even.
    """
    args = before_text()
    row, even = backend("correlate.tokens", *args, 3, 0.3, 0.0, "ratio", True, False, True)
    assert torch.equal(row, torch.arange(3).expand(2, 5, 3))
    assert torch.equal(even, torch.full_like(even, 1 / 3))
    check(backend, args, 3, 0.3, 0.0, "ratio", True, True, True)
    column, uneven = backend("correlate.tokens", *args, 3, 0.3, 0.0, "ratio", True, True, True)
    assert not torch.equal(row, column)
    assert bool((uneven[..., 0] > 1 / 3).all())


def test_ratio_of_nothing_is_even(backend):
    """The first token attends to no candidate: all its correlations are 0, and 0 / 0 is 1 / k, not NaN."""
    args = before_text()
    targets, weights = backend("correlate.tokens", *args, 3, 0.3, 1.0, "ratio", True, False, True)
    assert bool((args[2][:, 0] == 0).all())
    assert torch.equal(targets[:, 0], torch.arange(3).expand(2, 3))
    assert torch.equal(weights[:, 0], torch.full_like(weights[:, 0], 1 / 3))
    assert torch.allclose(weights.sum(-1), torch.ones(2, 5))


def test_nothing_to_do(backend):
    for shape, k in (({"r": 0}, 2), ({}, 0), ({"others": 0}, 2)):
        args = inputs(**shape)
        for probs, column in FORMS:
            targets, _ = backend("correlate.tokens", *args, k, 0.3, 0.6, "softmax", probs, column, True)
            assert targets.shape == (*args[2].shape, k)


@needs_opcheck
def test_opcheck_and_fake_kernel():
    operator = BACKENDS["cpu"].find("correlate.tokens")
    for (alpha, probs), column in product(KINDS, (False, True)):
        torch.library.opcheck(operator, (*inputs(), 2, 0.3, 0.6, alpha, probs, column, True))


@needs_kernels
@pytest.mark.parametrize(("probs", "column"), FORMS)
def test_bits_depend_on_neither_threads_nor_batch(probs, column):
    operator, args = BACKENDS["cpu"].find("correlate.tokens"), inputs(b=3, t=150, tq=150, r=40, m=70, others=30)
    settings = (2, 0.3, 0.6, "softmax", probs, column, True)
    first = operator(*args, *settings)
    torch.set_num_threads(1)
    assert all(map(torch.equal, first, operator(*args, *settings)))
    items = [operator(*[arg[i : i + 1] for arg in args], *settings) for i in range(3)]
    assert all(torch.equal(one, torch.cat(parts)) for one, parts in zip(first, zip(*items, strict=True), strict=True))


def test_values_that_are_not_finite(backend):
    if not backend.reads_values:
        pytest.skip("reading the correlations would synchronise")
    args = list(inputs(mask=False))
    args[0] = args[0].clone()
    args[0][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"ficoco::correlate: correlations must be finite"):
        backend("correlate.tokens", *args, 2, 0.3, 0.6, "softmax", False, False, True)


def test_any_strides(backend):
    args = inputs(b=3)
    spread = [torch.stack([arg, torch.full_like(arg, 10**9)], -1).flatten(-2)[..., ::2] for arg in args[2:5]]
    weights = torch.stack([args[5], args[5] + 1], -1).flatten(-2)[..., ::2]
    mask = torch.stack([args[6], ~args[6]], -1).flatten(-2)[..., ::2]
    for probs, column in FORMS:
        rest = (2, 0.3, 0.6, "softmax", probs, column, True)
        wanted = backend("correlate.tokens", *args, *rest)
        got = backend("correlate.tokens", *args[:2], *spread, weights, mask, *rest)
        assert all(map(torch.equal, got, wanted))


@needs_kernels
@pytest.mark.parametrize(("name", "first"), [("sources", 30), ("candidates", 0), ("others", 30)])
def test_indices_out_of_range_are_found_on_the_cpu(name, first):
    """Sources and others need their queries, which are there for the last 40 of 70 tokens."""
    names = ("query", "key", "sources", "candidates", "others", "weights", "key_mask")
    for value in (first - 1, 70, -(2**62), 2**62):
        for place in ((0, 0), (-1, -1)):
            args = dict(zip(names, inputs(t=70), strict=True))
            args[name][place] = value
            with pytest.raises(ValueError, match=rf"ficoco::correlate: {name} must be in \[{first}, 70\), got {value}"):
                BACKENDS["cpu"].find("correlate.tokens")(*args.values(), 2, 0.3, 0.6, "softmax", False, False, True)


BAD = [
    ("sources", torch.zeros(2, 6), TypeError),
    ("candidates", torch.zeros(3, 11, dtype=torch.int64), ValueError),
    ("others", torch.zeros(2, 9, dtype=torch.int32), TypeError),
    ("weights", torch.zeros(2, 8), ValueError),
    ("weights", torch.zeros(2, 9, dtype=torch.int64), TypeError),
    ("key_mask", torch.ones(2, 40), TypeError),
    ("key_mask", torch.ones(2, 39, dtype=torch.bool), ValueError),
    ("k", 12, ValueError),
    ("k", -1, ValueError),
    ("gamma", 1.5, ValueError),
    ("gamma", -0.1, ValueError),
    ("alpha", "mean", ValueError),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_argument(backend, case):
    name, value, kind = BAD[case]
    names = ("query", "key", "sources", "candidates", "others", "weights", "key_mask")
    args = dict(zip(names, inputs(), strict=True))
    args |= {"k": 2, "scale": 0.3, "gamma": 0.6, "alpha": "softmax", "probs": False, "column": False, "causal": True}
    args |= {name: value}
    with pytest.raises(kind, match=rf"ficoco::correlate: {name} must be .*, got "):
        backend("correlate.tokens", *args.values())


def test_wrapper_takes_float64():
    query, key, *rest, weights, mask = inputs()
    attn = QueryKey(query.double(), key.double(), 0.3)
    for column in (False, True):
        how = {"gamma": 0.6, "alpha": "softmax", "probs": True, "column": column, "causal": True, "key_mask": mask}
        _, got = ops.correlate_tokens(attn, *rest, weights.double(), 2, **how)
        assert got.dtype == torch.float64


def test_flops_are_counted():
    query, key, *rest = inputs(b=2, h=4, d=8, t=40, r=6, m=11, others=9)
    for (probs, column), gamma in product(FORMS, (1.0, 0.6)):
        how = {"gamma": gamma, "alpha": "softmax", "probs": probs, "column": column, "key_mask": rest[4]}
        with flop_counter.counter() as mode:
            ops.correlate_tokens(QueryKey(query, key), *rest[:4], 2, **how)
        indirect = gamma < 1
        blocks = 6 * 11 + (6 * 9 + 9 * 11) * indirect
        rows = 6 + 9 * indirect
        products = 2 * 2 * 4 * 8 * (rows * 40 if probs else blocks)
        assert mode.get_total_flops() == products + 2 * 2 * 6 * 9 * 11 * indirect


def test_ratio_takes_values_that_are_not_negative(backend):
    """Logits may be products that are known not to be, such as a given map's."""
    args = inputs()
    if backend.reads_values:
        with pytest.raises(ValueError, match="negative"):
            backend("correlate.tokens", *args, 3, 0.3, 1.0, "ratio", False, False, False)
    positive = (args[0].abs(), args[1].abs(), *args[2:])
    check(backend, positive, 3, 0.3, 0.6, "ratio", False, False, False)
