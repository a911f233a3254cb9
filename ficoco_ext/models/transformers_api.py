"""Every name of transformers that this package relies on, besides the classes that ``families`` declares.

Names differ between releases (5.24 calls ``cache`` what was ``past_key_values``), so they are read from the classes
that are installed, never derived from a version number. Nothing here imports transformers before a function runs.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

CACHE = "past_key_values"  # every tested release takes it; newer ones rename it to the next one first
CACHE_NEW = "cache"
TOKEN_TYPES = "mm_token_type_ids"  # (B, L), 0 for text, others for images and videos
RETURN_DICT = "return_dict"  # taken by a decorator of every forward


def model_class(module: str, name: str) -> Any:
    """A class of ``transformers.models``."""
    return getattr(importlib.import_module(f"transformers.models.{module}"), name)


def rotary_embedding() -> Any:
    """The class of Llama's rotary embedding."""
    return model_class("llama.modeling_llama", "LlamaRotaryEmbedding")


def crops_of(inner: Any, size: tuple[int, int]) -> int:
    """Crops into which a model with a list of resolutions cuts a picture of ``size`` (height, width)."""
    shape = sys.modules[type(inner).__module__].get_anyres_image_grid_shape
    rows, columns = shape(size, inner.config.image_grid_pinpoints, inner.config.vision_config.image_size)
    return int(rows * columns)


# Caches


def cache_name(forward: Callable[..., Any]) -> str:
    """What ``forward`` calls its cache."""
    return CACHE_NEW if CACHE_NEW in inspect.signature(forward).parameters else CACHE


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
    if isinstance(output, tuple):
        return next((one for one in output if hasattr(one, "get_seq_length")), None)
    for name in (CACHE_NEW, CACHE):
        found = getattr(output, name, None)
        if found is not None:
            return found
    return None


def is_static(cache: Any) -> bool:
    """Whether a cache has a fixed number of slots and keeps its length on the device."""
    return bool(getattr(cache, "is_compileable", False))


def growing_layer(cache: Any, layer: int) -> Any:
    """A layer of a cache whose keys and values are tensors (B, H, W, d) that grow with every call; None: another kind.

    Attributes ``keys`` and ``values`` may be replaced by shorter ones. They may be offloaded from its ``device``.
    """
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", ())
    return layers[layer] if layer < len(layers) and type(layers[layer]) is DynamicLayer else None


# Masks

FULL_ATTENTION = "full_attention"


def full_mask(mask: Any) -> Any:
    """The mask of layers with full attention, None where none is needed.

    A model whose config has ``layer_types`` gets a dict with a mask, or None, for each of them.
    """
    return mask.get(FULL_ATTENTION) if isinstance(mask, dict) else mask


def causal_mask(config: Any, tokens: Tensor, keys: Tensor, cache: Any, layer: int) -> Any:
    """A causal mask in the model's own form, for queries ``tokens`` (B, Q, C) and the True ones of ``keys`` (B, K)."""
    from transformers.masking_utils import create_causal_mask

    return create_causal_mask(config, tokens, keys, cache, layer_idx=layer, allow_is_causal_skip=False)


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


# Training


def checkpointing(layer: Any) -> Callable[..., Any] | None:
    """What runs a function of hidden states so that a backward pass computes it again; None if nothing has to.

    For a layer whose ``forward`` was replaced. Releases that checkpoint in the forward of its class leave that to the
    replacement; those that checkpoint in ``__call__`` do it around the replacement too.
    """
    on = getattr(layer, "gradient_checkpointing", False) and layer.training and torch.is_grad_enabled()
    return layer._gradient_checkpointing_func if on and type(layer).__call__ is nn.Module.__call__ else None


def loss_arguments(forward: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of the whole model that it passes on to its loss function."""
    named = inspect.signature(forward).parameters
    return {name: value for name, value in options.items() if name not in named and name not in (CACHE, RETURN_DICT)}


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


def is_from_transformers(callback: Any) -> bool:
    """Whether a logits processor or a stopping criterion is one of transformers' own."""
    return type(callback).__module__.startswith("transformers.")
