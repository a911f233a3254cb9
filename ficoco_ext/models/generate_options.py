"""Arguments of ``generate`` and ``forward``: by name, options as ``generate`` would resolve them, what is refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ..ops import checks

_UNSUPPORTED = ("prefill_chunk_size", "assistant_model", "token_healing")
_IMAGES = ("pixel_values", "pixel_values_images", "pixel_values_videos")


def named(function: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, positional ones too."""
    found = dict(inspect.signature(function).bind(owner, *args, **kwargs).arguments)
    found.pop("self")
    found.update(found.pop("kwargs", {}))
    return found


def images_of(options: dict[str, Any]) -> int:
    """Images that come with a call, raw or encoded: a host number."""
    for name in _IMAGES:
        if options.get(name) is not None:
            return int(options[name].shape[0])
    for encoded in (options.get("mm_encoder_outputs") or {}).values():
        if encoded is not None:
            return len(encoded.pooler_output)
    return 0


def given_of(options: Mapping[str, Any]) -> Any:
    """The ids (B, L), or else the embeddings (B, L, C), of a call; None: neither."""
    ids = options.get("input_ids")
    return options.get("inputs_embeds") if ids is None else ids


def option(model: Any, name: str, options: dict[str, Any]) -> Any:
    """A generation option as ``generate`` would resolve it."""
    for value in (
        options.get(name),
        getattr(options.get("generation_config"), name, None),
        getattr(model.generation_config, name, None),
    ):
        if value is not None:
            return value
    return None


def refuse_unsupported(model: Any, options: dict[str, Any]) -> None:
    """Raise for ways to generate that count the full prompt again, or that read another prompt."""
    asked = {name: option(model, name, options) for name in _UNSUPPORTED}
    asked["continuous batching"] = option(model, "cache_implementation", options) == "paged"
    asked["custom_generate from a repository"] = isinstance(options.get("custom_generate"), str)
    for name, value in asked.items():
        if value:
            message = f"{name} is not supported with images; leave it out, or detach first"
            raise NotImplementedError(f"ficoco::generate: {message}")


def filler(model: Any, placeholders: Sequence[int]) -> int:
    """An id for masked positions: padding if the model has it, never one of ``placeholders``."""
    for config in (model.generation_config, model.config.get_text_config()):
        pad = getattr(config, "pad_token_id", None)
        if isinstance(pad, int) and pad >= 0 and pad not in placeholders:
            return pad
    return next(token for token in range(len(placeholders) + 1) if token not in placeholders)


def refuse_router_logits(model: Any, options: dict[str, Any]) -> None:
    """Raise for a call that asks for the router logits of a mixture of experts, or whose config does.

    Layers after a reduction route fewer tokens, and the load balancing loss compares all layers with one mask.
    """
    asked = options.get("output_router_logits")
    if asked is None:
        asked = getattr(model.config.get_text_config(), "output_router_logits", False)
    if asked:
        remedy = "pass output_router_logits=False: layers come to have unequally many tokens"
        checks.fail(
            "forward", "output_router_logits", "False in a call with images", asked, remedy, NotImplementedError
        )
