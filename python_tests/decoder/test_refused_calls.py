"""Calls that a reduced language model refuses, and that the next good one is right."""

import copy

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import (
    GREEDY,
    REFUSED_WAYS,
    answers,
    batch,
    image,
    one_image,
    one_thread,  # noqa: F401
    pixels,
    words,
)

import ficoco_ext

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
L = {"method": "ficoco-l", "r": 9}
FASTV = {"method": "fastv"}
STAGED = {"method": "pyramiddrop"}
VL = {"method": "ficoco-vl", "keep_ratio": 0.5}


@pytest.fixture(scope="module")
def model():
    return tiny(seed=51)


def masked(shape):
    return lambda model, inputs: {**inputs, "attention_mask": torch.ones(shape)}


def more_pictures(model, inputs):
    return {**inputs, "past_key_values": model(**inputs).past_key_values}


CALLS = {  # what is asked of a direct call, the error, its message
    "a 4-D mask": (
        masked((1, 1, 41, 41)),
        ValueError,
        "attention_mask must be None or (B, L), as the processor",
    ),
    "a 3-D mask": (masked((1, 41, 41)), ValueError, "attention_mask must be None or (B, L), as the processor"),
    "new images on a cache": (more_pictures, NotImplementedError, "new images on a cache that is not empty are not"),
    "a dict of masks": (
        lambda _, x: {**x, "attention_mask": {"full_attention": torch.ones(1, 1, 41, 41)}},
        ValueError,
        "attention_mask must be None or (B, L)",
    ),
}


@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("method", [L, FASTV, STAGED], ids=lambda one: one["method"])
def test_calls_that_are_refused(model, case, method):
    change, kind, message = CALLS[case]
    with ficoco_ext.attach(model, **method), torch.no_grad():
        reduced = answers(model)
        with pytest.raises(kind, match=r"^ficoco::forward: ") as error:
            model(**change(model, one_image()))
        assert message in str(error.value) and "; " in str(error.value)
        assert all(map(torch.equal, answers(model), reduced))


def test_replicas_of_data_parallel_are_refused(model):
    with ficoco_ext.attach(model, **L):
        replica = model._replicate_for_data_parallel()
        replica._modules["model"] = model.model._replicate_for_data_parallel()
        with pytest.raises(NotImplementedError, match=r"replica of nn\.DataParallel"):
            replica(**one_image())


@pytest.mark.parametrize("case", REFUSED_WAYS)
@pytest.mark.parametrize("method", [L, VL], ids=lambda one: one["method"])
def test_ways_to_generate_that_are_not_supported(model, case, method):
    options = dict(REFUSED_WAYS[case])
    if "assistant_model" in options:
        options["assistant_model"] = model
    with ficoco_ext.attach(model, **method), torch.no_grad():
        reduced = answers(model)
        with pytest.raises(NotImplementedError, match=rf"^ficoco::generate: {case}.* not supported.*; .+"):
            model.generate(**one_image(), **options)
        assert all(map(torch.equal, answers(model), reduced))


def test_generation_config_is_looked_at_too(model):
    config = copy.deepcopy(model.generation_config)
    config.prefill_chunk_size = 8
    with ficoco_ext.attach(model, **L), pytest.raises(NotImplementedError, match="generate: prefill_chunk_size"):
        model.generate(**one_image(), generation_config=config)


def test_new_pictures_in_a_conversation_are_refused(model):
    with ficoco_ext.attach(model, **L), torch.no_grad():
        first = model.generate(**one_image(), **GREEDY, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([[*words(7), *image(), 12]])], 1)
        with pytest.raises(NotImplementedError, match="new images on a cache that is not empty are not supported"):
            model.generate(ids, pixel_values=pixels(1), past_key_values=first.past_key_values, **GREEDY)


def test_promises_about_counts_are_checked(model):
    uneven = batch(ONE, TWO)
    with ficoco_ext.attach(model, **L, static_counts=True), torch.no_grad():
        reduced = answers(model, batch(ONE, ONE))
        with pytest.raises(ValueError, match=r"images must be equally many in each of 2 rows, as static_counts"):
            model(**uneven)
        shared = batch([*words(1), *image(), *image()], [*words(*range(73))], images=2)
        with pytest.raises(ValueError, match=r"36 visual tokens in each row and text after them, as promised"):
            model(**shared)
        assert all(map(torch.equal, answers(model, batch(ONE, ONE)), reduced))
    with ficoco_ext.attach(model, **L, static_counts=36), torch.no_grad():
        assert all(map(torch.equal, answers(model, batch(ONE, ONE)), reduced))
        with pytest.raises(ValueError, match=r"36 visual tokens in each row .*, got rows with \[36, 72\]"):
            model(**uneven)


def test_windows_that_would_span_two_pictures_are_refused(model):
    with ficoco_ext.attach(model, **L, penalty=2.0, window=4), torch.no_grad():
        reduced = answers(model)
        message = r"forward: window must be a divisor of the images' height 6, got 4 with 2 images in a row; or"
        with pytest.raises(ValueError, match=message):
            model(**batch(TWO))
        assert all(map(torch.equal, answers(model), reduced))


def test_a_tap_that_was_taken_away_is_noticed(model):
    with ficoco_ext.attach(model, **L), torch.no_grad():
        reduced, attention = answers(model), model.model.language_model.layers[2].self_attn
        ours, attention.config = attention.config, model.config.text_config
        with pytest.raises(
            RuntimeError, match="ran without giving its query and key; its config or its forward was replaced"
        ):
            model(**one_image())
        attention.config = ours
        assert all(map(torch.equal, answers(model), reduced))
