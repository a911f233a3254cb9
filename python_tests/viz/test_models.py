"""Traces of pictures in real prefills, and attention maps that are the rows of the maps of an eager model."""

from __future__ import annotations

import pytest
import torch
from helpers.decoder import decoder_config, tiny
from helpers.models import (
    PATCHES,
    SIDE,
    answers,
    batch,
    image,
    one_image,
    one_thread,  # noqa: F401
    snapshot,
    tiny_llava,
    words,
)
from helpers.pictures import assert_traces, merge_matrix

import ficoco_ext
from ficoco_ext.models.attention_rows import class_attention, has_class_token, sharpest, word_attention
from ficoco_ext.models.pictures import picture_reductions, watched
from ficoco_ext.viz.traces import trace

pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ficoco-l", "targets": 3},
        {"method": "ficoco-vl", "targets": 2},
        {"method": "fastv"},
        {"method": "tome", "layers": (1, 2, 3)},
    ],
    ids=lambda options: options["method"],
)
def test_every_patch_is_traced_through_tower_and_language_model(options):
    model = tiny(seed=3)
    told = watched(model, lambda: ficoco_ext.attach(model, keep_ratio=0.25, **options), one_image())
    assert told[-1].grid == (SIDE, SIDE)
    total = assert_traces(told, PATCHES)
    assert torch.allclose(total[told[-1].kept[0]], told[-1].size[0, :, 0].double(), atol=1e-4)
    assert not hasattr(model, "ficoco_handle")


def test_what_went_into_another_picture_is_dropped_here():
    model, row = tiny(seed=3), [*words(6), *image(), *words(7), *image(), *words(8, 9)]
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", keep_ratio=0.25, targets=2) as handle:
        model(**batch(row))
        (decoder,) = handle.decoder_reductions
    crossed = 0
    for first in (1, 2 + PATCHES):
        told = picture_reductions((), decoder, torch.arange(first, first + PATCHES), (SIDE, SIDE))
        matrix = merge_matrix(told)
        for patch in range(PATCHES):
            found = trace(told, patch)
            assert sum(found.shares.values()) == pytest.approx(float(matrix[:, patch].sum()), abs=1e-6)
            assert sum(found.shares.values()) + found.dropped == pytest.approx(1)
            crossed += found.dropped > 0
    assert crossed > 0


def eager(model, inputs):
    """Attention of tower and language model, each layer (H, N, N)."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        tower = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
        text = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return [layer[0] for layer in tower], [layer[0] for layer in text]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_maps_are_rows_of_the_eager_maps_with_heads_averaged(kind):
    model, inputs = tiny(kind, seed=5), one_image()
    tower, text = eager(model, inputs)
    before = snapshot(model)
    for layer, wanted in enumerate(tower):
        got = class_attention(model, inputs["pixel_values"], layer)[0]
        assert torch.allclose(got, wanted.mean(0)[0, 1:], atol=1e-6)
    visual, after = range(2, 2 + PATCHES), 2 + PATCHES
    for columns in ((after,), (after, after + 2)):
        got = word_attention(model, inputs, visual, columns, range(len(text)))
        assert list(got) == list(range(len(text)))
        for layer, wanted in enumerate(text):
            row = wanted.mean(0)[list(columns)][:, 2:after].mean(0)
            assert torch.allclose(got[layer], row, atol=1e-6)
    assert snapshot(model) == before


def test_one_layer_alone_is_read(monkeypatch):
    from ficoco_ext.models.qk_capture import QueryKeyCapture

    taken = []
    plain = QueryKeyCapture.put
    monkeypatch.setattr(QueryKeyCapture, "put", lambda self, *seen: (taken.append(self), plain(self, *seen)))
    model, inputs = tiny(), one_image()
    word_attention(model, inputs, range(2, 2 + PATCHES), (3 + PATCHES,), (2,))
    class_attention(model, inputs["pixel_values"], 1)
    assert len(taken) == 2
    assert all(one._captured is None for one in taken)  # nothing outlives its layer


def test_a_failing_forward_leaves_the_model_as_it_was():
    model, inputs = tiny(), one_image()
    answers(model)  # transformers installs its own hooks in the first call
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"placeholder|tokens"):
        word_attention(model, inputs | {"input_ids": inputs["input_ids"][:, :5]}, (2,), (3,), (0,))
    assert snapshot(model) == before


def test_the_sharpest_layer_gives_much_attention_to_few_patches():
    even, sharp = torch.full((9,), 0.1), torch.zeros(9)
    sharp[4] = 0.6
    assert sharpest({0: even, 1: sharp, 2: sharp / 20, 3: sharp}) == 1
    assert sharpest({5: torch.zeros(9)}) == 5


def test_errors_say_what_there_is():
    from transformers import LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    model, inputs = tiny_llava(), one_image()
    with pytest.raises(ValueError, match=r"layer must be in 0 \.\.\. 5, got 6; name a layer of the vision tower"):
        class_attention(model, inputs["pixel_values"], 6)
    with pytest.raises(ValueError, match=r"layer must be in 0 \.\.\. 2, got 3; name a layer of the language model"):
        word_attention(model, inputs, range(2, 38), (38,), (1, 3))
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=24, patch_size=4
    )
    siglip = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=decoder_config()))
    assert not has_class_token(siglip.model.vision_tower)
    with pytest.raises(NotImplementedError, match="has a class token, got SiglipVisionModel; ask for a word"):
        class_attention(siglip, inputs["pixel_values"], 0)


def test_a_layer_does_not_count_from_the_end():
    """The picture would be named after the layer that was asked for, and be of another."""
    model, inputs = tiny_llava(), one_image()
    with pytest.raises(ValueError, match=r"layer must be in 0 \.\.\. 5, got -1"):
        class_attention(model, inputs["pixel_values"], -1)
    with pytest.raises(ValueError, match=r"layer must be in 0 \.\.\. 2, got -1"):
        word_attention(model, inputs, range(2, 38), (38,), (-1,))


def test_a_layer_without_attention_is_not_the_sharpest():
    even, sharp = torch.zeros(9), torch.zeros(9)
    sharp[4] = 0.6
    assert sharpest({0: even, 1: sharp}) == sharpest({0: sharp / 2, 1: sharp, 2: even}) == 1
