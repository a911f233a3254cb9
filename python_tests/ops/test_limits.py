"""Sizes at the edge of what kernels can have: none, more than a grid holds, more than integers can count; and what a
launch that fails, or an index that is wrong, leaves behind."""

import os
import re
import tempfile

import pytest
import torch
from helpers.backends import BACKENDS, emulated, needs_emulation, needs_gpu
from helpers.emulated_kernels import ROOT
from helpers.ops import assert_close, assert_links, double, oracle, partition, query_key
from helpers.samples import REDUCTIONS, SAMPLES, operator, sample, samples
from torch._subclasses.fake_tensor import FakeTensorMode

from ficoco_ext.ops import checks

IMAGES = 5  # that a launcher takes at once, in the emulation


def run(backend, name, args):
    """What the operator returns, as a tuple; ``reduce`` has no specification of its own."""
    if backend.name == "reference" and name.startswith("reduce"):
        pytest.skip("the specification of a reduction is that of its operators")
    return backend(name, *args)


@pytest.mark.parametrize("index", SAMPLES)
def test_no_images(backend, index):
    name, args = sample(index, b=0)
    wanted = [(0, *result.shape[1:]) for result in map(torch.as_tensor, _tuple(operator(name)(*sample(index)[1])))]
    assert [tuple(result.shape) for result in run(backend, name, args)] == wanted


def _tuple(results):
    return (results,) if isinstance(results, torch.Tensor) else results


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("probs", [False, True])
def test_no_channels(backend, probs, column, class_token):
    """Logits without channels are 0, and probabilities all equal."""
    query, key = query_key(2, 4, 2, 9, 0)
    args = (query, key, 0.3, class_token, probs, column, True)
    for got, wanted in zip(backend("attention_stats", *args), oracle("attention_stats", *args), strict=True):
        assert_close(got, wanted, 9)
    sources, kept = partition(2, 9, 3, class_token)
    for name, args in (
        ("correlate", (query, key, sources, kept, 2, 0.3, "softmax", class_token, probs)),
        ("correlate.key", (key, sources, kept, 2, "softmax", class_token)),
    ):
        assert_links(name, args, backend(name, *args))
    lists = (sources, kept[:, 1:])
    args = (query, key, *lists, torch.rand(2, 3, lists[1].shape[1]), None, 0.3, probs, column, False)
    assert_close(backend("token_attention", *args)[0], BACKENDS["reference"]("token_attention", *double(args))[0], 9)
    args = (
        query,
        key,
        *lists,
        lists[1],
        torch.rand(lists[1].shape),
        None,
        2,
        0.3,
        0.5,
        "softmax",
        probs,
        column,
        False,
    )
    wanted = BACKENDS["reference"]("correlate.tokens", *args)
    for got, want in zip(backend("correlate.tokens", *args), wanted, strict=True):
        assert torch.allclose(got.double(), want.double())
    for got, want in zip(backend("match", key, 2, True, False), oracle("match", key, 2, True, False), strict=True):
        assert torch.equal(got.double(), want.double())


@needs_emulation
@pytest.mark.parametrize("index", SAMPLES)
def test_more_images_than_one_launch_takes(index):
    name, args = sample(index, b=2 * IMAGES + 1)
    whole = BACKENDS["emulated"](name, *args)
    for item in (0, IMAGES - 1, IMAGES, 2 * IMAGES):
        alone = [arg[item : item + 1] if isinstance(arg, torch.Tensor) else arg for arg in args]
        for got, wanted in zip(whole, BACKENDS["emulated"](name, *alone), strict=True):
            assert torch.equal(got[item : item + 1], wanted)


@needs_gpu
@pytest.mark.parametrize("index", SAMPLES)
def test_more_images_than_one_grid_takes(index):
    name, args = sample(index)
    repeated = [arg[[0, *[1] * 65536]].cuda() if isinstance(arg, torch.Tensor) else arg for arg in args]
    few = [arg.cuda() if isinstance(arg, torch.Tensor) else arg for arg in args]
    for got, wanted in zip(_tuple(operator(name)(*repeated)), _tuple(operator(name)(*few)), strict=True):
        assert torch.equal(got[[0, 65534]], wanted)
        assert torch.equal(got[65535:], wanted[[1, 1]])


HEADS, TOKENS = 65536, 65535 * 8 + 1


def _too_large():
    """(operator, arguments, what is named): one more than a grid holds."""
    query, key = torch.zeros(1, HEADS, 3, 1), torch.zeros(1, 1, 3, 1)
    sources, kept, one = torch.tensor([[1]]), torch.tensor([[0, 2]]), torch.ones(1, 1, 1)
    heads = f"query must be of at most 65535 heads on a GPU, got {HEADS}"
    yield "attention_stats", (query, key, 1.0, True, False, False, True), heads
    yield "correlate", (query, key, sources, kept, 1, 1.0, "softmax", True, True), heads
    yield "token_attention", (query, key, sources, kept, torch.ones(1, 1, 2), None, 1.0, True, True, True), heads
    links = (query, key, sources, kept, sources, one[0], None, 1, 1.0, 0.5, "softmax", True, False, True)
    yield "correlate.tokens", links, heads
    yield "match", (query, 0, True, False), heads.replace("query", "key")
    yield "correlate.key", (query, sources, kept, 1, "softmax", True), heads.replace("query", "key")
    yield "attention_stats.map", (torch.zeros(1, HEADS, 2, 2), True, True, True), heads.replace("query", "attn")
    many = torch.arange(TOKENS)[None]
    args = (torch.zeros(1, TOKENS, 1), many[:, :0], many, one[:, :0].long(), one[:, :0], None, False)
    yield "compress", args, f"tokens must be of at most {TOKENS - 1} tokens on a GPU, got {TOKENS}"
    wide = torch.zeros(1, 1, 3, 65535 * 128 + 1)
    channels = "query must be of at most 8388480 channels on a GPU, all heads together, got 1 heads of 8388481"
    yield "attention_stats", (wide, wide, 1.0, True, False, False, True), channels


@needs_emulation
@pytest.mark.parametrize(("name", "args", "message"), [pytest.param(*case, id=case[0]) for case in _too_large()])
def test_more_than_a_grid_holds(name, args, message):
    with pytest.raises(ValueError, match=re.escape(f"ficoco::{name.partition('.')[0]}: {message}; use the CPU")):
        emulated(name)(*args)


@needs_emulation
@pytest.mark.parametrize("name", ["greedy_select", "bipartite_thin"])
def test_more_tokens_than_a_block_picks_among(name):
    features = torch.zeros(1, 16385, 1)
    order = torch.arange(16385)[None]
    args = (2, "coverage", None, None, 0.5) if name == "greedy_select" else (order, 2, 8, None)
    wanted = (
        f"ficoco::{name}: features must be of at most 16384 patches or tokens on a GPU, got 16385; take fewer frames"
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        emulated(name)(features, *args)


@pytest.mark.parametrize("sides", [(2**33, 2**33 + 1), (2**32, 2**32), (2**31, 1), (1, 2**31), (2**62, 4)], ids=str)
@pytest.mark.parametrize("places", [False, True])
def test_a_grid_that_cannot_be_counted(backend, sides, places):
    """Sides whose product wraps around in 64 bits, to 0 or to a number that looks right."""
    scores, ids = torch.rand(1, 4), torch.arange(4)[None] if places else None
    args = (scores, scores, ids, 1, 1.0, False, 2.0, 2, *sides, False)
    with pytest.raises(ValueError, match=r"ficoco::filter: grid must be of at most 2147483647 cells, got .*; pass"):
        backend("filter", *args)
    mode = FakeTensorMode()
    fake = [mode.from_tensor(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
    with mode, pytest.raises(ValueError, match="ficoco::filter: grid must be of at most"):
        operator("filter")(*fake)


@pytest.mark.parametrize("index", REDUCTIONS)
def test_a_reduction_with_a_grid_that_cannot_be_counted(backend, index):
    name, args = sample(index)
    args = (*args[:-5], 2**33, 2**33 + 1, *args[-3:])
    with pytest.raises(ValueError, match="ficoco::filter: grid must be of at most"):
        run(backend, name, args)
    with pytest.raises(ValueError, match="ficoco::filter: grid must be of at most"):
        operator(name)(*[arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args])


@pytest.mark.parametrize("tokens", [checks.MAX_SEQUENCE + 1, 2**62, 2**63 - 1])
def test_a_sequence_that_cannot_be_counted(backend, tokens):
    index = torch.tensor([[0]])
    args = (torch.tensor([[1, 2]]), index, index + 1, index[:, :, None], tokens)
    with pytest.raises(ValueError, match=r"ficoco::to_sequence: tokens must be at most 2147483647, got .*; pass"):
        backend("to_sequence", *args)


@needs_emulation
def test_a_launch_that_fails_leaves_no_error_behind(monkeypatch):
    """Each failure is told by the operator that failed, and by no later one."""
    cases = [sample(i) for i, (name, _) in enumerate(samples())]
    monkeypatch.setenv("CUEMU_SHARED_KB", "30")
    failed = set()
    for name, args in cases:
        try:
            BACKENDS["emulated"](name, *args)
        except RuntimeError as error:
            assert f"ficoco::{name.partition('.')[0]}: the kernel was not launched" in str(error)  # noqa: PT017
            failed.add(name)
        BACKENDS["emulated"]("filter", *cases[6][1])
    assert {"correlate", "correlate.tokens", "match", "reduce"} <= failed
    assert "filter" not in failed
    monkeypatch.delenv("CUEMU_SHARED_KB")
    for name, args in cases:
        BACKENDS["emulated"](name, *args)


def _indices():
    """(sample, argument that holds indices)."""
    names = {"tokens", "others", "sources", "candidates", "kept", "targets", "visual"}
    for i, (name, args) in enumerate(samples()):
        arguments = [argument.name for argument in operator(name)._schema.arguments]
        for place, argument in enumerate(arguments):
            arg = args[place]
            if argument in names and isinstance(arg, torch.Tensor) and arg.dtype == torch.int64 and arg.numel():
                yield pytest.param(i, place, id=f"{name}-{i}-{argument}")


@needs_emulation
@pytest.mark.parametrize("order", ["fwd", "rev"])
@pytest.mark.parametrize(("index", "place"), list(_indices()))
def test_a_wrong_index_is_found_before_it_is_followed(index, place, order):
    """A process that follows it ends with a signal of its own; one that finds it says so first."""
    name, args = sample(index)
    args[place][-1, -1] = 2**44
    call = emulated(name)
    with tempfile.TemporaryFile() as told:
        child = os.fork()
        if child == 0:  # an assert ends the process
            os.dup2(told.fileno(), 2)
            os.environ["CUEMU_ORDER"] = order
            call(*args)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        told.seek(0)
        text = told.read().decode()
    assert os.WIFSIGNALED(status), "nobody found it"
    assert "ficoco::" in text, text
    assert "ssertion" in text, text


@needs_emulation
def test_the_emulation_splits_batches():
    assert f"kMaxImages = {IMAGES};" in (ROOT / "csrc/cuda/launch.h").read_text()
