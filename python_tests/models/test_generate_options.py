"""Options of ``generate``, said in more than one place, count as they do without reduction."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import EOS, batch, close, image, one_image, one_thread, tiny_llava, words  # noqa: F401

import ficoco_ext

pytest.importorskip("transformers")

GREEDY = {"max_new_tokens": 5, "do_sample": False}
DETAILS = {"return_dict_in_generate": True, "output_logits": True}


@pytest.fixture
def model():
    made = tiny_llava(seed=3)
    with torch.no_grad(), ficoco_ext.attach(made, tokens=9):
        yield made


def test_what_is_said_in_the_call_goes_before_the_generation_config(model):
    """And that one before the model's own, as in generate without reduction."""
    inputs = one_image()
    prompt = inputs["input_ids"].shape[1]
    config, said = copy.deepcopy(model.generation_config), {"do_sample": False}
    config.max_length = prompt + 9
    assert model.generate(**inputs, generation_config=config, max_length=prompt + 4, **said).shape[1] == prompt + 4
    model.generation_config.max_length = prompt + 6
    try:
        assert model.generate(**inputs, generation_config=config, **said).shape[1] == prompt + 9
        assert model.generate(**inputs, max_length=prompt + 4, **said).shape[1] == prompt + 4
    finally:
        model.generation_config.max_length = None
    assert config.max_length == prompt + 9


def test_max_new_tokens_goes_before_max_length(model):
    """A config that comes with a short max_length is no obstacle, as without reduction."""
    inputs = one_image()
    model.generation_config.max_length = 20  # shorter than the prompt
    try:
        assert model.generate(**inputs, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 5
    finally:
        model.generation_config.max_length = None


def test_a_pad_token_that_is_the_end_token_hides_nothing(model):
    """Without a mask generate takes no token for padding where both are one, so neither do we."""
    row = [*words(1), EOS, *image(), *words(3, EOS - 10, 5)]  # the end token within the prompt
    shown = batch(row)  # a mask of ones
    inputs = {name: value for name, value in shown.items() if name != "attention_mask"}
    said = GREEDY | {"pad_token_id": EOS, "eos_token_id": [EOS, 59]}
    out = model.generate(**inputs, **said, **DETAILS)
    wanted = model.generate(**shown, **said, **DETAILS)
    assert torch.equal(out.sequences, wanted.sequences)
    assert all(map(close, out.logits, wanted.logits))
