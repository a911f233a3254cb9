"""Methods of the language model: as one operator where their stages are the plain ones, else stage by stage."""

import dataclasses

import pytest
import torch
from helpers.ops import query_key

import ficoco_ext
from ficoco_ext import QueryKey, ops
from ficoco_ext.methods import composition
from ficoco_ext.stages import DecoderCorrelate, DecoderFilter, LastTokenFilter, Layout

CASES = {
    "ficoco-l": {},
    "ficoco-l released": {"variant": "released", "gamma": 0.3},
    "ficoco-l mixed": {"attention": "probs", "correlation_attention": "logits", "targets": 3},
    "ficoco-l without text": {"text_relevance": False, "indirect": False},
    "ficoco-l sums": {"visual_reduce": "sum", "text_reduce": "sum", "indirect_reduce": "mean", "penalty": 1.5},
    "ficoco-l pruning": {"targets": 0},
    "fastv": {},
}


def in_turn(method):
    """The same method, with a filter of one's own that does the same, so that its stages run in turn."""
    kind = type(method.filter)
    own = type("Own", (kind,), {"__call__": lambda self, *args, **named: kind.__call__(self, *args, **named)})
    values = {field.name: getattr(method.filter, field.name) for field in dataclasses.fields(method.filter)}
    return dataclasses.replace(method, filter=own(**values))


def sequence(dtype=torch.float32):
    """Tokens, attention and layout of two prompts of 60 tokens, the first of which begins with padding."""
    torch.manual_seed(0)
    query, key = query_key(2, 4, 2, 60, 8, dtype)
    real = torch.ones(2, 60, dtype=torch.bool)
    real[0, :4] = False
    visual = torch.stack([torch.arange(9, 39), torch.arange(12, 42)])
    return torch.randn(2, 60, 12).to(dtype), QueryKey(query, key), Layout.of(visual, 60, real, after=21, grid=(5, 6))


def run(method, tokens, attn, layout, **options):
    """Fields of the reduction, and the columns of the visual tokens that are left."""
    reduction, visual = method(tokens, attn, 11, layout, **options)
    fields = ("tokens", "size", "kept", "sources", "source_map", "targets", "weights")
    return [getattr(reduction, name) for name in fields] + [visual]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_stages_in_turn_give_what_the_operator_gives(name, dtype):
    """Bit for bit, with sizes and without."""
    method = ficoco_ext.get_method(name.partition(" ")[0], **CASES[name])
    tokens, attn, layout = sequence(dtype)
    size = torch.rand(2, 60, 1) + 1
    for options in ({}, {"size": size}, {"size": size, "size_weighted": True}):
        one = run(method, tokens, attn, layout, **options)
        assert all(map(torch.equal, one, run(in_turn(method), tokens, attn, layout, **options)))


@pytest.mark.parametrize("name", CASES)
def test_which_methods_are_one_operator(name, monkeypatch):
    """All whose stages are the plain ones; attention that is a map is read stage by stage."""
    method = ficoco_ext.get_method(name.partition(" ")[0], **CASES[name])
    tokens, attn, layout = sequence()
    calls, real = [], ops.reduce_sequence
    monkeypatch.setattr(ops, "reduce_sequence", lambda *args, **named: calls.append(named) or real(*args, **named))
    run(method, tokens, attn, layout)
    assert len(calls) == 1
    run(in_turn(method), tokens, attn, layout)
    if not method.mixed:
        run(method, tokens, torch.rand(2, 60, 60), layout)
    assert len(calls) == 1


def test_gradients_are_those_of_the_stages_in_turn():
    method = ficoco_ext.get_method("ficoco-l")
    found = []
    for one in (method, in_turn(method)):
        tokens, attn, layout = sequence()
        run(one, tokens.requires_grad_(), attn, layout)[0].square().sum().backward()
        found.append(tokens.grad)
    assert torch.equal(*found)


def test_the_grid_is_asked_for_either_way():
    method = ficoco_ext.get_method("ficoco-l", penalty=2.0)
    tokens, attn, layout = sequence()
    layout = dataclasses.replace(layout, grid=None)
    for one in (method, in_turn(method)):
        with pytest.raises(ValueError, match="DecoderFilter: the local penalty needs the visual tokens' grid"):
            run(one, tokens, attn, layout)


def test_settings_are_those_of_the_stages():
    """A stage of one's own has none, and nothing is computed of a layout that no stage asks for."""
    compress = ficoco_ext.get_method("fastv").compress
    found = composition.fused_in_sequence(DecoderFilter(beta=0.2), DecoderCorrelate(gamma=0.7), compress)
    assert (found["beta"], found["gamma"]) == (0.2, 0.7)
    assert composition.fused_in_sequence(LastTokenFilter(), None, compress) == {
        "ranking": "last",
        "size_weighted": False,
    }
    assert composition.fused_in_sequence(lambda *args: None, None, compress) is None
    assert composition.fused_settings(LastTokenFilter(), DecoderCorrelate(), compress) is None
    tokens, attn, layout = sequence()
    run(ficoco_ext.get_method("ficoco-l"), tokens, attn, layout)
    assert "_text_after" not in vars(layout)
