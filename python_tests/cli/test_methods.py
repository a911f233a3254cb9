"""``ficoco methods`` and describe(): every method in words, which follow its hyperparameters; other commands."""

from __future__ import annotations

import contextlib

import pytest
from helpers.cli import document, run

import ficoco_ext
from ficoco_ext import METHODS, Method, describe
from ficoco_ext.cost import architecture
from ficoco_ext.methods import Staged, hyperparameters
from ficoco_ext.methods.description import _meanings
from ficoco_ext.stages import Filter

NEW = ("prune-then-merge", "evit", "prumerge", "prumerge+", "pool", "random")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_words(name):
    said = describe(name)
    assert said.name == name and said.hyperparameters == hyperparameters(name)
    for text in (said.summary, said.filter, said.correlate, said.compress, said.amount, said.layers, said.source):
        assert text and "``" not in text and ":func:" not in text and "<" not in text
    assert set(said.meanings) >= set(said.hyperparameters), "an argument without a line in the docstring"
    assert said.acts_in in ("tower", "projector", "language model", "tower and language model")


def test_words_follow_the_hyperparameters():
    assert describe("topk").filter == "least class attention (probs)"
    assert describe("topk").correlate == "none" and describe("topk").compress == "dropped"
    assert describe("ficoco-v", correlation="convergent").correlate == "one token for all"
    replaced = "class token, or keys in its place"
    assert describe("ficoco-v", correlation="key").needs == (replaced, "query and key", "grid")
    assert describe("ficoco-v", penalty=1).needs == (replaced,)
    assert describe("ficoco-v", targets=2, attention="probs").correlate == "the 2 best by attention (probs)"
    assert "local penalty" in describe("ficoco-v").filter
    assert describe("tome").needs == ("query and key", "SDPA or eager attention")
    assert describe("tome", proportional_attention=False).needs == ("query and key",)
    assert describe("evit").needs == ("class token",) and describe("pool").needs == ("whole grid",)
    assert describe("prumerge").needs == ("class token", "query and key") and describe("random").needs == ()
    assert "75% of the slots" in describe("prumerge+").filter and "seed 3" in describe("random", seed=3).filter
    mixed = describe("ficoco-l", correlation_attention="logits")
    assert mixed.filter.endswith("(probs)") and mixed.correlate.endswith("by way of the text (logits)")
    assert describe("prune-then-merge").correlate == "none; then its pair"
    assert "0.5 of the rank" in describe("prune-then-merge", weigh=0.5).filter
    assert describe("pool").layers == "22 of 23 layers that are read"
    assert describe("ficoco-l").layers == "4 ... 31 of 32 of the language model"
    assert describe("fastv").amount == "keep_ratio=0.5" and "keep_ratio, tokens or r" in describe("evit").amount
    with pytest.raises(ValueError, match="method must be a Method or one of"):
        describe("evits")
    with pytest.raises(TypeError, match="has no hyperparameter 'lam'"):
        describe("evit", lam=1)


def test_a_stage_of_ones_own_is_called_by_its_name():
    """Words are for stages that say them; others have at least a name."""

    class Mine:
        def __call__(self, *args, **named):
            raise NotImplementedError

    own = Method("own", Mine(), Mine(), Mine())
    assert own.describe() == ("Mine", "Mine", "Mine") and own.needs == ()
    staged = Staged("s", lambda n: (own,) * n)
    assert staged.members == (own,) * 3 and staged.describe() == own.describe() and staged.needs == ()
    assert _meanings(lambda: None) == {} and Filter(lam=1.0).describe().startswith("1 of what attention")


def test_a_stage_that_computes_in_its_own_way_has_no_price_of_its_parent():
    class Colder(Filter):
        def __call__(self, attn, r, **rest):
            return super().__call__(attn, r, **rest)

    class Named(Filter):
        def describe(self):
            return "named"

    assert Colder().fused() is None and Named().fused() == Filter().fused()
    topk = ficoco_ext.get_method("topk")
    for filter, known in ((Colder(), False), (Named(), True)):
        bill = ficoco_ext.cost.schedules.build(architecture("llava-1.5-7b"), topk, keep_ratio=0.5)[0]
        method = Method("mine", filter, topk.correlate, topk.compress)
        with contextlib.nullcontext() if known else pytest.raises(ValueError, match="cost of the filter Colder is not"):
            ficoco_ext.cost.prefill("llava-1.5-7b", vision=bill, method=method)


def test_the_table():
    found = document("methods")["methods"]
    assert [one["name"] for one in found] == list(METHODS)
    text = run("methods").stdout
    assert all(name in text for name in METHODS) and "who leaves" in text


@pytest.mark.parametrize("name", METHODS)
def test_one_method(name):
    found = document("methods", name)
    assert found["name"] == name and list(found["hyperparameters"]) == list(hyperparameters(name))
    text = run("methods", name).stdout
    assert all(key in text for key in ("filter: who leaves", "layers, if none are named", *hyperparameters(name)))


def test_one_method_with_values():
    assert document("methods", "evit", "--set", "fuse=mean")["compress"].startswith("mean")
    assert document("methods", "random", "--set", "seed=9")["hyperparameters"] == {"seed": 9, "part": "tower"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("methods", "evits"), "method must be a Method or one of"),
        (("methods", "evit", "--set", "lam=1"), "no hyperparameter 'lam'"),
        (("methods", "--set", "lam=1"), "--set is of one method; give its NAME"),
        (("cost", "llava-1.5-7b", "--method", "pool", "--layers", "3,4"), "needs the whole grid"),
    ],
)
def test_mistakes(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", NEW)
def test_reduce(name):
    found = document("reduce", "--shape", "2,17,16", "--heads", "4", "--repeats", "1", "--method", name, "--r", 6)
    assert found["conservation"]["ok"] and found["shapes"]["out: tokens"] == [2, 11, 16]
    assert found["conservation"]["dropped"] == (12 if name == "random" else 0)


@pytest.mark.parametrize("name", NEW)
def test_demo(name, tmp_path):
    pytest.importorskip("transformers")
    found = document("demo", "--method", name, "--repeats", "1", "-o", tmp_path / "picture.png")
    assert (found["patches"], found["kept"]) == (144, 36) and (tmp_path / "picture.png").exists()
    assert (found["reduced"]["flops"]["reduction"] == 0) == (name == "random")


def test_env_says_where_they_reduce():
    found = document("env")
    assert {found["reduces"][name] for name in NEW} == {"tower"}
    assert set(found["reduces"]) == set(ficoco_ext.METHODS)
