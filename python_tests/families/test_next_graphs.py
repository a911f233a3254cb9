"""LLaVA-NeXT with a method in its tower is traced by torch.compile into one graph, and answers the same."""

from __future__ import annotations

import pytest
import torch
from helpers.next_tower import CLIP, PICTURES
from helpers.tiny_prompts import prompt, words

import ficoco_ext

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture(scope="module")
def model():
    return CLIP.model()


def given():
    """A prompt of two rows with a padded picture each, sizes on the host."""
    picture = PICTURES[1]
    inputs = prompt(CLIP, [[*words(2), picture, *words(3)], [*words(1), picture, *words(4)]]).inputs
    return {**inputs, "image_sizes": inputs["image_sizes"].tolist()}, picture


def differs(run):
    """By how much the one graph of ``run`` differs from running it; transformers prepares itself in the first run."""
    wanted = run()
    return float((torch.compile(run, backend="eager", fullgraph=True)() - wanted).abs().max())


@pytest.mark.parametrize("name", ["ficoco-v", "pool", "tome"])
@torch.no_grad()
def test_the_encoder_is_one_graph(name, model):
    inputs, _ = given()

    def features():
        made = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
        return torch.cat(list(made.pooler_output))

    with ficoco_ext.attach(model, name, tokens=7 if name != "pool" else 4) as handle:
        assert differs(features) == 0
        assert len(handle.reductions) > 0


@pytest.mark.parametrize("name", ["ficoco-vl", "topk+fastv"])
@torch.no_grad()
def test_a_promised_forward_is_one_graph(name, model):
    inputs, picture = given()
    parts = {"vision": {"tokens": 6}, "decoder": {"keep_ratio": 0.5}}
    with ficoco_ext.attach(model, name, **parts) as handle:
        wanted, count = model(**inputs).logits, handle.tokens_of(*picture)
    with ficoco_ext.attach(model, name, static_counts=count, **parts):
        assert torch.allclose(model(**inputs).logits, wanted, atol=1e-5)
        assert differs(lambda: model(**inputs).logits) == 0
