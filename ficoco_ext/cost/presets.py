"""Architectures by name, from a Hugging Face config, or from a directory with a config.json."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..io import config_facts, configs
from ..io.suggest import did_you_mean
from . import pinpoints
from .architecture import Architecture, LanguageModel, Projector, Tower

_CLIP_336 = Tower(layers=24, used=23, hidden=1024, mlp=4096, heads=16, patch=14, image_size=336)
_CLIP_224 = dataclasses.replace(_CLIP_336, image_size=224)
_VICUNA_7B = LanguageModel(32, 4096, 11008, 32, 32, 128, 32000)
_VICUNA_13B = LanguageModel(40, 5120, 13824, 40, 40, 128, 32000)
_CLIP_SOURCE = "tower openai/clip-vit-large-patch14-336"

PRESETS: dict[str, Architecture] = {
    one.name: one
    for one in (
        Architecture(
            "llava-1.5-7b",
            _CLIP_336,
            Projector(1024, 4096, 4096),
            _VICUNA_7B,
            576,
            source=f"config.json of liuhaotian/llava-v1.5-7b (lmsys/vicuna-7b-v1.5), {_CLIP_SOURCE}",
        ),
        Architecture(
            "llava-1.5-13b",
            _CLIP_336,
            Projector(1024, 5120, 5120),
            _VICUNA_13B,
            576,
            source=f"config.json of liuhaotian/llava-v1.5-13b (lmsys/vicuna-13b-v1.5), {_CLIP_SOURCE}",
        ),
        Architecture(
            "llava-next-7b",
            _CLIP_336,
            Projector(1024, 4096, 4096),
            _VICUNA_7B,
            2880,
            5,
            "config.json of liuhaotian/llava-v1.6-vicuna-7b",
            pinpoints=pinpoints.LLAVA_NEXT,
        ),
        Architecture(
            "llava-next-13b",
            _CLIP_336,
            Projector(1024, 5120, 5120),
            _VICUNA_13B,
            2880,
            5,
            "config.json of liuhaotian/llava-v1.6-vicuna-13b",
            pinpoints=pinpoints.LLAVA_NEXT,
        ),
        Architecture(
            "qwen2-vl-7b",
            Tower(32, 32, 1280, 5120, 16, 14, 672, class_token=False, merge=4, channels=6),
            Projector(5120, 5120, 3584),
            LanguageModel(28, 3584, 18944, 28, 4, 128, 152064),
            576,
            source="config.json of Qwen/Qwen2-VL-7B-Instruct; resolution is free, 672 x 672 gives the 576 tokens of "
            "LLaVA-1.5",
        ),
        Architecture(
            "qwen2.5-vl-7b",
            Tower(
                32,
                32,
                1280,
                3420,
                16,
                14,
                1008,
                class_token=False,
                gated=True,
                merge=4,
                channels=6,
                window=8,
                full=(7, 15, 23, 31),
            ),
            Projector(5120, 5120, 3584),
            LanguageModel(28, 3584, 18944, 28, 4, 128, 152064),
            1296,
            source="config.json of Qwen/Qwen2.5-VL-7B-Instruct; resolution is free, 1008 x 1008 gives 1,296 tokens",
        ),
        Architecture(
            "video-llava-7b",
            _CLIP_224,
            Projector(1024, 4096, 4096),
            _VICUNA_7B,
            2056,
            8,
            "config.json of LanguageBind/Video-LLaVA-7B-hf: 8 frames of 256 patches and a class token each",
            apart=True,
        ),
    )
}

# Hub names of the same shapes, in any case.
IDS = {
    "llava-hf/llava-1.5-7b-hf": "llava-1.5-7b",
    "liuhaotian/llava-v1.5-7b": "llava-1.5-7b",
    "llava-hf/llava-1.5-13b-hf": "llava-1.5-13b",
    "liuhaotian/llava-v1.5-13b": "llava-1.5-13b",
    "llava-hf/llava-v1.6-vicuna-7b-hf": "llava-next-7b",
    "liuhaotian/llava-v1.6-vicuna-7b": "llava-next-7b",
    "llava-hf/llava-v1.6-vicuna-13b-hf": "llava-next-13b",
    "liuhaotian/llava-v1.6-vicuna-13b": "llava-next-13b",
    "qwen/qwen2-vl-7b-instruct": "qwen2-vl-7b",
    "qwen/qwen2.5-vl-7b-instruct": "qwen2.5-vl-7b",
    "languagebind/video-llava-7b-hf": "video-llava-7b",
}
_ID = re.compile(r"[\w.-]+/[\w.-]+")

# Of other model types it is not known how many visual tokens they make of a picture.
_KINDS = (
    "llava",
    "llava_next",
    "llava_onevision",
    "vipllava",
    "video_llava",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
)
_HEADS = "num_key_value_heads"
# Language models whose MLP has two matrices; all others that are met in multimodal models are gated.
_TWO_MATRICES = ("opt", "gpt2", "gptj", "gpt_neox", "bloom", "falcon", "phi", "mpt")


def architecture(
    model: Any,
    *,
    image_size: int | None = None,
    crops: int | None = None,
    picture: tuple[int, int] | None = None,
) -> Architecture:
    """The shapes of ``model``.

    Args:
        model: a preset's name, a Hugging Face config object, a local directory with a config.json, a hub name, whose
            config is fetched unless it is one of :data:`IDS`, or an :class:`Architecture`, which is returned.
        image_size: side of the picture that the tower sees, where that is free (Qwen2-VL); None: the model's own.
        crops: passes through the tower for one image; None: the model's own, 5 for LLaVA-NeXT.
        picture: (height, width) of every image in pixels, where crops, padding and line ends follow from them
            (LLaVA-NeXT); None: ``crops`` full ones without line ends, as papers count.

    Raises:
        ValueError: a name that is neither a preset nor a directory, a config that lacks a number, or ``picture`` with a
            model without such crops, or beside ``image_size`` or ``crops``. OSError: a hub name whose config can be had
            neither from the hub nor from its cache.

    Example:
        >>> from ficoco_ext.cost import architecture
        >>> architecture("llava-1.5-7b").language_model.hidden
        4096
        >>> architecture("llava-next-7b").visual_tokens, architecture("llava-next-7b", picture=(480, 640)).visual_tokens
        (2880, 2340)
    """
    if isinstance(model, Architecture):
        found = model
    elif isinstance(model, (str, Path)):
        name = str(model)
        directory = Path(name)
        if name.lower() in PRESETS:
            found = PRESETS[name.lower()]
        elif (directory / "config.json").is_file():
            found = _of_directory(directory, name)
        elif name.lower() in IDS:
            found = PRESETS[IDS[name.lower()]]
        elif isinstance(model, str) and _ID.fullmatch(name) and not directory.exists():
            found = _of_hub(name)
        else:
            raise ValueError(
                f"model must be one of {', '.join(PRESETS)}, a directory with a config.json, a hub name or a Hugging "
                f"Face config, got {name!r}{did_you_mean(name, PRESETS)}"
            )
    else:
        found = _from_config(model, "")
    if picture is not None:
        if image_size is not None or crops is not None:
            raise ValueError("picture must be None with image_size or crops: it says how many crops an image takes")
        return found.of_picture(picture)
    return found if image_size is None and crops is None else _resized(found, image_size, crops)


def _resized(given: Architecture, image_size: int | None, crops: int | None) -> Architecture:
    if given.picture is not None:
        raise ValueError(f"image_size and crops must be None: {given.name} was given the size of its pictures already")
    tower = given.tower if image_size is None else dataclasses.replace(given.tower, image_size=image_size)
    if tower.patches < tower.merge:
        raise ValueError(f"image_size must be at least {tower.patch}, one patch, got {image_size}")
    count = given.crops if crops is None else crops
    tokens = count * tower.patches // tower.merge + given.extra // given.crops * count
    return dataclasses.replace(given, tower=tower, crops=count, visual_tokens=tokens)


def _of_hub(name: str) -> Architecture:
    """The shapes that the config of a hub name says."""
    try:
        config, written = configs.parse(name, local=False)
    except OSError as error:
        raise OSError(
            f"model {name!r}: its config.json can be had neither from the hub nor from its cache; pass a directory "
            f"with the file, or one of {', '.join(PRESETS)}"
        ) from error
    return _said(config, written, f"config.json of {name}", name)


def _of_directory(directory: Path, name: str) -> Architecture:
    """The shapes that a directory's config says."""
    return _said(*_read(directory), f"{directory / 'config.json'}", name)


def _said(config: Any, written: dict[str, Any], where: str, name: str) -> Architecture:
    """The shapes that a config says, with what follows from its model types in the source."""
    defaulted = config_facts.defaulted(written, where)
    found = _from_config(config, name)
    parts = {part: getattr(config, f"{part}_config", config) for part in defaulted}
    if _HEADS in defaulted["text"] and getattr(parts["text"], _HEADS, None) is None:
        if isinstance(config, SimpleNamespace):
            raise ValueError(
                f"{where}: its text_config says no {_HEADS}, and what follows from its model_type "
                "is known to transformers alone, which is not installed; install it, or complete the file"
            )
        defaulted["text"].remove(_HEADS)  # of this type every head has its own
    meant = [
        f"{part} {number} {getattr(parts[part], number, 'unknown')}"
        for part, numbers in defaulted.items()
        for number in numbers
    ]
    if not meant:
        return found
    return dataclasses.replace(found, source=f"{found.source}; not in it, by its model types: {', '.join(meant)}")


def _read(directory: Path) -> tuple[Any, dict[str, Any]]:
    """The config as transformers understands it, and as written; without transformers only what its file spells out."""
    try:
        return configs.parse(str(directory), local=True)
    except ImportError:
        written = configs.read(directory)
        return json.loads(json.dumps(written), object_hook=lambda found: SimpleNamespace(**found)), written


def _number(config: Any, what: str, *names: str) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, (tuple, list)) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool):
            configs.check({name: value}, f"model: its {what} config")
            return value
    raise ValueError(f"model: its {what} config says no {' or '.join(names)}; is it a multimodal model's config?")


def _from_config(config: Any, name: str) -> Architecture:
    vision, text = getattr(config, "vision_config", None), getattr(config, "text_config", None)
    if text is None and vision is not None:
        text = config  # older Qwen2-VL configs hold the language model's numbers themselves
    if vision is None or text is None:
        wanted = f"a name ({', '.join(PRESETS)}), a directory with a config.json, or a multimodal Hugging Face config"
        raise ValueError(f"model must be {wanted} with a vision_config and a text_config, got {type(config).__name__}")
    language_model = _language_model(text)
    kind = str(getattr(config, "model_type", type(config).__name__))
    source = f"config of {name or kind}"
    if hasattr(config, "model_type") and kind not in _KINDS:
        raise ValueError(
            f"model: how many visual tokens a model of the type {kind!r} makes of a picture is not known; known are "
            f"{', '.join(_KINDS)}"
        )
    if hasattr(vision, "spatial_merge_size"):
        return _qwen(vision, language_model, name or kind, source)
    if kind == "internvl":
        return _internvl(config, vision, language_model, name or kind, source)
    tower = _tower(config, vision)
    crops = {"llava_next": 5, "llava_onevision": 10, "video_llava": 8}.get(kind, 1)
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ValueError(f"model: vision_feature_select_strategy must be 'default' or 'full', got {strategy!r}")
    whole = strategy == "full" or kind == "video_llava"
    extra = crops if whole and tower.class_token else 0
    width = language_model.hidden
    projector = Projector(tower.hidden * tower.joined, width, width)
    visual = crops * tower.patches + extra
    apart = kind == "video_llava"  # it projects frame by frame
    points = pinpoints.of_config(config, tower.image_size) if kind == "llava_next" else ()
    return Architecture(
        name or kind, tower, projector, language_model, visual, crops, source, apart=apart, pinpoints=points
    )


def _language_model(text: Any) -> LanguageModel:
    hidden, heads = _number(text, "text", "hidden_size"), _number(text, "text", "num_attention_heads")
    kv = getattr(text, "num_key_value_heads", None)
    width = getattr(text, "head_dim", None)
    return LanguageModel(
        layers=_number(text, "text", "num_hidden_layers"),
        hidden=hidden,
        mlp=_number(text, "text", "intermediate_size", "ffn_dim"),
        heads=heads,
        kv_heads=kv if kv is not None else heads,
        head_dim=width if width is not None else hidden // heads,
        vocabulary=_number(text, "text", "vocab_size"),
        gated=getattr(text, "model_type", "") not in _TWO_MATRICES,
    )


def _tower(config: Any, vision: Any) -> Tower:
    layers = _number(vision, "vision", "num_hidden_layers")
    selected = _selected(config, layers)
    deepest = max(selected)
    return Tower(
        layers=layers,
        used=deepest,
        hidden=_number(vision, "vision", "hidden_size"),
        mlp=_number(vision, "vision", "intermediate_size"),
        heads=_number(vision, "vision", "num_attention_heads"),
        patch=_number(vision, "vision", "patch_size"),
        image_size=_number(vision, "vision", "image_size"),
        class_token="siglip" not in str(getattr(vision, "model_type", "")),
        joined=len(selected),
    )


def _selected(config: Any, layers: int) -> tuple[int, ...]:
    """The layers whose outputs the projector gets, counted from 1."""
    name = "vision_feature_layers" if hasattr(config, "vision_feature_layers") else "vision_feature_layer"
    given = getattr(config, name, -1)
    several = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    found = tuple(
        one if one >= 0 else layers + 1 + one for one in several if isinstance(one, int) and not isinstance(one, bool)
    )
    if not found or len(found) != len(several) or not all(0 <= one <= layers for one in found) or not max(found):
        raise ValueError(
            f"model: {name} must name layers of a tower of {layers}, in {-layers} ... {layers} without 0, got {given!r}"
        )
    return found


def _qwen(vision: Any, language_model: LanguageModel, name: str, source: str) -> Architecture:
    width = getattr(vision, "embed_dim", None)
    levels = getattr(vision, "deepstack_visual_indexes", None)
    own = width is None  # from Qwen2.5-VL on hidden_size is the tower's
    gated = own and levels is None  # an MLP of three matrices
    width = _number(vision, "vision", "hidden_size") if width is None else width
    if not own:
        configs.check({"embed_dim": width, "mlp_ratio": vision.mlp_ratio}, "model: its vision config")
    mlp = _number(vision, "vision", "intermediate_size") if own else int(width * vision.mlp_ratio)
    merge = vision.spatial_merge_size**2
    depth = _number(vision, "vision", "depth")
    tower = Tower(
        layers=depth,
        used=depth,
        hidden=width,
        mlp=mlp,
        heads=_number(vision, "vision", "num_heads"),
        patch=_number(vision, "vision", "patch_size"),
        image_size=48 * vision.patch_size,
        class_token=False,
        gated=gated,
        merge=merge,
        channels=3 * vision.temporal_patch_size,
        window=(getattr(vision, "window_size", None) or 0) // vision.patch_size,
        full=tuple(getattr(vision, "fullatt_block_indexes", None) or ()),
    )
    projector = Projector(width * merge, width * merge, language_model.hidden)
    visual, deepstack = tower.patches // merge, len(levels or ())
    return Architecture(name, tower, projector, language_model, visual, source=source, deepstack=deepstack)


def _internvl(config: Any, vision: Any, language_model: LanguageModel, name: str, source: str) -> Architecture:
    """One tile; more of them are crops."""
    ratio = getattr(config, "downsample_ratio", None)
    if not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
        raise ValueError(f"model: its config must have a downsample_ratio in (0, 1], got {ratio!r}")
    merge = int(1 / ratio) ** 2
    tower = dataclasses.replace(_tower(config, vision), merge=merge, trained_class=False)
    width = language_model.hidden
    projector = Projector(tower.hidden * merge, width, width)
    return Architecture(name, tower, projector, language_model, tower.patches // merge, source=source, apart=True)
