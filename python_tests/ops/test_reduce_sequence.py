"""reduce_sequence against the five operators that it is composed of: bit for bit, or in float64 up to rounding."""

from itertools import product

import pytest
import torch
from helpers.backends import BACKENDS, needs_emulation
from helpers.ops import DTYPES, LAYOUTS, assert_close, double, laid, needs_kernels, needs_opcheck, query_key
from torch._subclasses.fake_tensor import FakeTensorMode

from ficoco_ext import QueryKey, ops
from ficoco_ext.cost import flop_counter
from ficoco_ext.ops import _reduce_sequence

RANKINGS = ("logits", "probs", "last")
WAYS = [(ranking, correlation) for ranking in RANKINGS for correlation in ("logits", "probs")]
NAMES = tuple(_reduce_sequence.Shortened._fields)


def columns(b, n, count, first):
    """Rows of ascending columns: of one picture, and in every other row of two with three words between them."""
    visual = torch.arange(first, first + count).repeat(b, 1)
    visual[1::2, count // 2 :] += 3
    assert int(visual.max()) < n
    return visual


def inputs(
    b=2, h=4, hk=2, n=40, d=8, c=12, count=20, first=5, r=6, k=2, after=None, ranking="logits", correlation="logits",
    beta=0.6, reduces=("mean", "mean"), penalty=1.0, grid=(0, 0), gamma=0.6, indirect="sum", alpha="softmax",
    weighted=False, dtype=torch.float32, layout="contiguous", masked=True, sized=True, ids=None,
):  # fmt: skip
    """Arguments of the operator. The first row begins with padding, the last one ends with it."""
    query, key = query_key(b, h, hk, n, d, dtype, layout)
    tokens = laid(torch.randn(b, n, c).to(dtype), layout if layout != "expanded" else "contiguous")
    visual, real = columns(b, n, count, first), torch.ones(b, n, dtype=torch.bool)
    if b:
        real[0, : first // 2], real[-1, n - 2 :] = False, False
    size = torch.randint(1, 5, (b, n, 1)).float() if sized else None
    after = n - count - first if after is None else after
    ranked = (ranking, beta, *reduces, penalty, 2, *grid)
    given = (visual, real if masked else None, ids, size, r, k, after)
    return (tokens, query, key, d**-0.5, *given, *ranked, correlation, gamma, indirect, alpha, weighted)


def composed(args):
    """The five operators one after the other, by the CPU's kernels if there are any."""
    return _reduce_sequence.composed(*args)


def check(backend, args, scale=1.0):
    """Integers as the composition in float64 has them, numbers within the tolerance; the sources' scores as well.

    ``scale``: the size of the scores, whose rounding a softmax turns into that of weights.
    """
    got = _reduce_sequence.Shortened(*backend("reduce_sequence", *args))
    wanted = composed(double(args))
    query, n = args[1], args[0].shape[1]
    length = max(query.shape[1] * query.shape[3], n)
    for name in NAMES:
        one, other = getattr(got, name), getattr(wanted, name)
        if one.is_floating_point():
            assert_close(one, other, length, scale=scale)
        else:
            assert torch.equal(one, other), name


def backends():
    """Those that have a kernel: the specification of this operator is the composition."""
    return [pytest.param(name, id=name) for name in ("cpu", "emulated", "cuda")]


@pytest.fixture(params=backends())
def kernels(request):
    backend = BACKENDS[request.param]
    if backend.missing:
        pytest.skip(backend.missing)
    return backend


@pytest.mark.parametrize(("ranking", "correlation"), WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_way(kernels, ranking, correlation, dtype):
    alpha = "ratio" if correlation == "probs" else "softmax"
    for k, masked in product((0, 1, 3), (False, True)):
        check(kernels, inputs(k=k, masked=masked, ranking=ranking, correlation=correlation, alpha=alpha, dtype=dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts_and_grouped_heads(kernels, dtype, layout):
    for (h, hk), ranking in product(((4, 4), (6, 2), (1, 1)), RANKINGS):
        correlation = "logits" if ranking == "logits" else "probs"
        args = inputs(b=3, h=h, hk=hk, d=12, ranking=ranking, correlation=correlation, layout=layout, dtype=dtype)
        check(kernels, args)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_settings(kernels, ranking):
    ids = torch.arange(20).repeat(2, 1).flip(1)
    correlation = "logits" if ranking == "logits" else "probs"
    for changes in (
        {"beta": 0.0}, {"beta": 1.0}, {"reduces": ("sum", "mean")}, {"reduces": ("mean", "sum")}, {"gamma": 0.0},
        {"gamma": 1.0}, {"indirect": "mean"}, {"alpha": "average"}, {"weighted": True}, {"sized": False},
        {"penalty": 1.7, "grid": (4, 5)}, {"penalty": 1.7, "grid": (5, 4), "ids": ids}, {"r": 0}, {"r": 19, "k": 1},
        {"k": 14}, {"after": 5, "first": 15}, {"after": 9, "n": 32, "masked": False},
    ):  # fmt: skip
        changes = {"first": 5, **changes}
        check(kernels, inputs(ranking=ranking, correlation=correlation, **changes))


@pytest.mark.parametrize("ranking", RANKINGS)
def test_no_text(kernels, ranking):
    """The visual tokens are last, or what comes after them is padding: the visual term alone decides."""
    args = list(inputs(b=2, n=28, count=20, first=5, after=3, ranking=ranking, masked=True))
    args[4] = torch.arange(8, 28).repeat(2, 1)
    args[10] = 0
    check(kernels, args)
    args = list(inputs(b=2, ranking=ranking))
    args[5][:, 28:] = False
    args[4] = torch.arange(5, 25).repeat(2, 1)
    args[5][:, 25:] = False
    check(kernels, args)


@needs_kernels
@pytest.mark.parametrize(("ranking", "correlation"), WAYS)
@pytest.mark.parametrize("start", [22, 26, 34])
def test_padding_may_hold_nan(kernels, ranking, correlation, start):
    """After the text, in its place, or with only some of it left; and before the visual tokens."""
    args = list(inputs(b=2, first=2, ranking=ranking, correlation=correlation, d=64))
    args[4], real = columns(1, 40, 20, 2).repeat(2, 1), torch.ones(2, 40, dtype=torch.bool)
    real[0, :1], real[1, start:] = False, False
    args[5] = real
    clean = [one.clone() for one in args[:3]]
    args[0] = args[0].masked_fill(~real[..., None], torch.nan)
    args[1:3] = (one.masked_fill(~real[:, None, :, None], torch.nan) for one in args[1:3])
    found = _reduce_sequence.Shortened(*kernels("reduce_sequence", *args))
    wanted = _reduce_sequence.Shortened(*kernels("reduce_sequence", *clean, *args[3:]))
    for name in NAMES:
        if name != "tokens":
            assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    there = real.gather(1, found.kept)
    assert torch.equal(found.tokens[there], wanted.tokens[there])


@pytest.mark.parametrize(("ranking", "correlation"), WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_the_cpu_it_is_its_operators(ranking, correlation, dtype):
    """Bit for bit, whatever the number of threads."""
    alpha = "ratio" if correlation == "probs" else "softmax"
    args = inputs(b=3, n=150, count=100, ranking=ranking, correlation=correlation, alpha=alpha, r=40, dtype=dtype)
    wanted = composed(args)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, BACKENDS["cpu"]("reduce_sequence", *args), wanted))


@pytest.mark.parametrize("correlation", ["logits", "probs"])
@pytest.mark.parametrize(("ranking", "count"), [("logits", 1025), ("logits", 4100), ("probs", 300), ("last", 1100)])
def test_more_than_one_block_has(kernels, ranking, correlation, count):
    """Visual tokens, sources, candidates and text beyond the tiles of kernels, and beyond what a last block chooses."""
    sizes = {"b": 1, "h": 1, "hk": 1, "d": 4, "c": 4, "n": count + 110, "count": count, "first": 9, "r": 70, "k": 9}
    check(kernels, inputs(**sizes, ranking=ranking, correlation=correlation, indirect="mean"))


@pytest.mark.parametrize("shape", [{"d": 64, "h": 8, "hk": 2}, {"d": 128, "h": 2, "hk": 1}, {"d": 80, "h": 2}])
def test_real_widths(kernels, shape):
    for ranking, dtype in product(RANKINGS, (torch.float32, torch.bfloat16)):
        correlation = "logits" if ranking == "logits" else "probs"
        args = inputs(b=1, n=90, count=70, r=20, ranking=ranking, correlation=correlation, dtype=dtype, **shape)
        check(kernels, args, scale=32.0)


def test_more_images_than_a_grid_has(kernels):
    """In the emulation a launcher takes five."""
    for ranking in RANKINGS:
        check(kernels, inputs(b=7, h=2, hk=1, d=4, ranking=ranking, correlation="probs", alpha="ratio"))


LAUNCHES = {
    ("logits", "logits", 2): 5,
    ("logits", "logits", 20): 5,
    ("logits", "logits", 0): 3,
    ("logits", "probs", 2): 6,
    ("probs", "probs", 2): 7,
    ("probs", "logits", 2): 7,
    ("probs", "probs", 0): 5,
    ("last", "logits", 0): 5,
    ("last", "probs", 2): 7,
}


def launches(args):
    """How many kernels the emulated operator launches."""
    backend = BACKENDS["emulated"]
    backend("reduce_sequence", *args)
    before = torch.ops.ficoco_emu.launch_count()
    backend("reduce_sequence", *args)
    return torch.ops.ficoco_emu.launch_count() - before


@needs_emulation
@pytest.mark.parametrize(("ranking", "correlation", "k"), LAUNCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_launches(ranking, correlation, k, dtype):
    args = inputs(b=1, n=150, count=100, r=40, k=k, ranking=ranking, correlation=correlation, d=16, dtype=dtype)
    assert launches(args) == LAUNCHES[ranking, correlation, k]


@needs_emulation
def test_launches_where_keys_are_shared_among_blocks():
    """Rows of more than 1024 keys are united in the kernel that writes the lists."""
    sizes = {"b": 1, "h": 1, "hk": 1, "d": 4, "c": 4, "n": 1200, "count": 1100, "r": 40}
    assert launches(inputs(**sizes, ranking="probs", correlation="probs")) == 7
    assert launches(inputs(**sizes, ranking="logits", correlation="logits")) == 5
    assert launches(inputs(**sizes, ranking="logits", correlation="probs")) == 7


@needs_emulation
@pytest.mark.parametrize("seed", range(3))
def test_bits_on_a_gpu_depend_on_no_batch(seed):
    """Nor on what ran before: nothing is left in a workspace."""
    for ranking in RANKINGS:
        torch.manual_seed(seed)
        args = inputs(b=3, ranking=ranking, correlation="probs", alpha="ratio", dtype=torch.bfloat16)
        together = BACKENDS["emulated"]("reduce_sequence", *args)
        for i in range(3):
            alone = [arg[i : i + 1] if isinstance(arg, torch.Tensor) else arg for arg in args]
            rows = [one[i : i + 1] for one in together]
            assert all(map(torch.equal, BACKENDS["emulated"]("reduce_sequence", *alone), rows))


@needs_opcheck
@pytest.mark.parametrize("ranking", RANKINGS)
def test_opcheck(ranking):
    args = list(inputs(ranking=ranking))
    args[0].requires_grad_()
    torch.library.opcheck(BACKENDS["cpu"].find("reduce_sequence"), tuple(args))


def test_fake_shapes():
    operator, args = BACKENDS["cpu"].find("reduce_sequence"), inputs(dtype=torch.bfloat16)
    mode = FakeTensorMode()
    with mode:
        fake = operator(*[mode.from_tensor(arg) if isinstance(arg, torch.Tensor) else arg for arg in args])
    for one, other in zip(fake, operator(*args), strict=True):
        assert (tuple(one.shape), one.dtype) == (tuple(other.shape), other.dtype)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_the_operators_in_turn(weighted):
    """Of the tokens; selection and weights are constants, also where query and key have gradients."""
    found = []
    for run in (BACKENDS["cpu"].find("reduce_sequence"), _reduce_sequence.composed):
        torch.manual_seed(0)
        args = list(inputs(weighted=weighted))
        leaves = [args[i].requires_grad_() for i in range(3)]
        out = run(*args)
        assert [one.requires_grad for one in out] == [True, *[False] * 8]
        out[0].square().sum().backward()
        found.append(leaves[0].grad)
        assert leaves[0].grad.abs().sum() > 0
        assert all(leaf.grad is None or not leaf.grad.any() for leaf in leaves[1:])
    assert torch.equal(*found)


@pytest.mark.parametrize(("ranking", "correlation"), WAYS)
def test_flops_are_those_of_the_operators(ranking, correlation):
    args, counts = inputs(ranking=ranking, correlation=correlation), []
    for run in (BACKENDS["cpu"].find("reduce_sequence"), _reduce_sequence.composed):
        with flop_counter.counter() as mode:
            run(*args)
        counts.append(mode.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_float64_goes_to_the_composition():
    args = double(inputs())
    tokens, query, key, scale, visual, mask, _, size, r, k, after, ranking, *_ = args
    given = {"ranking": ranking, "key_mask": mask, "size": size, "after": after}
    short = ops.reduce_sequence(tokens, QueryKey(query, key, scale), visual, r, k, **given)
    assert all(map(torch.equal, short, composed(args)))
    assert short.tokens.dtype == short.weights.dtype == torch.float64


BAD = [
    (0, torch.zeros(2, 40), "tokens", ValueError),
    (0, torch.zeros(2, 39, 12), "query", ValueError),
    (1, torch.zeros(2, 4, 39, 8), "query", ValueError),
    (2, torch.zeros(2, 3, 40, 8), "key", ValueError),
    (4, torch.zeros(2, 20), "visual", TypeError),
    (4, torch.zeros(2, 0, dtype=torch.int64), "visual", ValueError),
    (5, torch.ones(2, 40), "key_mask", TypeError),
    (5, torch.ones(2, 41, dtype=torch.bool), "key_mask", ValueError),
    (7, torch.ones(2, 40), "size", ValueError),
    (8, 20, "r", ValueError),
    (8, -1, "r", ValueError),
    (9, 15, "k", ValueError),
    (10, 21, "after", ValueError),
    (11, "rows", "ranking", ValueError),
    (12, 1.5, "beta", ValueError),
    (13, "max", "visual_reduce", ValueError),
    (19, "key", "correlation", ValueError),
    (20, -0.5, "gamma", ValueError),
    (21, "max", "indirect_reduce", ValueError),
]


@pytest.mark.parametrize("case", range(len(BAD)))
@pytest.mark.parametrize("name", ["cpu", "emulated", "cuda", "composed"])
def test_bad_argument(name, case):
    place, value, argument, kind = BAD[case]
    args = list(inputs())
    args[place] = value
    if name != "composed" and BACKENDS[name].missing:
        pytest.skip(BACKENDS[name].missing)
    run = _reduce_sequence.composed if name == "composed" else BACKENDS[name].find("reduce_sequence")
    with pytest.raises(kind, match=rf"ficoco::reduce_sequence: {argument} must be .*, got "):
        run(*args)


@needs_kernels
def test_values_are_checked_on_the_cpu():
    wrong = r"ficoco::reduce_sequence: visual must be ascending within \[0, 40\), got"
    for value in (-1, 4, 40):  # no column, not after the one before, no column
        args = list(inputs())
        args[4] = args[4].clone()
        args[4][1, 0 if value < 0 else -1] = value
        with pytest.raises(ValueError, match=wrong):
            BACKENDS["cpu"]("reduce_sequence", *args)
    ids = torch.full((2, 20), 20)
    with pytest.raises(ValueError, match=r"ficoco::filter: ids must be in \[0, 20\)"):
        BACKENDS["cpu"]("reduce_sequence", *inputs(penalty=2.0, grid=(4, 5), ids=ids))
    args = list(inputs())
    args[1] = torch.full_like(args[1], float("nan"))
    with pytest.raises(ValueError, match="ficoco::filter: redundancy must be finite"):
        BACKENDS["cpu"]("reduce_sequence", *args)
