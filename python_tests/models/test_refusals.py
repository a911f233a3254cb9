"""Everything that attach and an attached model refuse, and that nothing is left behind by it."""

import sys
import types

import pytest
import torch
from helpers.models import (
    GREEDY,
    REFUSED_WAYS,
    answers,
    assert_refused,
    batch,
    image,
    one_image,
    one_thread,  # noqa: F401
    pixels,
    snapshot,
    tiny_llava,
    without,
    words,
)
from helpers.tiny_configs import llava_onevision

import ficoco_ext

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():
    return tiny_llava(seed=5)


def replaced(**changes):
    """A model with some of its parts or its config changed."""

    def make():
        model = tiny_llava()
        for path, value in changes.items():
            owner, _, name = path.replace("__", ".").rpartition(".")
            if owner == "config":
                vars(model.config)[name] = value(model)  # as a config of another release might come
            else:
                setattr(model.get_submodule(owner), name, value(model))
        return model

    return make


def siglip(_):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(
        SiglipVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    )


def other_tower(model):
    return type("Mine", (type(model.model.vision_tower),), {})(model.config.vision_config)


def other_layer(model):
    class MyLayer(type(model.model.vision_tower.encoder.layers[3])):
        pass

    return MyLayer(model.config.vision_config)


def other_attention(model):
    class MyAttention(type(model.model.vision_tower.encoder.layers[3].self_attn)):
        pass

    return MyAttention(model.config.vision_config)


UNSUPPORTED = {
    "another class": (lambda: torch.nn.Linear(2, 2), "model must be one of LlavaForConditionalGeneration, LlavaNext"),
    "LLaVA-OneVision": (llava_onevision, "method must be one for another part of LLaVA-OneVision"),
    "the inner model": (lambda: tiny_llava().model, "got LlavaModel"),
    "DataParallel": (lambda: torch.nn.DataParallel(tiny_llava()), "got DataParallel; attach to model.module"),
    "compiled": (lambda: torch.compile(tiny_llava()), "got OptimizedModule"),
    "a patch for the class token": (
        replaced(model__vision_tower=siglip),
        "vision_feature_select_strategy must be 'full' with a SiglipVisionModel, got 'default'; 'default' leaves out "
        "the first token, which is a patch where there is no class token; use 'full'",
    ),
    "another tower": (
        replaced(model__vision_tower=other_tower),
        "vision tower must be one of CLIPVisionModel, SiglipVisionModel, got Mine; no other one",
    ),
    "another layer": (
        replaced(model__vision_tower__encoder__layers__3=other_layer),
        "vision layer 3 must be a CLIPEncoderLayer",
    ),
    "another attention": (replaced(model__vision_tower__encoder__layers__3__self_attn=other_attention), "MyAttention"),
    "several feature layers": (
        replaced(config__vision_feature_layer=lambda _: [-2, -3]),
        "vision_feature_layer must be one integer, got [-2, -3]; layers of different lengths cannot be concatenated; "
        "use a method after the projector",
    ),
    "unknown strategy": (
        replaced(config__vision_feature_select_strategy=lambda _: "mine"),
        "must be 'default' or 'full'",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_models_are_refused_at_attach(case):
    make, message = UNSUPPORTED[case]
    model = make()
    before = snapshot(model)
    with pytest.raises(NotImplementedError, match=r"^ficoco::attach: ") as error:
        ficoco_ext.attach(model, keep_ratio=0.5)
    assert message in str(error.value) and "; " in str(error.value)
    assert snapshot(model) == before


VALUES = [
    ({}, ValueError, "exactly one of r, keep_ratio and tokens, got none"),
    ({"r": 1, "tokens": 3}, ValueError, "got r, tokens"),
    ({"keep_ratio": 0.0}, ValueError, "keep_ratio must be in (0, 1]"),
    ({"tokens": 0}, ValueError, "tokens must be in [1, 36]"),
    ({"tokens": 37}, ValueError, "tokens must be in [1, 36]"),
    ({"r": 18}, ValueError, "remove at most 35 in all"),
    ({"r": [1, 2, 3]}, ValueError, "give one r a layer"),
    ({"r": -1}, ValueError, "must not be negative"),
    ({"r": 1.5}, TypeError, "r"),
    ({"r": 1, "layers": (4, 5)}, ValueError, "layers must be in 0 ... 4 of the tower, got 5"),
    ({"r": 1, "layers": (6,)}, ValueError, "of 6 layers, the output of layer 4 is the last that is used"),
    ({"r": 1, "layers": (-1,)}, ValueError, "layers must be in 0 ... 4 of the tower, got -1"),
    ({"r": 1, "layers": (3, 2)}, ValueError, "ascending"),
    ({"r": 1, "layers": (2, 2)}, ValueError, "distinct"),
    ({"r": 1, "layers": ()}, ValueError, "at least one layer"),
    ({"r": 1, "layers": 3}, TypeError, "layers must be a sequence"),
    ({"r": 1, "layers": (2.0,)}, TypeError, "layers must be made of integers"),
    ({"r": 1, "method": "magic"}, ValueError, "'ficoco-v'"),
    ({"r": 1, "method": ["topk"]}, ValueError, "one for each of the 2 layers, got 1"),
    ({"r": 1, "method": 3}, TypeError, "method must be a name"),
    ({"r": 1, "strength": 3}, TypeError, "no hyperparameter 'strength'"),
    ({"r": 1, "lam": 2.0}, ValueError, "lam must be"),
    ({"r": 17, "targets": 5}, ValueError, "targets must be at most 2, the patches that layer 4 leaves, got 5"),
]


@pytest.mark.parametrize(("options", "kind", "message"), VALUES)
def test_values_are_refused_at_attach(model, options, kind, message):
    assert_refused(model, options, kind, message)


def test_hyperparameters_beside_a_method_are_refused(model):
    with pytest.raises(TypeError, match="not with a Method"):
        ficoco_ext.attach(model, ficoco_ext.get_method("topk"), r=1, lam=0.5)


def test_no_second_half_in_use():
    model = tiny_llava(feature_layer=2)
    with pytest.raises(ValueError, match=r"layers must be given.*pass layers of 0 \.\.\. 1"):
        ficoco_ext.attach(model, keep_ratio=0.5)
    ficoco_ext.attach(model, keep_ratio=0.5, layers=(0, 1)).detach()


def test_attach_twice_is_refused(model):
    for options in ({"keep_ratio": 0.5}, {"r": 0}):
        with ficoco_ext.attach(model, **options) as handle:
            before = snapshot(model)
            with pytest.raises(ValueError, match=r"call its detach\(\) first"):
                ficoco_ext.attach(model, keep_ratio=0.5)
            assert snapshot(model) == before and handle.attached


def test_a_layer_that_somebody_replaced_is_refused():
    model = tiny_llava()
    layer = model.model.vision_tower.encoder.layers[1]
    layer.forward = types.MethodType(lambda self, hidden, *args, **options: hidden, layer)
    with pytest.raises(ValueError, match="vision layer 1 must be one with its own forward"):
        ficoco_ext.attach(model, keep_ratio=0.5)


def test_a_failure_half_way_through_attach_undoes_what_was_done(model, monkeypatch):
    from ficoco_ext.models.short_prompts import ShortPrompts

    answers(model)
    before = snapshot(model)
    monkeypatch.setattr(ShortPrompts, "install", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ficoco_ext.attach(model, keep_ratio=0.5)
    assert snapshot(model) == before


def with_embeddings(model, inputs):
    return {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}


def without_placeholders(model, inputs):
    return {**without(with_embeddings(model, inputs), "input_ids"), "inputs_embeds": torch.ones(1, 41, 32)}


CALLS = {
    "embeddings beside ids": (with_embeddings, "inputs_embeds must be None beside input_ids"),
    "embeddings of no placeholder": (without_placeholders, "1 x 36 placeholders (id 3) for 1 images, got 0"),
    "another feature layer": (
        lambda _, x: {**x, "vision_feature_layer": -3},
        "vision_feature_layer must be -2, its value at attach",
    ),
    "another strategy": (
        lambda _, x: {**x, "vision_feature_select_strategy": "full"},
        "vision_feature_select_strategy must be 'default', its value at attach",
    ),
    "a placeholder too many": (
        lambda _, x: batch([*words(1), *image(), 3], images=1),
        "ids with 1 x 36 placeholders (id 3) for 1 images, got 37 placeholders",
    ),
    "an image too many": (lambda _, x: {**x, "pixel_values": pixels(2)}, "2 x 36 placeholders"),
    "rows that share an image": (
        lambda _, x: batch([*words(1), *image(30)], [*words(1), *image(42)], images=2),
        "rows with 36 placeholders (id 3) for each image, got 30 in row 0",
    ),
    "a 4-D mask": (lambda _, x: {**x, "attention_mask": torch.ones(1, 1, 41, 41)}, "attention_mask must be (1, 41)"),
    "a mask of another length": (
        lambda _, x: {**x, "attention_mask": torch.ones(1, 43)},
        "attention_mask must be (1, 41)",
    ),
    "images of another size": (lambda _, x: {**x, "pixel_values": torch.zeros(1, 3, 32, 32)}, "32*32"),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_that_do_not_fit_are_refused(model, case):
    change, message = CALLS[case]
    with ficoco_ext.attach(model, keep_ratio=0.25):
        reduced = answers(model)
        inputs = change(model, one_image())
        for call, options in ((model, {}), (model.generate, GREEDY)):
            with pytest.raises(ValueError) as error:
                call(**inputs, **options)
            assert message in str(error.value)
        assert all(map(torch.equal, answers(model), reduced))


@pytest.mark.parametrize("case", REFUSED_WAYS)
def test_ways_to_generate_that_are_not_supported(model, case):
    options = dict(REFUSED_WAYS[case])
    if "assistant_model" in options:
        options["assistant_model"] = model
    with ficoco_ext.attach(model, keep_ratio=0.25), pytest.raises(NotImplementedError, match=f"generate: {case}"):
        model.generate(**one_image(), **options)


def test_generation_config_of_the_model_is_looked_at_too(model):
    model.generation_config.prefill_chunk_size = 8
    try:
        with ficoco_ext.attach(model, keep_ratio=0.25), pytest.raises(NotImplementedError, match="prefill_chunk_size"):
            model.generate(**one_image())
    finally:
        model.generation_config.prefill_chunk_size = None


def test_interpolated_positions_are_refused(model):
    with ficoco_ext.attach(model, keep_ratio=0.25):
        message = "vision layer 3 must be a class token and 36 patches without a mask, got 65 tokens"
        with pytest.raises(ValueError, match=message), torch.no_grad():
            model.model.vision_tower(torch.zeros(1, 3, 32, 32), interpolate_pos_encoding=True)


def test_a_config_changed_after_attach_is_noticed(model):
    with ficoco_ext.attach(model, keep_ratio=0.25):
        model.config.vision_feature_layer = -3
        try:
            with pytest.raises(
                ValueError, match="vision_feature_layer must be -2, its value at attach, got -3; detach"
            ):
                model(**one_image())
        finally:
            model.config.vision_feature_layer = -2


def test_replicas_of_data_parallel_are_refused(model):
    with ficoco_ext.attach(model, keep_ratio=0.25), pytest.raises(NotImplementedError, match=r"nn\.DataParallel"):
        model._replicate_for_data_parallel()(**one_image())


def test_conversations_that_do_not_fit_their_cache_are_refused(model):
    inputs = one_image()
    with ficoco_ext.attach(model, keep_ratio=0.25), torch.no_grad():
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        assert first.sequences.shape[1] == 44  # the last one is not in the cache
        for ids in (first.sequences[:, :40], first.sequences[:, :43], first.sequences[:, -1:]):
            with pytest.raises(
                ValueError, match=r"generate: input_ids must be a conversation that begins with the 16 tokens"
            ):
                model.generate(ids, past_key_values=first.past_key_values, **GREEDY)
        sampled = torch.cat([first.sequences, torch.tensor([[3, 12]])], dim=1)
        with pytest.raises(ValueError, match=r"got 37 in row 0.*a generated placeholder id cannot stay"):
            model.generate(sampled, past_key_values=first.past_key_values, **GREEDY)
        stale = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
        with pytest.raises(
            ValueError, match=r"forward: attention_mask must be \(1, 16 cached \+ 1\).*count from its length"
        ):
            model(first.sequences[:, -1:], attention_mask=stale, past_key_values=first.past_key_values)
        with pytest.raises(ValueError, match=r"pixel_values must be at most 1 images"):
            cache = first.past_key_values
            model.generate(**{**inputs, "pixel_values": pixels(2)}, past_key_values=cache, **GREEDY)


@pytest.mark.parametrize("version", [None, "4.57.6", "5.16.9", "6.0.0", "unknown", "5.17.0.dev0", "5.23.0"])
def test_versions_of_transformers(version, monkeypatch):
    fake = None if version is None else types.SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    from ficoco_ext.models.attach import _require_transformers

    if version is not None and version.startswith(("5.17", "5.23")):
        _require_transformers()
        return
    with pytest.raises(ImportError, match=r'transformers >= 5\.17, < 6.*pip install "ficoco_ext\[hf\]"'):
        ficoco_ext.attach(None, keep_ratio=0.5)


def test_a_feature_layer_that_is_no_number_is_refused():
    """True is 1 in Python: the second layer of hidden states would be read, which is not meant."""
    model = replaced(config__vision_feature_layer=lambda _: True)()
    with pytest.raises(NotImplementedError, match="vision_feature_layer must be one integer, got True"):
        ficoco_ext.attach(model, keep_ratio=0.5)


def test_a_method_that_varies_is_no_method_of_one_layer(model):
    message = "method must be one method for each layer, got prune-then-merge, which is for all layers; pass it alone"
    with pytest.raises(ValueError, match=message):
        ficoco_ext.attach(model, ["topk", "prune-then-merge"], r=3, layers=(1, 3))
