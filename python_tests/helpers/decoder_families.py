"""Tiny random models of families whose language model alone is reduced, and inputs as their processors make them."""

from __future__ import annotations

import torch

from helpers.decoder import decoder_config
from helpers.families import END, START, VIDEO, padded, qwen_inputs
from helpers.models import IMAGE, PAD, SIDE, VOCABULARY, sharpened


def tiny_qwen3(experts=False, attention="sdpa", seed=0, levels=(0,), layers=4):
    """Qwen3-VL, or Qwen3-VL-MoE, whose language model gets the features of ``levels`` of its tower (DeepStack)."""
    import transformers

    name = "Qwen3VLMoe" if experts else "Qwen3VL"
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
            "rope_theta": 10000.0,
        },
        "pad_token_id": PAD,
    }
    if experts:  # the second layer has none
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1]}
    vision = {"depth": 3, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    vision |= {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_position_embeddings": 64}
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config=vision | {"deepstack_visual_indexes": list(levels)},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    config._attn_implementation = attention
    return sharpened(lambda: getattr(transformers, f"{name}ForConditionalGeneration")(config), seed)


def qwen3_video(model, frames=2, grid=(8, 8), seed=1):
    """A prompt with one video, whose frames stand apart between words, as timestamps are."""
    height, width = grid
    each = [START, *[VIDEO] * (height * width // 4), END]
    row = [11, *[token for frame in range(frames) for token in (12 + frame, *each)], 18, 19]
    ids = torch.tensor([row])
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": torch.randn(frames * height * width, 3 * 2 * 4 * 4, generator=generator),
        "video_grid_thw": torch.tensor([(frames, height, width)]),
        "mm_token_type_ids": (ids == VIDEO).int() * 2,
    }


def tiny_internvl(kind="qwen2", attention="sdpa", seed=0):
    """InternVL with 36 patches and a class token, folded 2 x 2 into 9 visual tokens."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig

    vision = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=[SIDE * 4, SIDE * 4],
        patch_size=[4, 4],
    )
    config = InternVLConfig(vision_config=vision, text_config=decoder_config(kind), image_token_id=IMAGE)
    config._attn_implementation = attention
    return sharpened(lambda: InternVLForConditionalGeneration(config), seed)


def internvl_inputs(model, rows, seed=1):
    """Rows are lists of words and (crops,) of pictures; each crop has as many visual tokens."""
    crops = [one[0] for row in rows for one in row if isinstance(one, tuple)]
    pixels = torch.randn(sum(crops), 3, SIDE * 4, SIDE * 4, generator=torch.Generator().manual_seed(seed))
    return padded(rows, [9 * count for count in crops]) | ({"pixel_values": pixels} if crops else {})


def tiny_onevision(kind="qwen2", attention="sdpa", seed=0):
    """LLaVA-OneVision on a SigLIP tower with crops of 36 patches, laid out on a grid of up to 2 x 2 crops."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE * 4,
        patch_size=4,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=decoder_config(kind),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[SIDE * 4, SIDE * 8], [SIDE * 8, SIDE * 4], [SIDE * 8, SIDE * 8]],
    )
    config._attn_implementation = attention
    return sharpened(lambda: LlavaOnevisionForConditionalGeneration(config), seed)


def onevision_inputs(model, rows, seed=1):
    """Rows are lists of words and (height, width) of pictures.

    Pictures of a batch are cut into crops only where each row has one, as the model itself does.
    """
    from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

    sizes = [one for row in rows for one in row if isinstance(one, tuple)]
    if not sizes:
        return padded(rows, [])
    held = [sum(isinstance(one, tuple) for one in row) for row in rows]
    pinpoints = model.config.image_grid_pinpoints
    crops = [image_size_to_num_patches(size, pinpoints, SIDE * 4) for size in sizes]
    generator = torch.Generator().manual_seed(seed)
    made = {
        "pixel_values": torch.randn(len(sizes), max(crops), 3, SIDE * 4, SIDE * 4, generator=generator),
        "image_sizes": torch.tensor(sizes),
        "batch_num_images": torch.tensor([count for count in held if count]),
    }
    with torch.no_grad():
        features = model.model.get_image_features(**made, return_dict=True).pooler_output
    return padded(rows, [len(one) for one in features]) | made


def onevision_video(model, frames=3, seed=1):
    """A prompt with one video: every frame has 3 x 3 visual tokens, and one closes them."""
    ids = torch.tensor([[11, 12, *[VIDEO] * (9 * frames + 1), 13, 14, 15]])
    pixels = torch.randn(1, frames, 3, SIDE * 4, SIDE * 4, generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}


def tiny_mistral3(kind="mistral", attention="sdpa", seed=0):
    """Mistral3 on a Pixtral tower with patches of 4 pixels, merged 2 x 2 into one visual token."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig

    vision = PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=8,
        image_size=64,
        patch_size=4,
    )
    config = Mistral3Config(vision_config=vision, text_config=decoder_config(kind), image_token_index=IMAGE)
    config._attn_implementation = attention
    return sharpened(lambda: Mistral3ForConditionalGeneration(config), seed)


def mistral3_inputs(model, rows, seed=1):
    """Rows are lists of words and (height, width) of pictures, which are padded to one size."""
    sizes = [one for row in rows for one in row if isinstance(one, tuple)]
    inputs = padded(rows, [height * width // 64 for height, width in sizes])
    if not sizes:
        return inputs
    height, width = (max(one) for one in zip(*sizes, strict=True))
    pixels = torch.randn(len(sizes), 3, height, width, generator=torch.Generator().manual_seed(seed))
    return inputs | {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


# Name: (make the model, make inputs, a picture, another one).
DECODERS = {
    "Qwen3-VL": (tiny_qwen3, qwen_inputs, (8, 12), (6, 8)),
    "Qwen3-VL-MoE": (lambda **how: tiny_qwen3(True, **how), qwen_inputs, (8, 12), (6, 8)),
    "InternVL3": (tiny_internvl, internvl_inputs, (3,), (2,)),
    "InternVL3 on Qwen3": (lambda **how: tiny_internvl("qwen3", **how), internvl_inputs, (3,), (2,)),
    "InternVL3 on Qwen3-MoE": (lambda **how: tiny_internvl("qwen3_moe", **how), internvl_inputs, (3,), (2,)),
    "InternVL3 on Llama": (lambda **how: tiny_internvl("llama", **how), internvl_inputs, (3,), (2,)),
    "LLaVA-OneVision": (tiny_onevision, onevision_inputs, (24, 48), (40, 30)),
    "Mistral3": (tiny_mistral3, mistral3_inputs, (32, 48), (24, 32)),
    "Mistral3 on Ministral": (lambda **how: tiny_mistral3("ministral3", **how), mistral3_inputs, (32, 48), (24, 32)),
}
