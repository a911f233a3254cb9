"""What only a GPU can show of every operator and every whole reduction: streams, graphs, synchronisation, devices."""

import pytest
import torch
from helpers.backends import needs_gpu
from helpers.calls import OPERATORS, Call, check, every_call, layer, make, of_method
from helpers.ops import DTYPES, assert_close, double

import ficoco_ext
from ficoco_ext import QueryKey
from ficoco_ext.ops import backend

pytestmark = needs_gpu


def same(one, other):
    """Bit for bit, wherever they are."""
    return len(one) == len(other) and all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(one, other, strict=True))


def test_the_kernels_are_live():
    """Everything below would also hold of the specification."""
    assert ficoco_ext.build_info()["cuda"] == "kernels"


@every_call
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_specification(name, dtype):
    """In float64 on the CPU, from the same rounded inputs. These inputs have no near ties."""
    check(make(name, dtype=dtype).on("cuda")(), make(name, dtype=dtype, oracle=True)(), "cuda")


@every_call
def test_second_call_is_the_same_bit_for_bit(name):
    call = make(name, b=3).on("cuda")
    first = call()
    for _ in range(20):
        assert same(call(), first)


@every_call
def test_runs_on_the_current_stream(name):
    """The inputs are written late on that stream: whoever reads them on another one reads zeros."""
    right = make(name).on("cuda")
    wanted = right()
    late = Call(right.run, [torch.zeros_like(tensor) for tensor in right.tensors])
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for empty, full in zip(late.tensors, right.tensors, strict=True):
            empty.copy_(full)
        got = late()
    stream.synchronize()
    assert same(got, wanted)


@every_call
def test_graph_capture_and_replay(name):
    """A captured call, replayed on other inputs, gives what a call on those gives."""
    held = make(name, seed=0).on("cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        held()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = held()
    for seed in (1, 2, 1):
        other = make(name, seed=seed).on("cuda")
        for old, new in zip(held.tensors, other.tensors, strict=True):
            old.copy_(new)
        graph.replay()
        assert same(results, other())


@every_call
def test_never_waits_for_the_device(name):
    call = make(name).on("cuda")
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_call
def test_on_a_second_device(name):
    """While the first one is current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    wanted = make(name).on("cuda:0")()
    got = make(name).on("cuda:1")()
    assert torch.cuda.current_device() == 0
    assert all(result.device.index == 1 for result in got)
    assert same(got, wanted)


@every_call
def test_compiles_in_one_graph(name):
    call = make(name).on("cuda")
    torch._dynamo.reset()
    backend = "inductor" if name == "ficoco-v" else "aot_eager"
    compiled = torch.compile(call.run, fullgraph=True, backend=backend)
    assert same(tuple(compiled(*call.tensors)), call())


@pytest.mark.parametrize("name", OPERATORS)
def test_tensors_on_different_devices(name):
    """Each tensor in turn is left behind on the CPU; the error names the operator and the device."""
    call = make(name)
    if len(call.tensors) < 2:
        pytest.skip("takes one tensor")
    for left in range(len(call.tensors)):
        mixed = [t if place == left else t.to("cuda") for place, t in enumerate(call.tensors)]
        with pytest.raises((ValueError, TypeError, RuntimeError), match=r"ficoco::.*(device|cpu|cuda)"):
            call.run(*mixed)


def test_reduce_with_tensors_on_different_devices():
    tokens, query, key = layer(1, 49, 12, torch.float32)
    with pytest.raises(ValueError, match=r"ficoco::reduce: .*device"):
        ficoco_ext.reduce(tokens.cuda(), QueryKey(query, key), 8)
    with pytest.raises(ValueError, match=r"ficoco::.*device"):
        ficoco_ext.reduce(tokens.cuda(), QueryKey(query.cuda(), key), 8)


def launches(call):
    """Kernels of ours that ``call`` launches, once everything is warm."""
    call()
    before = backend.KERNELS.cuda_launches()
    call()
    return backend.KERNELS.cuda_launches() - before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_a_reduction_takes_four_launches(variant, batch, dtype):
    """FiCoCo-V from query and key, by logits and by probabilities, at the size of a CLIP-L layer."""
    call = of_method(layer(batch, 577, 1024, dtype, 16, 64), "ficoco-v", r=42, variant=variant).on("cuda")
    assert 1 <= launches(call) <= 4


def test_the_counter_sees_every_kernel():
    """What a profiler sees on the device is what we count: torch launches nothing for us, and nothing is copied."""
    call = of_method(layer(2, 577, 1024, torch.bfloat16, 16, 64), "ficoco-v", r=42).on("cuda")
    tokens, query, key = call.tensors

    def reduce():
        return ficoco_ext.reduce(tokens, QueryKey(query, key), 42)

    counted = launches(reduce)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        reduce()
        torch.cuda.synchronize()
    seen = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    if not seen:
        pytest.skip("the profiler sees no device here")
    assert len(seen) == counted, seen


def test_batch_is_its_items():
    """Bit for bit."""
    tokens, query, key = (tensor.cuda() for tensor in layer(5, 577, 256, torch.bfloat16, 4, 64))
    whole = ficoco_ext.reduce(tokens, QueryKey(query, key), 42)
    items = [
        ficoco_ext.reduce(x, QueryKey(q, k), 42)
        for x, q, k in zip(tokens.split(1), query.split(1), key.split(1), strict=True)
    ]
    assert torch.equal(whole, torch.cat(items))


def test_full_size_equals_the_specification():
    """The shapes that kernels are tuned for, with more blocks than the samples have."""
    for class_token, n, grid, r in ((True, 577, (24, 24), 42), (False, 2880, (48, 60), 210)):
        torch.manual_seed(0)
        tensors = layer(1, n, 1024, torch.bfloat16, 16, 64)
        options = {"r": r, "class_token": class_token, "grid": grid}
        got = of_method(tensors, "ficoco-v", **options).on("cuda")()
        wanted = of_method(double(tensors), "ficoco-v", **options)()
        for one, other in zip(got, wanted, strict=True):
            if one.is_floating_point():
                assert_close(one.cpu(), other.double(), 4096, scale=1.0)
            else:
                assert (one.cpu() == other).double().mean() > 0.99  # near ties at this size


@pytest.mark.parametrize("method", ["ficoco-l", "fastv", "pyramiddrop"])
def test_a_prefill_with_static_counts_never_waits_for_the_device(method):
    """Beside transformers' own reads, which a run without reduction has too."""
    pytest.importorskip("transformers")
    from helpers.decoder import tiny
    from helpers.models import batch, image, words

    from ficoco_ext.models.decoder_layer import CALL

    model = tiny().cuda()
    inputs = {name: value.cuda() for name, value in batch([*words(1, 2), *image(), *words(3, 4)] * 1).items()}
    embeds = model.get_input_embeddings()(inputs["input_ids"])

    def language_model(**call):
        """The decoder alone: finding the placeholders' places is the whole model's, and reads."""
        return model.model.language_model(inputs_embeds=embeds, use_cache=True, **call).last_hidden_state

    with (
        torch.no_grad(),
        ficoco_ext.attach(model, method, static_counts=True, **({"r": 5} if method == "ficoco-l" else {})) as handle,
    ):
        decoder = handle._decoder
        wanted = model(**inputs).logits.shape[1]
        for mode in ("default", "error"):
            _, options = decoder.before(model.model, (), inputs)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(mode)
            try:
                hidden = language_model(**{CALL: options[CALL]})
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert hidden.shape[1] == wanted < inputs["input_ids"].shape[1]
