"""Selection costs little beside the prefill, for every method at the budgets that papers print, or it is named."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.cli import document, run

from ficoco_ext import METHODS, Method, cost, get_method
from ficoco_ext.cost import schedules, scope, selection
from ficoco_ext.cost.selection import BUDGETS, LIMIT, OF_CROPS, Share
from ficoco_ext.stages import needs

# Methods whose own operations are more than 2 % of a 7B prefill's, and where.
EXCEPTIONS = {"pyramiddrop": {"llava-1.5-7b"}}
# Methods that neither model can be asked for: they need a video.
ELSEWHERE: set[str] = set()


@pytest.mark.parametrize("name", METHODS)
def test_selection_is_below_two_percent_or_an_exception(name):
    """If an exception has become cheap, take it off the list."""
    found = selection.shares(name)
    above = {one.model for one in found if one.share > LIMIT}
    assert above == EXCEPTIONS.get(name, set())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_counted(name):
    found = selection.shares(name)
    counted = {model: [one.tokens for one in found if one.model == model] for model in BUDGETS | OF_CROPS}
    if needs.CROPS in get_method(name).needs:
        assert {model: tuple(tokens) for model, tokens in counted.items()} == {**dict.fromkeys(BUDGETS, ()), **OF_CROPS}
        return
    wanted = BUDGETS["llava-1.5-7b"]
    if name in ELSEWHERE:
        assert not found
        return
    got = counted["llava-1.5-7b"]
    if len(got) == len(wanted):  # a picture made smaller has a whole grid of tokens
        assert all(abs(tokens - budget) <= budget / 10 for tokens, budget in zip(got, wanted, strict=True))
    else:
        assert len(got) == 1 and get_method(name).amount
    if get_method(name).tower is None:
        assert len(counted["qwen2.5-vl-7b"]) == len(got)
    else:
        assert counted["qwen2.5-vl-7b"] == []  # its tower joins blocks of patches


def test_by_hand():
    """DivPrune: the scores' own operators, of all from pixels to the first token."""
    shape, method = cost.architecture("llava-1.5-7b"), get_method("divprune")
    leaves = schedules.build(shape, method, tokens=128)
    whole = scope.bill(shape, "matmul", method=method, **leaves._asdict())
    bare = scope.bill(shape, "matmul", **leaves._asdict())
    own = whole.total.operations - bare.total.operations
    assert own > 0
    found = {(one.model, one.tokens): one.share for one in selection.shares("divprune")}
    assert found["llava-1.5-7b", 128] == own / whole.total.operations == whole.reduction_share
    assert bare.reduction_share == 0
    assert len(found) == 6


def test_a_method_without_a_price_has_no_share():
    class Mine:
        def __call__(self, *args, **named):
            raise NotImplementedError

    assert selection.shares(Method("own", Mine(), None, Mine())) == ()


def test_a_method_that_takes_no_number_of_tokens(monkeypatch):
    """It is counted once, at its own amount."""
    built = schedules.build

    def build(shape, method, **amount):
        if amount:
            raise ValueError("no number of tokens")
        return built(shape, method, **amount)

    monkeypatch.setattr(selection, "build", build)
    assert [(one.model, one.tokens) for one in selection.shares("pyramiddrop")] == [
        ("llava-1.5-7b", 72),
        ("qwen2.5-vl-7b", 162),
    ]
    assert selection.shares("divprune") == ()  # it has no amount of its own


def test_words():
    few, many = Share("a", 192, 0.001), Share("a", 64, 0.0212)
    assert selection.said((few,)) == "0.10 to 0.10 % of the prefill of a at 192 tokens"
    assert selection.said((few, many)) == (
        "0.10 to 2.12 % of the prefill of a at 192, 64 tokens (more than the 2% that it should cost)"
    )
    both = selection.said((few, Share("b", 100, 0.01)))
    assert both == "0.10 to 0.10 % of the prefill of a at 192 tokens; 1.00 to 1.00 % of the prefill of b at 100 tokens"
    assert selection.said(()) == ""


def _said(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stdout.replace("│", " ").split())


def test_the_command_line_says_it():
    assert "except: pyramiddrop 3.3% (llava-1.5-7b, 64 tokens)." in _said("methods")
    assert "more than the 2% that it should cost" in _said("methods", "pyramiddrop")
    one = document("methods", "divprune")["selection"]
    assert one == [dataclasses.asdict(share) for share in selection.shares("divprune")]
    assert [row["name"] for row in document("methods")["methods"] if not row["selection"]] == sorted(ELSEWHERE)
    assert (
        document("cost", "llava-1.5-7b", "--method", "divprune", "--tokens", 128)["selection_share"] == one[1]["share"]
    )
    assert document("cost", "llava-1.5-7b")["selection_share"] == 0


def test_what_is_printed_beside_a_bill():
    dear = _said("cost", "llava-1.5-7b", "--method", "pyramiddrop")
    assert "Selection costs 3.24% of the prefill's FLOPs, more than the 2% that selection should cost." in dear
    cheap = _said("cost", "llava-1.5-7b", "--method", "ficoco-v", "--tokens", 64)
    assert "Selection costs 0.02% of the prefill's FLOPs." in cheap
    both = _said("cost", "llava-1.5-7b", "--method", "divprune+ficoco-l", "--tokens", 64)
    assert "Selection costs " in both and "Choosing" not in both
    after = _said("cost", "llava-1.5-7b", "--method", "divprune", "--tokens", 64)
    assert "Choosing 64 of 576 tokens after the projector costs" in after and "0.07% of the prefill's." in after
