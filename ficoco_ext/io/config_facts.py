"""What a multimodal model's config.json must say: no default stands in for a fact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_VISION = {
    "hidden_size": ("hidden_size", "embed_dim"),
    "intermediate_size": ("intermediate_size", "mlp_ratio"),
    "num_attention_heads": ("num_attention_heads", "num_heads"),
    "num_hidden_layers": ("num_hidden_layers", "depth"),
    "patch_size": ("patch_size",),
    "image_size": ("image_size", "spatial_merge_size"),  # of a tower that merges blocks the size is free
}
_TEXT = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "n_inner"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "vocab_size": ("vocab_size",),
}


def defaulted(config: Mapping[str, Any], source: str) -> dict[str, list[str]]:
    """Check that a multimodal model's config describes its two parts.

    transformers writes numbers that are a model type's defaults not always out: where a part names its type, those
    defaults are what the file means. Where it names none they would be another model's.

    Args:
        config: the dictionary of the file.
        source: what messages call it.

    Returns:
        For ``"vision"`` and ``"text"`` the numbers that are not in the file and follow from the type.

    Raises:
        ValueError: a part is missing, or a number that does not follow from its type either; the message names them.

    Example:
        >>> from ficoco_ext.io.config_facts import defaulted
        >>> text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
        >>> try:
        ...     defaulted({"model_type": "llava", "text_config": text}, "config.json")
        ... except ValueError as error:
        ...     print(str(error).partition(";")[0])
        config.json has no vision_config
    """
    parts = {"vision": (config.get("vision_config"), _VISION), "text": (config.get("text_config"), _TEXT)}
    if not parts["text"][0] and config.get("vision_config") and _has(config, _TEXT["hidden_size"]):
        parts["text"] = (config, _TEXT)  # older Qwen2-VL configs hold the language model's numbers themselves
    gone = [f"{name}_config" for name, (part, _) in parts.items() if not isinstance(part, Mapping) or not part]
    if gone:
        raise ValueError(f"{source} has no {' and no '.join(gone)}; {_whose(config)}")
    found: dict[str, list[str]] = {}
    for name, (part, wanted) in parts.items():
        assert isinstance(part, Mapping)
        found[name] = [number for number, names in wanted.items() if not _has(part, names)]
        if found[name] and not part.get("model_type"):
            raise ValueError(
                f"{source}: its {name}_config says neither {', '.join(found[name])} nor its model_type, whose defaults "
                "they could be; complete it"
            )
    return found


def _has(part: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return any(part.get(name) is not None for name in names)


def _whose(config: Mapping[str, Any]) -> str:
    if theirs := [name for name in config if name.startswith("mm_")]:
        return (
            f"with {', '.join(theirs)} it is written as LLaVA's own project writes it: take the checkpoint that was "
            "converted for transformers, whose name often ends in -hf"
        )
    return "it must be the config of a multimodal model as transformers writes it"
