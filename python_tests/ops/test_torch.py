"""The operators as torch sees them: opcheck, fake tensors, threads, batches, gradients."""

import pytest
import torch
from helpers.backends import BACKENDS, KERNELS, needs_emulation
from helpers.ops import links, needs_kernels, needs_opcheck, partition, query_key
from helpers.samples import REDUCTIONS, SAMPLES, operator, sample, samples
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ficoco_ext import ops
from ficoco_ext.ops import _reduce, library, reference


def run(name, args):
    """What the operator returns, as a tuple also if it is one tensor."""
    results = operator(name)(*args)
    return (results,) if isinstance(results, torch.Tensor) else results


@needs_opcheck
@pytest.mark.parametrize("index", SAMPLES)
def test_opcheck(index):
    name, args = sample(index)
    torch.library.opcheck(operator(name), args)


@needs_opcheck
@pytest.mark.parametrize("size_weighted", [False, True])
def test_opcheck_of_the_gradient(size_weighted):
    name, args = sample(14)
    args = (args[0].requires_grad_(), *args[1:-1], size_weighted)
    torch.library.opcheck(operator(name), args)


@pytest.mark.parametrize("index", SAMPLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fake_shapes(index, dtype):
    """Symbolic sizes: what the fake kernel promises is what comes, for a shape that it never saw."""
    name, args = sample(index, dtype=dtype)
    shape_env = ShapeEnv()
    mode = FakeTensorMode(shape_env=shape_env)
    fake_args = [mode.from_tensor(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
    with mode:
        fakes = run(name, fake_args)
    for fake, real in zip(fakes, run(name, args), strict=True):
        assert tuple(map(int, fake.shape)) == tuple(real.shape)
        assert fake.dtype == real.dtype
        assert fake.stride() == real.stride()


@pytest.mark.parametrize("index", SAMPLES)
def test_meta_tensors(index):
    name, args = sample(index)
    metas = run(name, [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args])
    for meta, real in zip(metas, run(name, args), strict=True):
        assert (meta.shape, meta.dtype, meta.device.type) == (real.shape, real.dtype, "meta")


@needs_kernels
@pytest.mark.parametrize("name", sorted(library.SCHEMAS))
def test_it_has_a_kernel(name):
    """Without one the specification runs instead: the same numbers, later."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ficoco::{name}", "CPU")


@needs_kernels
@pytest.mark.parametrize("index", SAMPLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_depend_on_neither_threads_nor_batch(index, dtype):
    """Bitwise: once more, with one thread, and item by item."""
    name, args = sample(index, b=3, n=150, dtype=dtype)
    first = run(name, args)
    again = run(name, args)
    torch.set_num_threads(1)
    alone = run(name, args)
    items = []
    for item in range(3):
        items.append(run(name, [arg[item : item + 1] if isinstance(arg, torch.Tensor) else arg for arg in args]))
    looped = [torch.cat(parts) for parts in zip(*items, strict=True)]
    for results in (again, alone, looped):
        assert all(map(torch.equal, first, results))


@needs_kernels
def test_bits_do_not_depend_on_threads_at_full_size():
    query, key = query_key(1, 16, 16, 577, 64)
    sources, kept = partition(1, 577, 140, True)
    targets, weights = links(1, 140, 437, 3, True)
    calls = [
        ("attention_stats", (query, key, 0.125, True, True, True, True)),
        ("attention_stats", (query, key, 0.125, True, False, False, True)),
        ("correlate", (query, key, sources, kept, 2, 0.125, "softmax", True, False)),
        ("compress", (torch.randn(1, 577, 1024), sources, kept, targets, weights, None, False)),
        ("match", (key, 140, True, False)),
    ]
    for name, args in calls:
        torch.set_num_threads(2)
        two = run(name, args)
        torch.set_num_threads(1)
        assert all(map(torch.equal, two, run(name, args)))


@pytest.mark.parametrize("index", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_reduce_is_its_stages(index, dtype):
    """Bitwise what the four operators give in a row."""
    name, args = sample(index, b=3, n=70, dtype=dtype)
    composed = _reduce.composed_map if name == "reduce.map" else _reduce.composed
    assert all(map(torch.equal, operator(name)(*args), composed(*args)))


def stages_in_turn(backend, name, args):
    """What ``ficoco::reduce`` gives, from four calls of ``backend``."""
    tokens, first, *rest = args
    query_key = name == "reduce"
    attention = (first, rest.pop(0)) if query_key else (first,)
    scale = (rest.pop(0),) if query_key else ()
    ids, size, r, k, class_token, lam, probs, column, *filter_settings, correlation, alpha, weighted = rest
    form = "" if query_key else ".map"
    flags = (probs, column, lam != 0) if query_key else (column, lam != 0)
    class_attention, patch_attention = backend("attention_stats" + form, *attention, *scale, class_token, *flags)
    settings = (ids, r, lam, *filter_settings, class_token)
    redundancy, sources, kept = backend("filter", patch_attention, class_attention, *settings)
    if correlation == "key":
        links = backend("correlate.key", attention[1], sources, kept, k, alpha, class_token)
    elif query_key:
        probs = correlation == "probs"
        links = backend("correlate", *attention, sources, kept, k, *scale, alpha, class_token, probs)
    else:
        links = backend("correlate.map", first, sources, kept, k, alpha, class_token)
    return (*backend("compress", tokens, sources, kept, *links, size, weighted), redundancy, sources, kept, *links)


@pytest.mark.parametrize("name", ["emulated", "cuda"])
@pytest.mark.parametrize("index", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [70, 150])
def test_reduce_on_a_gpu_is_its_stages(name, index, dtype, n):
    """Bitwise: filtering and choosing in the tail of another kernel change nothing."""
    backend = BACKENDS[name]
    if backend.missing:
        pytest.skip(backend.missing)
    operator_name, args = sample(index, b=2, n=n, dtype=dtype)
    got = backend(operator_name, *args)
    assert all(map(torch.equal, got, stages_in_turn(backend, operator_name, args)))


@pytest.mark.parametrize("name", ["emulated", "cuda"])
@pytest.mark.parametrize(
    "index", [i for i, (name, args) in enumerate(samples()) if name == "reduce" and "probs" in args]
)
def test_reduce_of_more_than_a_tail_can_filter_is_its_stages(name, index):
    backend = BACKENDS[name]
    if backend.missing:
        pytest.skip(backend.missing)
    operator_name, args = sample(index, b=1, n=1031)
    got = backend(operator_name, *args)
    assert all(map(torch.equal, got, stages_in_turn(backend, operator_name, args)))


@pytest.mark.parametrize("name", ["cpu", "emulated", "cuda", "composed"])
def test_reduce_names_an_unknown_correlation(name):
    _, args = sample(next(i for i, (name, _) in enumerate(samples()) if name == "reduce"))
    args = (*args[:-3], "cosine", *args[-2:])
    if name != "composed" and BACKENDS[name].missing:
        pytest.skip(BACKENDS[name].missing)
    run = _reduce.composed if name == "composed" else lambda *given: BACKENDS[name]("reduce", *given)
    with pytest.raises(
        ValueError, match=r"ficoco::reduce: correlation must be one of logits, probs, key, got .?cosine"
    ):
        run(*args)


@needs_emulation
@pytest.mark.parametrize(("tokens", "launches"), [(50, 2), (1100, 3)])
def test_launches_of_one_matching(tokens, launches):
    """The metric, then similarities with the selection in their tail, which beyond 1024 tokens is a kernel."""
    backend = BACKENDS["emulated"]
    args = (torch.randn(1, 1, tokens, 8), 5, True, False)
    backend("match", *args)
    before = torch.ops.ficoco_emu.launch_count()
    backend("match", *args)
    assert torch.ops.ficoco_emu.launch_count() - before == launches


@needs_emulation
@pytest.mark.parametrize("probs", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_launches_of_one_reduction(probs, column):
    """Two for the attention of all, with the filter in the second's tail, then correlations and merge. Columns of
    probabilities need the rows' sums first."""
    backend = BACKENDS["emulated"]
    n, kind = 50, "probs" if probs else "logits"
    query, key = query_key(2, 2, 2, n, 8)
    settings = (True, 0.6, probs, column, True, 2.0, 2, 7, 7, kind, "softmax", False)
    args = (torch.randn(2, n, 16), query, key, 0.3, None, None, 6, 2, *settings)
    backend("reduce", *args)
    before = torch.ops.ficoco_emu.launch_count()
    backend("reduce", *args)
    assert torch.ops.ficoco_emu.launch_count() - before == (5 if probs and column else 4)


@pytest.mark.parametrize("probs", [False, True])
@pytest.mark.parametrize("correlation", ["logits", "probs", "key"])
def test_reduce_correlates_as_asked(backend, probs, correlation):
    """By what patches are correlated does not follow from what they are filtered by."""
    if backend.name == "reference":
        pytest.skip("the specification of a reduction is that of its operators")
    query, key = query_key(2, 4, 2, 30, 8)
    settings = (True, 0.6, probs, True, True, 1.0, 2, 5, 6, correlation, "softmax", False)
    args = (torch.randn(2, 30, 12), query, key, 0.3, None, None, 9, 2, *settings)
    assert all(map(torch.equal, backend("reduce", *args), stages_in_turn(backend, "reduce", args)))


@needs_kernels
@pytest.mark.parametrize("index", REDUCTIONS)
def test_reduce_checks_what_its_stages_check(index):
    """Values, which it reads itself: a cell outside the grid, scores and correlations that are not finite."""
    name, args = sample(index)
    ids = 4 if name == "reduce" else 2
    for value in (-1, 2**40):
        wrong = list(args)
        wrong[ids] = args[ids].clone()
        wrong[ids][-1, -1] = value
        with pytest.raises(ValueError, match=r"ficoco::filter: ids must be in \[0, "):
            operator(name)(*wrong)
    wrong = list(args)
    wrong[1] = args[1].clone()
    wrong[1][-1] = float("nan")
    if name == "reduce":
        wrong[2] = args[2].clone()
        wrong[2][-1] = float("nan")
    with pytest.raises(ValueError, match=r"ficoco::(filter: redundancy|correlate: correlations) must be finite"):
        operator(name)(*wrong)


def test_float64_goes_to_the_specification():
    """The wrappers take it; the kernels themselves, which would round it, refuse."""
    query, key = (one.double() for one in query_key(2, 4, 2, 20, 8))
    got = ops.attention_stats(ops.QueryKey(query, key), class_token=True, probs=False, column=False)
    wanted = reference.attention_stats(query, key, 8**-0.5, True, False, False, True)
    assert all(map(torch.equal, got, wanted))
    if KERNELS:
        with pytest.raises(TypeError, match=r"attention_stats: query must be float32.*ficoco_ext\.ops\.reference"):
            operator("attention_stats")(query, key, 0.3, True, False, False, True)


def compress_inputs(dtype, sized):
    sources, kept = partition(2, 18, 6, True)
    targets, weights = links(2, 6, 12, 3, True)
    size = torch.randint(1, 6, (2, 18, 1)).to(dtype) if sized else None
    return torch.randn(2, 18, 5, dtype=dtype), sources, kept, targets, weights.to(dtype), size


@pytest.mark.parametrize("size_weighted", [False, True])
@pytest.mark.parametrize("sized", [False, True])
def test_gradient_of_the_specification(sized, size_weighted):
    """Finite differences in float64, and the formula of the backward against autograd through the forward."""
    tokens, *rest = compress_inputs(torch.float64, sized)
    tokens.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reference.compress(x, *rest, size_weighted)[0], tokens)
    grad = torch.randn(2, 12, 5, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(reference.compress(tokens, *rest, size_weighted)[0], tokens, grad)
    assert torch.allclose(reference.compress_backward(grad, *rest, size_weighted, 18), wanted)


@pytest.mark.parametrize("size_weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradient_of_the_kernel(dtype, size_weighted):
    tokens, *rest = compress_inputs(torch.float32, True)
    tokens = tokens.to(dtype).requires_grad_()
    grad = torch.randn(2, 12, 5).to(dtype)
    out = operator("compress")(tokens, *rest, size_weighted)
    (got,) = torch.autograd.grad(out[0], tokens, grad)
    oracle = tokens.detach().double().requires_grad_()
    wide = [one.double() if one.is_floating_point() else one for one in rest]
    (wanted,) = torch.autograd.grad(reference.compress(oracle, *wide, size_weighted)[0], oracle, grad.double())
    assert got.dtype == dtype
    assert torch.allclose(got.double(), wanted, rtol=0, atol=max(2e-6, torch.finfo(dtype).eps * wanted.abs().max()))


def test_size_and_map_are_constants_of_the_gradient():
    tokens, *rest = compress_inputs(torch.float32, True)
    out = operator("compress")(tokens.requires_grad_(), *rest, False)
    assert [result.requires_grad for result in out] == [True, False, False]


def test_gradient_takes_strides_and_none():
    tokens, *rest = compress_inputs(torch.float32, True)
    tokens.requires_grad_()
    out = operator("compress")(tokens, *rest, True)[0]
    (summed,) = torch.autograd.grad(out.sum(), tokens, retain_graph=True)  # an expanded gradient
    (ones,) = torch.autograd.grad(out, tokens, torch.ones_like(out), retain_graph=True)
    (swapped,) = torch.autograd.grad(out.mT.contiguous().sum(), tokens)
    assert torch.equal(summed, ones)
    assert torch.equal(swapped, ones)


def test_inference_mode():
    with torch.inference_mode():
        for index in range(len(SAMPLES)):
            name, args = sample(index)
            for result in run(name, args):
                assert result.is_inference()
