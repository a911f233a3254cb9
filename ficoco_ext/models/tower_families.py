"""What is known of the attention of vision towers, declared for each family; :mod:`~ficoco_ext.models.tower_readings`
reads with it. To add a family, add a line to :data:`TOWERS`, and a :class:`TowerBody` if its tower is new.

Nothing here imports transformers before one of the classes is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import tower_layouts as layouts
from .tower_layouts import Layout, Watcher, last, last_or_selected, selected
from .transformers_api import model_class

TRAINED, UNUSED = "trained", "unused"  # class tokens


@dataclass(frozen=True)
class TowerBody:
    """A class of vision towers.

    Attributes:
        module: of transformers, below its models.
        model, attention: names of the classes of the tower and of a layer's attention.
        layers: path from the tower to the list of its layers. attends: a layer's attribute that holds its attention.
        class_token: "trained" if it was taught to stand for the picture, so that its attention says what matters;
            "unused" if there is one, but neither its training nor the family cares; None if there is none.
        full_layers: name in the tower's config of a list of those layers that attend to whole pictures; None: all do.
        padding: the tower's argument that says which patches of a batch are real, (B, rows, columns) bool.
        one_sequence: the tower puts all pictures into one sequence and masks them from one another.
        merger: the tower's module that gets what leaves its layers and norms and merges patches; None: there is none,
            and what the tower returns is not merged.
        early: share of the layers of which the last is the one of early saliency, unless a method names another.
    """

    module: str
    model: str
    attention: str
    layers: str
    attends: str
    class_token: str | None = None
    full_layers: str | None = None
    padding: str | None = None
    one_sequence: bool = False
    merger: str | None = None
    early: float = 9 / 24  # HiPrune (arXiv 2508.00553) for CLIP

    def classes(self) -> tuple[Any, Any]:
        """The classes of the tower and of a layer's attention."""
        return model_class(self.module, self.model), model_class(self.module, self.attention)


@dataclass(frozen=True)
class TowerAttention:
    """How a family's vision tower can be asked what it looks at.

    Attributes:
        bodies: towers that it may have.
        layout: how what is read of patches becomes that of projected tokens.
        features: what leaves the tower for the projector, from what the tower returns; a tower with a merger of its
            own is read there.
        tower: the attribute of the module that owns ``get_image_features``. video_tower: likewise of videos, if they
            have a tower of their own.
        watched: methods of the model that lay features out, by their path from that module, and what to do when they
            run.
    """

    bodies: tuple[TowerBody, ...]
    layout: Layout
    features: Callable[[Any, Any], Tensor] = last
    tower: str = "vision_tower"
    video_tower: str | None = None
    watched: tuple[tuple[str, Watcher], ...] = ()


CLIP = TowerBody(
    "clip.modeling_clip", "CLIPVisionModel", "CLIPAttention", "encoder.layers", "self_attn", class_token=TRAINED
)
SIGLIP = TowerBody("siglip.modeling_siglip", "SiglipVisionModel", "SiglipAttention", "encoder.layers", "self_attn")
INTERNVL = TowerBody(
    "internvl.modeling_internvl",
    "InternVLVisionModel",
    "InternVLVisionAttention",
    "encoder.layer",
    "attention",
    class_token=UNUSED,
)
PIXTRAL = TowerBody(
    "pixtral.modeling_pixtral",
    "PixtralVisionModel",
    "PixtralAttention",
    "transformer.layers",
    "attention",
    one_sequence=True,
)
SMOLVLM = TowerBody(
    "smolvlm.modeling_smolvlm",
    "SmolVLMVisionTransformer",
    "SmolVLMVisionAttention",
    "encoder.layers",
    "self_attn",
    padding="patch_attention_mask",
)
IDEFICS3 = TowerBody(
    "idefics3.modeling_idefics3",
    "Idefics3VisionTransformer",
    "Idefics3VisionAttention",
    "encoder.layers",
    "self_attn",
    padding="patch_attention_mask",
)


def _packed(
    family: str,
    model: str,
    attention: str,
    full_layers: str | None = None,
    merger: str = "merger",
    early: float = TowerBody.early,
) -> TowerBody:
    """A tower of the Qwen kind, which attends to one picture, or frame, after the other."""
    module = f"{family}.modeling_{family}"
    return TowerBody(module, model, attention, "blocks", "attn", full_layers=full_layers, merger=merger, early=early)


def _merging(*bodies: TowerBody, windows: bool = False) -> TowerAttention:
    """A family whose packed tower ends with a merger of blocks of patches."""
    watched = (("visual.permute_input_for_window_attn", layouts.note_order),) if windows else ()
    return TowerAttention(bodies, layouts.merged, tower="visual", watched=watched)


_PACK, _POOL = ("pack_image_features", layouts.pack), ("apply_pooling", layouts.pool_frames)
_QWEN2_5 = _packed(
    "qwen2_5_vl",
    "Qwen2_5_VisionTransformerPretrainedModel",
    "Qwen2_5_VLVisionAttention",
    "fullatt_block_indexes",
    early=16 / 32,  # HiPrune
)
_GLM4V = _packed("glm4v", "Glm4vVisionModel", "Glm4vVisionAttention", merger="downsample")
_GLM4V_MOE = _packed("glm4v_moe", "Glm4vMoeVisionModel", "Glm4vMoeVisionAttention", merger="downsample")

# By the names of families.
TOWERS = {
    "LLaVA-1.5": TowerAttention((CLIP, SIGLIP, PIXTRAL), layouts.patches, selected),
    "LLaVA-NeXT": TowerAttention((CLIP, SIGLIP), layouts.placed, selected, watched=(_PACK,)),
    "LLaVA-OneVision": TowerAttention((SIGLIP,), layouts.placed, selected, watched=(_PACK, _POOL)),
    "Video-LLaVA": TowerAttention((CLIP,), layouts.patches, selected, "image_tower", "video_tower"),
    "Qwen2-VL": _merging(_packed("qwen2_vl", "Qwen2VisionTransformerPretrainedModel", "VisionAttention")),
    "Qwen2.5-VL": _merging(_QWEN2_5, windows=True),
    "Qwen3-VL": _merging(_packed("qwen3_vl", "Qwen3VLVisionModel", "Qwen3VLVisionAttention")),
    "Qwen3-VL-MoE": _merging(_packed("qwen3_vl_moe", "Qwen3VLMoeVisionModel", "Qwen3VLMoeVisionAttention")),
    "Qwen3.5": _merging(_packed("qwen3_5", "Qwen3_5VisionModel", "Qwen3_5VisionAttention")),
    "Qwen3.5-MoE": _merging(_packed("qwen3_5_moe", "Qwen3_5MoeVisionModel", "Qwen3_5MoeVisionAttention")),
    "InternVL3": TowerAttention((INTERNVL,), layouts.shuffled, last_or_selected),
    "Gemma 3": TowerAttention((SIGLIP,), layouts.pooled),
    "SmolVLM": TowerAttention((SMOLVLM,), layouts.connected, tower="vision_model"),
    "Idefics3": TowerAttention((IDEFICS3,), layouts.connected, tower="vision_model"),
    "Mistral3": TowerAttention((PIXTRAL,), layouts.merged_grids, selected),
    "GLM-4V": _merging(_GLM4V),
    "GLM-4.6V": _merging(_GLM4V),
    "GLM-4V-MoE": _merging(_GLM4V_MOE),
    "PaliGemma": TowerAttention((SIGLIP,), layouts.patches),
}
