"""Tiny random LLaVA models, prompts for them, and a tower written by hand as an oracle."""

from __future__ import annotations

import pytest
import torch

import ficoco_ext
from helpers.paths import PACKAGE

IMAGE, PAD, EOS = 3, 0, 2
VOCABULARY = 60
SIDE, LAYERS = 6, 6  # 36 patches
PATCHES = SIDE * SIDE
TRAINED = PACKAGE / "data" / "tiny_llava"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These models are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sharpened(make, seed, dtype=torch.float32, spread=None):
    """The model that ``make()`` builds, with weights much wider than the default: attention is sharp, tokens matter.

    ``spread``: the standard deviation of what a layer makes of inputs of 1, whatever its width; None: that of width 32.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = make().eval()
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                std = 0.3 if spread is None else spread / weight[0].numel() ** 0.5
                weight.normal_(std=1.0 if "embed" in name else std)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None  # random models would stop at random
    return model.to(dtype)


def tiny_llava(
    seed=0, attention="sdpa", *, strategy="default", feature_layer=-2, dtype=torch.float32, layers=LAYERS, text=None
):
    """LLaVA with 36 patches, 6 vision layers of width 32, 3 Llama layers with grouped keys; attention far from flat."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=SIDE * 4,
        patch_size=4,
    )
    if text is None:
        text = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=EOS,
        )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        image_seq_length=PATCHES,
    )
    config._attn_implementation = attention
    return sharpened(lambda: LlavaForConditionalGeneration(config), seed, dtype)


def pixels(images, seed=1):
    """(images, 3, height, width) random pictures."""
    return torch.randn(images, 3, SIDE * 4, SIDE * 4, generator=torch.Generator().manual_seed(seed))


def words(*ids):
    """Plain text ids, none of them special."""
    return [10 + i for i in ids]


def image(per_image=PATCHES):
    """The placeholders of one image."""
    return [IMAGE] * per_image


def batch(*rows, images=None, seed=1):
    """Inputs as a processor makes them: rows padded on the left, a mask, pictures in order."""
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    count = int((ids == IMAGE).sum()) // PATCHES if images is None else images
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs | ({"pixel_values": pixels(count, seed)} if count else {})


def one_image(seed=1):
    """A prompt of one row with one image between words."""
    return batch([*words(1, 2), *image(), *words(3, 4, 5)], seed=seed)


def snapshot(model):
    """Everything that attach could leave behind: attribute names, the objects they hold, hook counts."""
    found, configs = {}, {}
    for name, module in model.named_modules():
        held, config = vars(module), getattr(module, "config", "")
        hooks = {key: len(value) for key, value in held.items() if key.endswith("_hooks") and value is not None}
        if id(config) not in configs:  # most modules share one, and it takes long to spell it
            configs[id(config)] = str(config)
        found[name] = (list(held), {key: id(value) for key, value in held.items()}, hooks, configs[id(config)])
    return found


def close(got, wanted, tolerance=2e-5):
    """Equal up to the rounding of float32, measured against the largest value."""
    return got.shape == wanted.shape and bool((got - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1))


def spliced(model, row, features):
    """(1, L', C) what the language model should read: embedded words, each image's placeholders made its features."""
    parts, left = [], list(features)
    embed, at = model.get_input_embeddings(), 0
    while at < len(row):
        if row[at] == IMAGE:
            parts.append(left.pop(0))
            at += PATCHES
        else:
            parts.append(embed(torch.tensor([row[at]])))
            at += 1
    assert not left
    return torch.cat(parts)[None]


def tower_by_hand(
    model, picture, after_attention=None, hidden_keys=None, key_bias=None, see=None, after_layer=None, beyond=False
):
    """Projected features of the selected layer, in plain torch.

    Args:
        after_attention: function (layer, hidden) -> hidden, between attention residual and MLP.
        hidden_keys: function layer -> (B, N) bool, True for tokens that nobody may attend to in that layer.
        key_bias: function layer -> (B, N), added to the logits of each key.
        see: function (layer, query, key) that is called with (B, H, N, d) of each layer.
        after_layer: function (layer, hidden) -> hidden, after the MLP.
        beyond: see the next layer too, which reads what is selected.
    """
    tower, config = model.model.vision_tower, model.config.vision_config
    hidden = tower.embeddings(picture)
    if hasattr(tower, "pre_layrnorm"):  # of a CLIP
        hidden = tower.pre_layrnorm(hidden)
    selected = getattr(model.config, "vision_feature_layer", -1)
    used = selected if selected >= 0 else config.num_hidden_layers + 1 + selected

    def projected(layer):
        x, attn = layer.layer_norm1(hidden), layer.self_attn
        heads = (f(x).unflatten(-1, (config.num_attention_heads, -1)) for f in (attn.q_proj, attn.k_proj, attn.v_proj))
        return [one.transpose(1, 2) for one in heads]

    for index, layer in enumerate(tower.encoder.layers[:used]):
        attn, (q, k, v) = layer.self_attn, projected(layer)
        if see is not None:
            see(index, q, k)
        logits = q @ k.mT * attn.head_dim**-0.5
        if key_bias is not None:
            logits = logits + key_bias(index)[:, None, None, :]
        if hidden_keys is not None:
            logits = logits.masked_fill(hidden_keys(index)[:, None, None, :], float("-inf"))
        mixed = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        hidden = hidden + attn.out_proj(mixed)
        if after_attention is not None:
            hidden = after_attention(index, hidden)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        if after_layer is not None:
            hidden = after_layer(index, hidden)
    if beyond:
        see(used, *projected(tower.encoder.layers[used])[:2])
    if not hasattr(model.config, "vision_feature_layer"):  # PaliGemma reads what the tower returns
        hidden = tower.post_layernorm(hidden)
    return model.model.multi_modal_projector(hidden)


GREEDY = {"max_new_tokens": 3, "do_sample": False}


def answers(model, inputs=None):
    inputs = one_image() if inputs is None else inputs
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)  # lets transformers install its capture hooks
        features = out.image_hidden_states  # one tensor, or since transformers 5.24 one of every image
        features = features if isinstance(features, torch.Tensor) else torch.cat(list(features))
        return out.logits, features, model.generate(**inputs, **GREEDY)


REFUSED_WAYS = {  # ways to generate that a reduced model refuses
    "prefill_chunk_size": {"prefill_chunk_size": 8},
    "assistant_model": {"assistant_model": True},
    "token_healing": {"token_healing": True},
    "continuous batching": {"cache_implementation": "paged"},
    "custom_generate": {"custom_generate": "somebody/recipe"},
}


def features(model, picture):
    """(images, tokens, C): what the language model is given of each picture."""
    return torch.stack(list(model.get_image_features(picture).pooler_output))


def without(inputs, *names):
    """Inputs of a call but these."""
    return {name: value for name, value in inputs.items() if name not in names}


def hooked(model):
    """What ``device_map`` does: accelerate wraps every module's forward."""
    accelerate = pytest.importorskip("accelerate")
    for module in model.modules():
        accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())
    return model


def assert_refused(model, options, kind, message):
    """``attach`` with these options says so, and leaves the model as it was."""
    answers(model)
    before = snapshot(model)
    with pytest.raises(kind) as error:
        ficoco_ext.attach(model, **options)
    assert message in str(error.value)
    assert snapshot(model) == before


def with_unlike_norms(model, seed=0):
    """The model itself, whose norms and biases now differ: those of a new model are ones and zeros in every layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator).to(weight.dtype))
    return model
