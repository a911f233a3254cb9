"""LLaVA-1.5 after a reduction in its tower: its prompts get as few placeholders as the tower leaves patches."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from ..resolve import TowerFacts
from . import placeholders
from . import transformers_api as api
from .callbacks import Callbacks
from .generate_options import images_of, named, option, refuse_unsupported
from .model_changes import ModelChanges
from .model_checks import one_layer
from .placeholders import Placeholders, Prompt

_SHORT = "ficoco_short"  # passed from the whole model's hook to the inner one: the prompt is short already
_OVERRIDES = ("vision_feature_layer", "vision_feature_select_strategy")


class ShortPrompts:
    """Lets ``generate`` and direct calls take the processor's prompt: it is shortened before anything counts it.

    Args:
        model: the whole model. tower: its facts. removed: patches of every image that leave.
    """

    def __init__(self, model: Any, tower: TowerFacts, removed: int) -> None:
        before = tower.patches + tower.extra
        self.model = model
        self.selection = {name: one_layer(getattr(model.config, name)) for name in _OVERRIDES}
        self.rule = Placeholders(model.config.image_token_id, before, before - removed, _filler(model))
        self.cache_name = api.cache_name(type(model).forward)
        self._generate = model.generate

    def install(self, changes: ModelChanges) -> None:
        """Wrap this instance's ``generate`` and hook its ``forward``."""
        changes.set(self.model, "generate", self.generate)
        for module, hook in ((self.model, self.before_forward), (self.model.model, self.before_inner)):
            changes.hook(module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True))  # before all readers

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """``GenerationMixin.generate`` on the short prompt; the result begins with the caller's."""
        options = named(type(self.model).generate, self.model, args, kwargs)
        images = images_of(options)
        name = "input_ids" if options.get("input_ids") is not None else "inputs"
        ids, cache = options.get(name), api.cache_of(options, self.cache_name)
        past = 0 if cache is None else int(cache.get_seq_length())
        if images:
            self._check("generate", options)
            refuse_unsupported(self.model, options)
        if ids is None and images:
            return self._generate_from_embeddings(options)
        if ids is None or not (images or past):
            return self._generate(**options)
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
        options |= Callbacks(ids, short.ids.shape[1]).wrapped(options, sequences)
        result = self._generate(**options)
        if isinstance(result, Tensor):
            return placeholders.restore(ids, short.ids.shape[1], result)
        if hasattr(result, "sequences"):
            result.sequences = placeholders.restore(ids, short.ids.shape[1], result.sequences)
        return result

    def _generate_from_embeddings(self, options: dict[str, Any]) -> Any:
        """``generate`` on short embeddings; the result has no prompt, so callbacks and sequences are the caller's."""
        short = self._shorten(options, images_of(options), op="generate")
        self._shift_lengths(short, options["inputs_embeds"].shape[1], short["inputs_embeds"].shape[1])
        return self._generate(**short)

    def before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Shorten the prompt of a direct call with images. Decode steps have none and are not changed."""
        short = self._before(module, args, kwargs)
        return None if short is None else ((), short | {_SHORT: True})

    def before_inner(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same where the inner model is called directly; a call through the whole model is short already."""
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
        return self._shorten(options, images, op="forward")

    def _shorten(self, options: dict[str, Any], images: int, op: str) -> dict[str, Any]:
        """The arguments of a call with images, ids or embeddings among them, and its short prompt."""
        cache, keep = api.cache_of(options, self.cache_name), options.get("logits_to_keep")
        mask, position_ids, labels = (options.get(name) for name in ("attention_mask", "position_ids", "labels"))
        embeddings: Any = options.get("inputs_embeds")
        ids = self._placeholders_in(embeddings) if embeddings is not None else options["input_ids"]
        indices = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        prompt = Prompt(ids, mask, position_ids, labels, indices)
        past = 0 if cache is None else int(cache.get_seq_length())
        short = placeholders.shrink(prompt, self.rule, images=images, past=past, op=op)
        if short is prompt:
            return options
        assert short.indices is not None
        names = {"attention_mask": short.mask, "position_ids": short.position_ids, "labels": short.labels}
        if embeddings is None:
            names["input_ids"] = short.ids
        else:
            names["inputs_embeds"] = self._moved(embeddings, short)
        if isinstance(keep, Tensor):
            names["logits_to_keep"] = placeholders.moved(short.indices, keep, ids.shape[1])
        return options | {name: value for name, value in names.items() if value is not None}

    def _placeholders_in(self, embeddings: Tensor) -> Tensor:
        """(B, L) ids that have a placeholder where ``embeddings`` (B, L, C) are those of one, and a word elsewhere."""
        embed = self.model.get_input_embeddings()
        found = placeholders.embedded_placeholders(embeddings, (self.rule.token,), embed)
        return torch.where(found, self.rule.token, self.rule.filler)

    def _moved(self, embeddings: Tensor, short: Prompt) -> Tensor:
        """(B, L', C) the embeddings of a short prompt; those of the filler where padding was added."""
        assert short.indices is not None
        index = short.indices.clamp(min=0).unsqueeze(-1).expand(-1, -1, embeddings.shape[-1])
        filler = self.model.get_input_embeddings()(short.ids.new_tensor(self.rule.filler))
        return torch.where((short.indices < 0).unsqueeze(-1), filler.to(embeddings), embeddings.gather(1, index))

    def _check(self, op: str, options: dict[str, Any]) -> None:
        """Raise for what a call with images cannot have."""
        ids = options.get("inputs") if options.get("input_ids") is None else options["input_ids"]
        if ids is not None and options.get("inputs_embeds") is not None:
            remedy = "pass one of them, with placeholders, which are counted"
            checks.fail(op, "inputs_embeds", "None beside input_ids", options["inputs_embeds"], remedy)
        for name, attached in self.selection.items():
            asked = options.get(name)
            asked = one_layer(getattr(self.model.config, name) if asked is None else asked)
            if asked != attached:
                remedy = "detach, change model.config, attach again"
                checks.fail(op, name, f"{attached!r}, its value at attach", repr(asked), remedy)

    def _shift_lengths(self, options: dict[str, Any], length: int, short: int) -> None:
        """``max_length`` and ``min_length`` count the caller's prompt of ``length``; the inner one has ``short``."""
        removed = length - short
        for name, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            value = option(self.model, name, options)
            if not value or option(self.model, instead, options) is not None:
                continue
            if name == "max_length" and value <= length:
                remedy = "raise it, or pass max_new_tokens"
                checks.fail("generate", name, f"more than {length}, the length of input_ids", str(value), remedy)
            config = options.get("generation_config")
            if options.get(name) is None and getattr(config, name, None) is not None:
                config = copy.deepcopy(config)  # with a config, separate options draw a warning
                setattr(config, name, max(value - removed, 0))
                options["generation_config"] = config
            else:
                options[name] = max(value - removed, 0)

    def _mask_of_padding(self, ids: Tensor, options: dict[str, Any]) -> Tensor | None:
        """The mask that ``generate`` infers when it gets none: needed before rows are padded again."""
        pad, eos = option(self.model, "pad_token_id", options), option(self.model, "eos_token_id", options)
        ends = eos if isinstance(eos, (list, tuple)) else [eos]
        return None if pad is None or pad in ends else (ids != pad).to(ids.dtype)


def _check_cached(ids: Tensor | None, cache: Any, options: dict[str, Any]) -> None:
    """A mask must cover the tokens that are in the cache: one over the caller's prompt would hide the wrong ones."""
    mask = options.get("attention_mask")
    past = 0 if cache is None else cache.get_seq_length()
    if ids is None or not isinstance(past, int) or not past or not isinstance(mask, Tensor) or mask.dim() != 2:
        return  # a static cache keeps its length on the device, and generate builds its masks itself
    if mask.shape[1] != past + ids.shape[1]:
        wanted = f"({ids.shape[0]}, {past} cached + {ids.shape[1]})"
        remedy = "the cache holds the shortened prompt: count from its length"
        checks.fail("forward", "attention_mask", wanted, mask, remedy)


def _filler(model: Any) -> int:
    """An id for masked positions: padding if the model has it, never a placeholder."""
    for config in (model.generation_config, model.config.text_config):
        pad = getattr(config, "pad_token_id", None)
        if isinstance(pad, int) and 0 <= pad != model.config.image_token_id:
            return pad
    return int(model.config.image_token_id == 0)
