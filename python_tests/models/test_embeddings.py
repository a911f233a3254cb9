"""A reduction in the tower, called with embeddings instead of ids: the same call."""

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import (
    GREEDY,
    batch,
    image,
    one_thread,  # noqa: F401
    without,
    words,
)

import ficoco_ext

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
FIRST = [*image(), *words(7), *image(), *words(8, 9)]  # what fills an empty position must not be a placeholder
ROWS = {"one": [ONE], "unlike rows": [ONE, FIRST], "a picture first": [FIRST]}
METHODS = {
    "ficoco-v": {"method": "ficoco-v", "keep_ratio": 0.5},
    "both sides": {"method": "ficoco-vl", "keep_ratio": 0.5},
}


@pytest.fixture(scope="module")
def model():
    return tiny(seed=12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", ROWS)
def test_embeddings_equal_ids(model, rows, method):
    inputs = batch(*ROWS[rows])
    ids = inputs["input_ids"]
    alike = {**without(inputs, "input_ids"), "inputs_embeds": model.get_input_embeddings()(ids)}
    length = ids.shape[1]
    with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]):
        wanted, found = (model(**one, labels=ids) for one in (inputs, alike))
        assert wanted.logits.shape[1] < length
        assert torch.equal(found.logits, wanted.logits) and torch.equal(found.loss, wanted.loss)
        if method == "ficoco-v":  # the language model's methods refuse positions
            last = torch.tensor([length - 1])
            assert torch.equal(model(**alike, logits_to_keep=last).logits, model(**inputs, logits_to_keep=last).logits)
        for options in (GREEDY, {"max_length": length + 4, "min_length": length + 2, "do_sample": False}):
            new = model.generate(**inputs, **options)[:, length:]
            assert torch.equal(model.generate(**alike, **options), new)  # transformers returns the new tokens alone


def test_embeddings_get_their_gradient_back(model):
    inputs = batch(ONE)
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
    with ficoco_ext.attach(model, keep_ratio=0.5):
        loss = model(**without(inputs, "input_ids"), inputs_embeds=embeddings, labels=inputs["input_ids"]).loss
        loss.backward()
    words_only = inputs["input_ids"][0] != 3
    assert bool((embeddings.grad[0].abs().amax(-1) > 0).eq(words_only)[:-1].all())  # nothing is read from the last one
