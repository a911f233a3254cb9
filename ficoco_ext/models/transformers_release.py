"""Whether the installed transformers is a release that was tested, and whether it has the classes that we know."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any

from .families import FAMILIES, LANGUAGE_MODELS, TOWERS, Family, Tower
from .modalities import Modality
from .transformers_api import CACHE, CACHE_NEW, cache_name, model_class

TESTED_OLDEST = "5.17.0"
TESTED_NEWEST = "5.24.0"
REMEDY = f'pip install "transformers<={TESTED_NEWEST}"'

# Arguments that must be there.
_TOWER_LAYER = ("self", "hidden_states", "attention_mask", "kwargs")
_MODEL = {"input_ids", "attention_mask", "position_ids", "inputs_embeds"}
_HEAD = {"labels", "logits_to_keep"}
_LANGUAGE_MODEL = {"input_ids", "attention_mask", "position_ids", "inputs_embeds"}
_DEEPSTACK = {"visual_pos_masks", "deepstack_visual_embeds"}
_LAYER = {"hidden_states", "attention_mask", "position_ids", "position_embeddings"}
_ATTENTION = {"hidden_states", "attention_mask", "position_embeddings"}
_GENERATE = {"inputs", "generation_config", "logits_processor", "stopping_criteria", "streamer"}
_PACKING = {"image_features", "image_sizes", "vision_feature_select_strategy", "image_newline"}
_CREATE_MASK = ("config", "inputs_embeds", "attention_mask")  # in this order, and the cache after them
_CREATE_MASK_ALSO = {"layer_idx", "allow_is_causal_skip"}
_CACHE_METHODS = ("get_seq_length", "reorder_cache", "batch_select_indices", "batch_repeat_interleave", "reset")


def version() -> tuple[int, int, int] | None:
    """The installed release, None if its version has no numbers."""
    import transformers

    return _numbers(transformers.__version__)


def _numbers(text: str) -> tuple[int, int, int] | None:
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3] or 0))


def newer_than_tested() -> bool:
    """Whether the installed release is newer than those that were tested."""
    found, newest = version(), _numbers(TESTED_NEWEST)
    assert newest is not None
    return found is not None and found > newest


def structure_problems() -> dict[str, str]:
    """Families that the installed transformers no longer has in the form that we know.

    Returns:
        The reason for each such family by its name; empty if all is well. Where transformers is not installed, that is
        the reason.

    Cost: imports the model code of every family, about a second the first time.
    """
    found = {}
    for family in FAMILIES:
        reason = structure_problem(family)
        if reason is not None:
            found[family.name] = reason
    return found


def structure_problem(family: Family) -> str | None:
    """Why the installed transformers has this family in a form that we do not know; None if we do."""
    try:
        _check_shared()
        _check_model(family)
        for name in family.towers:
            _check_tower(TOWERS[name])
    except _UnknownError as error:
        return str(error)
    except (ImportError, AttributeError) as error:  # a module or a class is gone
        return str(error)
    return None


class _UnknownError(Exception):
    """Something has not the form that we know."""


def _parameters(function: Any, what: str) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError) as error:
        raise _UnknownError(f"{what} has no signature that can be read") from error


def _takes(owner: Any, wanted: Iterable[str], function: str = "forward", cache: str | None = None) -> None:
    what = f"{owner.__name__}.{function}"
    given = _parameters(getattr(owner, function), what)
    missing = sorted({*wanted, *([] if cache is None else [cache])} - set(given))
    if missing:
        raise _UnknownError(f"{what} must be one that takes {', '.join(missing)}, got ({', '.join(given)})")


def _takes_pixels(owner: Any, modality: Modality) -> None:
    """By one of its two names."""
    given = _parameters(owner.forward, f"{owner.__name__}.forward")
    _takes(owner, () if modality.other_pixels in given else (modality.pixels,))


def _check_model(family: Family) -> None:
    model = family.model_class()
    cache = cache_name(model.forward)
    inner = model_class(family.module, family.inner)
    _takes(model, _MODEL | _HEAD | set(family.token_types), cache=cache)
    _takes(model, _GENERATE, "generate")
    _takes(inner, _MODEL | set(family.token_types), cache=cache)
    for one in family.modalities:
        _takes_pixels(model, one)
        _takes_pixels(inner, one)
        _takes(inner, (), one.method)
    if family.crops:
        _takes(inner, _PACKING, "pack_image_features")
    if family.rope_index:
        _takes(inner, {"input_ids", "attention_mask"}, "get_rope_index")
    for whole, layer, attention in (LANGUAGE_MODELS[name].classes() for name in family.language_models):
        _takes(whole, _LANGUAGE_MODEL | (_DEEPSTACK if family.deepstack else set()), cache=cache)
        _takes(layer, _LAYER, cache=cache)
        _takes(attention, _ATTENTION, cache=cache)
        _has_eager_attention(attention)


def _check_tower(tower: Tower) -> None:
    _, layer, attention = tower.classes()
    given = tuple(_parameters(layer.forward, f"{layer.__name__}.forward"))
    if given != _TOWER_LAYER:
        wanted = f"({', '.join(_TOWER_LAYER)})"
        raise _UnknownError(f"{layer.__name__}.forward must be {wanted}, got ({', '.join(given)})")
    _has_eager_attention(attention)


def _has_eager_attention(attention: Any) -> None:
    if not callable(getattr(sys.modules[attention.__module__], "eager_attention_forward", None)):
        raise _UnknownError(f"{attention.__module__} has no eager_attention_forward")


def _shared_problem() -> str | None:
    from transformers import AttentionInterface
    from transformers.cache_utils import Cache
    from transformers.masking_utils import create_causal_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    mask = _parameters(create_causal_mask, "create_causal_mask")
    if tuple(mask[:3]) != _CREATE_MASK or mask[3] not in (CACHE_NEW, CACHE) or not set(mask) >= _CREATE_MASK_ALSO:
        return f"create_causal_mask must be the one that we know, got ({', '.join(mask)})"
    missing = [f"Cache.{name}" for name in _CACHE_METHODS if not callable(getattr(Cache, name, None))]
    missing += ["Cache.is_compileable"] if not hasattr(Cache, "is_compileable") else []
    missing += ["AttentionInterface.register"] if not hasattr(AttentionInterface, "register") else []
    missing += ["get_interface"] if not hasattr(ALL_ATTENTION_FUNCTIONS, "get_interface") else []
    return f"there is no {', '.join(missing)}" if missing else None


def _check_shared() -> None:
    reason = _shared_problem()
    if reason is not None:
        raise _UnknownError(reason)
