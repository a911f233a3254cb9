"""A method after the projector keeps its state to the call: copies, threads, errors, features that the caller made."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
import threading

import pytest
import torch
from helpers.models import (
    GREEDY,
    answers,
    batch,
    close,
    hooked,
    image,
    one_image,
    one_thread,  # noqa: F401
    snapshot,
    tiny_llava,
    words,
)

import ficoco_ext
from ficoco_ext.models.layouts import Layout
from ficoco_ext.models.modalities import VIDEOS
from ficoco_ext.models.projections import projection

pytest.importorskip("transformers")

METHODS = {
    "projector": {"method": "divprune", "keep_ratio": 0.25},
    "saliency": {"method": "scope", "keep_ratio": 0.25},
    "tower, original positions": {"method": "topk", "keep_ratio": 0.25, "positions": "original"},
    "three parts": {"method": "topk+divprune+fastv", "keep_ratio": 0.25},
}
every = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
TWO = batch([*words(1, 2, 3, 4), *image(), *words(3), *image(), *words(9)], [*words(1), *image(), *words(5)], seed=9)


@pytest.fixture
def model():
    return tiny_llava(seed=6)


def takes_encoded(model):
    """Whether this transformers lets callers encode."""
    return "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters


@every
def test_a_deep_copy_is_attached_by_itself(model, options):
    plain = answers(model)
    with ficoco_ext.attach(model, **options) as handle:
        reduced = answers(model)
        other = copy.deepcopy(model)
        assert all(map(torch.equal, answers(other), reduced))
        with torch.no_grad():
            for weight in other.parameters():
                weight.mul_(0.5)
        changed, before = answers(other), handle.projections
        assert not torch.equal(changed[0], reduced[0])  # it runs its own weights
        assert other.ficoco_handle is not handle and other.ficoco_handle.projections is not handle.projections
        assert handle.projections is before
        other.ficoco_handle.detach()
        assert not hasattr(other, "ficoco_handle") and answers(other)[0].shape == plain[0].shape
        assert all(map(torch.equal, answers(model), reduced))
    assert all(map(torch.equal, answers(model), plain))


@every
def test_a_pickled_model_is_attached_too(model, options):
    with ficoco_ext.attach(model, **options):
        other = pickle.loads(pickle.dumps(model))
        reduced = answers(model)
    assert all(map(torch.equal, answers(other), reduced))


@every
def test_several_threads_on_one_model(model, options):
    """They take turns so often that none gets through a layer alone; each is what it is alone."""
    inputs = [one_image(1), one_image(2), TWO, batch(words(1, 2, 3))]
    found, barrier = [None] * len(inputs), threading.Barrier(len(inputs))

    def run(index):
        barrier.wait()
        try:
            found[index] = [model.generate(**inputs[index], **GREEDY) for _ in range(3)]
        except Exception as error:
            found[index] = error

    before = sys.getswitchinterval()
    with ficoco_ext.attach(model, **options):
        wanted = [model.generate(**one, **GREEDY) for one in inputs]
        threads = [threading.Thread(target=run, args=(index,)) for index in range(len(inputs))]
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(before)
    for got, right in zip(found, wanted, strict=True):
        assert isinstance(got, list), got
        assert all(torch.equal(one, right) for one in got)


@pytest.mark.parametrize("where", ["tower", "projector", "language model"])
@every
def test_an_exception_leaves_nothing_behind(model, options, where):
    parts = {"tower": model.model.vision_tower.encoder.layers[4], "projector": model.model.multi_modal_projector}
    part, plain = parts.get(where, model.model.language_model), answers(model)
    before = snapshot(model)
    with ficoco_ext.attach(model, **options) as handle:
        reduced = answers(model)

        def fail(*_):
            raise RuntimeError("broken on purpose")

        for call in (model, model.generate):
            hook = part.register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="on purpose"), torch.no_grad():
                call(**one_image(seed=8))
            hook.remove()
            assert handle._features.prepared == {} or where == "language model"
            assert all(map(torch.equal, answers(model), reduced))
        assert handle._features.prepared == {} and not handle._features.encoding
    assert snapshot(model) == before and all(map(torch.equal, answers(model), plain))


@every
def test_a_call_of_text_after_a_call_that_failed(model, options):
    """It is not cut by what the failed one encoded."""
    text = batch(words(1, 2, 3))
    plain = model(**text).logits
    with torch.no_grad(), ficoco_ext.attach(model, **options):
        hook = model.model.language_model.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**one_image())
        hook.remove()
        assert torch.equal(model(**text).logits, plain)
        cache = model(**text, use_cache=True).past_key_values
        mask = torch.ones(1, 4, dtype=torch.long)
        step = model(input_ids=torch.tensor([[11]]), attention_mask=mask, past_key_values=cache).logits
        whole = model(input_ids=torch.cat([text["input_ids"], torch.tensor([[11]])], 1)).logits
    assert close(step[:, -1], whole[:, -1])


@torch.no_grad()
def test_features_that_the_caller_encoded(model):
    """By the model without reduction: a call with them is a call with pixels, and they are as they were."""
    if not takes_encoded(model):
        pytest.skip("this transformers encodes itself")
    text = {name: value for name, value in TWO.items() if name != "pixel_values"}
    encoded = model.get_image_features(TWO["pixel_values"], return_dict=True)
    held = [one.clone() for one in encoded.pooler_output]
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.25) as handle:
        wanted, said = model(**TWO).logits, model.generate(**TWO, **GREEDY)
        kept = [one.kept for one in handle.projections]
        for _ in range(2):
            got = model(**text, mm_encoder_outputs={"image": encoded}).logits
            assert torch.equal(got, wanted)
        assert torch.equal(model.generate(**text, mm_encoder_outputs={"image": encoded}, **GREEDY), said)
        assert all(torch.equal(one.kept, right) for one, right in zip(handle.projections, kept, strict=True))
    assert all(map(torch.equal, encoded.pooler_output, held))


@torch.no_grad()
def test_features_that_lack_what_a_method_needs_are_refused(model):
    """What the tower looks at is not in them; and after a reduction in it, which patches they are."""
    if not takes_encoded(model):
        pytest.skip("this transformers encodes itself")
    inputs = one_image()
    encoded = model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    for options in ({"method": "scope"}, {"method": "topk", "positions": "original"}, {"method": "topk+divprune"}):
        with ficoco_ext.attach(model, keep_ratio=0.25, **options):
            for call in (model, model.generate):
                model(**one_image())  # what it has left must not be taken for that of the features
                with pytest.raises(ValueError, match=r"mm_encoder_outputs must be None .* while attached, or pass"):
                    call(**inputs, mm_encoder_outputs={"image": encoded})


@every
@torch.no_grad()
def test_features_that_the_caller_encoded_while_attached(model, options):
    """They are reduced already, and know what of."""
    if not takes_encoded(model):
        pytest.skip("this transformers encodes itself")
    text = {name: value for name, value in TWO.items() if name != "pixel_values"}
    with ficoco_ext.attach(model, **options) as handle:
        wanted, said = model(**TWO).logits, model.generate(**TWO, **GREEDY)
        kept = [one.kept for one in handle.projections]
        encoded = {"image": model.get_image_features(TWO["pixel_values"], return_dict=True)}
        model(**one_image(5))  # of other pictures
        assert torch.equal(model(**text, mm_encoder_outputs=encoded).logits, wanted)
        assert all(torch.equal(one.kept, right) for one, right in zip(handle.projections, kept, strict=True))
        assert torch.equal(model.generate(**text, mm_encoder_outputs=encoded, **GREEDY), said)


@every
def test_gradients_of_labels_in_training_mode(model, options):
    """They reach the tower and the projector as those of a call that is the hand-made loss of what is left."""
    inputs = one_image()
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 3, -100)
    with ficoco_ext.attach(model, **options):
        model.train()
        out = model(**inputs, labels=labels)
        out.loss.backward()
        grads = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
        model.zero_grad()
        logits = model(**inputs).logits[0]
        wanted = torch.nn.functional.cross_entropy(logits[-4:-1], labels[0, -3:], reduction="sum")
        wanted = wanted + torch.nn.functional.cross_entropy(logits[:1], labels[0, 1:2], reduction="sum")
        (wanted / 4).backward()
    assert close(out.loss, wanted / 4)
    again = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    assert grads.keys() == again.keys()
    assert all(close(one, again[name], 1e-4) for name, one in grads.items())
    for part in ("vision_tower", "multi_modal_projector", "language_model"):
        assert any(bool(one.abs().max() > 0) for name, one in grads.items() if part in name)


@every
def test_accelerate_before_attach(model, options):
    plain = answers(model)
    with ficoco_ext.attach(model, **options):
        reduced = answers(model)
    wrapped = hooked(copy.deepcopy(model))
    before = snapshot(wrapped)
    with ficoco_ext.attach(wrapped, **options):
        assert all(map(torch.equal, answers(wrapped), reduced))
    assert snapshot(wrapped) == before and all(map(torch.equal, answers(wrapped), plain))


@every
def test_accelerate_after_attach(model, options):
    plain = answers(model)
    handle = ficoco_ext.attach(model, **options)
    reduced = answers(model)
    hooked(model)
    assert all(map(torch.equal, answers(model), reduced))
    handle.detach()
    assert all(map(torch.equal, answers(model), plain))


@every
@torch.no_grad()
def test_features_of_a_call_are_not_kept(model, options):
    with ficoco_ext.attach(model, **options) as handle:
        model(**one_image())
        assert handle._features.prepared == {}
        model.generate(**one_image(), **GREEDY)
        assert handle._features.prepared == {}


@torch.no_grad()
def test_saliency_is_that_of_the_call(model):
    """Two calls in turn with other pictures choose by their own."""
    with ficoco_ext.attach(model, "scope", keep_ratio=0.25) as handle:
        found = []
        for seed in (1, 2, 1):
            model(**one_image(seed))
            found.append(handle.projections[0].kept)
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_tokens_that_the_model_adds_itself_stay():
    """Older releases add the end of line after a video themselves: the encoder knows nothing of it, the prompt does."""
    found = projection(VIDEOS, 12, torch.tensor([1, 5]), Layout((6, 2), appended=1), None, 0)
    assert (found.before, found.kept.tolist(), found.grid) == (13, [1, 5, 12], (6, 2))
    assert projection(VIDEOS, 12, torch.tensor([1, 5]), Layout((6, 2)), None, 0).kept.tolist() == [1, 5]
