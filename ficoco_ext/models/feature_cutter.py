"""Prompts cut by what the encoders kept of each picture, with the positions that its tokens had, or contiguous ones."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import checks
from ..ops.values import free_to_read
from ..stages.needs import TEXT
from . import cut_prompt, placeholders, prompt_cut, tracing
from . import transformers_api as api
from .attach_plan import AttachPlan
from .cut_prompt import CutPrompt
from .families import Family
from .generate_options import filler, given_of, images_of, named, option
from .model_changes import ModelChanges
from .per_thread import PerThread
from .projections import Reduced
from .projector_reduction import ProjectorReduction
from .prompt_cut import Cut
from .prompt_words import QuestionTie, WordReader


class _Now:
    """State of a thread: whether it is in ``generate``, and the prompt that its call has cut, for the cache."""

    def __init__(self) -> None:
        self.generating = False
        self.record: CutPrompt | None = None


class FeatureCutter:
    """Cuts the prompt of a call by what the encoders kept, which run before it.

    Args:
        model: the whole model. family: of it. plan: what to do. features: the reduction of what the encoders return.
        tie: says that a conversation goes on.
    """

    def __init__(
        self, model: Any, family: Family, plan: AttachPlan, features: ProjectorReduction, tie: QuestionTie
    ) -> None:
        self.model, self.family, self.plan, self.features = model, family, plan, features
        self.tokens = dict(zip((one.name for one in family.modalities), plan.facts.placeholders, strict=True))
        self.static_counts, self.original = bool(plan.static_counts), plan.positions == "original"
        self.filler = filler(model, plan.facts.placeholders)
        self.cache_name = api.cache_name(type(model).forward)
        reads = plan.projector is not None and TEXT in plan.projector.method.needs
        self.words, self.tie = WordReader(model, plan, self.tokens) if reads else None, tie
        self._now = PerThread(_Now)

    def install(self, changes: ModelChanges) -> None:
        """After each call of the inner model, store on its cache what the prompt became."""
        changes.hook(self.model.model.register_forward_hook(self.after, with_kwargs=True, always_call=True))
        if self.original:
            for layer in getattr(self.model.model, self.family.language_model).layers:
                changes.hook(layer.register_forward_pre_hook(self.without_positions, with_kwargs=True))

    def without_positions(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a layer that reads a cut prompt: flash attention would take positions that jump for several sequences.

        A mask of ones does not reach it. The layer has its position embeddings already.
        """
        if kwargs.get("position_ids") is None or kwargs.get("attention_mask") is not None:
            return None
        if not api.reads_positions(api.attention_name(self.model.config.get_text_config())):
            return None
        now = self._now.here
        return (args, kwargs | {"position_ids": None}) if now.generating or now.record is not None else None

    def check(self, op: str, options: dict[str, Any]) -> None:
        """Raise for what a call with images cannot have."""
        cache, mask = api.cache_of(options, self.cache_name), options.get("attention_mask")
        if self._now.here.generating:
            return
        self.features.require_selection(op, options)
        unread = api.is_static(cache) and self.static_counts
        if cache is not None and not unread and int(cache.get_seq_length()) > 0:
            message = "new images on a cache that is not empty are not supported; pass the whole conversation again"
            raise NotImplementedError(f"ficoco::{op}: {message}")
        prompts = (options.get(name) for name in ("input_ids", "inputs", "inputs_embeds"))
        shape = next((tuple(one.shape[:2]) for one in prompts if one is not None), None)
        if mask is not None and not (isinstance(mask, Tensor) and tuple(mask.shape) == shape):
            wanted = f"None or {shape}, as the processor made it"
            checks.fail(op, "attention_mask", wanted, mask, "columns leave, which only a 2-D mask of them can follow")

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Direct calls inside have prompts that are short already."""
        now = self._now.here
        outer, now.generating = now.generating, True
        try:
            yield
        finally:
            now.generating, now.record = outer, None
            self.features.forget()

    def cached(self, options: dict[str, Any]) -> dict[str, Any] | None:
        """New tokens after a cut prompt: they go on from its last position, under its mask."""
        if self._now.here.generating:
            return None
        self._drop()  # what a call left that ended before the inner model
        cache = api.cache_of(options, self.cache_name)
        record = cut_prompt.prompt_on(cache, self.plan)
        given = given_of(options)
        if record is None or given is None:
            return None
        static = api.is_static(cache)
        if (given.shape[1] > 1 or not static) and int(cache.get_seq_length()) == 0:
            cut_prompt.forget(cache)  # it was emptied; this is another prompt, of text alone
            return None
        if given.shape[1] > 1:
            self.tie.warn("forward")
        record, past = record.repeated(given.shape[0]), cache.get_seq_length()
        changed = {} if static else self._mask(record, int(past), given.shape[1], options.get("attention_mask"))
        if record.next is not None and options.get("position_ids") is None:
            changed["position_ids"] = record.continued(past, given.shape[1]) + self.family.first_position
        return changed or None

    def _one_sequence(self, options: dict[str, Any]) -> dict[str, Any] | None:
        """The mask of a step of ``generate`` if it has to be given, for ``generate`` drops a mask of ones.

        Without mask and cache, positions that jump mean several sequences in one row. Such a step comes with images.
        """
        cache, mask = api.cache_of(options, self.cache_name), options.get("attention_mask")
        if not self.original or options.get("position_ids") is None or cache is not None or mask is not None:
            return None
        given = given_of(options)
        return {"attention_mask": torch.ones(given.shape[:2], dtype=torch.long, device=given.device)}

    def _mask(self, record: CutPrompt, past: int, count: int, mask: Any) -> dict[str, Any]:
        """The mask of ``count`` new tokens where ``past`` are in the cache, if it has to be given."""
        if past < record.width:
            remedy = "crop no more than the generated tokens"
            checks.fail("forward", self.cache_name, f"one of at least {record.width} tokens", str(past), remedy)
        if mask is None and record.mask is not None:
            ones = record.mask.new_ones(record.rows, past + count - record.width)
            return {"attention_mask": torch.cat([record.mask, ones], 1)}
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] != past + count:
            wanted = f"({record.rows}, {past} cached + {count})"
            remedy = "the cache holds the shortened prompt: count from its length"
            checks.fail("forward", "attention_mask", wanted, mask, remedy)
        return {}

    def _drop(self) -> None:
        """Forget what was encoded and cut for a call."""
        self._now.here.record = None
        self.features.forget()

    def shorten(self, op: str, options: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments of a call that has to change, ids or embeddings among them; None if none has to."""
        if self._now.here.generating:
            return self._one_sequence(options)
        if not images_of(options):
            return self._conversation(options)
        self._drop()
        cut_prompt.forget(api.cache_of(options, self.cache_name))
        try:
            return self._shortened(op, options)
        except BaseException:
            self._drop()
            raise

    def _shortened(self, op: str, options: dict[str, Any]) -> dict[str, Any] | None:
        """:meth:`shorten` for a call with images."""
        embeddings: Any = options.get("inputs_embeds")
        ids = options["input_ids"] if embeddings is None else self._placeholders_in(embeddings)
        words = None if self.words is None else self.words.read(ids, embeddings, options.get("attention_mask"))
        found = self.features.encode(options, direct=op == "forward", words=words)
        if not any(one.removed for one in found.values()):
            return None
        cut = self._cut(op, ids, options.get("attention_mask"), found, self._encodes_again(op, options))
        if cut is None:
            return None
        # ``generate`` itself adds the first position to what it is given.
        first = self.family.first_position if op == "forward" else 0
        changed = self._tensors(ids, options, cut, first)
        if embeddings is None:
            changed["input_ids"] = cut.of(ids, self.filler)
        else:
            changed["inputs_embeds"] = cut.of_vectors(embeddings, self._embedded(ids.new_tensor(self.filler)))
        if options.get("mm_encoder_outputs"):
            outputs = {name: one.output for name, one in found.items()}
            if op == "generate":  # which repeats features in the output itself
                outputs = {name: copy.copy(one) for name, one in outputs.items()}
            changed["mm_encoder_outputs"] = {**options["mm_encoder_outputs"], **outputs}
        if isinstance(options.get("logits_to_keep"), Tensor):
            changed["logits_to_keep"] = placeholders.moved(cut.indices, options["logits_to_keep"], cut.length)
        mask = changed.get("attention_mask")
        record = CutPrompt(self.plan, cut, mask, changed["position_ids"] - first if self.original else None)
        if record.next is not None and self.family.rope_index:  # what the model remembers of its last prompt
            after = record.next if record.next.dim() == 2 else record.next[-1]
            self.model.model.rope_deltas = after - changed["attention_mask"].sum(1, keepdim=True)
        self._now.here.record = record
        self.features.release()
        return changed

    def _encodes_again(self, op: str, options: dict[str, Any]) -> bool:
        """Whether ``generate`` repeats the pixels for several sequences, so that the model encodes them again."""
        if op != "generate" or "mm_encoder_outputs" in inspect.signature(type(self.model).forward).parameters:
            return False
        return any((option(self.model, name, options) or 1) > 1 for name in ("num_beams", "num_return_sequences"))

    def after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Store on the cache which prompt it holds; after an exception, without an output, nothing."""
        now = self._now.here
        record, now.record = now.record, None
        if record is not None and output is not None:
            options = named(type(module).forward, module, args, kwargs) if args else kwargs
            cache = api.output_cache(output)
            cache = api.cache_of(options, self.cache_name) if cache is None else cache
            if cache is not None:
                record.repeated(given_of(options).shape[0]).put_on(cache)
        if not now.generating:
            self.features.forget()

    def _cut(self, op: str, ids: Tensor, mask: Tensor | None, found: dict[str, Reduced], again: bool) -> Cut | None:
        """Which columns stay; None if the caller cut them. Reads the device once, unless counts are static.

        The last real column of a row stays, as the answer is read from it; where a picture ends there, its last token
        is put back into ``found``. If that is not to be had, or the pictures are encoded ``again`` without it, the
        answer is read from the last one that is left.
        """
        keep = torch.ones_like(ids, dtype=torch.bool)
        visual = {name: ids == self.tokens[name] for name in found}
        for name, one in found.items():
            keep &= prompt_cut.kept_columns(visual[name], [each.kept for each in one.projections], one.counts)
        b, length = ids.shape
        if self.static_counts:
            removed = sum(one.removed for one in found.values())
            if removed % b:
                wanted = f"equally many tokens to leave each of {b} rows, as static_counts promises"
                checks.fail(op, "images", wanted, f"{removed} in all", "attach without static_counts")
            widths = [length - removed // b] * b
            if free_to_read(ids) and (found_widths := keep.sum(1).tolist()) != widths:
                wanted = f"rows of which {widths[0]} tokens each are left, as static_counts promises"
                checks.fail(op, "input_ids", wanted, str(found_widths), "attach without static_counts")
            return prompt_cut.cut(keep, widths)
        tracing.require_counts(op, ids, "attach with static_counts=True, and nothing is counted")
        keep = prompt_cut.drop_padding(keep, functools.reduce(torch.logical_or, visual.values()), mask)
        last = prompt_cut.last_columns(ids, mask)
        ended = [(one & ~keep).gather(1, last).squeeze(1) for one in visual.values()]
        facts = [one.sum(1) for one in visual.values()]
        torn = torch.zeros_like(facts[0])
        if mask is not None and self.features.tower is not None:
            for name, shown in visual.items():
                torn = torn + prompt_cut.torn(shown, mask != 0, found[name].counts)
        *numbers, hides, widths = torch.stack([*facts, *ended, torn, keep.sum(1)]).tolist()
        if self._are_cut(found, numbers):
            return None
        placeholders.require_whole_images([[0, number] for number in hides], op)
        for number, (name, one) in enumerate(found.items()):
            self._require_fit(op, name, one, numbers[number])
            pictures = prompt_cut.at_the_end(numbers[number], numbers[len(found) + number], one.counts)
            with_last = one if not pictures else None if again else self.features.with_last_tokens(name, pictures)
            if with_last is None:
                numbers[len(found) + number] = [0] * b
            else:
                found[name] = with_last
        put_back = [any(rows) for rows in zip(*numbers[len(found) :], strict=True)]
        if any(put_back):
            stays = keep.gather(1, last) | torch.tensor(put_back, device=keep.device).unsqueeze(1)
            keep = keep.scatter(1, last, stays)
            widths = [width + more for width, more in zip(widths, put_back, strict=True)]
        return prompt_cut.cut(keep, widths)

    def _are_cut(self, found: dict[str, Reduced], numbers: list[list[int]]) -> bool:
        """Whether rows, of ``numbers`` placeholders of each kind, have as many as the tower left, counted from 0."""
        if self.original or self.features.tower is None:
            return False
        left = [[len(each.kept) for each in one.projections] for one in found.values()]
        counted = list(zip(numbers[: len(left)], left, strict=True))
        return all(sum(rows) == sum(kept) and prompt_cut.first_torn(rows, kept) is None for rows, kept in counted)

    def _require_fit(self, op: str, name: str, reduced: Reduced, rows: list[int]) -> None:
        """Raise unless there are as many placeholders as features, and no picture is in two rows.

        ``rows``: placeholders of each row.
        """
        total = sum(rows)
        if total != sum(reduced.counts):
            wanted = f"{sum(reduced.counts)} placeholders (id {self.tokens[name]}), one for each {name} feature"
            got = f"{total} placeholders (Image features and image tokens do not match, tokens: {total}, "
            got += f"features: {sum(reduced.counts)})"
            checks.fail(op, "input_ids", wanted, got, placeholders.REMEDY)
        row = prompt_cut.first_torn(rows, reduced.counts)
        if row is not None:
            wanted = f"rows of whole {name}s, which have {list(reduced.counts)} placeholders in the order of rows"
            checks.fail(op, "input_ids", wanted, f"{rows[row]} in row {row}", placeholders.REMEDY)

    def _tensors(self, ids: Tensor, options: dict[str, Any], cut: Cut, first: int) -> dict[str, Any]:
        """Mask, positions, token types and labels of what is left."""
        changed: dict[str, Any] = {}
        mask, positions = options.get("attention_mask"), options.get("position_ids")
        for name in ("position_ids", *self.family.token_types):
            self._require_length(name, options.get(name), ids)
        if positions is None and self.original:
            positions = self._positions(ids, mask, options) + first
        if positions is not None and not self.original:
            visual = functools.reduce(torch.logical_or, (ids == token for token in self.tokens.values()))
            positions = positions - (cut.left_out * visual).cumsum(1)
        if mask is None and (self.original or cut.valid is not None):
            mask = torch.ones_like(ids)  # without one, positions that jump mean several sequences in one row
        if mask is not None:
            changed["attention_mask"] = cut.of(mask)
        if positions is not None:
            changed["position_ids"] = cut.of(positions)
        for name in self.family.token_types:
            if options.get(name) is not None:
                changed[name] = cut.of(options[name])
        if options.get("labels") is not None:
            real = None if mask is None else changed["attention_mask"] != 0
            changed["labels"] = self._labels(ids, options["labels"], options.get("logits_to_keep"), cut, real)
        return changed

    def _require_length(self, name: str, given: Tensor | None, ids: Tensor) -> None:
        """Raise unless a tensor of the prompt has an entry for each of ``ids``."""
        if given is not None and given.shape[-1] != ids.shape[1]:
            wanted = f"one entry for each of the {ids.shape[1]} tokens of the prompt"
            checks.fail("forward", name, wanted, given, "pass that of the whole prompt")

    def _labels(self, ids: Tensor, labels: Tensor, keep: Any, cut: Cut, real: Tensor | None) -> Tensor:
        """(B, W) labels of what is left; or (B, n) of the last ones, where ``logits_to_keep`` is n."""
        last = labels.shape[1] if isinstance(keep, int) and 0 < keep == labels.shape[1] < ids.shape[1] else 0
        if last:
            labels = F.pad(labels, (ids.shape[1] - last, 0), value=-100)
        self._require_length("labels", labels, ids)
        real = None if real is None else real.to(labels.device)
        return placeholders.after_the_first(cut.of(labels, -100), real)[:, -last:]

    def _positions(self, ids: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
        """(..., B, L) the positions that the model would give the full prompt."""
        if self.family.rope_index:
            function = self.model.model.get_rope_index
            taken = {name: options.get(name) for name in inspect.signature(function).parameters if name != "kwargs"}
            if api.TOKEN_TYPES in taken and taken[api.TOKEN_TYPES] is None:
                wanted = "given with images: positions come from it"
                checks.fail("forward", api.TOKEN_TYPES, wanted, "None", "pass what the processor returned")
            positions, _ = function(**{**taken, "input_ids": ids, "attention_mask": mask})
            return positions
        if mask is None:
            return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)

    def _conversation(self, options: dict[str, Any]) -> dict[str, Any] | None:
        """``generate`` on a cache without new images: the ids begin with a prompt that was cut, or are new ones."""
        cache = api.cache_of(options, self.cache_name)
        record = cut_prompt.prompt_on(cache, self.plan)
        if record is None:
            return None
        self.tie.warn("generate")
        ids, mask, past = options["input_ids"], options.get("attention_mask"), int(cache.get_seq_length())
        record = record.repeated(ids.shape[0])
        if isinstance(mask, Tensor) and mask.shape[-1] > ids.shape[1]:  # over cached and new tokens
            self._mask(record, past, ids.shape[1], mask)
            if record.next is None:
                return None
            positions = record.continued(past, ids.shape[1])
            return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        before, after = ids[:, : record.cut.length], ids[:, record.cut.length :]
        if before.shape[1] != record.cut.length or not after.shape[1]:
            wanted = f"a conversation that begins with the {record.cut.length} tokens of the prompt in the cache"
            remedy = "append to what generate returned (and to its attention_mask)"
            checks.fail("generate", "input_ids", wanted, ids, remedy)
        changed = {"input_ids": torch.cat([record.cut.of(before, self.filler), after], 1)}
        mask = torch.ones_like(ids) if mask is None else mask
        for name, tensor in (
            ("attention_mask", mask),
            *((name, options.get(name)) for name in self.family.token_types),
        ):
            if tensor is not None:
                head, tail = tensor[:, : record.cut.length], tensor[:, record.cut.length :]
                changed[name] = torch.cat([record.cut.of(head), tail], 1)
        if record.positions is not None:
            tail = record.continued(record.width, after.shape[1])
            changed["position_ids"] = torch.cat([record.positions, tail], -1)
        return changed

    def _placeholders_in(self, embeddings: Tensor) -> Tensor:
        """(B, L) ids that have placeholders where ``embeddings`` (B, L, C) are those of one, and a word elsewhere."""
        ids = torch.full(embeddings.shape[:2], self.filler, device=embeddings.device)
        for token in self.tokens.values():
            found = placeholders.embedded_placeholders(embeddings, (token,), self._embedded)
            ids = torch.where(found, token, ids)
        return ids

    def _embedded(self, ids: Tensor) -> Tensor:
        vectors: Tensor = self.model.get_input_embeddings()(ids)
        return vectors
