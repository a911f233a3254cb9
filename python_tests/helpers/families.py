"""Tiny random models of the other families, and inputs for them as their processors make them."""

from __future__ import annotations

import torch

from helpers.decoder import decoder_config
from helpers.models import IMAGE, PAD, SIDE, VOCABULARY, sharpened

VIDEO, START, END = 4, 5, 6


def tiny_next(kind="llama", attention="sdpa", seed=0):
    """LLaVA-NeXT with crops of 36 patches, laid out on a grid of up to 2 x 2 crops."""
    from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE * 4,
        patch_size=4,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=decoder_config(kind),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[SIDE * 4, SIDE * 8], [SIDE * 8, SIDE * 4], [SIDE * 8, SIDE * 8]],
    )
    config._attn_implementation = attention
    return sharpened(lambda: LlavaNextForConditionalGeneration(config), seed)


def next_inputs(model, rows, seed=1):
    """Rows are lists of words and (height, width) of pictures; each becomes as many placeholders as it has features."""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    sizes = [one for row in rows for one in row if isinstance(one, tuple)]
    crops = [image_size_to_num_patches(size, model.config.image_grid_pinpoints, SIDE * 4) for size in sizes]
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(len(sizes), max(crops), 3, SIDE * 4, SIDE * 4, generator=generator)
    with torch.no_grad():
        features = model.model.get_image_features(pixels, torch.tensor(sizes), return_dict=True).pooler_output
    return padded(rows, [len(one) for one in features]) | {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


def padded(rows, lengths):
    """Ids and mask of rows padded on the left, pictures replaced by placeholders."""
    left, spelled = list(lengths), []
    for row in rows:
        spelled.append([])
        for one in row:
            spelled[-1] += [IMAGE] * left.pop(0) if isinstance(one, tuple) else [one]
    longest = max(map(len, spelled))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in spelled])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def tiny_qwen(version="2", attention="sdpa", seed=0):
    """Qwen2-VL, or Qwen2.5-VL for version 2.5, with patches of 4 pixels merged 2 x 2 into one visual token."""
    import transformers

    name = {"2": "Qwen2VL", "2.5": "Qwen2_5_VL"}[version]
    config_class = getattr(transformers, f"{name}Config")
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    shared = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if version == "2":
        vision = shared | {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision = shared | {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "window_size": 16}
        vision |= {"fullatt_block_indexes": [1]}
    config = config_class(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    config._attn_implementation = attention
    return sharpened(lambda: getattr(transformers, f"{name}ForConditionalGeneration")(config), seed)


def qwen_inputs(model, rows, seed=1):
    """Rows are lists of words and (height, width) of pictures in patches, which a row holds between start and end."""
    grids = [one for row in rows for one in row if isinstance(one, tuple)]
    spelled = [[x for one in row for x in ([START, one, END] if isinstance(one, tuple) else [one])] for row in rows]
    inputs = padded(spelled, [height * width // 4 for height, width in grids])
    if not grids:
        return inputs
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(sum(h * w for h, w in grids), 3 * 2 * 4 * 4, generator=generator)
    return inputs | {
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([(1, height, width) for height, width in grids]),
        "mm_token_type_ids": (inputs["input_ids"] == IMAGE).int(),
    }


def tiny_siglip(attention="sdpa", seed=0, *, layers=3, feature_layer=-1, strategy="full"):
    """LLaVA-1.5 on a SigLIP tower, which has no class token: 36 patches, all of them visual tokens."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=SIDE * 4,
        patch_size=4,
        vision_use_head=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=decoder_config(),
        image_token_index=IMAGE,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
    )
    config._attn_implementation = attention
    return sharpened(lambda: LlavaForConditionalGeneration(config), seed)
