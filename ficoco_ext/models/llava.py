"""LLaVA-1.5: geometry from the config, and prompts whose placeholders follow the reduced tower."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from . import placeholders
from . import transformers_api as api
from .callbacks import Callbacks
from .clip import check_tower
from .families import unsupported
from .generation import images_of, named, option, refuse_unsupported
from .patches import Patches
from .placeholders import Placeholders, Prompt

_SHORT = "ficoco_short"  # an argument from the whole model's hook to the one inside: the prompt is short already
_OVERRIDES = ("vision_feature_layer", "vision_feature_select_strategy")


@dataclass(frozen=True)
class Geometry:
    """The vision side of one model: grid of patches, layers of the tower, the last one whose output is used."""

    grid: tuple[int, int]
    layers: int
    last: int
    extra: int  # placeholders an image has besides its patches: 1 if the class token goes to the language model

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]


def check_vision(model: Any) -> None:
    """Raise NotImplementedError unless this LLaVA-1.5 has a CLIP tower, used as it came from transformers."""
    layer, strategy = _single(model.config.vision_feature_layer), model.config.vision_feature_select_strategy
    if isinstance(layer, bool) or not isinstance(layer, int):
        unsupported("vision_feature_layer", "one integer", layer, "layers of different lengths cannot be concatenated")
    if strategy not in ("default", "full"):
        unsupported("vision_feature_select_strategy", "'default' or 'full'", strategy, "no other one is known")
    check_tower(model.model.vision_tower)


def geometry(model: Any) -> Geometry:
    """Read from the config, never assumed."""
    vision = model.config.vision_config
    side, layers = vision.image_size // vision.patch_size, vision.num_hidden_layers
    selected = _single(model.config.vision_feature_layer)
    place = selected if selected >= 0 else layers + 1 + selected  # hidden_states[0] is what enters the first layer
    extra = int(model.config.vision_feature_select_strategy == "full")
    return Geometry((side, side), layers, place - 1, extra)


def geometry_or_none(model: Any) -> Geometry | None:
    """The geometry if every picture has the same number of visual tokens, in the order of its patches."""
    known = type(model) is api.family_class("LLaVA-1.5") and type(model.model.vision_tower) is api.tower_classes()[0]
    return geometry(model) if known and isinstance(_single(model.config.vision_feature_layer), int) else None


def _single(layer: Any) -> Any:
    """The layer of a list of one, which means the same."""
    return layer[0] if isinstance(layer, (list, tuple)) and len(layer) == 1 else layer


class Prompts:
    """Makes ``generate`` and direct calls take the processor's prompt: it shrinks before anybody counts it."""

    def __init__(self, model: Any, geometry: Geometry, removed: int) -> None:
        before = geometry.patches + geometry.extra
        self.model = model
        self.selection = {name: _single(getattr(model.config, name)) for name in _OVERRIDES}
        self.rule = Placeholders(model.config.image_token_id, before, before - removed, _filler(model))
        self.cache_name = api.cache_name(type(model).forward)
        self._generate = model.generate

    def install(self, patches: Patches) -> None:
        """Wrap this instance's ``generate`` and hook its ``forward``."""
        patches.set(self.model, "generate", self.generate)
        patches.hook(self.model.register_forward_pre_hook(self.before_forward, with_kwargs=True))
        inner = self.model.model  # ahead of whoever reads the prompt there
        patches.hook(inner.register_forward_pre_hook(self.before_inner, prepend=True, with_kwargs=True))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """``GenerationMixin.generate`` on the short prompt; the result begins with the caller's."""
        options = named(type(self.model).generate, self.model, args, kwargs)
        images = images_of(options)
        name = "input_ids" if options.get("input_ids") is not None else "inputs"
        ids, cache = options.get(name), api.cache_of(options, self.cache_name)
        past = 0 if cache is None else int(cache.get_seq_length())
        if ids is None or not (images or past):
            if images:
                self._check("generate", options)
            return self._generate(**options)
        if images:
            self._check("generate", options)
            refuse_unsupported(self.model, options)
        mask = options.get("attention_mask")
        if mask is None:
            mask = self._mask_of_padding(ids, options)
        prompt = Prompt(ids, mask, options.get("position_ids"))
        short = placeholders.shrink(prompt, self.rule, images=images, past=past, whole=True, op="generate")
        if short is prompt:
            return self._generate(**options)
        options |= {name: short.ids, "attention_mask": short.mask, "position_ids": short.position_ids}
        self._shift_lengths(options, ids.shape[1], short.ids.shape[1])
        beams = option(self.model, "num_beams", options) or 1
        sequences = 1 if beams > 1 else option(self.model, "num_return_sequences", options) or 1
        options |= Callbacks(ids, short.ids.shape[1]).told(options, sequences)
        result = self._generate(**options)
        if isinstance(result, Tensor):
            return placeholders.restore(ids, short.ids.shape[1], result)
        if hasattr(result, "sequences"):
            result.sequences = placeholders.restore(ids, short.ids.shape[1], result.sequences)
        return result

    def before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Shrink the prompt of a direct call that brings images. Decode steps bring none and are left alone."""
        short = self._before(module, args, kwargs)
        return None if short is None else ((), short | {_SHORT: True})

    def before_inner(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same where the model inside is called directly; a call that came through the whole model says so."""
        if kwargs.pop(_SHORT, False):
            return args, kwargs
        short = self._before(module, args, kwargs)
        return None if short is None else ((), short)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments of a call with images and its short prompt; None for a call without."""
        if len(args) < 2 and kwargs.get("pixel_values") is None and not kwargs.get("mm_encoder_outputs"):
            _check_cached(args[0] if args else kwargs.get("input_ids"), api.cache_of(kwargs, self.cache_name), kwargs)
            return None
        if getattr(module, "_is_replica", False):
            message = "model must be one module, got a replica of nn.DataParallel; use one process a GPU"
            raise NotImplementedError(f"ficoco::forward: {message}")
        options = named(type(module).forward, module, args, kwargs)
        images = images_of(options)
        if not images:
            return None
        self._check("forward", options)
        cache = api.cache_of(options, self.cache_name)
        mask, positions, labels = (options.get(name) for name in ("attention_mask", "position_ids", "labels"))
        ids, keep = options["input_ids"], options.get("logits_to_keep")
        columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids) if isinstance(keep, Tensor) else None
        prompt = Prompt(ids, mask, positions, labels, columns)
        past = 0 if cache is None else int(cache.get_seq_length())
        short = placeholders.shrink(prompt, self.rule, images=images, past=past)
        if short is prompt:
            return options
        names = {"input_ids": short.ids, "attention_mask": short.mask}
        names |= {"position_ids": short.position_ids, "labels": short.labels}
        if isinstance(keep, Tensor) and short.columns is not None:
            names["logits_to_keep"] = placeholders.places(short.columns, keep, ids.shape[1])
        return options | {name: value for name, value in names.items() if value is not None}

    def _check(self, op: str, options: dict[str, Any]) -> None:
        """What a call with images may not ask for."""
        if options.get("inputs_embeds") is not None:
            remedy = "pass input_ids, whose placeholders can be counted"
            checks.fail(op, "inputs_embeds", "None in a call with images", options["inputs_embeds"], remedy)
        for name, attached in self.selection.items():
            asked = options.get(name)
            asked = _single(getattr(self.model.config, name) if asked is None else asked)
            if asked != attached:
                remedy = "detach, change model.config, attach again"
                checks.fail(op, name, f"{attached!r} as it was at attach", repr(asked), remedy)

    def _shift_lengths(self, options: dict[str, Any], length: int, shrunk: int) -> None:
        """``max_length`` and ``min_length`` count the caller's prompt of ``length``; inside, it has ``shrunk``."""
        removed = length - shrunk
        for name, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            value = option(self.model, name, options)
            if not value or option(self.model, instead, options) is not None:
                continue
            if name == "max_length" and value <= length:
                remedy = "raise it, or pass max_new_tokens"
                checks.fail("generate", name, f"more than {length}, the length of input_ids", str(value), remedy)
            config = options.get("generation_config")
            if options.get(name) is None and getattr(config, name, None) is not None:
                config = copy.deepcopy(config)  # beside a config, separate options draw a warning
                setattr(config, name, max(value - removed, 0))
                options["generation_config"] = config
            else:
                options[name] = max(value - removed, 0)

    def _mask_of_padding(self, ids: Tensor, options: dict[str, Any]) -> Tensor | None:
        """The mask that ``generate`` infers when it gets none: needed before rows are padded anew."""
        pad, eos = option(self.model, "pad_token_id", options), option(self.model, "eos_token_id", options)
        ends = eos if isinstance(eos, (list, tuple)) else [eos]
        return None if pad is None or pad in ends else (ids != pad).to(ids.dtype)


def _check_cached(ids: Tensor | None, cache: Any, options: dict[str, Any]) -> None:
    """A mask must speak of the tokens that are in the cache: one over the caller's prompt would hide the wrong ones."""
    mask = options.get("attention_mask")
    past = 0 if cache is None else cache.get_seq_length()
    if ids is None or not isinstance(past, int) or not past or not isinstance(mask, Tensor) or mask.dim() != 2:
        return  # a static cache keeps its length on the device, and generate builds its masks itself
    if mask.shape[1] != past + ids.shape[1]:
        wanted = f"({ids.shape[0]}, {past} cached + {ids.shape[1]})"
        remedy = "the cache holds the shortened prompt: count from its length"
        checks.fail("forward", "attention_mask", wanted, mask, remedy)


def _filler(model: Any) -> int:
    """An id for masked places: padding if the model has it, never a placeholder."""
    for config in (model.generation_config, model.config.text_config):
        pad = getattr(config, "pad_token_id", None)
        if isinstance(pad, int) and 0 <= pad != model.config.image_token_id:
            return pad
    return int(model.config.image_token_id == 0)
