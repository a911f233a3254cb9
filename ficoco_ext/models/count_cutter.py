"""Prompts of LLaVA-1.5 and PaliGemma after a reduction in its tower: as many placeholders as the tower leaves patches.

The numbers are known before anything is encoded, so a prompt is cut by counting alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from ..resolve import TowerFacts
from . import cut_prompt, placeholders
from . import transformers_api as api
from .generate_options import filler, images_of
from .model_checks import one_layer
from .placeholders import Placeholders, Prompt

_OVERRIDES = ("vision_feature_layer", "vision_feature_select_strategy")


def selection_of(model: Any) -> dict[str, Any]:
    """What a config says of the tower's layer that is taken, and of its tokens; None where it says nothing."""
    return {name: one_layer(getattr(model.config, name, None)) for name in _OVERRIDES}


def require_selection(op: str, model: Any, selection: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise if a call, or the config since, asks for another ``selection`` than there was at attach."""
    for name, attached in selection.items():
        asked = options.get(name)
        asked = one_layer(getattr(model.config, name, None) if asked is None else asked)
        if asked != attached:
            remedy = "detach, change model.config, attach again"
            checks.fail(op, name, f"{attached!r}, its value at attach", repr(asked), remedy)


class CountCutter:
    """Cuts a prompt by the number of patches that the tower leaves of every image.

    Args:
        model: the whole model. tower: its facts. removed: patches of every image that leave.
        token_types: tensors (B, L) of a prompt that have one entry for each id.
    """

    def __init__(self, model: Any, tower: TowerFacts, removed: int, token_types: Sequence[str] = ()) -> None:
        before = tower.patches + tower.extra
        self.model, self.token_types = model, token_types
        self.selection = selection_of(model)
        token = model.config.image_token_id
        self.rule = Placeholders(token, before, before - removed, filler(model, (token,)))
        self.cache_name = api.cache_name(type(model).forward)

    def check(self, op: str, options: dict[str, Any]) -> None:
        """Raise for what a call with images cannot have."""
        require_selection(op, self.model, self.selection, options)

    def generating(self) -> AbstractContextManager[Any]:
        """Nothing is remembered."""
        return nullcontext()

    def cached(self, options: dict[str, Any]) -> None:
        """A mask must cover the tokens that are in the cache: one over the caller's prompt would hide wrong ones."""
        ids, cache = options.get("input_ids"), api.cache_of(options, self.cache_name)
        cut_prompt.prompt_on(cache, None)
        mask = options.get("attention_mask")
        past = 0 if cache is None else cache.get_seq_length()
        if ids is None or not isinstance(past, int) or not past or not isinstance(mask, Tensor) or mask.dim() != 2:
            return  # a static cache keeps its length on the device, and generate builds its masks itself
        if mask.shape[1] != past + ids.shape[1]:
            wanted = f"({ids.shape[0]}, {past} cached + {ids.shape[1]})"
            remedy = "the cache holds the shortened prompt: count from its length"
            checks.fail("forward", "attention_mask", wanted, mask, remedy)

    def shorten(self, op: str, options: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments of a call that has to change, ids or embeddings among them; None if none has to."""
        cache, keep = api.cache_of(options, self.cache_name), options.get("logits_to_keep")
        mask, position_ids, labels = (options.get(name) for name in ("attention_mask", "position_ids", "labels"))
        embeddings: Any = options.get("inputs_embeds")
        ids = options["input_ids"] if embeddings is None else self._placeholders_in(embeddings)
        indices = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        prompt = Prompt(ids, mask, position_ids, labels, indices)
        past = 0 if cache is None else int(cache.get_seq_length())
        whole = op == "generate" and embeddings is None
        short = placeholders.shrink(prompt, self.rule, images=images_of(options), past=past, whole=whole, op=op)
        if short is prompt:
            return None
        assert short.indices is not None
        names = {"attention_mask": short.mask, "position_ids": short.position_ids, "labels": short.labels}
        if embeddings is None:
            names["input_ids"] = short.ids
        else:
            names["inputs_embeds"] = self._moved(embeddings, short)
        for name in self.token_types:
            if options.get(name) is not None:
                names[name] = self._types(op, name, options[name], ids, short)
        if isinstance(keep, Tensor):
            names["logits_to_keep"] = placeholders.moved(short.indices, keep, ids.shape[1])
        return {name: value for name, value in names.items() if value is not None}

    def _types(self, op: str, name: str, types: Any, ids: Tensor, short: Prompt) -> Tensor:
        """(B, L') the types (B, L) of what is left; padding that was added is of type 0."""
        if not isinstance(types, Tensor) or types.shape != ids.shape:
            checks.fail(op, name, f"{tuple(ids.shape)}, one for each id", types, "pass those of the whole prompt")
        assert short.indices is not None
        return types.gather(1, short.indices.clamp(min=0)).masked_fill(short.indices < 0, 0)

    def _placeholders_in(self, embeddings: Tensor) -> Tensor:
        """(B, L) ids that have a placeholder where ``embeddings`` (B, L, C) are those of one, and a word elsewhere."""
        embed = self.model.get_input_embeddings()
        found = placeholders.embedded_placeholders(embeddings, (self.rule.token,), embed)
        return torch.where(found, self.rule.token, self.rule.filler)

    def _moved(self, embeddings: Tensor, short: Prompt) -> Tensor:
        """(B, L', C) the embeddings of a short prompt; those of the filler where padding was added."""
        assert short.indices is not None
        index = short.indices.clamp(min=0).unsqueeze(-1).expand(-1, -1, embeddings.shape[-1])
        filled = self.model.get_input_embeddings()(short.ids.new_tensor(self.rule.filler))
        return torch.where((short.indices < 0).unsqueeze(-1), filled.to(embeddings), embeddings.gather(1, index))
