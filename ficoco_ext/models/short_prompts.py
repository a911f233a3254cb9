"""Prompts that get shorter before the model counts them: ``generate`` and direct calls take the processor's prompt.

What is cut is decided by a :class:`Cutter`: by counting, where only numbers matter, or by what an encoder returned.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from ..ops import checks
from . import placeholders
from . import transformers_api as api
from .callbacks import Callbacks
from .generate_options import images_of, named, option, refuse_unsupported
from .model_changes import ModelChanges

_SHORT = "ficoco_short"  # passed from the whole model's hook to the inner one: the prompt is short already


class Cutter(Protocol):
    """Decides which columns of a prompt stay."""

    def check(self, op: str, options: dict[str, Any]) -> None:
        """Raise for what a call with images cannot have."""

    def generating(self) -> AbstractContextManager[Any]:
        """Entered around the model's own ``generate``."""

    def cached(self, options: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments to change of a direct call without images."""

    def shorten(self, op: str, options: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments of a call that has to change, ids or embeddings among them; None if none has to."""


class ShortPrompts:
    """Lets ``generate`` and direct calls take the processor's prompt: it is shortened before anything counts it.

    Args:
        model: the whole model. cutter: what it is shortened by.
    """

    def __init__(self, model: Any, cutter: Cutter) -> None:
        self.model, self.cutter = model, cutter
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
        if not images and (ids is None or not past):
            return self._generate(**options)
        asked = dict(options)
        if ids is not None:
            asked["input_ids"] = ids
            if asked.get("attention_mask") is None:
                asked["attention_mask"] = self._mask_of_padding(ids, options)
        short = self.cutter.shorten("generate", asked)
        with self.cutter.generating():
            if short is None:
                return self._generate(**options)
            if ids is None:  # the result has no prompt, so callbacks and sequences are the caller's
                self._shift_lengths(options, options["inputs_embeds"].shape[1], short["inputs_embeds"].shape[1])
                return self._generate(**options | short)
            return self._generate_short(options, name, ids, short)

    def _generate_short(self, options: dict[str, Any], name: str, ids: Tensor, short: dict[str, Any]) -> Any:
        """``generate`` on the ids that are left of ``ids``; callbacks and sequences see the caller's."""
        short = {"attention_mask": None, "position_ids": None, **short}
        short[name] = short.pop("input_ids")
        length = short[name].shape[1]
        options = options | short
        self._shift_lengths(options, ids.shape[1], length)
        beams = option(self.model, "num_beams", options) or 1
        sequences = 1 if beams > 1 else option(self.model, "num_return_sequences", options) or 1
        options |= Callbacks(ids, length).wrapped(options, sequences)
        result = self._generate(**options)
        if isinstance(result, Tensor):
            return placeholders.restore(ids, length, result)
        if hasattr(result, "sequences"):
            result.sequences = placeholders.restore(ids, length, result.sequences)
        return result

    def before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Shorten the prompt of a direct call with images. Decode steps have none."""
        short = self._before(module, args, kwargs)
        return None if short is None else ((), short | {_SHORT: True})

    def before_inner(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same where the inner model is called directly; a call through the whole model is short already."""
        if kwargs.pop(_SHORT, False):
            return args, kwargs
        short = self._before(module, args, kwargs)
        return None if short is None else ((), short)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments of a call that has to change, all of them by name; None if none has to."""
        options = named(type(module).forward, module, args, kwargs) if args else kwargs
        if not images_of(options):
            changed = self.cutter.cached(options)
        else:
            if getattr(module, "_is_replica", False):
                message = "model must be one module, got a replica of nn.DataParallel; use one process a GPU"
                raise NotImplementedError(f"ficoco::forward: {message}")
            self._check("forward", options)
            changed = self.cutter.shorten("forward", options)
            if changed is None:
                return dict(options)
        return None if changed is None else {**options, **changed}

    def _check(self, op: str, options: dict[str, Any]) -> None:
        """Raise for what a call with images cannot have."""
        ids = options.get("inputs") if options.get("input_ids") is None else options["input_ids"]
        if ids is not None and options.get("inputs_embeds") is not None:
            remedy = "pass one of them, with placeholders, which are counted"
            checks.fail(op, "inputs_embeds", "None beside input_ids", options["inputs_embeds"], remedy)
        self.cutter.check(op, options)

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
