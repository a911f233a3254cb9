"""The encoders of a model with a method after its projector: what a call encodes, and what other calls get of them."""

from __future__ import annotations

import inspect
import threading
import warnings
from dataclasses import dataclass

import pytest
import torch
from helpers.models import GREEDY, batch, image, one_image, one_thread, pixels, tiny_llava, words  # noqa: F401

import ficoco_ext
from ficoco_ext.methods import ProjectorMethod
from ficoco_ext.models.vision_tower import TowerReductions
from ficoco_ext.stages import SelectStage, needs

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_gradients")

HALF = {"method": "divprune", "keep_ratio": 0.5}


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def model():
    return tiny_llava(seed=8)


def encoded(model, pictures, **options):
    return model.model.get_image_features(pictures, **options)


@dataclass(frozen=True)
class First(SelectStage):
    """Keeps the first tokens of a grid."""

    needs = (needs.GRID,)

    def describe(self):
        return "the first tokens"

    def operations(self, shape):
        return []

    def __call__(self, visual, count):
        assert visual.grid == (6, 6)
        return torch.arange(count).expand(len(visual.features), -1)


@pytest.mark.parametrize("options", [HALF, {"method": "topk", "keep_ratio": 0.5, "positions": "original"}])
def test_a_call_encodes_once(model, options):
    runs = []
    model.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    with ficoco_ext.attach(model, **options):
        model(**one_image())
        assert len(runs) == 1
        model.generate(**one_image(), **GREEDY)
        assert len(runs) == 2
        model.generate(**one_image(), **GREEDY, num_beams=2)
        # A transformers that encodes within the model gives every beam pixels of its own.
        assert len(runs) == (3 if "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters else 4)


def test_other_pixels_of_a_call_are_encoded(model):
    """A caller asks for other features while a call runs."""
    other, found = pixels(1, seed=7), []
    with ficoco_ext.attach(model, **HALF):
        wanted = encoded(model, other).pooler_output[0]
        ask = lambda *_: found.append(encoded(model, other).pooler_output[0])  # noqa: E731
        model.model.language_model.register_forward_pre_hook(ask)
        model(**one_image())
    assert len(found) == 1 and torch.equal(found[0], wanted)


def test_features_as_a_tuple(model):
    with ficoco_ext.attach(model, **HALF):
        whole = encoded(model, pixels(2), return_dict=True)
        as_tuple = encoded(model, pixels(2), return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(whole.to_tuple())
    assert [len(one) for one in whole.pooler_output] == [18, 18]
    assert any(len(one) == 2 and all(map(torch.equal, one, whole.pooler_output)) for one in as_tuple)


def test_pixels_by_name(model):
    with ficoco_ext.attach(model, **HALF):
        by_name = model.get_image_features(pixel_values=pixels(1)).pooler_output
        assert torch.equal(by_name[0], encoded(model, pixels(1)).pooler_output[0]) and len(by_name[0]) == 18


def test_too_few_tokens_are_said_once(model):
    with ficoco_ext.attach(model, "divprune", tokens=50):
        with pytest.warns(UserWarning, match="tokens is 50, but a picture has 36; it keeps all of them"):
            model(**one_image())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(**one_image())
    with ficoco_ext.attach(model, "divprune", tokens=36), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(**one_image())


def test_a_method_is_given_the_grid(model):
    first = ProjectorMethod("first", First())
    with ficoco_ext.attach(model, first, tokens=7) as handle:
        model(**batch([*words(1), *image(), *words(2), *image(), *words(3)]))
        assert [one.kept.tolist() for one in handle.projections] == [list(range(7))] * 2
        assert {(one.modality, one.before, one.grid) for one in handle.projections} == {("image", 36, (6, 6))}


def test_the_tower_of_another_thread(model):
    """One that goes through the tower between another's tower and projector."""
    with ficoco_ext.attach(model, "topk", keep_ratio=0.5, positions="original") as handle:
        wanted = model(**one_image(1)).logits
        kept = handle.projections[0].kept
        thread = threading.Thread(target=lambda: model(**one_image(2)))

        def meddle(*_):
            if thread.ident is None:
                thread.start()
                thread.join()

        model.model.multi_modal_projector.register_forward_pre_hook(meddle)
        assert torch.equal(model(**one_image(1)).logits, wanted)
        assert thread.ident is not None and torch.equal(handle.projections[0].kept, kept)


def test_a_pass_that_failed_has_no_reductions():
    reductions = TowerReductions(2)
    reductions.put(0, "first")
    assert reductions.of_this_thread() == ()
    reductions.put(1, "second")
    assert reductions.of_this_thread() == reductions.finished() == ("first", "second")
    reductions.before(0, torch.zeros(1, 37, 32))
    assert reductions.of_this_thread() == ()
