"""attach and detach on the language model's side: exact restoration, failures, wrappers, copies."""

import copy
import pickle

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import (
    answers,
    batch,
    close,
    hooked,
    image,
    one_image,
    one_thread,  # noqa: F401
    snapshot,
    words,
)

import ficoco_ext
from ficoco_ext import Plan, Schedule

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
TEXT = words(11, 12, 13, 14)
L = {"method": "ficoco-l", "r": 9}
METHODS = {
    "ficoco-l": L,
    "layer 0": L | {"layers": (0, 2)},
    "before attention": L | {"before_attention": True},
    "fastv": {"method": "fastv"},
    "pyramiddrop": {"method": "pyramiddrop"},
    "sparsevlm": {"method": "sparsevlm"},
    "mustdrop": {"method": "mustdrop", "vision": {"r": 8}, "decoder": {"r": 5, "layers": (1, 3)}},
    "both sides": {"method": "ficoco-vl", "keep_ratio": 0.3},
}
INPUTS = batch(ONE, TWO, TEXT)


@pytest.fixture(scope="module")
def model():
    return tiny(seed=41)


def last(found):
    """What a reduced and a full-length answer have in common."""
    return found[0][:, -1]


def equal(one, other):
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("method", METHODS)
def test_detach_is_exact(model, method):
    plain = answers(model, INPUTS)
    before, config = snapshot(model), model.config.to_dict()
    reduced = None
    for _ in range(3):
        handle = ficoco_ext.attach(model, **METHODS[method])
        found = answers(model, INPUTS)
        assert not close(last(found), last(plain), 1e-3)
        assert reduced is None or equal(found, reduced)
        reduced = found
        assert model.config.to_dict() == config
        assert handle.attached and model.ficoco_handle is handle
        handle.detach()
        handle.detach()
        assert not handle.attached and snapshot(model) == before
        assert equal(answers(model, INPUTS), plain)
    for layer in model.model.language_model.layers:
        assert layer.self_attn.config is model.config.text_config


def test_detach_without_any_call():
    model = tiny(seed=41)
    before = snapshot(model)
    for options in METHODS.values():
        ficoco_ext.attach(model, **options).detach()
        assert snapshot(model) == before


def test_with_nothing_to_remove_nothing_is_installed(model):
    before = snapshot(model)
    for options in ({"method": "ficoco-l", "r": 0}, {"method": "fastv", "keep_ratio": 1.0}):
        with ficoco_ext.attach(model, **options) as handle:
            model.__dict__.pop("ficoco_handle")
            assert snapshot(model) == before
            model.ficoco_handle = handle


def test_handle(model):
    with ficoco_ext.attach(model, "ficoco-l", r=9) as handle, torch.no_grad():
        assert handle.plan == Plan(layers=(1, 2, 3), r=9)
        assert [method.name for method in handle.decoder_methods] == ["ficoco-l"] * 3
        assert handle.schedule is None and handle.methods == () and handle.reductions == ()
        assert handle.decoder_reductions == ()
        model(**INPUTS)
        told = handle.decoder_reductions
        assert [len(row) for row in told] == [3, 3, 0]
        assert [step.sources.shape[1] for step in told[1]] == [9, 9, 9]
        assert repr(handle) == "<Handle attached: ficoco-l in 3 layers of the language model>"
        length = INPUTS["input_ids"].shape[1]
        for b, row in enumerate(told[:2]):
            for step in row:
                assert step.tokens is None and step.source_map.shape == (1, length)
                assert (INPUTS["input_ids"][b, step.sources[0]] == 3).all()
            assert row[-1].size.sum() == pytest.approx(row[-1].size.shape[1] + 27)  # merging loses nothing
    assert [len(row) for row in handle.decoder_reductions] == [3, 3, 0]  # and after detach
    with ficoco_ext.attach(model, "ficoco-vl", keep_ratio=0.25) as handle:
        assert isinstance(handle.schedule, Schedule) and handle.schedule.final == 18
        assert handle.plan.schedule(18).final == 9
        assert "ficoco-v, 36 -> 18 patches; ficoco-l in 3 layers" in repr(handle)
    with ficoco_ext.attach(model, ["ficoco-l", "fastv"], r=4, layers=(1, 2)) as handle:
        assert [method.name for method in handle.decoder_methods] == ["ficoco-l", "fastv"]
        answers(model, INPUTS)
        assert [step.targets.shape[-1] for step in handle.decoder_reductions[0]] == [1, 0]


def fail(*_, **__):
    raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("where", ["mlp", "self_attn", "lm_head"])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_an_exception_in_a_forward_leaves_nothing_behind(model, monkeypatch, layer, where):
    part = model.lm_head if where == "lm_head" else getattr(model.model.language_model.layers[layer], where)
    from transformers import DynamicCache

    plain = answers(model, INPUTS)
    before = snapshot(model)
    with ficoco_ext.attach(model, **L) as handle, torch.no_grad():
        reduced = answers(model, INPUTS)
        text = model(**batch(TEXT, images=0)).logits
        with monkeypatch.context() as patch:
            patch.setattr(part, "forward", fail)
            cache = DynamicCache(config=model.config.text_config)
            for call, options in ((model, {"past_key_values": cache}), (model.generate, {"max_new_tokens": 2})):
                with pytest.raises(RuntimeError, match="on purpose"):
                    call(**INPUTS, **options)
            assert where == "lm_head" or not any("ficoco" in name for name in vars(cache))
        assert not handle._decoder.generating
        assert torch.equal(model(**batch(TEXT, images=0)).logits, text)  # not taken for the prompt that failed
        assert equal(answers(model, INPUTS), reduced)
        with monkeypatch.context() as patch:
            patch.setattr(part, "forward", fail)
            with pytest.raises(RuntimeError, match="on purpose"):
                model(**INPUTS)
    assert snapshot(model) == before and equal(answers(model, INPUTS), plain)


def test_an_exception_while_decoding(model, monkeypatch):
    with ficoco_ext.attach(model, **L), torch.no_grad():
        cache = model(**batch(ONE)).past_key_values
        token = {"input_ids": torch.tensor([[12]]), "past_key_values": cache}
        wanted = model(**token | {"past_key_values": copy.deepcopy(cache)}).logits
        with monkeypatch.context() as patch:
            patch.setattr(model.model.language_model.layers[0], "forward", fail)
            with pytest.raises(RuntimeError, match="on purpose"):
                model(**token)
        assert torch.equal(model(**token).logits, wanted)


def test_a_half_way_attach_is_undone(model, monkeypatch):
    from ficoco_ext.models.decoder_reduction import DecoderReduction

    before = snapshot(model)
    monkeypatch.setattr(DecoderReduction, "after", property(fail))
    with pytest.raises(RuntimeError, match="on purpose"):
        ficoco_ext.attach(model, **L)
    assert snapshot(model) == before


class Wrapper:
    """Takes the place of a layer's forward and goes on to what ``_old_forward`` holds."""

    calls = 0

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, *args, **kwargs):
        type(self).calls += 1
        return self.layer._old_forward(*args, **kwargs)


def emulated(model):
    """What accelerate does to a layer: its body moves to ``_old_forward``, a wrapper takes its place."""
    for layer in model.model.language_model.layers:
        layer._old_forward = layer.forward
        layer.forward = Wrapper(layer)
    return model


@pytest.mark.parametrize("wrap", [emulated, hooked])
@pytest.mark.parametrize("method", METHODS)
def test_accelerate_before_attach(model, method, wrap):
    plain = answers(model, INPUTS)
    with ficoco_ext.attach(model, **METHODS[method]):
        reduced = answers(model, INPUTS)
    wrapped = wrap(copy.deepcopy(model))
    before = snapshot(wrapped)
    with ficoco_ext.attach(wrapped, **METHODS[method]):
        assert equal(answers(wrapped, INPUTS), reduced)
    assert snapshot(wrapped) == before and equal(answers(wrapped, INPUTS), plain)


@pytest.mark.parametrize("method", METHODS)
def test_the_wrapper_of_a_layer_still_runs(model, method):
    """It is the one that moves a layer's inputs to its device."""
    wrapped = emulated(copy.deepcopy(model))
    with ficoco_ext.attach(wrapped, **METHODS[method]), torch.no_grad():
        before = Wrapper.calls
        wrapped(**INPUTS)
        assert Wrapper.calls - before == 4


@pytest.mark.parametrize("unwrap_first", [True, False])
def test_accelerate_after_attach(model, unwrap_first):
    plain, other = answers(model, INPUTS), copy.deepcopy(model)
    handle = ficoco_ext.attach(other, **L)
    reduced = answers(other, INPUTS)
    hooked(other)
    from accelerate.hooks import remove_hook_from_module

    assert equal(answers(other, INPUTS), reduced)
    steps = (lambda: remove_hook_from_module(other, recurse=True), handle.detach)
    for step in steps[:: 1 if unwrap_first else -1]:
        step()
    assert equal(answers(other, INPUTS), plain)
    ficoco_ext.attach(other, **L).detach()


@pytest.mark.parametrize("method", METHODS)
def test_a_deep_copy_is_attached_by_itself(model, method):
    plain = answers(model, INPUTS)
    with ficoco_ext.attach(model, **METHODS[method]) as handle:
        reduced = answers(model, INPUTS)
        other = copy.deepcopy(model)
        assert equal(answers(other, INPUTS), reduced)
        with torch.no_grad():
            for weight in other.parameters():
                weight.mul_(0.5)
        assert not torch.equal(answers(other, INPUTS)[0], reduced[0])  # it runs its own weights
        assert equal(answers(model, INPUTS), reduced)
        assert other.ficoco_handle is not handle
        other.ficoco_handle.detach()
        assert answers(other, INPUTS)[0].shape[1] == INPUTS["input_ids"].shape[1]
        assert equal(answers(model, INPUTS), reduced)
    assert equal(answers(model, INPUTS), plain)


def test_a_pickled_model_is_attached_too():
    model = tiny(seed=41)  # transformers' own capture hooks, installed by a first forward, cannot be pickled
    for options in (L, {"method": "fastv"}, {"method": "pyramiddrop"}):
        with ficoco_ext.attach(model, **options) as handle:
            other = pickle.loads(pickle.dumps(model))
            assert other.ficoco_handle.plan == handle.plan
            with torch.no_grad():
                found = other(**one_image()).logits
        with torch.no_grad(), ficoco_ext.attach(tiny(seed=41), **options) as fresh:
            assert torch.equal(found, fresh._model(**one_image()).logits)


def test_caches_may_be_copied_while_attached(model):
    with ficoco_ext.attach(model, **L), torch.no_grad():
        cache = model(**INPUTS).past_key_values
        other, token = copy.deepcopy(cache), torch.tensor([[12]] * 3)
        one = model(input_ids=token, past_key_values=cache).logits
        assert torch.equal(model(input_ids=token, past_key_values=other).logits, one)


def test_the_tap_holds_nothing_after_a_call(model):
    """What it held would keep the caches of earlier prompts alive."""
    with ficoco_ext.attach(model, "ficoco-l", r=9), torch.no_grad():
        model.generate(**INPUTS, max_new_tokens=3)
        captures = [layer.self_attn._ficoco_capture for layer in model.model.language_model.layers[1:]]
        assert all(one._captured is None and not one.reads for one in captures)


def test_detach_refuses_if_it_cannot_be_exact(model):
    handle = ficoco_ext.attach(model, **L)
    layer = model.model.language_model.layers[2]
    ours, layer.forward = layer.forward, lambda *args, **kwargs: None
    with pytest.raises(RuntimeError, match=r"detach: forward of LlamaDecoderLayer was replaced after attach"):
        handle.detach()
    assert handle.attached
    layer.forward = ours
    handle.detach()
