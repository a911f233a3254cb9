"""token_attention against the specification in float64, and against what other formulations say of it."""

from itertools import product

import pytest
import torch
from helpers.backends import BACKENDS, needs_emulation
from helpers.ops import DTYPES, LAYOUTS, assert_close, double, laid, needs_kernels, needs_opcheck, query_key
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ficoco_ext import QueryKey, ops
from ficoco_ext.cost import flop_counter
from ficoco_ext.ops import reference

FORMS = list(product((False, True), (False, True)))  # probs, column


def inputs(b=2, h=4, hk=2, tq=20, t=20, d=8, n=7, others=5, sets=2, dtype=torch.float32, masked=True, layout=None):
    """Arguments up to the mask. Indices in any order, some twice; the last token is real in every item."""
    query, _ = query_key(b, h, hk, tq, d, dtype, layout or "contiguous")
    _, key = query_key(b, h, hk, t, d, dtype, layout or "contiguous")
    tokens, rest = (torch.randint(t - tq, t, (b, count)) for count in (n, others))
    mask = torch.rand(b, t) < 0.8
    mask[:, -1] = True
    weights = torch.rand(b, sets, others)
    weights[:, :1, ::3] = 0
    return query, key, tokens, rest, weights, mask if masked else None


def check(backend, args, scale, probs, column, causal):
    (got,) = backend("token_attention", *args, scale, probs, column, causal)
    wanted = reference.token_attention(*double(args), scale, probs, column, causal)
    assert got.dtype == torch.float32
    query, others = args[0], args[3]
    assert_close(got, wanted, max(query.shape[1] * query.shape[3], others.shape[1], args[1].shape[2]))


@pytest.mark.parametrize(("probs", "column"), FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("t", [1, 2, 31, 33, 130])
def test_sizes(backend, t, dtype, probs, column):
    for causal, masked in product((False, True), (False, True)):
        args = inputs(b=3, tq=t, t=t, n=min(t, 70), others=max(1, t // 2), dtype=dtype, masked=masked)
        check(backend, args, 0.3, probs, column, causal)


@pytest.mark.parametrize(("probs", "column"), FORMS)
@pytest.mark.parametrize(("n", "others", "sets"), [(1, 1, 1), (65, 1, 1), (3, 200, 1), (10, 64, 9), (64, 24, 5)])
def test_counts(backend, n, others, sets, probs, column):
    check(backend, inputs(tq=50, t=50, n=n, others=others, sets=sets), 0.5, probs, column, True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_and_grouped_heads(backend, dtype, layout):
    for (h, hk), (probs, column) in product(((4, 4), (6, 2), (1, 1)), FORMS):
        args = list(inputs(b=3, h=h, hk=hk, d=12, tq=37, t=37, n=9, others=11, dtype=dtype, layout=layout))
        args[4] = laid(args[4], layout)
        check(backend, args, 0.3, probs, column, True)


@pytest.mark.parametrize("d", [1, 5, 9, 80, 128])
def test_widths(backend, d):
    for probs, column in FORMS:
        check(backend, inputs(d=d, tq=26, t=26), d**-0.5, probs, column, True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [64, 128, 130, 192, 256, 520])
@pytest.mark.parametrize("others", [1, 3, 200])  # on a GPU few queries go another way
def test_several_steps_either_way(backend, others, d, dtype, masked):
    """Tokens, others and channels beyond the tiles of a kernel, where one side of a product stays and where not."""
    args = inputs(b=1, h=2, hk=1, tq=140, t=140, d=d, n=70, others=others, dtype=dtype, masked=masked)
    for column in (False, True):
        check(backend, args, d**-0.5, True, column, masked)


@pytest.mark.parametrize(("probs", "column"), FORMS)
def test_behind_a_cached_prefix(backend, probs, column):
    """Queries of the last 6 of 40 tokens, keys of all: what is looked up may lie in the prefix."""
    query, key, tokens, others, weights, mask = inputs(tq=6, t=40)
    anywhere = torch.randint(0, 40, tokens.shape)
    if column:
        args = (query, key, anywhere, others, weights, mask)
    else:
        args = (query, key, tokens, torch.randint(0, 40, others.shape), weights, mask)
    check(backend, args, 0.3, probs, column, True)


@needs_emulation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_are_those_of_a_batch_where_keys_are_shared_among_blocks(dtype):
    """64 blocks are few, so each row's keys are shared among more of them; 256 of the whole batch are not."""
    args = inputs(b=4, h=64, hk=64, tq=1100, t=1100, n=5, others=9, sets=1, dtype=dtype)
    args[3][:, 0], args[3][:, 1] = 40, 1070  # to the one no key of the second part is there
    together = BACKENDS["emulated"]("token_attention", *args, 0.5, True, True, True)[0][:1]
    alone = [arg[:1] for arg in args]
    assert torch.equal(BACKENDS["emulated"]("token_attention", *alone, 0.5, True, True, True)[0], together)
    assert_close(together, reference.token_attention(*double(alone), 0.5, True, True, True), 1100)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("d", "sets"), [(40, 1), (72, 5), (128, 1)])
def test_more_tokens_than_a_block_has(backend, d, sets, dtype):
    """A whole prompt, in order and not: of some tiles causality leaves nothing, of some all, and of some a part."""
    args = inputs(b=1, h=2, hk=1, tq=300, t=330, d=d, n=290, others=270, sets=sets, dtype=dtype)
    for ordered, column, causal in product((False, True), repeat=3):
        if ordered:
            args = *args[:2], args[2].sort(1).values, args[3].sort(1).values, *args[4:]
        check(backend, args, d**-0.5, True, column, causal)


@pytest.mark.parametrize("scale", [0.0, -0.7, 3.0, 40.0])
def test_scale(backend, scale):
    for probs, column in FORMS:
        check(backend, inputs(), scale, probs, column, True)


def test_a_query_that_may_attend_to_nobody_gives_nothing(backend):
    query, key, tokens, others, weights, mask = inputs(t=20)
    mask[0] = False
    for column in (False, True):
        (got,) = backend("token_attention", query, key, tokens, others, weights, mask, 0.3, True, column, True)
        assert torch.equal(got[0], torch.zeros_like(got[0]))
        assert got[1].isfinite().all()


@pytest.mark.parametrize("products", [-2e4, -1e6, -1e32])
def test_padding_has_no_share_of_very_negative_products(backend, products):
    """However little a query and the keys that it sees have in common, padding has less."""
    if backend.name not in ("reference", "cpu") and products < -1e9:
        pytest.skip("a GPU multiplies by log2(e) and subtracts in one step, which overflows")
    args = list(inputs(tq=30, t=30))
    args[0], args[1] = torch.ones_like(args[0]), torch.full_like(args[1], products / 8)
    args[1] += torch.randint(-4, 1, args[1].shape)
    for column, causal in FORMS:
        check(backend, args, 1.0, True, column, causal)


def test_any_strides(backend):
    args = inputs(b=3)
    spread = [torch.stack([arg, torch.full_like(arg, 10**9)], -1).flatten(-2)[..., ::2] for arg in args[2:4]]
    mask = torch.stack([args[5], ~args[5]], -1).flatten(-2)[..., ::2]
    for probs, column in FORMS:
        rest = (0.3, probs, column, True)
        wanted = backend("token_attention", *args, *rest)
        got = backend("token_attention", *args[:2], *spread, args[4], mask, *rest)
        assert torch.equal(got[0], wanted[0])


@pytest.mark.parametrize("causal", [False, True])
def test_keys_of_minus_infinity(backend, causal):
    """All that a query sees is minus infinity: its attention is NaN, as a softmax has it, and not padding's."""
    query, key, tokens, others, weights, mask = inputs()
    query, key = query.abs() + 0.1, key.clone()
    key[0, ..., 0] = float("-inf")
    mask[:, :10], mask[:, 10:] = True, False
    tokens, others = tokens % 10, others % 10
    for column in (False, True):
        args = (query, key, tokens, others, weights + 0.1, mask, 0.3, True, column, causal)
        got, wanted = backend("token_attention", *args)[0], reference.token_attention(*double(args))
        assert wanted[0].isnan().any()
        assert wanted[1].isfinite().all()
        assert_close(got, wanted, 20)


@pytest.mark.parametrize("held", [1e4, float("inf"), float("nan")])
def test_padding_changes_nothing(backend, held):
    """Keys that the mask leaves out may hold anything; they get nothing, if they are asked for."""
    args = list(inputs(masked=True))
    args[5] = torch.arange(20).expand(2, 20) < 15
    other = list(args)
    other[1] = args[1].clone()
    other[1][:, :, 15:] = held
    for column in (False, True):
        first, second = (backend("token_attention", *one, 0.3, True, column, False)[0] for one in (args, other))
        assert torch.equal(first, second)


def test_nothing_to_do(backend):
    for shape in ({"n": 0}, {"sets": 0}, {"b": 0}):
        for probs, column in FORMS:
            args = inputs(**shape)
            (got,) = backend("token_attention", *args, 0.3, probs, column, True)
            assert got.shape == (args[0].shape[0], args[4].shape[1], args[2].shape[1])
    for probs, column in FORMS:
        query, key, tokens, others, weights, mask = inputs()
        args = (query, key, tokens, others[:, :0], weights[:, :, :0], mask)
        (got,) = backend("token_attention", *args, 0.3, probs, column, True)
        assert torch.equal(got, torch.zeros_like(got))


@pytest.mark.parametrize("probs", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_it_contains_the_statistics_of_the_encoder(backend, probs, column):
    """Mean over the patches, as attention_stats has it."""
    query, key = query_key(2, 4, 4, 30, 8)
    patches = torch.arange(1, 30).repeat(2, 1)
    weights = torch.full((2, 1, 29), 1 / 29)
    (got,) = backend("token_attention", query, key, patches, patches, weights, None, 0.3, probs, column, False)
    wanted = reference.attention_stats(query.double(), key.double(), 0.3, True, probs, column, True)[1]
    assert_close(got[:, 0], wanted, 30)


def test_the_last_token_row_is_that_of_eager_attention():
    """FastV's score: what the last token gives to each visual one, averaged over heads."""
    query, key = query_key(1, 4, 2, 20, 8)
    visual = torch.arange(3, 12)[None]
    got = ops.token_attention(
        QueryKey(query, key), visual, torch.tensor([[19]]), torch.ones(1, 1, 1), probs=True, column=True, causal=True
    )
    causal = torch.ones(20, 20).tril().log()
    attention = (query @ key.repeat_interleave(2, dim=1).mT * 8**-0.5 + causal).softmax(-1)
    assert torch.allclose(got[0, 0], attention[0, :, 19, 3:12].mean(0), atol=1e-6)


@needs_opcheck
def test_opcheck():
    operator = BACKENDS["cpu"].find("token_attention")
    for probs, column in FORMS:
        torch.library.opcheck(operator, (*inputs(), 0.3, probs, column, True))


def test_fake_shapes():
    operator, args = BACKENDS["cpu"].find("token_attention"), inputs()
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        fake = operator(*map(mode.from_tensor, args), 0.3, True, False, True)
    real = operator(*args, 0.3, True, False, True)
    assert (tuple(map(int, fake.shape)), fake.dtype) == (tuple(real.shape), real.dtype)


@needs_kernels
@pytest.mark.parametrize(("probs", "column"), FORMS)
def test_bits_depend_on_neither_threads_nor_batch(probs, column):
    operator, args = BACKENDS["cpu"].find("token_attention"), inputs(b=3, tq=150, t=150, n=100, others=60)
    first = operator(*args, 0.3, probs, column, True)
    torch.set_num_threads(1)
    assert torch.equal(first, operator(*args, 0.3, probs, column, True))
    items = [operator(*[arg[i : i + 1] for arg in args], 0.3, probs, column, True) for i in range(3)]
    assert torch.equal(first, torch.cat(items))


def test_float64_goes_to_the_specification():
    query, key, *rest = inputs()
    attn = QueryKey(query.double(), key.double(), 0.3)
    got = ops.token_attention(attn, *rest[:3], probs=True, column=True, causal=True, key_mask=rest[3])
    wanted = reference.token_attention(query.double(), key.double(), *rest, 0.3, True, True, True)
    assert torch.equal(got, wanted)


BAD = [
    ("query", torch.zeros(2, 20, 8), ValueError),
    ("query", torch.zeros(2, 4, 21, 8), ValueError),
    ("key", torch.zeros(2, 3, 20, 8), ValueError),
    ("key", torch.zeros(2, 2, 20, 8, dtype=torch.float16), TypeError),
    ("tokens", torch.zeros(2, 7), TypeError),
    ("tokens", torch.zeros(3, 7, dtype=torch.int64), ValueError),
    ("others", torch.zeros(2, 5, dtype=torch.int32), TypeError),
    ("others", torch.zeros(2, 5, 1, dtype=torch.int64), ValueError),
    ("weights", torch.zeros(2, 5), ValueError),
    ("weights", torch.zeros(2, 2, 6), ValueError),
    ("weights", torch.zeros(2, 2, 5, dtype=torch.int64), TypeError),
    ("key_mask", torch.ones(2, 20), TypeError),
    ("key_mask", torch.ones(2, 19, dtype=torch.bool), ValueError),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_argument(backend, case):
    name, value, kind = BAD[case]
    args = dict(zip(("query", "key", "tokens", "others", "weights", "key_mask"), inputs(), strict=True)) | {name: value}
    wrong = "key" if name == "query" and value.dim() == 4 else name
    with pytest.raises(kind, match=rf"ficoco::token_attention: {wrong} must be .*, got "):
        backend("token_attention", *args.values(), 0.3, True, False, True)


@needs_kernels
def test_indices_out_of_range_are_found_on_the_cpu():
    query, key, tokens, others, weights, mask = inputs(tq=6, t=40)
    operator = BACKENDS["cpu"].find("token_attention")
    with pytest.raises(ValueError, match=r"tokens must be in \[34, 40\), got 33"):
        operator(query, key, torch.full_like(tokens, 33), others, weights, mask, 0.3, True, False, True)
    with pytest.raises(ValueError, match=r"others must be in \[0, 40\), got -1"):
        operator(query, key, tokens, torch.full_like(others, -1), weights, mask, 0.3, True, False, True)
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 40\), got 40"):
        operator(query, key, torch.full_like(tokens, 40), others, weights, mask, 0.3, True, True, True)
    with pytest.raises(ValueError, match=r"others must be in \[34, 40\), got 33"):
        operator(query, key, tokens, torch.full_like(others, 33), weights, mask, 0.3, True, True, True)


@pytest.mark.parametrize(("probs", "column"), FORMS)
def test_flops_are_counted(probs, column):
    query, key, tokens, others, weights, mask = inputs(b=2, h=4, d=8, t=20, n=7, others=5, sets=3)
    with flop_counter.counter() as mode:
        ops.token_attention(QueryKey(query, key), tokens, others, weights, probs=probs, column=column, key_mask=mask)
    rows = 5 if column else 7
    assert mode.get_total_flops() == (2 * 2 * rows * 20 * 4 * 8 if probs else 2 * 2 * 3 * 12 * 4 * 8)
