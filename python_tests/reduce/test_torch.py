"""reduce under torch.compile, autograd and inference mode, and how much memory it takes."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers.ops import needs_kernels
from helpers.paths import PACKAGE
from helpers.reductions import inputs, same

from ficoco_ext import QueryKey, get_method, reduce


def compiled(function, backend="aot_eager", **options):
    return torch.compile(function, fullgraph=True, backend=backend, **options)


OPTIONS = [
    {},
    {"variant": "paper", "redundancy": "column"},
    {"correlation": "key", "targets": 3, "alpha": "average"},
    {"class_token": False, "grid": (13, 5)},
    {"method": "topk"},
    {"method": "tome"},
]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compiles_without_graph_breaks(options):
    tokens, attn = inputs()

    def run(tokens, query, key):
        return reduce(tokens, QueryKey(query, key), 16, **options)

    assert torch.equal(compiled(run)(tokens, *attn[:2]), run(tokens, *attn[:2]))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_with_a_map():
    tokens, attn = inputs()
    logits = attn.query @ attn.key.mT
    run = compiled(lambda tokens, attn: reduce(tokens, attn, 16))
    assert torch.equal(run(tokens, logits), reduce(tokens, logits, 16))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_by_inductor():
    tokens, attn = inputs()

    def run(tokens, query, key):
        return reduce(tokens * 2, QueryKey(query, key), 16) + 1

    wanted = run(tokens, *attn[:2])
    assert torch.allclose(compiled(run, "inductor")(tokens, *attn[:2]), wanted, atol=1e-6)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("options", [{"targets": 1}, {}, {"method": "topk"}], ids=str)
def test_compiles_every_layer_of_a_schedule(options):
    """Eleven lengths, one compiled function: beyond 8 recompilations torch gives up, so sizes must stay symbolic."""
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph

    penalty = {} if "method" in options else {"penalty": 1.0}

    def run(tokens, query, key):
        return reduce(tokens, QueryKey(query, key), 16, **options, **penalty)

    function = torch.compile(run, fullgraph=True, backend=counting)
    for layer in range(11):
        tokens, attn = inputs(n=577 - 42 * layer)
        assert torch.equal(function(tokens, *attn[:2]), run(tokens, *attn[:2]))
    assert len(graphs) <= 4  # one for fixed sizes, one for symbolic ones, and one more where K changes


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [None, False, True])
@pytest.mark.parametrize("named", [False, True])
def test_compiles_at_another_length(dynamic, named):
    if named and dynamic:
        pytest.skip("dynamic=True makes the numbers of a preset symbolic: pass a Method, whose numbers are constants")
    method = "ficoco-v" if named else get_method("ficoco-v")
    run = compiled(lambda tokens, query, key: reduce(tokens, QueryKey(query, key), 16, method=method), dynamic=dynamic)
    for n in (65, 82, 101):
        tokens, attn = inputs(n=n)
        assert torch.equal(run(tokens, *attn[:2]), reduce(tokens, attn, 16))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_two_reductions_in_a_row():
    tokens, attn = inputs()
    later = inputs(n=49, seed=1)[1]

    def run(tokens, attn, later):
        first = reduce(tokens, QueryKey(*attn), 16, return_reduction=True)
        return reduce(first.tokens, QueryKey(*later), 9, previous=first, return_reduction=True)

    args = (tokens, attn[:2], later[:2])
    assert same(compiled(run)(*args), run(*args))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_with_previous_from_outside():
    tokens, attn = inputs()
    first = reduce(tokens, attn, 16, return_reduction=True)
    later = inputs(n=49, seed=1)[1]

    def run(tokens, query, key):
        return reduce(tokens, QueryKey(query, key), 9, previous=first, return_reduction=True).source_map

    assert torch.equal(compiled(run)(first.tokens, *later[:2]), run(first.tokens, *later[:2]))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_gradient():
    tokens, attn = inputs()

    def run(tokens, query, key):
        return reduce(tokens, QueryKey(query, key), 16).square().sum()

    grads = []
    for function in (run, compiled(run)):
        leaf = tokens.clone().requires_grad_()
        function(leaf, *attn[:2]).backward()
        grads.append(leaf.grad)
    assert torch.allclose(*grads, atol=1e-6)


def test_gradient_flows_to_the_tokens_only():
    tokens, attn = inputs()
    leaves = [one.clone().requires_grad_() for one in (tokens, attn.query, attn.key)]
    result = reduce(leaves[0], QueryKey(*leaves[1:]), 16, return_reduction=True)
    (result.tokens * result.size.detach()).sum().backward()
    assert leaves[1].grad is None
    assert leaves[2].grad is None
    constants = (result.kept, result.sources, result.targets, result.weights, result.source_map)
    assert not any(one.requires_grad for one in constants)
    # d sum_j n_j out_j / d x_i: with sizes of one and plain FiCoCo weights the denominators are the sizes
    assert torch.allclose(leaves[0].grad, torch.ones_like(tokens), atol=1e-6)


def test_gradient_through_nothing_to_remove():
    tokens, attn = inputs()
    tokens.requires_grad_()
    (grad,) = torch.autograd.grad(reduce(tokens, attn, 0).sum(), tokens)
    assert torch.equal(grad, torch.ones_like(tokens))


def test_inference_mode():
    tokens, attn = inputs()
    with torch.inference_mode():
        first = reduce(tokens, attn, 16, return_reduction=True)
        second = reduce(first.tokens, inputs(n=49)[1], 9, previous=first, return_reduction=True)
    assert first.tokens.is_inference()
    assert second.tokens.shape == (2, 40, 12)
    assert torch.equal(first.tokens, reduce(tokens, attn, 16))


def peak_growth(call: str) -> int:
    """Bytes by which the peak resident memory of a fresh process grows during ``call``, which finds its inputs."""
    script = f"""
        import torch
        from ficoco_ext import QueryKey, reduce
        from ficoco_ext.ops import reference
        torch.set_num_threads(1)

        def peak():
            lines = open("/proc/self/status").read().splitlines()
            return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024

        def run(tokens, query, key):
            {call}

        for n in (82, 2881):  # the first call loads whatever is loaded late
            tokens, query, key = torch.randn(1, n, 32), torch.randn(1, 2, n, 16), torch.randn(1, 2, n, 16)
            open("/proc/self/clear_refs", "w").write("5")
            before = peak()
            run(tokens, query, key)
        print(peak() - before)
    """
    root = str(PACKAGE.parent)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n" + textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@needs_kernels
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak cannot be read here")
@pytest.mark.parametrize("attention", ["logits", "probs"])
def test_memory(attention):
    """Never a map: at N = 2881 one is 33 MB, while N (C + r) floats are 3.1 MB; the oracle shows that maps are seen."""
    the_map = 2881 * 2881 * 4
    assert peak_growth("reference.attention_map(query, key, 0.25, False)") > the_map
    wanted = 2881 * (32 + 240) * 4
    options = f"attention={attention!r}, grid=(1, tokens.shape[1] - 1), penalty=1"
    assert (
        peak_growth(f"reduce(tokens, QueryKey(query, key), tokens.shape[1] // 12, {options})")
        < 3 * wanted
        < the_map / 3
    )
