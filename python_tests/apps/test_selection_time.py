"""The time of choosing, apart from all else: which calls are on the clock, and that a method on it stays what it is."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")

import torch
from helpers.embedded import embedded, grid, one_thread  # noqa: F401

import ficoco_ext
from ficoco_ext import get_method
from ficoco_ext.apps import selection_time
from ficoco_ext.apps.selection_time import SelectionClock, clocked
from ficoco_ext.methods import Combined, FeatureMethod, Split
from ficoco_ext.models import resolve
from ficoco_ext.stages.raters import TextRaters

NAMES = ["topk", "divprune", "fastv", "ficoco-vl", "prune-then-merge", "divprune+fastv", "pyramiddrop"]
PAUSE = 0.02


@pytest.fixture
def clock():
    return SelectionClock(torch.device("cpu"))


@pytest.fixture
def inputs():
    item = next(iter(grid()))
    return embedded().inputs(item.image, item.question)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_on_the_clock_does_what_it_does_without(name, clock, inputs):
    model, method = embedded().model, get_method(name)
    timed = clocked(method, clock)
    assert isinstance(timed, type(method)) and (timed.name, timed.needs) == (method.name, method.needs)
    for part in ("tower", "projector", "language_model"):
        own, other = getattr(method, part), getattr(timed, part)
        assert (own is None) == (other is None) and (own is method) == (other is timed)
    plans = [resolve(model, one, tokens=40) for one in (method, timed)]
    assert plans[0].summary == plans[1].summary
    found = []
    for one in (method, timed):
        with torch.inference_mode(), ficoco_ext.attach(model, one, tokens=40):
            found.append(model(**inputs, use_cache=True, logits_to_keep=1).logits)
    assert torch.equal(*found) and clock.seconds > 0


class Slow(FeatureMethod):
    """DivPrune after a pause."""

    name = "slow"

    def __call__(self, visual, count, planes=()):
        time.sleep(PAUSE)
        return get_method("divprune")(visual, count, planes)


def test_what_a_method_takes_is_found_for_each_of_its_parts(inputs):
    model = embedded().model

    def seconds(method):
        attached = lambda wrap: ficoco_ext.attach(model, wrap(method), tokens=40)  # noqa: E731
        return selection_time.measure(model, inputs, attached, 3)

    alone, both = seconds(Slow()), seconds(Combined.of(Slow(), get_method("fastv")))
    assert alone >= PAUSE and both >= PAUSE
    assert 0 < seconds(get_method("fastv")) < alone
    with pytest.raises(ValueError, match="runs must be at least 1, got 0"):
        selection_time.measure(model, inputs, None, 0)


def test_the_run_that_warms_up_does_not_count(inputs):
    slept, sleep = [], time.sleep
    method = Slow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: slept.append(seconds) or sleep(0.3 if len(slept) == 1 else 0))
        attached = lambda wrap: ficoco_ext.attach(embedded().model, wrap(method), tokens=40)  # noqa: E731
        found = selection_time.measure(embedded().model, inputs, attached, 3)
    assert len(slept) == 4 and found < 0.3


def test_a_call_within_a_call_counts_once(clock):
    def outer():
        time.sleep(PAUSE)
        return clock.run(inner) + 1

    def inner():
        time.sleep(PAUSE)
        return 1

    start = time.perf_counter()
    assert clock.run(outer) == 2
    assert 2 * PAUSE <= clock.seconds <= time.perf_counter() - start
    before = clock.seconds
    with pytest.raises(ZeroDivisionError):
        clock.run(lambda: 1 / 0)
    clock.run(inner)
    assert clock.seconds >= before + PAUSE


def test_layers_and_sequences_are_on_the_clock(clock):
    half = Split("half", get_method("topk"), get_method("tome"), 0.5)
    for method in (get_method("topk"), half, get_method("prune-then-merge")):
        for one in clocked(method, clock).of_layers(3):
            assert type(one).__name__.startswith("Clocked")
    first, second = clocked((get_method("topk"), get_method("tome")), clock)
    assert (first.name, second.name) == ("topk", "tome") and "Clocked" in type(first).__name__


def test_what_a_method_notes_of_a_prompt_is_on_the_clock(inputs, monkeypatch):
    """SparseVLM's raters are chosen once, before the first layer."""
    mark = TextRaters.mark
    monkeypatch.setattr(TextRaters, "mark", lambda self, *args: (time.sleep(PAUSE), mark(self, *args))[1])
    attached = lambda wrap: ficoco_ext.attach(embedded().model, wrap(get_method("sparsevlm")))  # noqa: E731
    assert selection_time.measure(embedded().model, inputs, attached, 1) >= PAUSE
