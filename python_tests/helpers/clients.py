"""Programs that users put around a model, and what an attached model must say in them: its layers called by hand."""

from __future__ import annotations

import importlib
import os

import pytest
import torch

import ficoco_ext
from helpers.decoder import tiny
from helpers.models import batch, image, spliced, words

ROW = [*words(1, 2), *image(), *words(3, 4, 5)]
INPUTS = batch(ROW)
METHODS = {  # one for each part; both drop tokens in one layer, so that the rest is easily done by hand
    "topk": {"keep_ratio": 0.5, "layers": [3]},
    "fastv": {"keep_ratio": 0.5},
}
every_method = pytest.mark.parametrize("method", METHODS)


def need(name: str):
    """A client. Skips the file where it is not installed, unless FICOCO_REQUIRE_CLIENTS=1: then that is an error."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name or os.environ.get("FICOCO_REQUIRE_CLIENTS") == "1":
            raise
        pytest.skip(f'needs {name}; pip install "ficoco_ext[clients]"', allow_module_level=True)


def attach(model, method):
    """``model`` with the method of :data:`METHODS`."""
    return ficoco_ext.attach(model, method, **METHODS[method])


def kept_by(handle):
    """Positions that the last call kept: of class token and patches in the tower, or of the prompt."""
    [reduction] = handle.reductions or handle.decoder_reductions[0]
    assert reduction.sources.shape[1] == 18
    return reduction.kept[0]


def reduced(model, method):
    """Logits of an attached call of ``model``, which is detached afterwards, and the positions that it kept."""
    with attach(model, method) as handle:
        return model(**INPUTS).logits, kept_by(handle)


def by_hand(model, method, kept, pixels=INPUTS["pixel_values"]):
    """The same logits from a model without reduction, whose own modules are called one by one."""
    features = _tower(model, pixels, kept if method == "topk" else None)
    return _decoder(model, spliced(model, ROW, features), kept if method == "fastv" else None)


def _tower(model, pixels, kept):
    tower, config = model.model.vision_tower, model.config.vision_config
    [layer] = METHODS["topk"]["layers"]
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    last = config.num_hidden_layers + model.config.vision_feature_layer
    for index, block in enumerate(tower.encoder.layers[: last + 1]):
        hidden = hidden + block.self_attn(hidden_states=block.layer_norm1(hidden), attention_mask=None)[0]
        if kept is not None and index == layer:
            hidden = hidden[:, kept]
        hidden = hidden + block.mlp(block.layer_norm2(hidden))
    return model.model.multi_modal_projector(hidden[:, 1:])


def _decoder(model, hidden, kept, layer=1):
    language_model = model.model.language_model
    rotary = language_model.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
    for index, block in enumerate(language_model.layers):
        normed = block.input_layernorm(hidden)
        hidden = hidden + block.self_attn(hidden_states=normed, attention_mask=None, position_embeddings=rotary)[0]
        if kept is not None and index == layer:
            hidden, rotary = hidden[:, kept], tuple(table[:, kept] for table in rotary)
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    return model.lm_head(language_model.norm(hidden))


def check_quantised(quantise, is_quantised):
    """A model that is quantised before ``attach`` or after it says what its own modules say, for each method."""
    with torch.no_grad():
        model = tiny()
        plain = {method: reduced(model, method)[0] for method in METHODS}
        quantise(model)
        full = model(**INPUTS).logits
        for method in METHODS:
            logits, kept = reduced(model, method)
            assert is_quantised(model.lm_head) and not torch.equal(logits, plain[method])
            assert torch.allclose(logits, by_hand(model, method, kept), atol=1e-4)
            later = tiny()
            with attach(later, method) as handle:
                quantise(later)
                assert torch.equal(later(**INPUTS).logits, logits)
                handle.detach()
                assert torch.equal(later(**INPUTS).logits, full)
