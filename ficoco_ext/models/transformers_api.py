"""Every name and shape of transformers that this package relies on, and whether the installed release has them.

Names differ between releases (5.24 calls ``cache`` what was ``past_key_values``), so they are read from the classes
that are installed, never concluded from a version number. Nothing here imports transformers before a function runs.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

TESTED_OLDEST = "5.17.0"
TESTED_NEWEST = "5.24.0"
REMEDY = f'pip install "transformers<={TESTED_NEWEST}"'

CACHE = "past_key_values"  # what every tested release takes; newer ones rename it to the next before they read it
_CACHE_NEW = "cache"


class Model(NamedTuple):
    """Where a served model is.

    Attributes:
        module, model: its module and class.
        inner: the class inside it that joins pictures and words.
        decoders: language models that it is served with, keys of :data:`LANGUAGE_MODELS`.
        tower: its tower is reduced, and so must be the CLIP tower that we know.
    """

    module: str
    model: str
    inner: str
    decoders: tuple[str, ...]
    tower: bool = False


class LanguageModel(NamedTuple):
    """Where a language model is: its module, and the classes of the model, of its layers and of their attention."""

    module: str
    model: str
    layer: str
    attention: str


_LLAVA_DECODERS = ("llama", "mistral", "qwen2")
LLAVA_TOWERS = ("clip_vision_model", "siglip_vision_model")  # the second one is not reduced, its language model is
MODELS = {
    "LLaVA-1.5": Model(
        "llava.modeling_llava", "LlavaForConditionalGeneration", "LlavaModel", _LLAVA_DECODERS, tower=True
    ),
    "LLaVA-NeXT": Model(
        "llava_next.modeling_llava_next", "LlavaNextForConditionalGeneration", "LlavaNextModel", _LLAVA_DECODERS
    ),
    "Qwen2-VL": Model("qwen2_vl.modeling_qwen2_vl", "Qwen2VLForConditionalGeneration", "Qwen2VLModel", ("qwen2_vl",)),
    "Qwen2.5-VL": Model(
        "qwen2_5_vl.modeling_qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel", ("qwen2_5_vl",)
    ),
}

# Language models whose layers have the one body that we know.
LANGUAGE_MODELS = {
    "llama": LanguageModel("llama.modeling_llama", "LlamaModel", "LlamaDecoderLayer", "LlamaAttention"),
    "mistral": LanguageModel("mistral.modeling_mistral", "MistralModel", "MistralDecoderLayer", "MistralAttention"),
    "qwen2": LanguageModel("qwen2.modeling_qwen2", "Qwen2Model", "Qwen2DecoderLayer", "Qwen2Attention"),
    "qwen2_vl": LanguageModel(
        "qwen2_vl.modeling_qwen2_vl", "Qwen2VLTextModel", "Qwen2VLDecoderLayer", "Qwen2VLAttention"
    ),
    "qwen2_5_vl": LanguageModel(
        "qwen2_5_vl.modeling_qwen2_5_vl", "Qwen2_5_VLTextModel", "Qwen2_5_VLDecoderLayer", "Qwen2_5_VLAttention"
    ),
}

_TOWER = "clip.modeling_clip"
_TOWER_CLASSES = ("CLIPVisionModel", "CLIPEncoderLayer", "CLIPAttention")
_TOWER_LAYER = ("self", "hidden_states", "attention_mask", "kwargs")
_MODEL = {"input_ids", "pixel_values", "attention_mask", "position_ids", "inputs_embeds"}
_HEAD = {"labels", "logits_to_keep"}
_LANGUAGE_MODEL = {"input_ids", "attention_mask", "position_ids", "inputs_embeds"}
_LAYER = {"hidden_states", "attention_mask", "position_ids", "position_embeddings"}
_ATTENTION = {"hidden_states", "attention_mask", "position_embeddings"}
_GENERATE = {"inputs", "generation_config", "logits_processor", "stopping_criteria", "streamer"}
_CREATE_MASK = ("config", "inputs_embeds", "attention_mask")  # by place, and the cache behind them
_CREATE_MASK_ALSO = {"layer_idx", "allow_is_causal_skip"}
_CACHE_METHODS = ("get_seq_length", "reorder_cache", "batch_select_indices", "batch_repeat_interleave", "reset")


def model_class(module: str, name: str) -> Any:
    """A class of ``transformers.models``."""
    return getattr(importlib.import_module(f"transformers.models.{module}"), name)


def family_class(family: str) -> Any:
    """The class of a served model, by the name of its family."""
    return model_class(MODELS[family].module, MODELS[family].model)


def tower_classes() -> tuple[Any, Any, Any]:
    """The CLIP tower, its layer and the attention of a layer."""
    tower, layer, attention = (model_class(_TOWER, name) for name in _TOWER_CLASSES)
    return tower, layer, attention


def rotary_embedding() -> Any:
    """The class of Llama's rotary embedding."""
    return model_class(LANGUAGE_MODELS["llama"].module, "LlamaRotaryEmbedding")


# Caches


def cache_name(forward: Callable[..., Any]) -> str:
    """What ``forward`` calls its cache."""
    return _CACHE_NEW if _CACHE_NEW in inspect.signature(forward).parameters else CACHE


def cache_of(options: Mapping[str, Any], name: str) -> Any:
    """The cache among the arguments of a call, given by ``name`` or by the older one.

    Args:
        options: arguments by name.
        name: what the model calls its cache, :func:`cache_name` of its forward. As in transformers it goes first.
    """
    return options[name] if name in options else options.get(CACHE)


def without_cache(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The arguments of a call with no cache."""
    return {key: value for key, value in options.items() if key not in (name, CACHE)} | {name: None}


def output_cache(output: Any) -> Any:
    """The cache in what a model or ``generate`` returned, whatever this release calls it; None if there is none."""
    for name in (_CACHE_NEW, CACHE):
        found = getattr(output, name, None)
        if found is not None:
            return found
    return None


def is_static(cache: Any) -> bool:
    """Whether a cache has a fixed number of places and keeps its length on the device."""
    return bool(getattr(cache, "is_compileable", False))


# Masks

FULL_ATTENTION = "full_attention"


def full_mask(mask: Any) -> Any:
    """The mask of layers with full attention, None where none is needed.

    A model whose config has ``layer_types`` gets a dict with a mask, or None, for each of them.
    """
    return mask.get(FULL_ATTENTION) if isinstance(mask, dict) else mask


def causal_mask(config: Any, tokens: Tensor, there: Tensor, cache: Any, layer: int) -> Any:
    """A causal mask in the model's own form, for queries ``tokens`` (B, Q, C) and keys ``there`` (B, K) bool."""
    from transformers.masking_utils import create_causal_mask

    return create_causal_mask(config, tokens, there, cache, layer_idx=layer, allow_is_causal_skip=False)


# Attention kernels


def register_attention(name: str, function: Callable[..., Any]) -> None:
    """Put ``function`` into the table of attention kernels."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)


def attention_kernel(module: Any, name: str) -> Callable[..., Any]:
    """The attention kernel called ``name``; the eager one is in the module's own file, not in the table."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = sys.modules[type(module).__module__].eager_attention_forward
    kernel: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    return kernel


def attention_name(config: Any) -> str:
    """The attention kernel that a config names."""
    return str(config._attn_implementation)


def reads_positions(name: str) -> bool:
    """Whether a kernel takes position ids that jump, where no mask comes with them, for several packed sequences."""
    return "flash" in name


def with_attention(config: Any, name: str) -> Any:
    """A shallow copy of ``config`` that names another attention kernel. The config is not written."""
    ours = copy.copy(config)
    ours._attn_implementation_internal = name
    return ours


# What generate calls back

# Numbers of logits processors and stopping criteria that count tokens of the prompt.
PROMPT_LENGTHS = (
    "max_length",
    "min_length",
    "prompt_length_to_skip",
    "prompt_ignore_length",
    "regulation_start",
    "begin_index",
)


# The caller's function in the logits processor that restricts tokens by what came before.
PREFIX_FUNCTION = "_prefix_allowed_tokens_fn"


def is_own(callback: Any) -> bool:
    """Whether a logits processor or a stopping criterion is one of transformers itself."""
    return type(callback).__module__.startswith("transformers.")


# Is this a release that we know?


def version() -> tuple[int, int, int] | None:
    """The installed release, None if its version says no numbers."""
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
        The reason for each such family by its name, a key of :data:`MODELS`; empty if all is well. Where transformers
        is not installed, that is the reason.

    Cost: imports the model code of every family, about a second the first time.
    """
    found = {}
    for family in MODELS:
        reason = structure_problem(family)
        if reason is not None:
            found[family] = reason
    return found


def structure_problem(family: str) -> str | None:
    """Why the installed transformers has this family in a form that we do not know; None if we do.

    Args:
        family: a key of :data:`MODELS`.
    """
    try:
        _check_shared()
        _check_model(MODELS[family])
        if MODELS[family].tower:
            _check_tower()
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


def _check_model(names: Model) -> None:
    model = model_class(names.module, names.model)
    cache = cache_name(model.forward)
    _takes(model, _MODEL | _HEAD, cache=cache)
    _takes(model, _GENERATE, "generate")
    _takes(model_class(names.module, names.inner), _MODEL, cache=cache)
    for decoder in (LANGUAGE_MODELS[name] for name in names.decoders):
        whole, layer, attention = (model_class(decoder.module, name) for name in decoder[1:])
        _takes(whole, _LANGUAGE_MODEL, cache=cache)
        _takes(layer, _LAYER, cache=cache)
        _takes(attention, _ATTENTION, cache=cache)
        if not callable(getattr(sys.modules[attention.__module__], "eager_attention_forward", None)):
            raise _UnknownError(f"{attention.__module__} has no eager_attention_forward")


def _check_tower() -> None:
    _, layer, attention = tower_classes()
    given = tuple(_parameters(layer.forward, f"{layer.__name__}.forward"))
    if given != _TOWER_LAYER:
        wanted = f"({', '.join(_TOWER_LAYER)})"
        raise _UnknownError(f"{layer.__name__}.forward must be {wanted}, got ({', '.join(given)})")
    if not callable(getattr(sys.modules[attention.__module__], "eager_attention_forward", None)):
        raise _UnknownError(f"{attention.__module__} has no eager_attention_forward")


def _shared_problem() -> str | None:
    from transformers import AttentionInterface
    from transformers.cache_utils import Cache
    from transformers.masking_utils import create_causal_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    mask = _parameters(create_causal_mask, "create_causal_mask")
    if tuple(mask[:3]) != _CREATE_MASK or mask[3] not in (_CACHE_NEW, CACHE) or not set(mask) >= _CREATE_MASK_ALSO:
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
