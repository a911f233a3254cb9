"""Reduction in chosen layers of a language model during prefill, and the shorter caches of the layers after them.

State is in two places. That of one call is here, for its thread, and is cleared when the call ends, also by an
exception. What a cache holds is stored on the cache itself once a prefill has succeeded, so that both move together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from . import kv_cache, positions, qk_capture
from . import transformers_api as api
from .attach_plan import AttachPlan
from .decoder_layer import DecoderLayer
from .generate_options import images_of, named, option, refuse_unsupported
from .kv_cache import CachedPositions
from .model_changes import ModelChanges
from .per_thread import PerThread
from .positions import HeldPositions
from .prompt_reader import PromptReader
from .reduced_prefill import ReducedPrefill

_GUESSING = ("prompt_lookup_num_tokens", "assistant_early_exit")


class _Call:
    """One call of the model: a prefill that reduces, or new tokens after one."""

    def __init__(self, prefill: ReducedPrefill | None, state: CachedPositions | None, cache: Any) -> None:
        self.prefill, self.state, self.cache = prefill, state, cache
        # By stage and device: the arguments of its layers that depend on the positions they hold.
        self.arguments: dict[tuple[int, torch.device], dict[str, Any]] = {}


class _Now(PerThread):
    """What this thread is in.

    Attributes:
        call: the call of the model that it is in.
        generating: it is in ``generate``, which passes masks that transformers has made itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.call: _Call | None = None
        self.generating = False


class DecoderReduction:
    """The reduction of one model's language model.

    Args:
        model: the whole model.
        plan: what to do.
    """

    def __init__(self, model: Any, plan: AttachPlan) -> None:
        assert plan.plan is not None
        self.model, self.plan, self.methods = model, plan.plan, plan.decoder_methods
        self.cache_name = api.cache_name(type(model).forward)
        self.reader = PromptReader(plan, self.cache_name)
        self._generate = model.generate
        self._now = _Now()
        self.last: ReducedPrefill | None = None

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

    def install(self, changes: ModelChanges) -> None:
        """Replace the layers' bodies and hook the model that reads the prompt."""
        language_model = self.model.model.language_model
        steps = {layer: step for step, layer in enumerate(self.plan.layers)}
        first = min(steps)
        stage_of_layer, stage = [], 0
        for index, layer in enumerate(language_model.layers):
            step = steps.get(index)
            before = step is not None and self.methods[step].before_attention
            stage += before
            stage_of_layer.append(stage)
            stage += step is not None and not before
            if index >= first:
                capture = None if step is None else qk_capture.install(layer.self_attn, changes, reads=False)
                changes.set_forward(layer, DecoderLayer(layer, index, self, step, capture).forward)
        self.stage_of_layer = tuple(stage_of_layer)
        changes.set(self.model, "generate", self.generate)
        changes.hook(self.model.register_forward_pre_hook(self.before_all, with_kwargs=True))
        changes.hook(self.model.model.register_forward_pre_hook(self.before, with_kwargs=True))
        changes.hook(self.model.model.register_forward_hook(self.after, with_kwargs=True, always_call=True))
        changes.hook(language_model.register_forward_pre_hook(self.continue_cached, with_kwargs=True))
        changes.hook(language_model.register_forward_hook(self.end, with_kwargs=True, always_call=True))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """``GenerationMixin.generate``, after refusing what is not supported."""
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
        """Refuse arguments that only the outermost call gets."""
        options = named(type(module).forward, module, args, kwargs) if args else kwargs
        if not images_of(options):
            return
        if isinstance(options.get("logits_to_keep"), Tensor):
            remedy = "pass how many of the last ones, or 0 for all that are left"
            wanted = "a number: a prompt loses visual tokens, so positions move"
            checks.fail("forward", "logits_to_keep", wanted, options["logits_to_keep"], remedy)
        if options.get("labels") is not None:
            remedy = "logits have the reduced length; detach to compute a loss"
            checks.fail("forward", "labels", "None: a prompt loses visual tokens", options["labels"], remedy)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Decide what kind of call this is."""
        self.call = None
        options = named(type(module).forward, module, args, kwargs) if args else kwargs
        cache, ids = api.cache_of(options, self.cache_name), options.get("input_ids")
        if images_of(options):
            self.reader.require_served(module, options, self.generating)
            kv_cache.forget(cache)
            assert ids is not None
            prefill = self.reader.read(ids, options)
            self.call = None if prefill is None else _Call(prefill, None, cache)
        else:
            self.continue_cached(module, args, options)

    def continue_cached(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """New tokens after a cache, also where the language model itself is called with it."""
        cache = api.cache_of(kwargs, self.cache_name)
        state = kv_cache.positions_on(cache)
        if self.call is not None or cache is None or state is None:
            return
        ids = kwargs.get("input_ids")
        given = kwargs["inputs_embeds"] if ids is None else ids
        on_device = api.is_static(cache)
        if (given.shape[1] > 1 or not on_device) and int(cache.get_seq_length()) == 0:
            kv_cache.forget(cache)  # it was emptied without our methods; this is another prompt, of text alone
            return
        state.check(self.plan, self.stage_of_layer, cache, given.shape[0])
        self.call = _Call(None, state, cache)

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Store on the cache which positions it holds, if the prefill succeeded; forget the call in any case."""
        call, self.call = self.call, None
        if call is None or call.prefill is None or output is None:
            return
        self.last = call.prefill
        if call.cache is not None:
            CachedPositions(self.plan, call.prefill.length, call.prefill.stages, self.stage_of_layer).put_on(call.cache)

    def end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forget a call of new tokens; that of a prefill is needed until the whole model returns."""
        if self.call is not None and self.call.prefill is None:
            self.call = None

    def arguments(self, call: _Call, layer: int, hidden_states: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a layer for the positions that it holds now."""
        prefill, state = call.prefill, call.state
        if prefill is not None:
            stage, held, length = len(prefill.stages) - 1, prefill.held, prefill.length
        else:
            assert state is not None
            stage, length = state.stage_of_layer[layer], state.length
            held = state.stages[stage]
        if stage == 0:
            return kwargs
        key = (stage, hidden_states.device)
        if key not in call.arguments:
            if prefill is not None:
                call.arguments.clear()  # earlier stages are over: their masks need not be kept until the end
            held = held.to(hidden_states.device)
            call.arguments[key] = self._make_arguments(call, held, length, layer, hidden_states, kwargs)
        return kwargs | call.arguments[key]

    def _make_arguments(
        self, call: _Call, held: HeldPositions, length: int, layer: int, hidden_states: Tensor, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        cache, prefill = api.cache_of(kwargs, self.cache_name), call.prefill is not None

        def build(real: Tensor) -> Any:
            new = 0
            if cache is not None and not prefill:
                new = int(cache.get_seq_length(layer)) - real.shape[1] + hidden_states.shape[1]
            keys = torch.cat([real, real.new_ones(real.shape[0], new)], 1)
            config = self.model.model.language_model.config
            return api.causal_mask(config, hidden_states, keys, cache, layer)

        base = kwargs["attention_mask"]
        if base is not None and not isinstance(base, Tensor):
            wanted, remedy = "sdpa, eager or flash attention", 'call model.set_attn_implementation("sdpa")'
            got = type(base).__name__
            checks.fail("forward", "attention implementation", wanted, got, remedy, NotImplementedError)
        static = api.is_static(cache)
        mask = positions.mask(base, held, length, prefill=prefill, static=static, build=build)
        if prefill and mask is None and api.reads_positions(api.attention_name(self.model.model.language_model.config)):
            mask = hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.long)
        made = {"attention_mask": mask}
        if prefill:
            made["position_embeddings"] = positions.embeddings(kwargs["position_embeddings"], held.indices)
            made["position_ids"] = positions.position_ids(kwargs.get("position_ids"), held.indices)
        return made
