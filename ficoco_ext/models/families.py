"""Which models are served, and how far: an allowlist, for a similar layer, hooked alike, would go wrong silently."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

from .. import checks


@dataclass(frozen=True)
class Family:
    """A model class of transformers.

    Attributes:
        name: what people call it.
        module, model: where its class is.
        placeholders: attributes of its config that hold ids of visual tokens.
        vision: None if its tower can be reduced, else why not.
        decoders: language models that it is served with, keys of :data:`DECODERS`.
    """

    name: str
    module: str
    model: str
    placeholders: tuple[str, ...]
    vision: str | None
    decoders: tuple[str, ...]


FAMILIES = (
    Family(
        "LLaVA-1.5",
        "llava.modeling_llava",
        "LlavaForConditionalGeneration",
        ("image_token_id",),
        None,
        ("llama", "mistral", "qwen2"),
    ),
    Family(
        "LLaVA-NeXT",
        "llava_next.modeling_llava_next",
        "LlavaNextForConditionalGeneration",
        ("image_token_id",),
        "its crops are laid out as grids behind the tower, unpadded and given line ends, which needs every patch; "
        "only its language model can be reduced",
        ("llama", "mistral", "qwen2"),
    ),
    Family(
        "Qwen2-VL",
        "qwen2_vl.modeling_qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        ("image_token_id", "video_token_id"),
        "its tower has no class token and merges whole blocks of 2 x 2 patches; only its language model can be reduced",
        ("qwen2_vl",),
    ),
    Family(
        "Qwen2.5-VL",
        "qwen2_5_vl.modeling_qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        ("image_token_id", "video_token_id"),
        "its tower has no class token, attends in windows and merges whole blocks of 2 x 2 patches; only its language "
        "model can be reduced",
        ("qwen2_5_vl",),
    ),
)

# Language models whose layers have the one body that we know: model, layer, attention.
DECODERS = {
    "llama": ("llama.modeling_llama", "LlamaModel", "LlamaDecoderLayer", "LlamaAttention"),
    "mistral": ("mistral.modeling_mistral", "MistralModel", "MistralDecoderLayer", "MistralAttention"),
    "qwen2": ("qwen2.modeling_qwen2", "Qwen2Model", "Qwen2DecoderLayer", "Qwen2Attention"),
    "qwen2_vl": ("qwen2_vl.modeling_qwen2_vl", "Qwen2VLTextModel", "Qwen2VLDecoderLayer", "Qwen2VLAttention"),
    "qwen2_5_vl": (
        "qwen2_5_vl.modeling_qwen2_5_vl",
        "Qwen2_5_VLTextModel",
        "Qwen2_5_VLDecoderLayer",
        "Qwen2_5_VLAttention",
    ),
}
_LAYER_ARGUMENTS = {"hidden_states", "attention_mask", "position_ids", "past_key_values", "position_embeddings"}


def _class(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"transformers.models.{module}"), name)


def unsupported(argument: str, wanted: str, got: object, remedy: str) -> NoReturn:
    """Raise NotImplementedError in the words of every check."""
    checks.fail("attach", argument, wanted, got if isinstance(got, str) else repr(got), remedy, NotImplementedError)


def family_of(model: Any) -> Family:
    """The family of ``model``, whose class must be one of ours, not a relative of it."""
    names = ", ".join(family.model for family in FAMILIES)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        unsupported("model", f"one of {names}", type(model).__name__, "attach to model.module, one process a GPU")
    for family in FAMILIES:
        if type(model).__name__ == family.model and type(model) is _class(family.module, family.model):
            return family
    remedy = "no other model is supported; take a wrapped one out first (model.module, get_base_model(), _orig_mod)"
    unsupported("model", f"one of {names}", type(model).__name__, remedy)


def require_vision(family: Family) -> None:
    """Raise unless the tower can be reduced."""
    if family.vision is not None:
        remedy = "use a method for the language model, such as 'ficoco-l'"
        unsupported("method", f"one for the language model of {family.name}", family.vision, remedy)


def check_decoder(language_model: Any, family: Family) -> None:
    """Raise unless every layer is one whose body we know, attending to all tokens before it."""
    config = language_model.config
    for module, *names in (DECODERS[key] for key in family.decoders):
        if type(language_model).__name__ == names[0]:
            model_class, layer_class, attention_class = (_class(module, name) for name in names)
            break
    else:
        wanted = f"one of {', '.join(DECODERS[key][1] for key in family.decoders)}"
        unsupported("language model", wanted, type(language_model).__name__, "no other one is supported")
    if type(language_model) is not model_class:
        unsupported("language model", f"a {names[0]} of transformers", type(language_model).__name__, "unwrap it first")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds or (getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)):
        got = ", ".join(sorted(kinds)) or f"sliding_window={config.sliding_window}"
        unsupported(
            "layer_types", "full attention in every layer", got, "a window counts tokens that reduction removes"
        )
    if config._attn_implementation == "flex_attention":
        remedy = 'call model.set_attn_implementation("sdpa")'
        unsupported("attention implementation", "sdpa, eager or flash attention", "flex_attention", remedy)
    for index, layer in enumerate(language_model.layers):
        argument, attention = f"decoder layer {index}", getattr(layer, "self_attn", None)
        if type(layer) is not layer_class or type(attention) is not attention_class:
            got = f"{type(layer).__name__} with {type(attention).__name__}"
            unsupported(argument, f"a {names[1]} with {names[2]}", got, "unwrap the layer before attaching")
        body = vars(layer).get("_old_forward", vars(layer).get("forward"))  # accelerate keeps the body in _old_forward
        if body is not None and getattr(body, "__func__", None) is not layer_class.forward:
            remedy = "undo that replacement before attaching"
            checks.fail("attach", argument, "one with its own forward", "a replaced forward", remedy)
    given = set(inspect.signature(layer_class.forward).parameters)
    if not given >= _LAYER_ARGUMENTS:
        remedy = "transformers changed the layer; install an older release and report it"
        wanted = f"({', '.join(sorted(_LAYER_ARGUMENTS))})"
        unsupported(f"{names[1]}.forward", wanted, f"({', '.join(sorted(given))})", remedy)
