"""Outputs of an encoder that the caller cut, reordered, repeated or copied before a call of the model."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import GREEDY, batch, close, image, one_thread, pixels, without, words  # noqa: F401
from helpers.tiny_families import BY_NAME
from helpers.tiny_prompts import prompt

import ficoco_ext
from ficoco_ext.models.key_sets import _LOOKED

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
KEYS = {"method": "mustdrop", "part": "language_model", "layers": (1, 2), "keep_ratio": 0.3}
KEPT = {"method": "divprune", "keep_ratio": 0.4}
OPTIONS = {"key sets": KEYS, "projector": KEPT, "original positions": KEPT | {"positions": "original"}}
every = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(scope="module")
def model():
    made = tiny(seed=5)
    if "mm_encoder_outputs" not in inspect.signature(type(made).forward).parameters:
        pytest.skip("this transformers takes no features")
    return made


def given(row, output):
    """The arguments of a prompt whose pictures are encoded in ``output``."""
    return batch(row, images=0) | {"mm_encoder_outputs": {"image": output}}


def of(row, pictures):
    """The arguments of a prompt with its pixels."""
    return batch(row, images=0) | {"pixel_values": pictures}


@every
@pytest.mark.parametrize("numbers", [[1], [2, 0], [1, 1]], ids=str)
def test_some_pictures_of_an_output_in_any_order(model, options, numbers):
    row, pictures = (ONE, TWO)[len(numbers) - 1], pixels(3)
    with torch.no_grad(), ficoco_ext.attach(model, **options):
        output = model.model.get_image_features(pictures, return_dict=True)
        output.pooler_output = [output.pooler_output[number] for number in numbers]
        wanted = model(**of(row, pictures[numbers])).logits
        assert close(model(**given(row, output)).logits, wanted)
        beams = {**GREEDY, "num_beams": 2}
        wanted = model.generate(**of(row, pictures[numbers]), **beams)
        assert all(torch.equal(model.generate(**given(row, output), **beams), wanted) for _ in range(2))
        assert len(output.pooler_output) == len(numbers)  # generate repeats features, but not in the caller's output


@every
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_known(model, options, how):
    with torch.no_grad(), ficoco_ext.attach(model, **options):
        output = model.model.get_image_features(pixels(2), return_dict=True)
        wanted = model(**given(TWO, output)).logits
        assert torch.equal(model(**given(TWO, how(output))).logits, wanted)


@every
def test_other_features_in_an_output_are_refused(model, options):
    with torch.no_grad(), ficoco_ext.attach(model, **options):
        output = model.model.get_image_features(pixels(1), return_dict=True)
        output.pooler_output = [output.pooler_output[0].flip(0)]
        for call in (model, model.generate):
            with pytest.raises(ValueError, match=r"got other.*, put into its output.*encode .*while attached"):
                call(**given(ONE, output))


def test_one_tensor_of_all_pictures():
    """It is known as a whole: a part of it, or another order, is another tensor."""
    family = BY_NAME["internvl"]
    made, model = prompt(family, [[*words(1), *family.pictures[:1], *words(9)]]), family.model()
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        pytest.skip("this transformers takes no features")
    with torch.no_grad(), ficoco_ext.attach(model, **KEYS | {"layers": (1,)}):
        output = model.model.get_image_features(made.inputs["pixel_values"], return_dict=True)
        assert isinstance(output.pooler_output, torch.Tensor)
        wanted = model(**made.inputs).logits
        text = without(made.inputs, "pixel_values")
        outputs = {"mm_encoder_outputs": {"image": output}}
        assert close(model(**text, **outputs).logits, wanted)
        beams = {**GREEDY, "num_beams": 2}
        wanted = model.generate(**made.inputs, **beams)
        assert all(torch.equal(model.generate(**text, **outputs, **beams), wanted) for _ in range(2))
        output.pooler_output = output.pooler_output[:1].clone()
        with pytest.raises(ValueError, match="others, without a key set, put into its output"):
            model(**text, **outputs)


def test_nothing_of_an_output_is_held(model):
    """After a direct call of the encoder, and after a call that failed before the language model."""
    with torch.no_grad(), ficoco_ext.attach(model, **KEYS) as handle:
        output = model.model.get_image_features(pixels(1), return_dict=True)
        looked = getattr(output, _LOOKED).known[0].values
        refs = [weakref.ref(one) for one in (output, output.pooler_output[0], looked)]

        hook = model.model.language_model.register_forward_pre_hook(fail, prepend=True)
        for inputs in (given(ONE, output), batch(ONE)):
            with pytest.raises(ZeroDivisionError):
                model(**inputs)
            assert handle._decoder.keys.now.called is None
        hook.remove()
        del output, looked, inputs
        gc.collect()
        assert [ref() for ref in refs] == [None] * 3
        model(**batch(ONE))
        assert handle._decoder.keys.now.called is None


def test_a_copy_of_an_attached_model_ends_its_own_calls(model):
    with torch.no_grad(), ficoco_ext.attach(model, **KEYS):
        other = copy.deepcopy(model)
        keys = other.ficoco_handle._decoder.keys
        other.model.language_model.layers[0].register_forward_pre_hook(keys_are_ended(keys))
        hook = other.model.language_model.register_forward_pre_hook(fail, prepend=True)
        with pytest.raises(ZeroDivisionError):
            other(**batch(ONE))
        hook.remove()
        assert keys.now.called is None
        assert torch.equal(other(**batch(ONE)).logits, model(**batch(ONE)).logits)


def fail(*_):
    raise ZeroDivisionError


def keys_are_ended(keys):
    """A hook of the first layer: what is read of the pictures is not held during all layers."""

    def check(*_):
        assert keys.now.called is None

    return check
