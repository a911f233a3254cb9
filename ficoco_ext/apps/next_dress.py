"""The embedded model as a LLaVA-NeXT, which cuts pictures into crops; and loading a checkpoint of a family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..io.suggest import did_you_mean
from . import loading
from .checkpoint import LLAVA, NEXT, Checkpoint, load

FAMILIES = {"llava-1.5": LLAVA, "llava-next": NEXT}
_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # crops below and beside each other; of equal canvases the first


def load_family(model: str | None, family: str | None, dtype: torch.dtype, device: torch.device) -> Checkpoint:
    """A checkpoint of a family; without ``model`` the embedded one, which for ``"llava-next"`` is dressed.

    Args:
        model, dtype, device: as :func:`ficoco_ext.apps.checkpoint.load` takes them.
        family: a key of :data:`FAMILIES`; None is that of the checkpoint.

    Raises:
        ValueError: no such family, or a checkpoint of another one; and what :func:`~ficoco_ext.apps.checkpoint.load`
            raises.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}{did_you_mean(family, FAMILIES)}")
    if model is None:
        tiny = load(None, dtype, device)
        return dressed(tiny) if family == "llava-next" else tiny
    return load(model, dtype, device, (LLAVA, NEXT) if family is None else (FAMILIES[family],))


def dressed(tiny: Checkpoint) -> Checkpoint:
    """The weights of the embedded LLaVA-1.5 in a LLaVA-NeXT: tower, projector and language model are shared.

    Line ends are zeros, to which the model's first norm and attention give no value: it never saw one in training. A
    canvas is 1 x 2, 2 x 1, 2 x 2, 3 x 1 or 1 x 3 crops, rows first.

    Example:
        >>> import torch
        >>> from ficoco_ext.apps import checkpoint, next_dress
        >>> tiny = next_dress.load_family(None, "llava-next", torch.float32, torch.device("cpu"))
        >>> picture = checkpoint.open_image(checkpoint.find_image("scene_6"))
        >>> tiny.crops_of(picture).grid, tiny.answer(picture, "what word is written ?", 1)
        ((1, 2), 'taxi')
    """
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    config = tiny.model.config
    named = ("projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy")
    side = config.vision_config.image_size
    whole = LlavaNextConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        image_token_index=config.image_token_id,
        image_grid_pinpoints=[[side * rows, side * columns] for rows, columns in _GRIDS],
        multimodal_projector_bias=config.multimodal_projector_bias,
        tie_word_embeddings=config.tie_word_embeddings,
        **{name: getattr(config, name) for name in named},
    )
    with torch.device("meta"):  # no weight of it is drawn
        model = LlavaNextForConditionalGeneration._from_config(whole, dtype=tiny.model.dtype).eval()
    weights = tiny.model.state_dict()
    line_end = torch.zeros(config.text_config.hidden_size, dtype=tiny.model.dtype, device=tiny.model.device)
    missing = model.load_state_dict(weights | {"model.image_newline": line_end}, strict=False, assign=True)
    loading.require_weights(
        {"missing_keys": missing.missing_keys, "unexpected_keys": missing.unexpected_keys}, tiny.name
    )
    # What no checkpoint holds is computed where a model is built, and the same in both.
    model.model.vision_tower, model.model.language_model = (
        tiny.model.model.vision_tower,
        tiny.model.model.language_model,
    )
    model.generation_config = tiny.model.generation_config
    name = f"{tiny.name} as LLaVA-NeXT"
    return replace(tiny, model=model, processor=_processor(tiny, whole), name=name)


def _processor(tiny: Checkpoint, config: Any) -> Any:
    """The tokenizer of the embedded model, and pictures as LLaVA-NeXT cuts them."""
    from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

    given, side = tiny.processor.image_processor, config.vision_config.image_size
    pictures = LlavaNextImageProcessorPil(
        size={"height": side, "width": side},
        crop_size={"height": side, "width": side},
        do_center_crop=False,
        image_grid_pinpoints=config.image_grid_pinpoints,
        image_mean=given.image_mean,
        image_std=given.image_std,
        resample=given.resample,
    )
    return LlavaNextProcessor(
        image_processor=pictures,
        tokenizer=tiny.processor.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=tiny.processor.chat_template,
        image_token=tiny.processor.image_token,
        num_additional_image_tokens=tiny.processor.num_additional_image_tokens,
    )
