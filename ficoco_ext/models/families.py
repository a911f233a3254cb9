"""Which models are served, and how far: an allowlist, for a similar layer, hooked alike, would go wrong silently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

from ..ops import checks
from . import transformers_api as api


@dataclass(frozen=True)
class Family:
    """A model class of transformers.

    Attributes:
        name: what people call it, a key of :data:`~ficoco_ext.models.transformers_api.MODELS`.
        placeholders: attributes of its config that hold ids of visual tokens.
        vision: None if its tower can be reduced, else why not.
    """

    name: str
    placeholders: tuple[str, ...]
    vision: str | None

    @property
    def model(self) -> str:
        """The name of its class."""
        return api.MODELS[self.name].model

    @property
    def decoders(self) -> tuple[str, ...]:
        """Language models that it is served with, keys of ``LANGUAGE_MODELS``."""
        return api.MODELS[self.name].decoders


FAMILIES = (
    Family(
        "LLaVA-1.5",
        ("image_token_id",),
        None,
    ),
    Family(
        "LLaVA-NeXT",
        ("image_token_id",),
        "its crops are laid out as grids behind the tower, unpadded and given line ends, which needs every patch; "
        "only its language model can be reduced",
    ),
    Family(
        "Qwen2-VL",
        ("image_token_id", "video_token_id"),
        "its tower has no class token and merges whole blocks of 2 x 2 patches; only its language model can be reduced",
    ),
    Family(
        "Qwen2.5-VL",
        ("image_token_id", "video_token_id"),
        "its tower has no class token, attends in windows and merges whole blocks of 2 x 2 patches; only its language "
        "model can be reduced",
    ),
)


def unsupported(argument: str, wanted: str, got: object, remedy: str) -> NoReturn:
    """Raise NotImplementedError in the words of every check."""
    checks.fail("attach", argument, wanted, got if isinstance(got, str) else repr(got), remedy, NotImplementedError)


def family_of(model: Any) -> Family:
    """The family of ``model``, whose class must be one of ours, not a relative of it."""
    names = ", ".join(family.model for family in FAMILIES)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        unsupported("model", f"one of {names}", type(model).__name__, "attach to model.module, one process a GPU")
    for family in FAMILIES:
        if type(model).__name__ == family.model and type(model) is api.family_class(family.name):
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
    for module, *names in (api.LANGUAGE_MODELS[key] for key in family.decoders):
        if type(language_model).__name__ == names[0]:
            model_class, layer_class, attention_class = (api.model_class(module, name) for name in names)
            break
    else:
        wanted = f"one of {', '.join(api.LANGUAGE_MODELS[key].model for key in family.decoders)}"
        unsupported("language model", wanted, type(language_model).__name__, "no other one is supported")
    if type(language_model) is not model_class:
        unsupported("language model", f"a {names[0]} of transformers", type(language_model).__name__, "unwrap it first")
    kinds = set(getattr(config, "layer_types", None) or ()) - {api.FULL_ATTENTION}
    if kinds or (getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)):
        got = ", ".join(sorted(kinds)) or f"sliding_window={config.sliding_window}"
        unsupported(
            "layer_types", "full attention in every layer", got, "a window counts tokens that reduction removes"
        )
    if api.attention_name(config) == "flex_attention":
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
