"""What every new method of the tower promises, whatever it does: U1 to U6 of their specification, dtypes, compile."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers.ops import assert_selects
from helpers.paths import PACKAGE, TESTS
from helpers.reductions import inputs, record

import ficoco_ext
from ficoco_ext import METHODS, QueryKey, Reduction, cost, get_method, reduce
from ficoco_ext.cost import schedules
from ficoco_ext.methods import distinct
from ficoco_ext.stages import needs

NEW = {
    "convergent": {"method": "ficoco-v", "correlation": "convergent"},
    "evit": {"method": "evit"},
    "evit mean": {"method": "evit", "fuse": "mean"},
    "prumerge": {"method": "prumerge"},
    "prumerge mean": {"method": "prumerge", "normalize": True, "neighbours": 5},
    "prumerge+": {"method": "prumerge+"},
    "pool": {"method": "pool"},
    "random": {"method": "random"},
    "random 7": {"method": "random", "seed": 7},
    "prune-then-merge": {"method": "prune-then-merge"},
    "weighed": {"method": "prune-then-merge", "weigh": 0.5, "prune": "ficoco"},
    "split": {"method": ficoco_ext.methods.Split("half", get_method("ficoco-v"), get_method("tome"), 0.5)},
}
MEANS = ("convergent", "evit mean", "prumerge mean", "pool", "random", "prune-then-merge", "weighed", "split")
CHAINED = tuple(name for name in NEW if name != "pool")
every = pytest.mark.parametrize("name", NEW)


def test_all_new_names_are_here():
    old = {"ficoco-v", "ficoco-l", "ficoco-vl", "topk", "tome", "fastv", "pyramiddrop"}
    old.add("mustdrop")  # which removes whole windows: test_mustdrop.py
    in_tower = {name for name in distinct() if get_method(name).tower is not None}
    assert in_tower - old <= {options["method"] for options in NEW.values() if isinstance(options["method"], str)}


def equal(one, other, batch=slice(None), tolerance=0.0):
    """Every tensor of ``other`` is that part of ``one``."""
    for field in fields(Reduction):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            assert a[batch].shape == b.shape, field.name
            if a.is_floating_point():
                assert torch.allclose(a[batch], b, rtol=tolerance, atol=tolerance), field.name
            else:
                assert torch.equal(a[batch], b), field.name


@every
def test_nothing_to_remove_is_the_identity(name):
    """U1: bit for bit, in a new tensor, with everybody holding itself."""
    tokens, attn = inputs()
    result = record(tokens, attn, 0, **NEW[name])
    everyone = torch.arange(65).expand(2, -1)
    assert torch.equal(result.tokens, tokens) and result.tokens.data_ptr() != tokens.data_ptr()
    assert torch.equal(result.kept, everyone) and torch.equal(result.source_map, everyone)
    assert bool((result.size == 1).all()) and result.sources.shape == (2, 0)


@every
@pytest.mark.parametrize("r", [1, 16, 33, 62, 63])
def test_batch_is_a_loop(name, r):
    """U2, to the rounding of one product; what is chosen is the same exactly."""
    tokens, attn = inputs(b=3)
    together = record(tokens, attn, r, **NEW[name])
    for item in range(3):
        part = slice(item, item + 1)
        alone = record(tokens[part], QueryKey(attn.query[part], attn.key[part]), r, **NEW[name])
        equal(together, alone, part, 1e-6)


@every
@pytest.mark.parametrize("r", [1, 16, 33, 62, 63])
def test_counts_indices_and_sizes(name, r):
    """U3, U4: as many as asked for, ascending, a partition; sizes sum to what was not dropped."""
    tokens, attn = inputs()
    result = record(tokens, attn, r, **NEW[name])
    assert_selects(result.sources, result.kept, 65, r, True)
    assert result.tokens.shape == (2, 65 - r, 12) and result.tokens.is_contiguous()
    assert torch.equal(result.tokens[:, 0], tokens[:, 0])
    held = result.source_map >= 0
    assert torch.allclose(result.size.sum((1, 2)), held.sum(1).float(), atol=1e-4)
    places = torch.arange(65 - r).expand(2, -1)
    assert torch.equal(result.source_map.gather(1, result.kept), places)
    assert result.targets.shape == result.weights.shape
    if result.targets.shape[2]:
        told = torch.where(held.gather(1, result.sources), 1.0, 0.0)
        assert torch.allclose(result.weights.sum(2), told, atol=1e-6)
        best = result.targets.gather(2, result.weights.argmax(2, keepdim=True)).squeeze(2)
        holders = result.source_map.gather(1, result.sources)
        assert torch.equal(torch.where(holders >= 0, best, -1), holders)


@pytest.mark.parametrize("name", ["evit mean", "prumerge mean", "convergent", "pool", "random", "prune-then-merge"])
def test_equal_tokens_stay_equal(name):
    """What is a mean keeps a constant."""
    _, attn = inputs()
    out = reduce(torch.full((2, 65, 12), 0.1), attn, 30, **NEW[name])
    assert torch.allclose(out, torch.full_like(out, 0.1), rtol=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_finite(name, dtype):
    """U5: equal tokens, zero tokens, zero keys, attention so sharp that all but one probability is 0."""
    tokens, attn = inputs()
    tokens, sharp = tokens.to(dtype), QueryKey(*(30 * t.to(dtype) for t in attn[:2]))
    flat = torch.ones_like(sharp.query)
    for given in (tokens, torch.zeros_like(tokens), torch.full_like(tokens, 7.0)):
        for way in (sharp, QueryKey(flat, flat), QueryKey(flat, 0 * flat)):
            result = record(given, way, 20, **NEW[name])
            assert result.tokens.dtype == dtype and bool(result.tokens.isfinite().all())
            assert bool(result.size.isfinite().all())


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_float32_rounded(name, dtype):
    """Tokens, query and key in half precision give what the same values in float32 give: the same choice, exactly."""
    tokens, attn = inputs()
    tokens, query, key = (tensor.to(dtype) for tensor in (tokens, attn.query, attn.key))
    half = record(tokens, QueryKey(query, key), 20, **NEW[name])
    full = record(tokens.float(), QueryKey(query.float(), key.float()), 20, **NEW[name])
    assert half.size.dtype == torch.float32 and torch.equal(half.kept, full.kept)
    error = (half.tokens.float() - full.tokens).abs().max()
    assert error <= 2 * torch.finfo(dtype).eps * full.tokens.abs().max()


@every
def test_float64_is_the_oracle(name):
    tokens, attn = inputs()
    wide = record(tokens.double(), QueryKey(attn.query.double(), attn.key.double()), 20, **NEW[name])
    result = record(tokens, attn, 20, **NEW[name])
    assert wide.tokens.dtype == wide.size.dtype == torch.float64
    assert torch.equal(wide.kept, result.kept) and torch.equal(wide.source_map, result.source_map)
    assert torch.allclose(wide.tokens, result.tokens.double(), atol=1e-5)


def test_no_hidden_state():
    """U6: a fresh process, after other calls, gives the same."""
    script = """
        import sys, torch
        sys.path[:0] = {paths!r}
        from test_universal import NEW, inputs, record
        tokens, attn = inputs()
        for name, options in NEW.items():
            print(name, float(record(tokens, attn, 20, **options).tokens.double().sum()))
    """
    paths = [*map(str, (PACKAGE.parent, TESTS, Path(__file__).parent))]
    script = "\n".join(line[8:] for line in script.format(paths=paths).splitlines())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    tokens, attn = inputs()
    for name in reversed(NEW):
        assert float(lines[name]) == pytest.approx(float(record(tokens, attn, 20, **NEW[name]).tokens.double().sum()))


@pytest.mark.parametrize("name", CHAINED)
def test_two_in_a_row_are_told_in_original_tokens(name):
    tokens, attn = inputs()
    first = record(tokens, attn, 20, **NEW[name])
    later = inputs(n=45, seed=3)[1]
    second = record(first.tokens, later, 12, previous=first, **NEW[name])
    assert second.source_map.shape == (2, 65) and second.kept.shape == (2, 33) and second.grid == (8, 8)
    assert bool((second.kept.diff() > 0).all())
    assert bool(torch.isin(second.kept[0], first.kept[0]).all())
    assert torch.allclose(second.size.sum((1, 2)), (second.source_map >= 0).sum(1).float(), atol=1e-4)
    if name.startswith(("evit", "prumerge")):  # places on the grid do not matter to them
        plain = record(first.tokens, later, 12, **NEW[name])
        assert torch.equal(second.kept, first.kept.gather(1, plain.kept))
        assert torch.allclose(second.tokens, plain.tokens, atol=1e-6)  # sizes that are not passed are only counted


@every
def test_gradients_reach_the_tokens(name):
    tokens, attn = inputs()
    wide = tokens[..., :2].double().requires_grad_()
    attn = QueryKey(attn.query.double().requires_grad_(), attn.key.double())
    assert torch.autograd.gradcheck(lambda x: reduce(x, attn, 20, **NEW[name]), wide)
    assert attn.query.grad is None


@every
def test_compiles_without_graph_breaks(name):
    torch._dynamo.reset()
    tokens, attn = inputs()

    def run(tokens, query, key):
        return reduce(tokens, QueryKey(query, key), 40, **NEW[name])

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(tokens, *attn[:2]), run(tokens, *attn[:2]), atol=1e-6)
    torch._dynamo.reset()


@every
def test_nothing_is_read_on_the_way(name):
    """On the meta device there is nothing to read: shapes alone decide what runs."""
    tokens, attn = inputs()
    attn = QueryKey(attn.query.to("meta"), attn.key.to("meta"))
    assert reduce(tokens.to("meta"), attn, 40, **NEW[name]).shape == (2, 25, 12)


@every
def test_inputs_are_not_written(name):
    tokens, attn = inputs()
    size = torch.rand(2, 65, 1) + 1
    held = (tokens, *attn[:2], size)
    copies = [one.clone() for one in held]
    record(tokens, attn, 20, size=size, **NEW[name])
    assert all(map(torch.equal, held, copies))


@every
def test_sizes_are_carried_on(name):
    tokens, attn = inputs()
    size = torch.randint(1, 5, (2, 65, 1)).float()
    result = record(tokens, attn, 20, size=size, **NEW[name])
    held = (result.source_map >= 0).unsqueeze(-1)
    assert torch.allclose(result.size.sum((1, 2)), (size * held).sum((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_cost_model_knows_every_method(name):
    """What a method costs is not nothing unless it is arithmetic on positions."""
    method = get_method(name)
    amount = {} if name == "pyramiddrop" else {"keep_ratio": 0.25}
    crops = needs.CROPS in method.needs
    shape = cost.architecture("llava-next-7b", picture=(480, 640)) if crops else cost.architecture("llava-1.5-7b")
    bill = cost.prefill(shape, **schedules.build(shape, method, **amount)._asdict(), method=method)
    if method.projector is not None and method.projector.resizes:  # nothing is chosen; the tower saves
        assert bill.parts["tower"].operations < cost.prefill("llava-1.5-7b").parts["tower"].operations / 3
        return
    assert bill.parts["reduction"].bytes > 0
    assert (bill.parts["reduction"].operations > 0) == (name not in ("random", "stride"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_method("evit", fuse="max"), "evit: fuse must be one of 'sum', 'mean', got 'max'"),
        (lambda: get_method("random", seed=-1), r"RandomFilter: seed must be an integer in \[0, 2\*\*32\), got -1"),
        (lambda: get_method("random", seed=True), "RandomFilter: seed must be an integer"),
        (lambda: get_method("prumerge", neighbours=-1), "Neighbours: nearest must be an integer >= 0, got -1"),
        (lambda: get_method("prumerge", normalize=1), "Fuse: normalize must be True or False, got 1"),
        (lambda: get_method("prumerge+", spatial=1.5), r"SingleHeadFilter: spatial must be a number in \[0, 1\]"),
        (lambda: get_method("ficoco-v", correlation="convergent", targets=0), "Correlate: targets must be one of"),
        (lambda: get_method("prune-then-merge", merge_layers=2), "merge_layers must be a number"),
        (lambda: get_method("prune-then-merge", split=-0.1), "split must be a number"),
        (lambda: get_method("prune-then-merge", prune="all"), "prune must be one of 'topk', 'ficoco', got 'all'"),
        (lambda: get_method("prune-then-merge", weigh=-1), "Match: weigh must be"),
        (lambda: get_method("prune-then-merge", proportional_attention=1), "must be True or False, got 1"),
        (lambda: cost.plan("llava-1.5-7b", "pool", tflops=3.3, layers=[3, 4]).schedule, "name one layer"),
    ],
)
def test_values_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
