"""What methods say of themselves, as it stands in tables and on pages, and what they cost: exact words and numbers."""

from __future__ import annotations

import inspect

import pytest

import ficoco_ext
from ficoco_ext import describe, get_method
from ficoco_ext.methods import Combined, Split, distinct, hyperparameters
from ficoco_ext.ops.costs import evaluate
from ficoco_ext.stages import Shape, needs

SHAPE = Shape(batch=1, tokens=100, visual=60, r=12, channels=32, heads=4, kv_heads=2, head_dim=8, text=10)


@pytest.mark.parametrize(
    ("name", "correlate", "compress"),
    [
        ("ficoco-v", "those above the quantile by attention (logits)", "mean, a target counting once"),
        ("topk", "none", "dropped"),
        ("random", "none", "dropped"),
        ("fastv", "none", "dropped"),
        ("tome", "its pair", "mean weighted by size"),
        ("pool", "the first patch of its cell", "mean, a target counting once"),
        (
            "sparsevlm",
            "the centre of its cluster, if it is among the best of those that leave",
            "the mean of a cluster, others dropped",
        ),
        ("fitprune", "none", "dropped"),
        ("evit", "one token for all", "sum weighted by class attention"),
        ("prune-then-merge", "none; then its pair", "dropped; then mean weighted by size"),
        ("mustdrop", "the last patch of its window; then none", "mean weighted by size; then dropped"),
    ],
)
def test_who_inherits_and_how(name, correlate, compress):
    """What a filter settles itself is no dropping."""
    said = describe(name)
    assert (said.correlate, said.compress) == (correlate, compress)


def test_a_part_that_removes_nothing_is_not_described():
    """Where all layers merge, none prunes unless there is an excess."""
    said = describe("prune-then-merge", merge_layers=1.0)
    assert said.filter == "best pairs of neighbours by cosine of keys"
    assert (said.correlate, said.compress, said.needs) == ("its pair", "mean weighted by size", ("query and key",))


def test_published_numbers_are_the_defaults():
    wanted = {
        "prumerge": {"neighbours": 32, "normalize": False},
        "prumerge+": {"neighbours": 32, "spatial": 0.75, "normalize": False},
        "evit": {"fuse": "sum"},
        "fastv": {"layer": 2},
        "tome": {"proportional_attention": True, "distill_token": False},
        "topk": {"attention": "probs", "part": "tower"},
        "random": {"seed": 0, "part": "tower"},
        "pyramiddrop": {},
        "divprune": {"part": "projector", "merge": False},
        "scope": {"alpha": 1.0, "part": "projector", "merge": False, "saliency": "auto"},
        "stride": {"merge": False},
        "sparsevlm": {"version": "1.5", "average_tokens": 192},
        "fitprune": {"recipe": None},
    }
    assert {name: describe(name).hyperparameters for name in wanted} == wanted
    both = {"eps": 0.998, "targets": "adaptive", "window": 2}
    of_v = {"variant": "released", "penalty": 2.0, "redundancy": "row", "correlation": "attention"}
    of_l = {"variant": "paper", "penalty": 1.0, "beta": 0.6, "gamma": 0.6, "indirect_reduce": "sum"}
    for name, own in (("ficoco-v", of_v), ("ficoco-l", of_l)):
        assert describe(name).hyperparameters.items() >= (both | own).items()


def test_two_parts_are_described_in_the_order_in_which_they_act():
    vision, decoder, both = (describe(name) for name in ("ficoco-v", "ficoco-l", "ficoco-vl"))
    assert both.filter == f"{vision.filter}; then {decoder.filter}"
    assert both.correlate == f"{vision.correlate}; then {decoder.correlate}"
    assert both.layers == f"{vision.layers}; {decoder.layers}"
    for name, text in {**decoder.meanings, **vision.meanings}.items():  # of what both have, the first one's words
        assert both.meanings[name] == text, name
    assert decoder.meanings["alpha"] != vision.meanings["alpha"]
    assert Combined.of(get_method("topk"), get_method("fastv")).name == "topk + fastv"


def operations(method, shape):
    return {operation.name: evaluate(operation.operations, values) for operation, values in method.operations(shape)}


def test_before_attention_a_layer_pays_for_its_projections_whether_or_not_a_token_leaves():
    """Query and output 2 * 100 * 32 * 4 * 8 each, key and value half of it for half of the heads."""
    projections = {"extra q_proj": 204_800, "extra k_proj": 102_400, "extra v_proj": 102_400, "extra o_proj": 204_800}
    nothing = Shape(**{**vars(SHAPE), "r": 0})
    before, after = get_method("pyramiddrop"), get_method("fastv")
    assert operations(before, nothing) == projections
    assert operations(after, nothing) == {}
    assert operations(before, SHAPE) == projections | operations(after, SHAPE)


def test_the_second_part_of_a_layer_pays_for_what_the_first_one_leaves():
    """Of 65 tokens 10 leave: matching compares those at even positions of 55 with those at odd ones."""
    shape = Shape(**{**vars(SHAPE), "tokens": 65, "visual": 64, "r": 20, "class_token": True})
    both = Split("both", get_method("topk"), get_method("tome"), 0.5)
    assert [(part.name, r) for part, r in both.parts(65, 20, class_token=True)] == [("topk", 10), ("tome", 10)]
    assert operations(both, shape)["match"] == 2 * 27 * 27 * 8
    assert operations(get_method("tome"), shape)["match"] == 2 * 32 * 32 * 8


def test_what_is_left_out_is_neither_needed_nor_paid_for():
    assert describe("ficoco-v", class_attention=False).needs == ("grid",)
    assert describe("ficoco-v", class_attention=False, penalty=1).needs == ()
    direct = {"direct": True, "indirect": False}
    released, paper = (get_method("ficoco-l", variant=name, **direct) for name in ("released", "paper"))
    assert operations(released, SHAPE)["correlate"] == 2 * 4 * 8 * 12 * 48  # sources with candidates
    assert operations(paper, SHAPE)["correlate"] == 2 * 4 * 8 * 12 * 100  # rows of the sources
    both = operations(get_method("ficoco-l", variant="paper"), SHAPE)["correlate"]
    assert both == 2 * (4 * 8 * (12 + 10) * 100 + 12 * 10 * 48)  # and of the text


def test_weighing_by_class_attention_is_paid_for():
    shape = Shape(**{**vars(SHAPE), "tokens": 65, "visual": 64, "r": 20, "class_token": True})
    plain, weighed = (get_method("prune-then-merge", weigh=weigh) for weigh in (0.0, 0.5))
    assert operations(weighed, shape) == {"class_attention": 2 * 65 * 4 * 8} | operations(plain, shape)


def test_a_need_that_another_one_implies_is_not_named():
    asked = (
        needs.GRID,
        needs.CLASS_TOKEN_OR_KEYS,
        needs.WHOLE_GRID,
        needs.QUERY_AND_KEY,
        needs.CLASS_TOKEN,
        needs.GRID,
    )
    assert needs.in_order(asked) == (needs.CLASS_TOKEN, needs.QUERY_AND_KEY, needs.WHOLE_GRID)
    with pytest.raises(ValueError, match=r"needs must be among 'class token', .*, got 'luck'"):
        needs.in_order((needs.GRID, "luck"))


def test_every_operator_of_a_reduction_in_numbers():
    """65 tokens of width 32, 4 heads of 8, 20 of 64 patches leave: operations, and the numbers that go in and out."""
    shape = Shape(**{**vars(SHAPE), "tokens": 65, "visual": 64, "r": 20, "class_token": True, "kv_heads": 4})
    found = {
        operation.name: [evaluate(getattr(operation, name), values) for name in ("operations", "loads", "stores")]
        for operation, values in get_method("ficoco-v", variant="paper", targets=2).operations(shape)
    }
    assert found == {
        "attention_stats": [2 * 65 * 65 * 32, 2 * 65 * 32, 2 * 65],  # probabilities: every row of the map
        "correlate": [2 * 20 * 65 * 32, (20 + 65) * 32, 2 * 20 * 2],
        "compress": [2 * 20 * 2 * 32, 65 * 32, 45 * 32],
    }
    logits = operations(get_method("ficoco-v", variant="released", targets=2), shape)
    assert logits["attention_stats"] == 4 * 65 * 32 and logits["correlate"] == 2 * 20 * 45 * 32


def test_a_value_is_not_taken_for_an_equal_one_of_another_type():
    """Methods are remembered by their values, and 1 equals True."""
    assert get_method("ficoco-v", targets=1).correlate.targets == 1
    with pytest.raises(ValueError, match="Correlate: targets must be 'adaptive' or an integer >= 0, got True"):
        get_method("ficoco-v", targets=True)
    assert get_method("prumerge", normalize=True).compress.normalize
    with pytest.raises(ValueError, match="Fuse: normalize must be True or False, got 1"):
        get_method("prumerge", normalize=1)


@pytest.mark.parametrize("name", sorted(distinct()))
def test_attach_can_pass_every_hyperparameter(name):
    """None is called like an argument of attach, which would never reach the method."""
    own = set(inspect.signature(ficoco_ext.attach).parameters) - {"hyperparameters"}
    assert not own & set(hyperparameters(name))
