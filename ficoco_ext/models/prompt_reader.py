"""Finds the visual tokens in the rows of a prompt with images, and refuses prompts that cannot be reduced."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from . import tracing
from . import transformers_api as api
from .attach_plan import AttachPlan
from .generate_options import images_of
from .placeholders import embedded_placeholders, fits_images
from .reduced_prefill import ReducedPrefill
from .row_groups import RowGroup, group_rows, visual_positions

_PROMISE = "attach with static_counts=True, or the number of visual tokens in each row, and nothing is counted"


class PromptReader:
    """Makes the :class:`ReducedPrefill` of a call with images.

    The last real token of a prompt always stays: the answer is read from it. Where an image ends the prompt, its last
    token counts as text.

    Args:
        plan: what reduces.
        cache_name: what the model calls its cache.
    """

    def __init__(self, plan: AttachPlan, cache_name: str) -> None:
        assert plan.plan is not None
        self.plan, self.cache_name = plan.plan, cache_name
        self.placeholders, self.static_counts = plan.facts.placeholders, plan.static_counts
        self.per_image, self.picture = plan.per_image, plan.picture
        self.cut_by_features = plan.cuts_by_features  # and counted there; a picture at the end has one token more
        self.checks_promise = True  # of static counts, where reading costs nothing

    def has_visual_tokens(self, options: dict[str, Any]) -> bool:
        """Whether visual tokens come with a call: as images, or as embeddings with the type of every token."""
        if images_of(options):
            return True
        if options.get("input_ids") is not None or options.get("inputs_embeds") is None:
            return False
        cache = api.cache_of(options, self.cache_name)
        return options.get(api.TOKEN_TYPES) is not None and (cache is None or int(cache.get_seq_length()) == 0)

    def require_served(self, module: nn.Module, options: dict[str, Any], generating: bool) -> None:
        """Raise for what a call with visual tokens cannot have.

        Args:
            module: the inner model. options: arguments of the call, by name. generating: it is one of ``generate``.
        """
        cache, mask = api.cache_of(options, self.cache_name), options.get("attention_mask")
        if getattr(module, "_is_replica", False):
            message = "model must be one module, got a replica of nn.DataParallel; use one process a GPU"
            raise NotImplementedError(f"ficoco::forward: {message}")
        on_device = api.is_static(cache) and not self._is_free(_given(options))
        if cache is not None and not (on_device and self.static_counts) and int(cache.get_seq_length()) > 0:
            message = "new images on a cache that is not empty are not supported; pass the whole conversation again"
            raise NotImplementedError(f"ficoco::forward: {message}")
        full = api.full_mask(mask)
        usable = full is None or (isinstance(full, Tensor) and (full.dim() == 2 or generating))
        if isinstance(mask, dict):
            usable = usable and generating and api.FULL_ATTENTION in mask
        if not usable:
            wanted = "None or (B, L), as the processor made it"
            checks.fail("forward", "attention_mask", wanted, mask, "only causality and padding can be kept")

    def read(self, module: Any, options: dict[str, Any]) -> ReducedPrefill | None:
        """The rows of a prompt with visual tokens; None if it has none that could leave.

        Waits for the device once, unless counts are static.

        Args:
            module: the inner model. options: arguments of the call, by name.
        """
        pictured = self._pictured(module, options)
        length = pictured.shape[1]
        real = _real(options.get("attention_mask"), length)
        visual = pictured if real is None else pictured & real  # a placeholder that the mask hides is padding
        if self.static_counts:
            tracing.refuse_jit("forward")
            return self._promised(visual, real, options)
        tracing.require_counts("forward", pictured, _PROMISE)
        index = torch.arange(length, device=pictured.device)
        last = length - 1 if real is None else (index * real).amax(1, keepdim=True)
        visual = visual & (index != last)  # the answer is read from it, so it stays, even if it is an image's
        facts = [visual.sum(1), length - 1 - (index * visual).amax(1), pictured.sum(1)]
        if real is not None:
            uneven = (real[:, 1:] < real[:, :-1]).any(1)  # holes, or padding on the right
            facts += [real.sum(1), uneven]
        counts = torch.stack(facts, 1).tolist()
        if self.per_image is not None and not self.cut_by_features:
            total = sum(count[2] for count in counts)
            fits_images("forward", self.placeholders[0], images_of(options), self.per_image, total)
        numbers = {count[0] for count in counts} - {0}
        if not numbers:
            return None
        # Padding on the left is removed as far as all rows allow; other padding is not.
        needs = [count[3] if real is not None and not count[4] else length for count in counts]
        if real is not None and all(count[3] == length for count in counts):
            real = None
        schedules = {} if self.plan.by_data else {number: self.plan.schedule(number) for number in numbers}
        return ReducedPrefill(pictured, real, group_rows(visual, schedules, counts, needs), self.picture)

    def visual_of(self, module: Any, options: dict[str, Any], placeholder: int) -> Tensor:
        """(B, L) True for the visual tokens of one kind; ``placeholder``: its id."""
        return self._pictured(module, options, (placeholder,))

    def _pictured(self, module: Any, options: dict[str, Any], placeholders: tuple[int, ...] | None = None) -> Tensor:
        """(B, L) True for visual tokens: those of all kinds, or of these ``placeholders``.

        Of embeddings with images these are the ones that the model itself replaces: those of a placeholder. Embeddings
        alone have them in their place already, and the type of every token (text is 0) says where.
        """
        placeholders = self.placeholders if placeholders is None else placeholders
        ids, embeddings = options.get("input_ids"), _given(options)
        if ids is None and not images_of(options):
            types: Tensor = options[api.TOKEN_TYPES]
            return types.to(embeddings.device) != 0
        if ids is None:
            return embedded_placeholders(embeddings, placeholders, module.get_input_embeddings())
        found = ids == placeholders[0]
        for other in placeholders[1:]:
            found = found | (ids == other)
        return found

    def _is_free(self, tensor: Tensor) -> bool:
        """Whether a promise of static counts can be checked without waiting for a device."""
        return self.checks_promise and tensor.device.type == "cpu" and tracing.has_values(tensor)

    def _promised(self, visual: Tensor, real: Tensor | None, options: dict[str, Any]) -> ReducedPrefill:
        """All rows have the same number, by promise: nothing is read."""
        b, length = visual.shape
        if self.static_counts is True:
            assert self.per_image is not None
            images = images_of(options)
            if images % b:
                wanted = f"equally many in each of {b} rows, as static_counts promises"
                checks.fail("forward", "images", wanted, str(images), "attach without static_counts")
            count = images // b * self.per_image
        else:
            count = int(self.static_counts)
        if self._is_free(visual):
            last = length - 1 if real is None else (torch.arange(length) * real).amax(1)
            ends = visual[torch.arange(b), last]
            if bool((visual.sum(1) != count).any()) or bool(ends.any()):
                wanted = f"{count} visual tokens in each row and text after them, as promised"
                got = f"rows with {visual.sum(1).tolist()}{', an image at the end' if bool(ends.any()) else ''}"
                remedy = "promise what reaches the language model, or attach without static_counts"
                checks.fail("forward", "input_ids", wanted, got, remedy)
        schedule = self.plan.schedule(count)
        group = RowGroup(None, schedule, visual_positions(visual, count), None, count, [length] * b)
        return ReducedPrefill(visual, real, [group], self.picture)


def _given(options: dict[str, Any]) -> Tensor:
    """The ids (B, L), or embeddings (B, L, C), of a call."""
    ids = options.get("input_ids")
    given: Tensor = options["inputs_embeds"] if ids is None else ids
    return given


def _real(mask: Any, length: int) -> Tensor | None:
    """(B, L) True for real tokens, from a mask of any form; None: all are."""
    mask = api.full_mask(mask)
    if mask is None:
        return None
    if mask.dim() == 2:
        return mask[:, -length:].bool()
    last = mask[:, 0, -1, :length]  # the last query attends to every real token
    return last if last.dtype == torch.bool else last == 0
