"""Configurations of the tiny models of :mod:`helpers.tiny_families`, which are made of the real classes."""

from __future__ import annotations

from typing import Any

PAD, BOS, EOS, IMAGE, VIDEO, START, END, VIDEO_START, VIDEO_END, LINE, IMAGE_END = range(11)
TIME = 11  # to 22: times of frames, markers of tiles
WORD = 24  # and above: words
VOCABULARY = 64
SIDE = 56  # pixels of a picture of fixed size, with patches of 14
PATCHES = 16
PINPOINTS = [[56, 112], [112, 56], [112, 112]]

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_SQUARE = {**_TOWER, "image_size": SIDE, "patch_size": 14}
_PACKED = {"hidden_size": 32, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
_MARKS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
_VISION_MARKS = {**_MARKS, "vision_start_token_id": START, "vision_end_token_id": END}
_UNTIED = {"tie_word_embeddings": False}  # of the whole model's config, where it does not ask the text's
_FULL = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}


def _mrope(**more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0, **more}


def _clip(layers: int = 3) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**{**_SQUARE, "num_hidden_layers": layers})


def _siglip(**more: Any) -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(**{**_SQUARE, "vision_use_head": False, **more})


def _pixtral() -> Any:
    from transformers import PixtralVisionConfig

    return PixtralVisionConfig(**_TOWER, image_size=112, patch_size=14, head_dim=8)


def llava_clip() -> Any:
    """LLaVA-1.5: CLIP tower, Llama."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=_clip(), text_config=LlamaConfig(**_TEXT), image_token_index=IMAGE)
    )


def llava_siglip() -> Any:
    """LLaVA-1.5 on a tower without a class token, Qwen2."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

    text = Qwen2Config(**_TEXT)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=_siglip(), text_config=text, image_token_index=IMAGE, **_FULL)
    )


def llava_pixtral() -> Any:
    """Pixtral: the classes of LLaVA-1.5 with a tower that takes every size."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig

    text = MistralConfig(**_TEXT, head_dim=8, sliding_window=None)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=_pixtral(), text_config=text, image_token_index=IMAGE, **_FULL)
    )


def llava_next(layers: int = 3, class_token: bool = True) -> Any:
    """LLaVA-NeXT: CLIP tower of ``layers``, or a SigLIP, which has no class token; Llama, up to 2 x 2 crops."""
    from transformers import LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    strategy = "default" if class_token else "full"
    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=_clip(layers) if class_token else _siglip(num_hidden_layers=layers),
            text_config=LlamaConfig(**_TEXT),
            image_token_index=IMAGE,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_select_strategy=strategy,
        )
    )


def llava_onevision() -> Any:
    """LLaVA-OneVision: SigLIP tower, Qwen2."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=_siglip(),
            text_config=Qwen2Config(**_TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
            **_FULL,
        )
    )


def video_llava() -> Any:
    """Video-LLaVA: two CLIP towers, Llama."""
    from transformers import LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

    return VideoLlavaForConditionalGeneration(
        VideoLlavaConfig(
            vision_config=_clip(),
            text_config=LlamaConfig(**_TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
        )
    )


def qwen2_vl() -> Any:
    """Qwen2-VL."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {**_PACKED, "depth": 2, "embed_dim": 32, "mlp_ratio": 2}
    text = {**_TEXT, "rope_parameters": _mrope()}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **_VISION_MARKS))


def qwen2_5_vl() -> Any:
    """Qwen2.5-VL: one layer of the tower sees windows of 2 x 2 tokens, the other everything."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {**_PACKED, "depth": 2, "out_hidden_size": 32, "intermediate_size": 64, "window_size": 56}
    vision["fullatt_block_indexes"] = [1]
    text = {**_TEXT, "rope_parameters": _mrope()}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_VISION_MARKS))


def _qwen3_vision(**more: Any) -> dict[str, Any]:
    return {
        **_PACKED,
        "depth": 3,
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "num_position_embeddings": 64,
        **more,
    }


def _qwen3_text(**more: Any) -> dict[str, Any]:
    return {**_TEXT, "head_dim": 8, "rope_parameters": _mrope(mrope_interleaved=True), **more}


def qwen3_vl() -> Any:
    """Qwen3-VL: two levels of DeepStack, added after the first two of four decoder layers."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = _qwen3_vision(deepstack_visual_indexes=[0, 1])
    text = _qwen3_text(num_hidden_layers=4)
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **_VISION_MARKS))


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def qwen3_vl_moe() -> Any:
    """Qwen3-VL whose decoder layers choose two of four experts."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    vision = _qwen3_vision(deepstack_visual_indexes=[0, 1])
    text = _qwen3_text(num_hidden_layers=4, **_EXPERTS)
    return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=vision, **_VISION_MARKS))


_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": _mrope(mrope_interleaved=True, partial_rotary_factor=1.0),
}


def qwen3_5() -> Any:
    """Qwen3.5: two of three decoder layers have linear attention."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = _qwen3_text(**_LINEAR)
    return Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(text_config=text, vision_config=_qwen3_vision(), **_VISION_MARKS)
    )


def qwen3_5_moe() -> Any:
    """Qwen3.5 whose decoder layers choose two of four experts."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    text = _qwen3_text(**_LINEAR, **_EXPERTS, shared_expert_intermediate_size=32)
    return Qwen3_5MoeForConditionalGeneration(
        Qwen3_5MoeConfig(text_config=text, vision_config=_qwen3_vision(), **_VISION_MARKS)
    )


def internvl() -> Any:
    """InternVL 3: 4 x 4 patches of a tile shuffled to 4 tokens, Qwen2."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    vision = InternVLVisionConfig(**{**_SQUARE, "image_size": [SIDE, SIDE], "patch_size": [14, 14]})
    text = Qwen2Config(**_TEXT)
    return InternVLForConditionalGeneration(
        InternVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, downsample_ratio=0.5, **_UNTIED)
    )


def gemma3() -> Any:
    """Gemma 3: 4 tokens a picture, layers of a sliding window among the others."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig

    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    text = Gemma3TextConfig(**_TEXT, head_dim=8, sliding_window=12, layer_types=layers)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config=_siglip(), text_config=text, image_token_index=IMAGE, mm_tokens_per_image=4, **_UNTIED
        )
    )


def paligemma() -> Any:
    """PaliGemma: SigLIP tower, Gemma."""
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration

    text = GemmaConfig(**_TEXT, head_dim=8)
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=_siglip(), text_config=text, image_token_index=IMAGE, projection_dim=32, **_UNTIED
        )
    )


def smolvlm() -> Any:
    """SmolVLM: 4 x 4 patches of a tile shuffled to 4 tokens, Llama."""
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMVisionConfig

    return SmolVLMForConditionalGeneration(_idefics(SmolVLMConfig, SmolVLMVisionConfig, LlamaConfig))


def idefics3() -> Any:
    """Idefics3: as SmolVLM."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3VisionConfig, LlamaConfig

    return Idefics3ForConditionalGeneration(_idefics(Idefics3Config, Idefics3VisionConfig, LlamaConfig))


def _idefics(config: Any, vision: Any, text: Any) -> Any:
    made = config(
        vision_config=vision(**_SQUARE),
        text_config=text(**_TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )
    made.tie_word_embeddings = False
    return made


def mistral3() -> Any:
    """Mistral 3: Pixtral tower, 2 x 2 patches merged."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig

    text = MistralConfig(**_TEXT, head_dim=8, sliding_window=None)
    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            vision_config=_pixtral(),
            text_config=text,
            image_token_index=IMAGE,
            spatial_merge_size=2,
            vision_feature_layer=-1,
            **_UNTIED,
        )
    )


def _glm(config: Any, **more: Any) -> Any:
    vision = {**_PACKED, "depth": 2, "out_hidden_size": 32, "intermediate_size": 64, "image_size": 112}
    text = {**_TEXT, "rope_parameters": _mrope(partial_rotary_factor=1.0), **more}
    marks = {"image_start_token_id": START, "image_end_token_id": END}
    marks |= {"video_start_token_id": VIDEO_START, "video_end_token_id": VIDEO_END}
    return config(text_config=text, vision_config=vision, **_MARKS, **marks)


def glm4v() -> Any:
    """GLM-4.1V."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    return Glm4vForConditionalGeneration(_glm(Glm4vConfig))


def glm46v() -> Any:
    """GLM-4.6V."""
    from transformers import Glm46VConfig, Glm46VForConditionalGeneration

    return Glm46VForConditionalGeneration(_glm(Glm46VConfig))


def glm4v_moe() -> Any:
    """GLM-4.5V: after the first decoder layer, two of four experts and a shared one."""
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
    return Glm4vMoeForConditionalGeneration(_glm(Glm4vMoeConfig, **experts, first_k_dense_replace=1))
