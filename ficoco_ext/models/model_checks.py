"""Whether a model is one that can be reduced: its class, its tower and its language model. Nothing is changed."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from ..methods import FeatureMethod
from ..ops import checks
from ..stages.needs import CLASS_LOGITS, CROPS
from . import layouts
from . import transformers_api as api
from .families import FAMILIES, LANGUAGE_MODELS, TOWERS, Family, tower_of
from .refused import REFUSED

_NO_INDEX = "the crops are laid out as grids, in which a class token has no index; use 'default'"


def unsupported(argument: str, wanted: str, got: object, remedy: str) -> NoReturn:
    """Raise NotImplementedError, with the message that every check has."""
    checks.fail("attach", argument, wanted, got if isinstance(got, str) else repr(got), remedy, NotImplementedError)


def family_of(model: Any) -> Family:
    """The family of ``model``, whose class must be one of ours, not a class derived from it.

    Raises:
        NotImplementedError: no family has this class.
    """
    names = ", ".join(family.model for family in FAMILIES)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        unsupported("model", f"one of {names}", type(model).__name__, "attach to model.module, one process a GPU")
    for family in FAMILIES:
        if type(model).__name__ == family.model and type(model) is family.model_class():
            return family
    if type(model).__name__ in REFUSED:
        remedy = "use one of those"
        unsupported("model", f"one of {names}", f"{type(model).__name__}: {REFUSED[type(model).__name__]}", remedy)
    remedy = "no other model is supported; take a wrapped one out first (model.module, get_base_model(), _orig_mod)"
    unsupported("model", f"one of {names}", type(model).__name__, remedy)


def one_layer(layer: Any) -> Any:
    """``vision_feature_layer``; a list of one layer means that layer."""
    return layer[0] if isinstance(layer, (list, tuple)) and len(layer) == 1 else layer


def selected(config: Any) -> tuple[Any, Any]:
    """The layer of the tower that the projector reads, and the strategy: which of its tokens.

    A model whose config names neither reads all tokens of the last layer.
    """
    strategy = getattr(config, "vision_feature_select_strategy", "full")
    return one_layer(getattr(config, "vision_feature_layer", -1)), strategy


def check_parts(model: Any, family: Family, *, tower: bool, language_model: bool) -> None:
    """Raise unless those parts of ``model`` that are to be reduced can be: ``tower``, ``language_model``.

    Raises:
        NotImplementedError, ValueError: a part that is not known, or whose layers were changed.
    """
    if tower:
        _check_tower(model, family)
    if language_model:
        _check_language_model(getattr(model.model, family.language_model), family)


def _check_tower(model: Any, family: Family) -> None:
    """A tower that is only similar to the known one would go wrong without an error."""
    if not family.towers:
        unsupported("method", f"one for another part of {family.name}", family.why_no_tower, instead_of_tower(family))
    layer, strategy = selected(model.config)
    if isinstance(layer, bool) or not isinstance(layer, int):
        remedy = f"layers of different lengths cannot be concatenated; {instead_of_tower(family)}"
        unsupported("vision_feature_layer", "one integer", layer, remedy)
    if strategy not in ("default", "full"):
        unsupported("vision_feature_select_strategy", "'default' or 'full'", strategy, "no other one is known")
    tower = model.model.vision_tower
    known = family.known_tower(tower)
    if known is None:
        wanted = f"one of {', '.join(TOWERS[key].model for key in family.towers)}"
        unsupported("vision tower", wanted, type(tower).__name__, "no other one is supported")
    if strategy == "default" and not known.class_token:
        remedy = "'default' leaves out the first token, which is a patch where there is no class token; use 'full'"
        unsupported("vision_feature_select_strategy", f"'full' with a {known.model}", repr(strategy), remedy)
    if family.crops and known.class_token and strategy == "full":
        unsupported("vision_feature_select_strategy", f"'default' for {family.name}", repr(strategy), _NO_INDEX)
    _, layer_class, attention_class = known.classes()
    for index, layer in enumerate(tower.encoder.layers):
        _check_layer(f"vision layer {index}", layer, layer_class, attention_class)


def check_crops(model: Any, family: Family, method: FeatureMethod) -> None:
    """Raise unless the pictures of ``model`` are what a method needs that acts on the crops of a picture together.

    Raises:
        NotImplementedError: its pictures are no crops, or its tower says nothing of them.
    """
    if CROPS not in method.needs:
        return
    if family.layout is not layouts.packed_crops:
        remedy = "use 'topk', or 'divprune', which needs no class token"
        wanted = f"one for pictures that are one grid of patches, as those of {family.name} are"
        unsupported("method", wanted, f"{method.name}, which needs pictures of several crops", remedy)
    tower = tower_of(model.model.vision_tower)
    if CLASS_LOGITS in method.needs and (tower is None or not tower.class_token):
        remedy = "use a method that needs none, such as 'scope' or 'divprune'"
        got = f"{type(model.model.vision_tower).__name__}, which has none"
        unsupported("vision tower", f"one with a class token for {method.name}", got, remedy)
    _, strategy = selected(model.config)
    if strategy != "default":
        unsupported("vision_feature_select_strategy", f"'default' with {method.name}", repr(strategy), _NO_INDEX)


def instead_of_tower(family: Family) -> str:
    """What to use where nothing can be reduced inside the vision tower."""
    language = ", or one inside the language model, such as 'ficoco-l'" if family.language_models else ""
    return f"use a method after the projector, such as 'divprune'{language}"


def _check_language_model(language_model: Any, family: Family) -> None:
    """Every layer must be one whose body we know, and attend to all tokens before it."""
    if not family.language_models:
        remedy = "use a method after the projector, such as 'divprune'"
        unsupported("method", f"one for another part of {family.name}", family.why_no_language_model, remedy)
    for known in (LANGUAGE_MODELS[key] for key in family.language_models):
        if type(language_model).__name__ == known.model:
            model_class, layer_class, attention_class = known.classes()
            break
    else:
        wanted = f"one of {', '.join(LANGUAGE_MODELS[key].model for key in family.language_models)}"
        unsupported("language model", wanted, type(language_model).__name__, "no other one is supported")
    if type(language_model) is not model_class:
        wanted = f"a {known.model} of transformers"
        unsupported("language model", wanted, type(language_model).__name__, "unwrap it first")
    _check_attention(language_model.config)
    for index, layer in enumerate(language_model.layers):
        _check_layer(f"decoder layer {index}", layer, layer_class, attention_class)


def _check_attention(config: Any) -> None:
    kinds = set(getattr(config, "layer_types", None) or ()) - {api.FULL_ATTENTION}
    if kinds or (getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)):
        got = ", ".join(sorted(kinds)) or f"sliding_window={config.sliding_window}"
        remedy = "a window counts tokens that reduction removes; use a method after the projector, such as 'divprune'"
        unsupported("layer_types", "full attention in every layer", got, remedy)
    if api.attention_name(config) == "flex_attention":
        remedy = 'call model.set_attn_implementation("sdpa")'
        unsupported("attention implementation", "sdpa, eager or flash attention", "flex_attention", remedy)


def _check_layer(argument: str, layer: Any, layer_class: Any, attention_class: Any) -> None:
    attention = getattr(layer, "self_attn", None)
    if type(layer) is not layer_class or type(attention) is not attention_class:
        wanted = f"a {layer_class.__name__} with {attention_class.__name__}"
        got = f"{type(layer).__name__} with {type(attention).__name__}"
        unsupported(argument, wanted, got, "unwrap the layer before attaching")
    body = vars(layer).get("_old_forward", vars(layer).get("forward"))  # accelerate keeps the body in _old_forward
    if body is not None and getattr(body, "__func__", None) is not layer_class.forward:
        remedy = "undo that replacement before attaching"
        checks.fail("attach", argument, "one with its own forward", "a replaced forward", remedy)
