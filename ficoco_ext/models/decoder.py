"""The language model: reduction during prefill in chosen layers, and caches that are shorter from there on.

State lives in two places. One call's is here, of its thread, and is cleared when the call ends, also by an exception.
What the caches hold is written on the cache itself when a prefill has succeeded, so that it goes where the cache goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..methods import LanguageMethod
from ..ops import QueryKey, checks
from ..schedule import Plan
from . import cached, columns, tap
from . import transformers_api as api
from .cached import CacheColumns
from .columns import Columns
from .families import Family
from .generation import images_of, named, option, refuse_unsupported
from .patches import Patches
from .placeholders import fits_images
from .prefill import Group, Prefill, group_rows, visual_columns
from .threads import PerThread

_GUESSING = ("prompt_lookup_num_tokens", "assistant_early_exit")


class _Call:
    """One call of the model: a prefill that reduces, or new tokens behind one."""

    def __init__(self, prefill: Prefill | None, state: CacheColumns | None, cache: Any) -> None:
        self.prefill, self.state, self.cache = prefill, state, cache
        self.told: dict[tuple[int, torch.device], dict[str, Any]] = {}  # by stage: kwargs told in its columns


class _Now(PerThread):
    """What this thread is doing.

    Attributes:
        call: the call of the model that it is in.
        generating: it is in ``generate``, which hands over masks that transformers has made itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.call: _Call | None = None
        self.generating = False


class DecoderLayer:
    """Takes the place of one layer's ``forward``, from the first layer that reduces on."""

    def __init__(
        self, layer: Any, index: int, owner: Decoder, step: int | None = None, tapped: tap.Tap | None = None
    ) -> None:
        self.layer, self.index, self.owner, self.step, self.tap = layer, index, owner, step, tapped

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        """The layer's own forward in the columns that it holds; a reducing layer reduces while a prompt is read."""
        call, body = self.owner.call, type(self.layer).forward
        kwargs["attention_mask"] = attention_mask
        if call is None:
            return body(self.layer, hidden_states, **kwargs)
        told = self.owner.told(call, self.index, hidden_states, kwargs)
        if call.prefill is None or self.step is None:
            return body(self.layer, hidden_states, **told)
        call.cache = api.cache_of(kwargs, self.owner.cache_name)  # the language model may have made it
        method = self.owner.methods[self.step]
        if method.before_attention:
            seen = self._query_key(hidden_states, told)
            hidden_states = call.prefill.reduce(hidden_states, seen, method, self.index, self.step)
            return body(self.layer, hidden_states, **self.owner.told(call, self.index, hidden_states, kwargs))
        attended, seen = self._attend(hidden_states, told)
        hidden_states = call.prefill.reduce(hidden_states + attended, seen, method, self.index, self.step)
        return hidden_states + self.layer.mlp(self.layer.post_attention_layernorm(hidden_states))

    def _attend(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, QueryKey]:
        """Attention of the layer, and the query and key of the prompt that it saw.

        The tap reads during a prefill only: what it holds during decoding would keep old caches alive.
        """
        assert self.tap is not None
        self.tap.reads = True
        try:
            attended = self.layer.self_attn(hidden_states=self.layer.input_layernorm(hidden_states), **kwargs)[0]
            query, key, scale = self.tap.take()
        finally:
            self.tap.reads = False
            self.tap.drop()
        return attended, QueryKey(query, key[:, :, : query.shape[2]], scale)  # a static cache has empty places behind

    def _query_key(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> QueryKey:
        """Query and key that the tokens would have here, without attending and without touching the cache."""
        assert self.tap is not None
        without_cache = api.without_cache(kwargs, self.owner.cache_name)
        self.tap.attends = False
        try:
            self.layer.self_attn(hidden_states=self.layer.input_layernorm(hidden_states), **without_cache)
            return self.tap.take()
        finally:
            self.tap.attends = True
            self.tap.drop()


class Decoder:
    """The reduction of one model's language model.

    The last real token of a prompt always stays: the answer is read from it. Where a picture ends the prompt, its last
    token counts as text.

    Args:
        model: the whole model. family: which one it is.
        plan: what each layer removes. methods: one for each of its layers.
        static_counts: the number of visual tokens of every row: True for one to be found from the pictures' number, or
            a number; False: read it from the prompt, which waits for the device once.
        per_image: visual tokens of a picture, None if that depends on the picture.
        picture: grid of a picture's visual tokens, None if unknown.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        plan: Plan,
        methods: Sequence[LanguageMethod],
        *,
        static_counts: bool | int = False,
        per_image: int | None = None,
        picture: tuple[int, int] | None = None,
    ) -> None:
        self.model, self.plan, self.methods = model, plan, tuple(methods)
        self.tokens = tuple(getattr(model.config, name) for name in family.placeholders)
        self.static_counts, self.per_image, self.picture = static_counts, per_image, picture
        self.cache_name = api.cache_name(type(model).forward)
        self._generate = model.generate
        self._now = _Now()
        self.checks_promise = True  # of static counts, where reading costs nothing
        self.last: Prefill | None = None

    @property
    def call(self) -> _Call | None:
        """The call that this thread is in."""
        return self._now.call

    @call.setter
    def call(self, call: _Call | None) -> None:
        self._now.call = call

    @property
    def generating(self) -> bool:
        """Whether this thread is in ``generate``."""
        return self._now.generating

    def install(self, patches: Patches) -> None:
        """Replace the layers' bodies and hook the model that reads the prompt."""
        language_model = self.model.model.language_model
        steps = {layer: step for step, layer in enumerate(self.plan.layers)}
        first = min(steps)
        of_layer, stage = [], 0
        for index, layer in enumerate(language_model.layers):
            step = steps.get(index)
            before = step is not None and self.methods[step].before_attention
            stage += before
            of_layer.append(stage)
            stage += step is not None and not before
            if index >= first:
                tapped = None if step is None else tap.install(layer.self_attn, patches, reads=False)
                patches.set_forward(layer, DecoderLayer(layer, index, self, step, tapped).forward)
        self.of_layer = tuple(of_layer)
        patches.set(self.model, "generate", self.generate)
        patches.hook(self.model.register_forward_pre_hook(self.before_all, with_kwargs=True))
        patches.hook(self.model.model.register_forward_pre_hook(self.before, with_kwargs=True))
        patches.hook(self.model.model.register_forward_hook(self.after, with_kwargs=True, always_call=True))
        patches.hook(language_model.register_forward_pre_hook(self.go_on, with_kwargs=True))
        patches.hook(language_model.register_forward_hook(self.end, with_kwargs=True, always_call=True))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """``GenerationMixin.generate``, with what it may not be asked for refused."""
        options = named(type(self.model).generate, self.model, args, kwargs)
        if images_of(options):
            refuse_unsupported(self.model, options)
            for name in _GUESSING:
                if option(self.model, name, options):
                    message = f"{name} is not supported: it reads guesses together with the prompt; leave it out"
                    raise NotImplementedError(f"ficoco::generate: {message}")
            if option(self.model, "use_cache", options) is False:
                message = "without a cache every step would read, and reduce, a longer prompt; leave use_cache on"
                raise NotImplementedError(f"ficoco::generate: use_cache=False is not supported: {message}")
        outer, self._now.generating = self._now.generating, True
        try:
            return self._generate(**options)
        finally:
            self._now.generating = outer

    def before_all(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What only the outermost call knows."""
        options = named(type(module).forward, module, args, kwargs) if args else kwargs
        if not images_of(options):
            return
        if isinstance(options.get("logits_to_keep"), Tensor):
            remedy = "pass how many of the last ones, or 0 for all that are left"
            wanted = "a number: a prompt loses visual tokens, so columns move"
            checks.fail("forward", "logits_to_keep", wanted, options["logits_to_keep"], remedy)
        if options.get("labels") is not None:
            remedy = "logits have the reduced length; detach to compute a loss"
            checks.fail("forward", "labels", "None: a prompt loses visual tokens", options["labels"], remedy)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find out what kind of call this is."""
        self.call = None
        options = named(type(module).forward, module, args, kwargs) if args else kwargs
        cache, ids = api.cache_of(options, self.cache_name), options.get("input_ids")
        if images_of(options):
            self._check(module, options)
            cached.forget(cache)
            assert ids is not None
            prefill = self._prefill(ids, options)
            self.call = None if prefill is None else _Call(prefill, None, cache)
        else:
            self.go_on(module, args, options)

    def go_on(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """New tokens behind a cache, also where the language model itself is called with it."""
        cache = api.cache_of(kwargs, self.cache_name)
        state = cached.on(cache)
        if self.call is not None or cache is None or state is None:
            return
        ids = kwargs.get("input_ids")
        given = kwargs["inputs_embeds"] if ids is None else ids
        on_device = api.is_static(cache)
        if (given.shape[1] > 1 or not on_device) and int(cache.get_seq_length()) == 0:
            cached.forget(cache)  # emptied behind our back; this is another prompt, of text alone
            return
        state.check(self.plan, self.of_layer, cache, given.shape[0])
        self.call = _Call(None, state, cache)

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Write on the cache what it holds now, if the prefill went through; forget the call in any case."""
        call, self.call = self.call, None
        if call is None or call.prefill is None or output is None:
            return
        self.last = call.prefill
        if call.cache is not None:
            CacheColumns(self.plan, call.prefill.length, call.prefill.stages, self.of_layer).put_on(call.cache)

    def end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forget a call of new tokens; that of a prefill is needed until the whole model is through."""
        if self.call is not None and self.call.prefill is None:
            self.call = None

    def told(self, call: _Call, layer: int, hidden_states: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a layer in the columns that it holds now."""
        prefill, state = call.prefill, call.state
        if prefill is not None:
            stage, held, length = len(prefill.stages) - 1, prefill.held, prefill.length
        else:
            assert state is not None
            stage, length = state.of_layer[layer], state.length
            held = state.stages[stage]
        if stage == 0:
            return kwargs
        key = (stage, hidden_states.device)
        if key not in call.told:
            if prefill is not None:
                call.told.clear()  # stages behind are over: their masks need not be held until the end
            held = held.to(hidden_states.device)
            call.told[key] = self._tell(call, held, length, layer, hidden_states, kwargs)
        return kwargs | call.told[key]

    def _tell(
        self, call: _Call, held: Columns, length: int, layer: int, hidden_states: Tensor, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        cache, prefill = api.cache_of(kwargs, self.cache_name), call.prefill is not None

        def build(real: Tensor) -> Any:
            new = 0
            if cache is not None and not prefill:
                new = int(cache.get_seq_length(layer)) - real.shape[1] + hidden_states.shape[1]
            there = torch.cat([real, real.new_ones(real.shape[0], new)], 1)
            config = self.model.model.language_model.config
            return api.causal_mask(config, hidden_states, there, cache, layer)

        base = kwargs["attention_mask"]
        if base is not None and not isinstance(base, Tensor):
            wanted, remedy = "sdpa, eager or flash attention", 'call model.set_attn_implementation("sdpa")'
            got = type(base).__name__
            checks.fail("forward", "attention implementation", wanted, got, remedy, NotImplementedError)
        static = api.is_static(cache)
        mask = columns.mask(base, held, length, prefill=prefill, static=static, build=build)
        if prefill and mask is None and api.reads_positions(api.attention_name(self.model.model.language_model.config)):
            mask = hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.long)
        told = {"attention_mask": mask}
        if prefill:
            told["position_embeddings"] = columns.embeddings(kwargs["position_embeddings"], held.places)
            told["position_ids"] = columns.position_ids(kwargs.get("position_ids"), held.places)
        return told

    def _check(self, module: nn.Module, options: dict[str, Any]) -> None:
        """What a call with pictures may not ask for."""
        cache, mask = api.cache_of(options, self.cache_name), options.get("attention_mask")
        if options.get("input_ids") is None:
            remedy = "pass input_ids, whose placeholders say which tokens are visual"
            checks.fail("forward", "inputs_embeds", "None in a call with images", "embeddings", remedy)
        if module.training:
            remedy = "call model.eval(), or detach"
            checks.fail("forward", "model", "in evaluation mode", "one in training mode", remedy)
        if getattr(module, "_is_replica", False):
            message = "model must be one module, got a replica of nn.DataParallel; use one process a GPU"
            raise NotImplementedError(f"ficoco::forward: {message}")
        on_device = api.is_static(cache) and not self._free(options["input_ids"])
        if cache is not None and not (on_device and self.static_counts) and int(cache.get_seq_length()) > 0:
            message = "new images on a cache that is not empty are not supported; pass the whole conversation anew"
            raise NotImplementedError(f"ficoco::forward: {message}")
        full = api.full_mask(mask)
        usable = full is None or (isinstance(full, Tensor) and (full.dim() == 2 or self.generating))
        if isinstance(mask, dict):
            usable = usable and self.generating and api.FULL_ATTENTION in mask
        if not usable:
            wanted = "None or (B, L), as the processor made it"
            checks.fail("forward", "attention_mask", wanted, mask, "causality and padding is all that is told on")

    def _prefill(self, ids: Tensor, options: dict[str, Any]) -> Prefill | None:
        """The rows of a prompt with pictures. Waits for the device once, unless counts are static."""
        pictured = ids == self.tokens[0]
        for other in self.tokens[1:]:
            pictured = pictured | (ids == other)
        real = _real(options.get("attention_mask"), ids.shape[1])
        visual = pictured if real is None else pictured & real  # a placeholder that the mask hides is padding
        if self.static_counts:
            return self._static(visual, real, options)
        length = ids.shape[1]
        columns_ = torch.arange(length, device=ids.device)
        last = length - 1 if real is None else (columns_ * real).amax(1, keepdim=True)
        visual = visual & (columns_ != last)  # what the answer is read from stays, even if it is a picture's
        facts = [visual.sum(1), length - 1 - (columns_ * visual).amax(1), pictured.sum(1)]
        if real is not None:
            uneven = (real[:, 1:] < real[:, :-1]).any(1)  # holes, or padding on the right
            facts += [real.sum(1), uneven]
        counts = torch.stack(facts, 1).tolist()
        if self.per_image is not None:
            total = sum(count[2] for count in counts)
            fits_images("forward", self.tokens[0], images_of(options), self.per_image, total)
        numbers = {count[0] for count in counts} - {0}
        if not numbers:
            return None
        # Of padding on the left as much is given up as all rows allow; of other padding nothing.
        needs = [count[3] if real is not None and not count[4] else length for count in counts]
        if real is not None and all(count[3] == length for count in counts):
            real = None
        schedules = {number: self.plan.schedule(number) for number in numbers}
        return Prefill(pictured, real, group_rows(visual, schedules, counts, needs), self.picture)

    def _free(self, tensor: Tensor) -> bool:
        """Whether a promise of static counts can be looked at without waiting for a device."""
        return self.checks_promise and tensor.device.type == "cpu" and not torch.compiler.is_compiling()

    def _static(self, visual: Tensor, real: Tensor | None, options: dict[str, Any]) -> Prefill:
        """All rows alike, by promise: nothing is read."""
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
        if self._free(visual):
            last = length - 1 if real is None else (torch.arange(length) * real).amax(1)
            ends = visual[torch.arange(b), last]
            if bool((visual.sum(1) != count).any()) or bool(ends.any()):
                wanted = f"{count} visual tokens in each row and text behind them, as promised"
                got = f"rows with {visual.sum(1).tolist()}{', a picture at the end' if bool(ends.any()) else ''}"
                checks.fail("forward", "input_ids", wanted, got, "attach without static_counts")
        group = Group(None, self.plan.schedule(count), visual_columns(visual, count), None, count, [length] * b)
        return Prefill(visual, real, [group], self.picture)


def _real(mask: Any, length: int) -> Tensor | None:
    """(B, L) True for real tokens, from whatever mask came; None: all are."""
    mask = api.full_mask(mask)
    if mask is None:
        return None
    if mask.dim() == 2:
        return mask[:, -length:].bool()
    last = mask[:, 0, -1, :length]  # the last query sees every real token
    return last if last.dtype == torch.bool else last == 0
