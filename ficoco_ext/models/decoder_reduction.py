"""Reduction in chosen layers of a language model during prefill, and the shorter caches of the layers after them.

State is in two places. That of one call of the model goes with its arguments, from the whole model to each layer, so
that nothing is left of it afterwards, also by an exception. What a cache holds is stored on the cache itself once a
prefill has succeeded, so that both move together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from . import cut_prompt, kv_cache, loss, output_aware, positions, qk_capture
from . import transformers_api as api
from .attach_plan import AttachPlan
from .decoder_layer import CALL, DecoderLayer
from .generate_options import images_of, named, option, refuse_router_logits, refuse_unsupported
from .key_sets import KeySets
from .kv_cache import CachedPositions, MadeBy
from .model_changes import ModelChanges
from .per_thread import PerThread
from .positions import HeldPositions
from .prompt_reader import PromptReader
from .prompt_words import QuestionTie
from .reduced_prefill import ReducedPrefill

_GUESSING = ("prompt_lookup_num_tokens", "assistant_early_exit")


class _Call:
    """One call of the model: a prefill that reduces, or new tokens after one.

    Attributes:
        labels: (B, L) of the caller's prompt, for the loss of what is left of it.
        prefill, state, cache: of a prefill what it does, of new tokens which positions the cache holds; the cache.
        visual: of a prefill with key sets by modality (B, L) bool, its placeholders.
        arguments: by stage and device, the arguments of its layers that depend on the positions they hold.
    """

    def __init__(self, labels: Tensor | None = None) -> None:
        self.labels = labels
        self.prefill: ReducedPrefill | None = None
        self.state: CachedPositions | None = None
        self.cache: Any = None
        self.visual: dict[str, Tensor] = {}
        self.arguments: dict[tuple[int, torch.device], dict[str, Any]] = {}


class _Now:
    """``generating``: a thread is in ``generate``, which passes masks that transformers has made itself."""

    def __init__(self) -> None:
        self.generating = False


class DecoderReduction:
    """The reduction of one model's language model.

    Args:
        model: the whole model. language_model: the part of it with the layers.
        plan: what to do. tie: says that a conversation goes on.
    """

    def __init__(self, model: Any, language_model: Any, plan: AttachPlan, tie: QuestionTie) -> None:
        assert plan.plan is not None
        self.model, self.language_model, self.tie = model, language_model, tie
        self.plan, self.methods, self.cache = plan.plan, plan.decoder_methods, plan.cache
        self.cutting = plan if plan.cuts_by_features else None
        self.cache_name = api.cache_name(type(model).forward)
        self.reader = PromptReader(plan, self.cache_name)
        self._generate = model.generate
        self._now = PerThread(_Now)
        self.last: ReducedPrefill | None = None
        self.keys: KeySets | None = None

    @property
    def generating(self) -> bool:
        """Whether this thread is in ``generate``."""
        return self._now.here.generating

    def install(self, changes: ModelChanges) -> None:
        """Replace the layers' bodies and hook the model that reads the prompt."""
        language_model = self.language_model
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
        self.made_by = MadeBy(self.plan, self.stage_of_layer, self.cache)
        changes.set(self.model, "generate", self.generate)
        inner = self.model.model
        changes.hook(self.model.register_forward_pre_hook(self.before_all, with_kwargs=True))
        changes.hook(self.model.register_forward_hook(self.add_loss, with_kwargs=True))
        changes.hook(inner.register_forward_pre_hook(self.before, with_kwargs=True))
        changes.hook(inner.register_forward_hook(self.after, with_kwargs=True))
        changes.hook(language_model.register_forward_pre_hook(self.continue_cached, with_kwargs=True))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """``GenerationMixin.generate``, after refusing what is not supported."""
        options = named(type(self.model).generate, self.model, args, kwargs)
        if images_of(options):
            refuse_unsupported(self.model, options)
            for name in _GUESSING:
                if option(self.model, name, options):
                    message = f"{name} is not supported: it reads guesses together with the prompt; leave it out"
                    raise NotImplementedError(f"ficoco::generate: {message}")
        now = self._now.here
        if self.keys is not None:
            options |= self.keys.handed("generate", options)
        outer, now.generating = now.generating, True
        try:
            return self._generate(**options)
        finally:
            now.generating = outer

    def before_all(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take ``labels``, which the model would compare with logits of another length, and refuse what cannot be."""
        options = named(type(module).forward, module, args, kwargs) if args else kwargs
        if not self.reader.has_visual_tokens(options):
            return None
        refuse_router_logits(self.model, options)
        if isinstance(options.get("logits_to_keep"), Tensor):
            remedy = "pass how many of the last ones, or 0 for all that are left"
            wanted = "a number: a prompt loses visual tokens, so positions move"
            checks.fail("forward", "logits_to_keep", wanted, options["logits_to_keep"], remedy)
        labels = options.get("labels")
        if labels is None:
            return None
        if options.get("shift_labels") is not None:
            remedy = "pass labels alone: they are shifted once it is known which positions are left"
            checks.fail("forward", "shift_labels", "None in a call with images", options["shift_labels"], remedy)
        return (), options | {"labels": None, CALL: _Call(labels)}

    def add_loss(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """The output with the loss of what is left of a prompt with labels."""
        call = kwargs.get(CALL)
        if call is None:
            return None
        return loss.added(module, _without_call(kwargs), call.labels, call.prefill, output)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Decide what kind of call this is."""
        options = named(type(module).forward, module, args, kwargs) if args else kwargs
        if not self.reader.has_visual_tokens(options):
            return self.continue_cached(module, args, kwargs)
        cache = api.cache_of(options, self.cache_name)
        self.reader.require_served(module, options, self.generating)
        kv_cache.forget(cache)
        call = options.get(CALL) or _Call()
        call.prefill, call.cache = self.reader.read(module, options), cache
        if call.prefill is None:
            return (), _without_call(options)
        call.prefill.norm = self.final_norm
        if self.keys is not None:
            self.keys.begin(options, self.generating)
            call.visual = self._visual(module, options)
        return (), options | {CALL: call}

    def continue_cached(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """New tokens after a cache, also where the language model itself is called; or the embeddings of a prefill."""
        options = named(type(module).forward, module, args, kwargs) if args else kwargs
        cache = api.cache_of(options, self.cache_name)
        cut_prompt.prompt_on(cache, self.cutting)
        state, call = kv_cache.positions_on(cache), options.get(CALL)
        if call is not None and call.prefill is not None:
            call.prefill.read_prompt(options["inputs_embeds"], self.methods)
            if self.keys is not None:
                call.prefill.protected = self.keys.protected(call.visual)
                self.keys.end()
        if call is not None or cache is None or state is None:
            return None
        ids = options.get("input_ids")
        given = options["inputs_embeds"] if ids is None else ids
        on_device = api.is_static(cache)
        if (given.shape[1] > 1 or not on_device) and int(cache.get_seq_length()) == 0:
            kv_cache.forget(cache)  # it was emptied without our methods; this is another prompt, of text alone
            return None
        if given.shape[1] > 1:
            self.tie.warn("forward")
        state.check(self.made_by, cache, given.shape[0])
        call = _Call()
        call.state, call.cache = state, cache
        return (), options | {CALL: call}

    def _visual(self, module: nn.Module, options: dict[str, Any]) -> dict[str, Tensor]:
        """By the name of each modality (B, L) bool, its placeholders."""
        assert self.keys is not None
        pairs = zip(self.keys.family.modalities, self.reader.placeholders, strict=True)
        return {one.name: self.reader.visual_of(module, options, token) for one, token in pairs}

    def final_norm(self, hidden_states: Tensor) -> Tensor:
        """What the language model makes of hidden states after its last layer, on their device."""
        normed: Tensor = self.language_model.norm(hidden_states)
        return normed.to(hidden_states.device)

    def after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Store on the cache which positions it holds, now that the prefill has succeeded."""
        call = kwargs.get(CALL)
        if call is None or call.prefill is None:
            return
        self.last = call.prefill
        if call.cache is None:
            return
        length, stages, of_layer = call.prefill.length, call.prefill.held, self.stage_of_layer
        if self.cache == "output-aware":
            stages, of_layer = output_aware.cut(call.cache, stages, of_layer, self.plan.layers[0], length)
        CachedPositions(self.made_by, length, stages, of_layer).put_on(call.cache)

    def arguments(
        self, call: _Call, layer: int, hidden_states: Tensor, kwargs: dict[str, Any], *, before: bool = False
    ) -> dict[str, Any]:
        """The arguments of a layer for the positions that it holds; ``before``: before its own reduction."""
        of_layer = self.stage_of_layer if call.state is None else call.state.stage_of_layer
        stage = of_layer[layer] - before
        if stage == 0:
            return kwargs
        if call.prefill is not None:
            held, length = call.prefill.held[stage], call.prefill.length
        else:
            assert call.state is not None
            held, length = call.state.stages[stage], call.state.length
        key = (stage, hidden_states.device)
        if key not in call.arguments:
            if call.prefill is not None:
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
            return api.causal_mask(self.language_model.config, hidden_states, keys, cache, layer)

        base = kwargs["attention_mask"]
        if base is not None and not isinstance(base, Tensor):
            wanted, remedy = "sdpa, eager or flash attention", 'call model.set_attn_implementation("sdpa")'
            got = type(base).__name__
            checks.fail("forward", "attention implementation", wanted, got, remedy, NotImplementedError)
        static = api.is_static(cache)
        mask = positions.mask(base, held, length, prefill=prefill, static=static, build=build)
        if prefill and mask is None and api.reads_positions(api.attention_name(self.language_model.config)):
            mask = hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.long)
        made = {"attention_mask": mask}
        if prefill:
            made["position_embeddings"] = positions.embeddings(kwargs["position_embeddings"], held.indices)
            made["position_ids"] = positions.position_ids(kwargs.get("position_ids"), held.indices)
        return made


def _without_call(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != CALL}
