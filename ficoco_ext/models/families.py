"""Which models are served, each declared in one place. To add one, add its :class:`Family` here.

This is an allowlist: hooks on a layer that is only similar to these would go wrong without an error. Nothing here
imports transformers before one of the classes is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import layouts
from .layouts import LayoutRule
from .modalities import IMAGES, VIDEOS, Modality
from .transformers_api import TOKEN_TYPES, model_class


@dataclass(frozen=True)
class Transformer:
    """A vision tower or a language model whose layers have a body that we know.

    Attributes:
        module: of transformers, below its models.
        model, layer, attention: names of the classes of the whole, of a layer, and of a layer's attention.
    """

    module: str
    model: str
    layer: str
    attention: str

    def classes(self) -> tuple[Any, Any, Any]:
        """The classes of the whole, of a layer, and of a layer's attention."""
        whole, layer, attention = (model_class(self.module, name) for name in (self.model, self.layer, self.attention))
        return whole, layer, attention


# By the model_type of their configs.
LANGUAGE_MODELS = {
    "llama": Transformer("llama.modeling_llama", "LlamaModel", "LlamaDecoderLayer", "LlamaAttention"),
    "mistral": Transformer("mistral.modeling_mistral", "MistralModel", "MistralDecoderLayer", "MistralAttention"),
    "qwen2": Transformer("qwen2.modeling_qwen2", "Qwen2Model", "Qwen2DecoderLayer", "Qwen2Attention"),
    "qwen2_vl": Transformer(
        "qwen2_vl.modeling_qwen2_vl", "Qwen2VLTextModel", "Qwen2VLDecoderLayer", "Qwen2VLAttention"
    ),
    "qwen2_5_vl": Transformer(
        "qwen2_5_vl.modeling_qwen2_5_vl", "Qwen2_5_VLTextModel", "Qwen2_5_VLDecoderLayer", "Qwen2_5_VLAttention"
    ),
    "qwen3": Transformer("qwen3.modeling_qwen3", "Qwen3Model", "Qwen3DecoderLayer", "Qwen3Attention"),
    "qwen3_moe": Transformer(
        "qwen3_moe.modeling_qwen3_moe", "Qwen3MoeModel", "Qwen3MoeDecoderLayer", "Qwen3MoeAttention"
    ),
    "qwen3_vl": Transformer(
        "qwen3_vl.modeling_qwen3_vl", "Qwen3VLTextModel", "Qwen3VLTextDecoderLayer", "Qwen3VLTextAttention"
    ),
    "qwen3_vl_moe": Transformer(
        "qwen3_vl_moe.modeling_qwen3_vl_moe",
        "Qwen3VLMoeTextModel",
        "Qwen3VLMoeTextDecoderLayer",
        "Qwen3VLMoeTextAttention",
    ),
    "ministral3": Transformer(
        "ministral3.modeling_ministral3", "Ministral3Model", "Ministral3DecoderLayer", "Ministral3Attention"
    ),
}


@dataclass(frozen=True)
class Tower(Transformer):
    """A vision tower in which methods can reduce.

    Attributes:
        class_token: its first token is a class token.
    """

    class_token: bool = True


# By the model_type of their configs.
TOWERS = {
    "clip_vision_model": Tower("clip.modeling_clip", "CLIPVisionModel", "CLIPEncoderLayer", "CLIPAttention"),
    "siglip_vision_model": Tower(
        "siglip.modeling_siglip", "SiglipVisionModel", "SiglipEncoderLayer", "SiglipAttention", class_token=False
    ),
}


def tower_of(module: Any) -> Tower | None:
    """The one of :data:`TOWERS` whose class ``module`` has, not one derived from it; None if there is none."""
    named = (one for one in TOWERS.values() if type(module).__name__ == one.model)
    return next((one for one in named if type(module) is one.classes()[0]), None)


@dataclass(frozen=True)
class Family:
    """A model class of transformers that is served.

    Attributes:
        name: for messages and tables.
        module: of transformers, below its models.
        model, inner: its class, and the class inside it that joins image and text.
        modalities: what it takes besides text; every one can be reduced after its projector.
        language_models: those in which methods can reduce, keys of :data:`LANGUAGE_MODELS`. None if none can, and
            ``why_no_language_model`` is the reason.
        language_model: the attribute of the inner model that holds its language model.
        token_types: prompt tensors (B, L) that have one entry for each id, besides mask, positions and labels.
        rope_index: the inner model computes positions from the whole prompt, several for each token (M-RoPE).
        layout: how the tokens of a picture lie after the projector.
        unit: function (inner model) -> tokens of a picture, where encoders may give those of several as one tensor.
        first_position: the position of the first token, where callers pass none.
        towers: the vision towers in which methods can reduce, keys of :data:`TOWERS`; every image, or every crop, then
            has its grid of patches as visual tokens. None if none can, and ``why_no_tower`` is the reason.
        crops: a picture goes through the tower as a thumbnail and crops, which ``pack_image_features`` then unpads and
            gives line ends. Its config has the sizes that the crops together can have, ``image_grid_pinpoints``.
        deepstack: the attribute of its vision config that lists its DeepStack levels. The features of one level are
            added to every visual token after each of the first layers of the language model, so these cannot reduce.
    """

    name: str
    module: str
    model: str
    inner: str
    modalities: tuple[Modality, ...] = (IMAGES,)
    language_models: tuple[str, ...] = ()
    why_no_language_model: str | None = None
    language_model: str = "language_model"
    token_types: tuple[str, ...] = ()
    rope_index: bool = False
    layout: LayoutRule = layouts.unknown
    unit: Callable[[Any], int] | None = None
    first_position: int = 0
    towers: tuple[str, ...] = ()
    why_no_tower: str | None = None
    crops: bool = False
    deepstack: str | None = None

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Attributes of its config that hold the ids of visual tokens."""
        return tuple(one.placeholder for one in self.modalities)

    def model_class(self) -> Any:
        """Its class."""
        return model_class(self.module, self.model)

    def first_layer(self, config: Any) -> int:
        """The first layer of the language model that can reduce in a model with this config."""
        return 0 if self.deepstack is None else len(getattr(config.vision_config, self.deepstack))

    def known_tower(self, tower: Any) -> Tower | None:
        """Which of its towers the vision tower of one model is; None if methods cannot reduce in it."""
        found = tower_of(tower)
        return found if found in [TOWERS[key] for key in self.towers] else None


_LLAVA_LANGUAGE_MODELS = ("llama", "mistral", "qwen2")
_GLM_MODALITIES = (IMAGES, VIDEOS._replace(placeholder="image_token_id"))  # token types tell them apart
_WITH_DEEPSTACK = tuple(one._replace(planes=("deepstack_features",)) for one in (IMAGES, VIDEOS))
_LINEAR_LAYERS = "layers with linear attention have no keys to leave out"
_BIDIRECTIONAL = "a picture's tokens see each other in both directions, and some layers see only a window"
_MERGES_BLOCKS = "its tower merges whole blocks of 2 x 2 patches"
LLAVA = Family(
    name="LLaVA-1.5",
    module="llava.modeling_llava",
    model="LlavaForConditionalGeneration",
    inner="LlavaModel",
    language_models=_LLAVA_LANGUAGE_MODELS,
    layout=layouts.square,
    towers=("clip_vision_model", "siglip_vision_model"),
)
FAMILIES = (
    LLAVA,
    Family(
        name="LLaVA-NeXT",
        module="llava_next.modeling_llava_next",
        model="LlavaNextForConditionalGeneration",
        inner="LlavaNextModel",
        language_models=_LLAVA_LANGUAGE_MODELS,
        layout=layouts.packed_crops,
        towers=("clip_vision_model", "siglip_vision_model"),
        crops=True,
    ),
    Family(
        name="Qwen2-VL",
        module="qwen2_vl.modeling_qwen2_vl",
        model="Qwen2VLForConditionalGeneration",
        inner="Qwen2VLModel",
        modalities=(IMAGES, VIDEOS),
        language_models=("qwen2_vl",),
        token_types=(TOKEN_TYPES,),
        rope_index=True,
        layout=layouts.merged_blocks,
        why_no_tower=f"it has no class token, and {_MERGES_BLOCKS}",
    ),
    Family(
        name="Qwen2.5-VL",
        module="qwen2_5_vl.modeling_qwen2_5_vl",
        model="Qwen2_5_VLForConditionalGeneration",
        inner="Qwen2_5_VLModel",
        modalities=(IMAGES, VIDEOS),
        language_models=("qwen2_5_vl",),
        token_types=(TOKEN_TYPES,),
        rope_index=True,
        layout=layouts.merged_blocks,
        why_no_tower=f"it has no class token, attends in windows, and {_MERGES_BLOCKS}",
    ),
    Family(
        name="Qwen3-VL",
        module="qwen3_vl.modeling_qwen3_vl",
        model="Qwen3VLForConditionalGeneration",
        inner="Qwen3VLModel",
        modalities=_WITH_DEEPSTACK,
        language_models=("qwen3_vl",),
        token_types=(TOKEN_TYPES,),
        rope_index=True,
        layout=layouts.merged_blocks,
        why_no_tower=f"it has no class token, and {_MERGES_BLOCKS}",
        deepstack="deepstack_visual_indexes",
    ),
    Family(
        name="Qwen3-VL-MoE",
        module="qwen3_vl_moe.modeling_qwen3_vl_moe",
        model="Qwen3VLMoeForConditionalGeneration",
        inner="Qwen3VLMoeModel",
        modalities=_WITH_DEEPSTACK,
        language_models=("qwen3_vl_moe",),
        token_types=(TOKEN_TYPES,),
        rope_index=True,
        layout=layouts.merged_blocks,
        why_no_tower=f"it has no class token, and {_MERGES_BLOCKS}",
        deepstack="deepstack_visual_indexes",
    ),
    Family(
        name="LLaVA-OneVision",
        module="llava_onevision.modeling_llava_onevision",
        model="LlavaOnevisionForConditionalGeneration",
        inner="LlavaOnevisionModel",
        modalities=(IMAGES, VIDEOS),
        language_models=("llama", "qwen2", "qwen3"),
        layout=layouts.packed_crops,
        why_no_tower="its crops are laid out as grids after the tower, unpadded and given line ends, which needs every "
        "patch",
    ),
    Family(
        name="InternVL3",
        module="internvl.modeling_internvl",
        model="InternVLForConditionalGeneration",
        inner="InternVLModel",
        language_models=("llama", "qwen2", "qwen3", "qwen3_moe"),
        layout=layouts.square,
        why_no_tower="its projector joins blocks of 2 x 2 patches of a whole grid",
    ),
    Family(
        name="Mistral3",
        module="mistral3.modeling_mistral3",
        model="Mistral3ForConditionalGeneration",
        inner="Mistral3Model",
        language_models=("mistral", "ministral3"),
        why_no_tower="its projector joins blocks of a whole grid",
    ),
    Family(
        name="Qwen3.5",
        module="qwen3_5.modeling_qwen3_5",
        model="Qwen3_5ForConditionalGeneration",
        inner="Qwen3_5Model",
        modalities=(IMAGES, VIDEOS),
        why_no_language_model=_LINEAR_LAYERS,
        token_types=(TOKEN_TYPES,),
        rope_index=True,
        layout=layouts.merged_blocks,
        why_no_tower=f"it has no class token, and {_MERGES_BLOCKS}",
    ),
    Family(
        name="Qwen3.5-MoE",
        module="qwen3_5_moe.modeling_qwen3_5_moe",
        model="Qwen3_5MoeForConditionalGeneration",
        inner="Qwen3_5MoeModel",
        modalities=(IMAGES, VIDEOS),
        why_no_language_model=_LINEAR_LAYERS,
        token_types=(TOKEN_TYPES,),
        rope_index=True,
        layout=layouts.merged_blocks,
        why_no_tower=f"it has no class token, and {_MERGES_BLOCKS}",
    ),
    Family(
        name="GLM-4V",
        module="glm4v.modeling_glm4v",
        model="Glm4vForConditionalGeneration",
        inner="Glm4vModel",
        modalities=_GLM_MODALITIES,
        why_no_language_model="its layers normalize what attention and MLP return, which reductions do not know",
        token_types=(TOKEN_TYPES,),
        rope_index=True,
        layout=layouts.merged_blocks,
        why_no_tower=f"it has no class token, and {_MERGES_BLOCKS}",
    ),
    Family(
        name="GLM-4.6V",
        module="glm46v.modeling_glm46v",
        model="Glm46VForConditionalGeneration",
        inner="Glm46VModel",
        modalities=_GLM_MODALITIES,
        why_no_language_model="its layers normalize what attention and MLP return, which reductions do not know",
        token_types=(TOKEN_TYPES,),
        rope_index=True,
        layout=layouts.merged_blocks,
        why_no_tower=f"it has no class token, and {_MERGES_BLOCKS}",
    ),
    Family(
        name="GLM-4V-MoE",
        module="glm4v_moe.modeling_glm4v_moe",
        model="Glm4vMoeForConditionalGeneration",
        inner="Glm4vMoeModel",
        modalities=_GLM_MODALITIES,
        why_no_language_model="its layers normalize what attention and MLP return, which reductions do not know",
        token_types=(TOKEN_TYPES,),
        rope_index=True,
        layout=layouts.merged_blocks,
        why_no_tower=f"it has no class token, and {_MERGES_BLOCKS}",
    ),
    Family(
        name="Video-LLaVA",
        module="video_llava.modeling_video_llava",
        model="VideoLlavaForConditionalGeneration",
        inner="VideoLlavaModel",
        modalities=(IMAGES._replace(other_pixels="pixel_values_images"), VIDEOS),
        language_models=("llama",),
        why_no_tower="it has one tower for pictures and one for videos",
    ),
    Family(
        name="Gemma 3",
        module="gemma3.modeling_gemma3",
        model="Gemma3ForConditionalGeneration",
        inner="Gemma3Model",
        why_no_language_model=_BIDIRECTIONAL,
        token_types=("token_type_ids",),
        layout=layouts.square,
        why_no_tower="its projector averages blocks of a whole grid",
    ),
    Family(
        name="SmolVLM",
        module="smolvlm.modeling_smolvlm",
        model="SmolVLMForConditionalGeneration",
        inner="SmolVLMModel",
        language_model="text_model",
        unit=layouts.pixel_shuffled,
        language_models=("llama",),
        layout=layouts.square,
        why_no_tower="its projector joins blocks of a whole grid",
    ),
    Family(
        name="Idefics3",
        module="idefics3.modeling_idefics3",
        model="Idefics3ForConditionalGeneration",
        inner="Idefics3Model",
        language_model="text_model",
        unit=layouts.pixel_shuffled,
        language_models=("llama",),
        layout=layouts.square,
        why_no_tower="its projector joins blocks of a whole grid",
    ),
    Family(
        name="PaliGemma",
        module="paligemma.modeling_paligemma",
        model="PaliGemmaForConditionalGeneration",
        inner="PaliGemmaModel",
        why_no_language_model="its prompt is read in both directions",
        token_types=("token_type_ids",),
        first_position=1,
        layout=layouts.square,
        towers=("siglip_vision_model",),
    ),
)
