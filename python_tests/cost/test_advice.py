"""What the cost model says in words: every sentence with its numbers, and where it is said."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ficoco_ext import Schedule
from ficoco_ext.cost import advice
from ficoco_ext.cost.bill import AfterProjector
from ficoco_ext.cost.schedules import Schedules

TOWER, LATE = Schedule(100, (1,), (60,)), Schedule(100, (2, 5), (99, 0))


def part(seconds, bound="compute"):
    return SimpleNamespace(seconds=seconds, bound=bound)


def chosen(before, after, operations=0.0, pictures=1):
    """``after`` of ``before`` tokens of a picture, for so many operations."""
    return AfterProjector(pictures, before, after, SimpleNamespace(operations=operations))


def side(first, each, new=11, visual=100, there=None, **parts):
    """``first`` ms to the first token and ``each`` for one more; parts not named take nothing of it."""
    held = {name: part(0.0) for name in ("tower", "projector", "decoder", "head")} | parts
    running = SimpleNamespace(
        parts=held,
        total=part(first and first / 1e3),
        tokens=SimpleNamespace(entering=visual),
        ttft_ms=first,
        after_projector=there,
        reduction_share=0.0 if there is None else there.total.operations / 4e12,
    )
    whole = None if first is None else first + (new - 1) * each
    return SimpleNamespace(running=running, ttft_ms=first, tpot_ms=each, answer_ms=whole, new_tokens=new)


def comparison(full, reduced=None, schedules=Schedules(), text=10, crops=1, method=None):
    return SimpleNamespace(
        full=full,
        reduced=reduced,
        shown=reduced or full,
        schedules=schedules,
        text_tokens=text,
        shape=SimpleNamespace(name="toy", crops=crops, pinpoints=(), tower=SimpleNamespace(used=2)),
        method=method,
    )


def said(*given, **named):
    return advice.advice(comparison(*given, **named))


def test_how_much_faster():
    """The first token 2 times, the answer of 11 tokens (100 + 10 x 2) / (50 + 10 x 1) = 2 times, or 140 / 70."""
    sentence = "By the roofline the first token comes 2.00x faster{}. That is modelled, not measured."
    assert said(side(100.0, 2.0), side(50.0, 1.0)) == [sentence.format(", an answer of 11 tokens 2.00x")]
    assert said(side(100.0, 2.0), side(50.0, 2.0)) == [sentence.format(", an answer of 11 tokens 1.71x")]
    assert said(side(100.0, 2.0, new=1), side(50.0, 2.0, new=1)) == [sentence.format("")]


def test_a_reduction_that_costs_more_than_it_saves():
    (sentence,) = said(side(100.0, 1.0), side(125.0, 1.0))
    assert sentence == ("Reduction does not help here: it costs more than it saves, 1.25x the time to the first token.")


@pytest.mark.parametrize(("text", "few"), [(233, False), (234, True)])
def test_few_visual_tokens(text, few):
    """100 of 333 are 30 %, 100 of 334 are less."""
    found = [one for one in said(side(100.0, 1.0), text=text) if one.startswith("Few of")]
    assert (
        found
        == [
            f"Few of the prompt's tokens are visual, 100 of {100 + text}: the text stays and is read at any keep ratio."
        ]
        * few
    )


def test_reading_weights():
    memory = part(0.02, "memory")
    short = "The prompt is short: reading the weights"
    now = "Reading the weights now takes the language model longer than computing with them"
    for full, few, sentence in ((memory, memory, short), (part(0.02), memory, now), (part(0.02), part(0.02), None)):
        found = said(side(100.0, 1.0, decoder=full), side(90.0, 1.0, decoder=few))
        assert [one.partition(";")[0].startswith(sentence or "-") for one in found[1:]] == ([True] if sentence else [])


def test_decoding_takes_most_of_a_long_answer():
    """31 tokens of 10 ms after a first one that takes 100: 300 of 400 ms."""
    (_, sentence) = said(side(200.0, 12.0, new=31), side(100.0, 10.0, new=31))
    assert sentence.startswith("Decoding takes 75% of an answer of 31 tokens.")
    assert "a smaller cache makes it 1.20x faster" in sentence
    assert len(said(side(200.0, 12.0, new=23), side(100.0, 10.0, new=23))) == 1  # 220 of 320 ms: 69 %


def test_what_the_tower_and_the_reduction_take():
    (sentence,) = said(side(100.0, 1.0, tower=part(0.03), projector=part(0.01)))
    assert sentence.startswith(
        "The vision tower takes 40% of the time to the first token; what is removed after it, or"
    )
    assert said(side(100.0, 1.0, tower=part(0.02), projector=part(0.01))) == []
    few = side(100.0, 1.0, reduction=part(0.006))
    assert said(side(200.0, 1.0), few)[-1] == "The reduction itself takes 6% of the time to the first token."
    assert len(said(side(200.0, 1.0), side(100.0, 1.0, reduction=part(0.005)))) == 1


def test_a_single_token_is_left():
    few = side(50.0, 1.0)
    found = said(side(100.0, 1.0), few, schedules=Schedules(decoder=LATE))
    assert found[-1] == "After layer 2 of the language model a single visual token is left."
    for other in (Schedule(100, (2,), (98,)), Schedule(1, (2,), (0,)), None):
        assert len(said(side(100.0, 1.0), few, schedules=Schedules(decoder=other))) == 1


def test_a_tower_that_attach_does_not_reduce():
    few, sentence = side(50.0, 1.0), "attach does not reduce in the tower of toy, whose crops are put together after it"
    assert said(side(100.0, 1.0), few, schedules=Schedules(vision=TOWER), crops=5)[-1].startswith(sentence)
    assert len(said(side(100.0, 1.0), few, schedules=Schedules(vision=TOWER))) == 1
    assert len(said(side(100.0, 1.0), few, schedules=Schedules(decoder=Schedule(100, (2,), (5,))), crops=5)) == 1


def test_what_choosing_costs_after_the_projector():
    """2 GFLOP of 4 TFLOP, whether or not there are times."""
    sentence = "Choosing {} of {} tokens after the projector costs 2 GFLOP, 0.05% of the prefill's."
    for first in (50.0, None):
        few = side(first, 1.0, there=chosen(100, 40, 2e9))
        assert sentence.format(40, 100) in said(side(first, 1.0), few)
    few = side(50.0, 1.0, there=chosen(100, 40, 2e9, pictures=3))
    assert sentence.format(120, 300) in said(side(100.0, 1.0), few)
    assert len(said(side(100.0, 1.0), side(50.0, 1.0, there=chosen(100, 40)))) == 1  # nothing is computed


def test_a_single_token_of_a_picture_is_left():
    for there, wanted in ((chosen(100, 1), True), (chosen(100, 2), False), (chosen(1, 1), False)):
        found = said(side(100.0, 1.0), side(50.0, 1.0, there=there))
        assert ("After the projector a single visual token of a picture is left." in found) == wanted


def test_without_times_nothing_is_said():
    assert said(side(None, None)) == said(side(None, None), side(None, None)) == []
