"""ToMe inside the CLIP tower: merging, proportional attention against a loop, what is refused, detach."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import (
    LAYERS,
    PATCHES,
    close,
    features,
    one_image,
    one_thread,  # noqa: F401
    pixels,
    snapshot,
    tiny_llava,
)
from torch import nn

import ficoco_ext

pytest.importorskip("transformers")

LAST = LAYERS - 2  # vision_feature_layer = -2


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def tower_in_loops(model, picture, removed, proportional):
    """ToMe written by hand for one image: every token a list of original features' weights, every head a loop.

    Args:
        removed: layer to r. proportional: a token that stands for z has its key and value z times in the softmax, as
            copies, not as a bias.

    Returns:
        Projected features and the number of tokens that stand for more than one at the end.
    """
    tower, config = model.model.vision_tower, model.config.vision_config
    heads = config.num_attention_heads
    hidden = tower.pre_layrnorm(tower.embeddings(picture[None]))[0]
    size = [1] * len(hidden)
    for index, layer in enumerate(tower.encoder.layers[: LAST + 1]):
        x, attn = layer.layer_norm1(hidden), layer.self_attn
        q, k, v = (f(x).unflatten(-1, (heads, -1)).transpose(0, 1) for f in (attn.q_proj, attn.k_proj, attn.v_proj))
        times = torch.tensor(size if proportional else [1] * len(size))
        copies = torch.arange(len(size)).repeat_interleave(times)  # T3: key j duplicated z_j times
        mixed = [(q[h] @ k[h, copies].mT * attn.head_dim**-0.5).softmax(-1) @ v[h, copies] for h in range(heads)]
        hidden = hidden + attn.out_proj(torch.cat(mixed, -1))
        if removed.get(index):
            metric = nn.functional.normalize(k.mean(0), dim=-1)
            edges = []
            for i in range(2, len(size), 2):
                cosines = {j: float(metric[i] @ metric[j]) for j in range(1, len(size), 2)}
                j = max(cosines, key=cosines.get)
                edges.append((cosines[j], i, j))
            gone = sorted(edges, reverse=True)[: removed[index]]
            total, mass = [z * row for z, row in zip(size, hidden, strict=True)], list(size)
            for _, i, j in gone:
                total[j], mass[j] = total[j] + size[i] * hidden[i], mass[j] + size[i]
            left = [i for i in range(len(size)) if i not in {i for _, i, _ in gone}]
            hidden, size = torch.stack([total[i] / mass[i] for i in left]), [mass[i] for i in left]
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return model.model.multi_modal_projector(hidden[1:]), sum(z > 1 for z in size)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("layers", [(LAST,), (1,), (0, 1), (0, 2, 4)])
def test_tower_equals_a_loop(attention, proportional, layers):
    """Proportional attention in every layer behind a merge, reducing or not, is key duplication; and it matters."""
    model, pictures = tiny_llava(attention=attention), pixels(2)
    options = {"r": 8, "layers": layers}
    with torch.no_grad():
        with ficoco_ext.attach(model, "tome", proportional_attention=proportional, **options) as handle:
            merged = features(model, pictures)
            record = handle.reductions[-1]
        with ficoco_ext.attach(model, "tome", proportional_attention=not proportional, **options):
            other = features(model, pictures)
        for i, picture in enumerate(pictures):
            wanted, groups = tower_in_loops(model, picture, dict.fromkeys(layers, 8), proportional)
            assert close(merged[i], wanted)
            assert groups == int((record.size[i] > 1).sum()) > 0
    assert merged.shape[1] == PATCHES - 8 * len(layers)
    assert torch.equal(record.size.sum((1, 2)), torch.full((2,), PATCHES + 1.0))
    assert torch.equal(merged, other) if layers == (LAST,) else (merged - other).abs().max() > 1e-3


def test_layers_with_a_bias(model):
    """All layers behind the first reduction, up to a method without proportional attention; none before."""
    methods = ["tome", "tome", "ficoco-v"]
    layers = model.model.vision_tower.encoder.layers
    with ficoco_ext.attach(model, methods, r=4, layers=(1, 3, 4)):
        captures = [getattr(layer.self_attn, "_ficoco_capture", None) for layer in layers]
        assert [one is not None for one in captures] == [False, True, True, True, True, False]
        assert [one.bias is not None for one in captures[1:5]] == [False, True, True, True]
        assert [one.reads for one in captures[1:5]] == [True, False, True, True]
        assert "forward" not in vars(layers[2])
        with torch.no_grad():
            features(model, pixels(2))
        assert all(one._captured is None for one in captures[1:5])
    with ficoco_ext.attach(model, "tome", r=4, layers=(1, 3), proportional_attention=False):
        assert [hasattr(layer.self_attn, "_ficoco_capture") for layer in layers] == [
            False,
            True,
            False,
            True,
            False,
            False,
        ]
    with ficoco_ext.attach(model, "tome", r=[0, 4, 0], layers=(1, 3, 4)):
        assert [hasattr(layer.self_attn, "_ficoco_capture") for layer in layers] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("proportional", [True, False])
def test_detach_restores_bitwise(proportional):
    model, inputs = tiny_llava(), one_image()
    with torch.no_grad():
        plain = model(**inputs).logits
        before = snapshot(model)
        with ficoco_ext.attach(model, "tome", r=6, layers=(0, 2), proportional_attention=proportional):
            reduced = model(**inputs).logits
            assert (
                model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 2
            )
        assert snapshot(model) == before
        assert torch.equal(model(**inputs).logits, plain)
    assert reduced.shape[1] == plain.shape[1] - 12
    assert (reduced[:, -1] - plain[:, -1]).abs().max() > 1e-3


def test_flash_attention_is_refused(model):
    """At attach, and when the implementation changes afterwards; without the bias nothing is asked of the kernel."""
    config = model.model.vision_tower.config
    before = snapshot(model)
    said = r"attention implementation must be sdpa or eager.*'flash_attention_2'.*set_attn_implementation\(\"sdpa\"\)"
    config._attn_implementation_internal = "flash_attention_2"
    try:
        with pytest.raises(NotImplementedError, match=f"ficoco::attach: {said}.*proportional_attention=False"):
            ficoco_ext.attach(model, "tome", r=4)
        ficoco_ext.attach(model, "tome", r=4, proportional_attention=False).detach()
    finally:
        config._attn_implementation_internal = "sdpa"
    assert snapshot(model) == before
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    AttentionInterface.register(
        "ficoco_no_mask", lambda *args, **options: ALL_ATTENTION_FUNCTIONS["sdpa"](*args, **options)
    )
    with torch.no_grad(), ficoco_ext.attach(model, "tome", r=4, layers=(1,)):
        config._attn_implementation = "ficoco_no_mask"
        try:
            with pytest.raises(NotImplementedError, match="ficoco::forward: attention implementation must be sdpa or"):
                features(model, pixels(1))
        finally:
            config._attn_implementation = "sdpa"
        assert features(model, pixels(1)).shape[1] == PATCHES - 4


def test_r_that_matching_cannot_reach(model):
    with pytest.raises(
        ValueError, match=r"ficoco::attach: r must be at most 9 in layer 3, half of the 18 patches.*got 10"
    ):
        ficoco_ext.attach(model, "tome", r=[18, 10], layers=(1, 3))
    assert not hasattr(model, "ficoco_handle")
    with torch.no_grad(), ficoco_ext.attach(model, "tome", r=[18, 9], layers=(1, 3)):
        assert features(model, pixels(1)).shape[1] == 9


def test_images_do_not_see_each_other(model):
    pictures = pixels(3)
    with torch.no_grad(), ficoco_ext.attach(model, "tome", r=7, layers=(1, 2, 3)):
        together = features(model, pictures)
        assert close(together, torch.cat([features(model, one[None]) for one in pictures]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision(dtype, attention):
    model = tiny_llava(dtype=dtype, attention=attention)
    with torch.no_grad(), ficoco_ext.attach(model, "tome", r=6, layers=(1, 2)):
        out = features(model, pixels(1).to(dtype))
    assert out.dtype == dtype and out.isfinite().all()


def test_gradients_reach_the_pixels(model):
    picture = pixels(1).requires_grad_()
    with ficoco_ext.attach(model, "tome", r=6, layers=(1, 2)):
        features(model, picture).square().sum().backward()
    assert picture.grad.abs().sum() > 0


def test_tower_compiles_without_graph_breaks(model):
    picture = pixels(2)
    with torch.no_grad(), ficoco_ext.attach(model, "tome", r=5, layers=(2, 4)):
        tower = model.model.vision_tower
        eager = tower(picture).last_hidden_state
        torch._dynamo.reset()
        assert close(torch.compile(tower, fullgraph=True, backend="aot_eager")(picture).last_hidden_state, eager)


def test_a_deep_copy_is_attached_on_its_own():
    model, pictures = tiny_llava(), pixels(2)
    with torch.no_grad(), ficoco_ext.attach(model, "tome", r=6, layers=(1, 2)):
        wanted = features(model, pictures)
        twin = copy.deepcopy(model)
        features(model, pixels(1, seed=9))  # another batch size: sizes of the two must not mix
        assert torch.equal(features(twin, pictures), wanted)
        twin.ficoco_handle.detach()
        assert torch.equal(features(model, pictures), wanted)
