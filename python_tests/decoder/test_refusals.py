"""What attach refuses to do to a language model, and that nothing is left behind by it."""

import sys
import types

import pytest
import torch
from helpers.decoder import decoder_config, tiny
from helpers.families import tiny_next, tiny_qwen
from helpers.models import (
    assert_refused,
    image,
    one_thread,  # noqa: F401
    snapshot,
    tiny_llava,
    words,
)

import ficoco_ext
from ficoco_ext import get_method
from ficoco_ext.methods import Combined

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
L = {"method": "ficoco-l", "r": 9}


@pytest.fixture(scope="module")
def model():
    return tiny(seed=51)


def with_text(config):
    return lambda: tiny_llava(text=config)


def qwen2_with_windows():
    from transformers import Qwen2Config

    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    held = decoder_config("qwen2").to_dict() | {"use_sliding_window": True, "sliding_window": 8, "layer_types": kinds}
    return Qwen2Config(**held)


def mistral_with_windows():
    from transformers import MistralConfig

    return MistralConfig(**decoder_config("mistral").to_dict() | {"sliding_window": 8})


def gemma():
    from transformers import GemmaConfig

    return GemmaConfig(**{k: v for k, v in decoder_config().to_dict().items() if k != "model_type"} | {"head_dim": 8})


def changed(change):
    def make():
        model = tiny()
        change(model)
        return model

    return make


def subclassed(owner, name):
    """Makes a part one of a subclass of its own class."""

    def change(model):
        part = getattr(owner(model), name) if isinstance(name, str) else owner(model)[name]
        part.__class__ = type("Mine", (type(part),), {})

    return changed(change)


def flex(model):
    model.config.text_config._attn_implementation_internal = "flex_attention"


def another_layer(model):
    from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

    model.model.language_model.layers[2] = MistralDecoderLayer(decoder_config("mistral"), 2)


def layers(model):
    return model.model.language_model.layers


MODELS = {
    "another class": (lambda: torch.nn.Linear(2, 2), "model must be one of LlavaForConditionalGeneration, LlavaNext"),
    "the inner model": (lambda: tiny().model, "got LlavaModel; no other model is supported"),
    "the language model": (lambda: tiny().model.language_model, "got LlamaModel; no other model is supported"),
    "a subclass": (
        changed(lambda m: setattr(m, "__class__", type("Mine", (type(m),), {}))),
        "got Mine; no other model",
    ),
    "DataParallel": (lambda: torch.nn.DataParallel(tiny()), "got DataParallel; attach to model.module"),
    "another language model": (
        with_text(gemma()),
        "language model must be one of LlamaModel, MistralModel, Qwen2Model, got GemmaModel",
    ),
    "a subclass of a language model": (subclassed(lambda m: m.model, "language_model"), "must be one of LlamaModel"),
    "a layer of another model": (changed(another_layer), "decoder layer 2 must be a LlamaDecoderLayer with LlamaAtt"),
    "a subclass of a layer": (subclassed(layers, 3), "decoder layer 3 must be a LlamaDecoderLayer with LlamaAttention"),
    "a subclass of attention": (subclassed(lambda m: layers(m)[0], "self_attn"), "got LlamaDecoderLayer with Mine"),
    "sliding window": (with_text(mistral_with_windows()), "layer_types must be full attention in every layer"),
    "layers of two kinds": (with_text(qwen2_with_windows()), "removes; use a method after the projector, such as"),
    "flex attention": (changed(flex), "attention implementation must be sdpa, eager or flash attention, got flex_att"),
}


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("method", ["ficoco-l", "fastv", "pyramiddrop"])
def test_unsupported_models_are_refused_at_attach(case, method):
    make, message = MODELS[case]
    model = make()
    before = snapshot(model)
    with pytest.raises(NotImplementedError, match=r"^ficoco::attach: ") as error:
        ficoco_ext.attach(model, method, keep_ratio=(0.5,), layers=(2,))
    assert message in str(error.value) and "; " in str(error.value)
    assert snapshot(model) == before


def test_a_layer_that_somebody_replaced_is_refused():
    for name in ("forward", "_old_forward"):
        model = tiny()
        layer = layers(model)[3]
        setattr(layer, name, types.MethodType(lambda self, hidden, *args, **options: hidden, layer))
        before = snapshot(model)
        with pytest.raises(ValueError, match="decoder layer 3 must be one with its own forward, got a replaced"):
            ficoco_ext.attach(model, **L)
        assert snapshot(model) == before


def test_a_layer_whose_arguments_changed_is_refused(monkeypatch):
    model = tiny()
    monkeypatch.setattr(type(layers(model)[0]), "forward", lambda self, hidden_states, mask=None: hidden_states)
    with pytest.raises(NotImplementedError, match=r"LlamaDecoderLayer.forward must be .*; transformers changed"):
        ficoco_ext.attach(model, **L)


@pytest.mark.parametrize("method", ["ficoco-v", "topk", "tome", "ficoco-vl"])
@pytest.mark.parametrize("make", [tiny_qwen, lambda: tiny_qwen("2.5")], ids=["2", "2.5"])
def test_towers_that_cannot_be_reduced(make, method):
    model = make()
    before = snapshot(model)
    message = r"method must be one for another part of Qwen2(\.5)?-VL, got it.*such as 'ficoco-l'"
    with pytest.raises(NotImplementedError, match=message):
        ficoco_ext.attach(model, method, keep_ratio=0.5)
    assert snapshot(model) == before


ANYTHING = {"vision": {"keep_ratio": 0.5}, "decoder": {"r": 3}}
VL = {"method": "ficoco-vl"}
FASTV = {"method": "fastv"}
STAGED = {"method": "pyramiddrop"}
BEFORE = {"method": "ficoco-l", "before_attention": True}
VALUES = [
    ({"method": "ficoco-l"}, ValueError, "exactly one of r, keep_ratio and tokens, got none"),
    (L | {"tokens": 3}, ValueError, "exactly one of r, keep_ratio and tokens, got r, tokens"),
    (L | {"tokens": 3, "keep_ratio": 0.5}, ValueError, "got r, keep_ratio, tokens"),
    (FASTV | {"r": 3, "keep_ratio": 0.5}, ValueError, "got r, keep_ratio"),
    ({"method": "ficoco-l", "r": -1}, ValueError, "r must not be negative"),
    ({"method": "ficoco-l", "r": 1.5}, TypeError, "r must be an integer or a list with one integer a layer"),
    ({"method": "ficoco-l", "r": "9"}, TypeError, "r must be an integer or a list"),
    ({"method": "ficoco-l", "r": [1, 2]}, ValueError, "r has 2 entries for 3 layers; give one r a layer"),
    ({"method": "ficoco-l", "keep_ratio": 0.0}, ValueError, "keep_ratio must be in (0, 1]"),
    ({"method": "ficoco-l", "keep_ratio": [0.5, 0.2]}, ValueError, "keep_ratio has 2 entries for 3 layers"),
    ({"method": "ficoco-l", "keep_ratio": [0.2, 0.5, 0.1]}, ValueError, "keep_ratio must not rise"),
    ({"method": "ficoco-l", "tokens": 0}, ValueError, "tokens must be in [1,"),
    ({"method": "ficoco-l", "tokens": 3.0}, TypeError, "tokens must be an integer"),
    (
        L | {"layers": (4,)},
        ValueError,
        "layers must be in 0 ... 3 of the language model, got 4; pass layer indices of the language model",
    ),
    (L | {"layers": (-1,)}, ValueError, "layers must be in 0 ... 3 of the language model, got -1"),
    (L | {"layers": (3, 2)}, ValueError, "ascending"),
    (L | {"layers": (2, 2)}, ValueError, "distinct"),
    (L | {"layers": ()}, ValueError, "at least one layer"),
    (L | {"layers": 3}, TypeError, "layers must be a sequence"),
    (L | {"layers": (2.0,)}, TypeError, "layers must be made of integers"),
    (
        BEFORE | {"r": 3, "layers": (0, 1)},
        ValueError,
        "layers must be in 1 ... 3 of the language model, got 0; layer 0 caches the whole",
    ),
    (
        STAGED | {"layers": (0, 1, 2)},
        ValueError,
        "layers must be in 1 ... 3 of the language model, got 0; layer 0 caches the whole",
    ),
    (STAGED | {"layers": (1, 2)}, ValueError, "keep_ratio has 3 entries for 2 layers"),
    (FASTV | {"layer": 5}, ValueError, "layers must be in 0 ... 3 of the language model, got 4"),
    (FASTV | {"layer": 0}, ValueError, "layer must be an integer >= 1, got 0"),
    (FASTV | {"beta": 0.5}, TypeError, "no hyperparameter 'beta'"),
    (L | {"beta": 2.0}, ValueError, "beta must be"),
    (L | {"vision": {"r": 3}}, ValueError, "vision must be None unless the method has several parts"),
    (L | {"decoder": {"r": 3}}, ValueError, "decoder must be None unless the method has several parts"),
    ({"method": "topk", "r": 3, "decoder": {"r": 3}}, ValueError, "decoder must be None unless"),
    (VL, ValueError, "amount must be one of keep_ratio and tokens for all parts together, got nothing"),
    (VL | {"r": 3}, ValueError, "for all parts together, got r; or say it for each part"),
    (VL | {"keep_ratio": 0.5, "tokens": 3}, ValueError, "for all parts together, got keep_ratio, tokens"),
    (VL | {"keep_ratio": 0.5, "layers": (1, 2)}, ValueError, "got keep_ratio, layers"),
    (VL | {"keep_ratio": 1.5}, ValueError, "keep_ratio must be in (0, 1]"),
    (VL | {"tokens": 37}, ValueError, "tokens must be in [1, 36]"),
    (VL | {"vision": {"r": 3}}, ValueError, "vision and decoder must be all given"),
    (VL | {"decoder": {"r": 3}}, ValueError, "vision and decoder must be all given"),
    (VL | ANYTHING | {"keep_ratio": 0.5}, ValueError, "no amount or layers beside"),
    (VL | ANYTHING | {"layers": (1,)}, ValueError, "no amount or layers beside"),
    (VL | ANYTHING | {"vision": 0.5}, TypeError, "vision must be a dict with some of r, keep_ratio, tokens, layers"),
    (VL | ANYTHING | {"decoder": {"ratio": 0.5}}, TypeError, "decoder must be a dict with some of"),
    (VL | ANYTHING | {"decoder": {}}, ValueError, "exactly one of r, keep_ratio and tokens, got none"),
    (VL | ANYTHING | {"vision": {"r": 1, "tokens": 3}}, ValueError, "got r, tokens"),
    (VL | ANYTHING | {"vision": {"r": 1, "layers": (5,)}}, ValueError, "layers must be in 0 ... 4 of the tower, got 5"),
    (
        VL | ANYTHING | {"decoder": {"r": 1, "layers": (5,)}},
        ValueError,
        "layers must be in 0 ... 3 of the language model, got 5",
    ),
    (
        {"method": ["ficoco-l", "topk"], "r": 3},
        ValueError,
        "for the tower or all for the decoder, got ficoco-l, topk",
    ),
    ({"method": ["ficoco-l", "ficoco-vl"], "r": 3}, ValueError, "for both, pass one Combined.of"),
    ({"method": [], "r": 3}, ValueError, "all for the tower or all for the decoder, got none"),
    ({"method": ["ficoco-l", "fastv"], "r": 3}, ValueError, "one for each of the 3 layers, got 2"),
    (
        {"method": ["fastv", "pyramiddrop"], "r": 3, "layers": (1, 2)},
        ValueError,
        "methods that all reduce before, or all after, the attention of a layer, got fastv, pyramiddrop",
    ),
    (L | {"static_counts": 0}, TypeError, "static_counts must be True, False or an integer >= 1"),
    (L | {"static_counts": -3}, TypeError, "static_counts must be True, False or an integer >= 1"),
    (L | {"static_counts": "yes"}, TypeError, "static_counts must be True, False or an integer >= 1"),
    (L | {"static_counts": 36.0}, TypeError, "pass the number of visual tokens in each row"),
    ({"method": "topk", "r": 3, "static_counts": True}, ValueError, "static_counts must be False without a method"),
    ({"method": "topk", "r": 3, "static_counts": 36}, ValueError, "static_counts must be False without a method"),
]


@pytest.mark.parametrize(("options", "kind", "message"), VALUES)
def test_values_are_refused_at_attach(model, options, kind, message):
    assert_refused(model, options, kind, message)


def test_a_penalty_needs_a_grid():
    message = r"attach: method must be one that needs no grid where .* line by line, got ficoco-l, .* pass penalty=1"
    for make in (tiny_next, tiny_qwen, lambda: tiny_llava(strategy="full")):
        model = make()
        before = snapshot(model)
        with pytest.raises(NotImplementedError, match=message):
            ficoco_ext.attach(model, **L, penalty=2.0)
        assert snapshot(model) == before
    model = tiny()
    both = Combined.of(get_method("topk"), get_method("ficoco-l", penalty=2.0))
    before = snapshot(model)
    with pytest.raises(NotImplementedError, match=message):  # what the tower leaves is no grid
        ficoco_ext.attach(model, both, keep_ratio=0.5)
    assert snapshot(model) == before


def test_static_counts_need_to_be_told_where_pictures_differ():
    for make in (tiny_next, tiny_qwen):
        model = make()
        before = snapshot(model)
        message = r"static_counts must be a number for this model, got True; pass the number of visual tokens in each"
        with pytest.raises(NotImplementedError, match=message):
            ficoco_ext.attach(model, **L, static_counts=True)
        assert snapshot(model) == before
        ficoco_ext.attach(model, **L, static_counts=9).detach()


def test_attach_twice_is_refused(model):
    for options in (L, {"method": "ficoco-l", "r": 0}, VL | {"keep_ratio": 0.5}):
        with ficoco_ext.attach(model, **options) as handle:
            before = snapshot(model)
            for other in (L, {"method": "topk", "r": 3}):
                with pytest.raises(ValueError, match=r"must be one without reduction, .*call its detach\(\) first"):
                    ficoco_ext.attach(model, **other)
            assert snapshot(model) == before and handle.attached


@pytest.mark.parametrize("version", ["4.57.6", "5.16.9", "6.0.0"])
def test_versions_of_transformers(version, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(__version__=version))
    with pytest.raises(ImportError, match=rf"needs transformers >= 5\.17, < 6, got {version}; pip install"):
        ficoco_ext.attach(None, **L)


def namesake(part):
    """Of another class that has the same name, as a copy of the model's code in a folder of its own would be."""
    part.__class__ = type(type(part).__name__, (type(part),), {})
    return part


def other_kind(model):
    model.config.text_config.layer_types = ["full_attention", "chunked_attention"] * 2


ALSO = {
    "a namesake of the model": (changed(namesake), "got LlavaForConditionalGeneration; no other model is supported"),
    "a namesake of a language model": (
        changed(lambda m: namesake(m.model.language_model)),
        "language model must be a LlamaModel of transformers, got LlamaModel; unwrap it first",
    ),
    "chunked attention, without a window": (changed(other_kind), "in every layer, got chunked_attention; a window"),
}


@pytest.mark.parametrize("case", ALSO)
def test_models_that_only_look_like_ours_are_refused(case):
    make, message = ALSO[case]
    model = make()
    with pytest.raises(NotImplementedError) as error:
        ficoco_ext.attach(model, **L)
    assert message in str(error.value)
    assert not hasattr(model, "ficoco_handle")
