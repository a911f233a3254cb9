"""Stands in for ``tests/generation/test_utils.py`` of transformers, which its source distribution lacks.

Tests of ``generate`` that hold for any model, in the form of transformers' mixins.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

NEW = 4  # tokens
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 5},
    "beams": {"num_beams": 2},
    "several sequences": {"do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "no cache": {"use_cache": False},
    "penalty": {"repetition_penalty": 1.5},
    "shortest": {"min_new_tokens": NEW},
}


class GenerationTesterMixin:
    """``generate`` in several ways; needs ``all_generative_model_classes`` and ``model_tester``."""

    all_generative_model_classes: tuple[Any, ...]
    model_tester: Any

    def _models(self) -> Any:
        for model_class in self.all_generative_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            torch.manual_seed(0)
            model = model_class(config).eval()
            model.generation_config.eos_token_id = None  # random weights would stop at random
            yield model, inputs

    def test_generate_returns_prompt_and_continuation(self) -> None:
        for model, inputs in self._models():
            length = inputs["input_ids"].shape[1]
            for way, options in WAYS.items():
                with self.subTest(way):  # type: ignore[attr-defined]
                    found = model.generate(**inputs, max_new_tokens=NEW, **options)
                    sequences = options.get("num_return_sequences", 1)
                    assert found.shape == (len(inputs["input_ids"]) * sequences, length + NEW)
                    assert torch.equal(found[::sequences, :length], inputs["input_ids"])

    def test_generate_is_the_same_with_and_without_cache(self) -> None:
        for model, inputs in self._models():
            kept = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            assert torch.equal(kept, model.generate(**inputs, max_new_tokens=NEW, do_sample=False, use_cache=False))

    def test_generate_is_the_same_with_a_static_cache(self) -> None:
        for model, inputs in self._models():
            dynamic = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            options = {"cache_implementation": "static", "disable_compile": True}
            assert torch.equal(dynamic, model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **options))

    def test_generate_counts_tokens_by_max_length(self) -> None:
        for model, inputs in self._models():
            length = inputs["input_ids"].shape[1] + NEW
            assert model.generate(**inputs, max_length=length, do_sample=False).shape[1] == length

    def test_generate_gives_a_score_for_each_step(self) -> None:
        for model, inputs in self._models():
            options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
            found = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **options)
            assert len(found.scores) == len(found.logits) == NEW
            assert found.sequences[:, -1].equal(found.logits[-1].argmax(-1))

    def test_generate_hidden_states_have_the_length_of_the_prompt(self) -> None:
        for model, inputs in self._models():
            options = {"return_dict_in_generate": True, "output_hidden_states": True}
            found = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **options)
            assert {one.shape[1] for one in found.hidden_states[0]} == {inputs["input_ids"].shape[1]}

    def test_generate_continues_from_its_cache(self) -> None:
        for model, inputs in self._models():
            whole = model.generate(**inputs, max_new_tokens=2 * NEW, do_sample=False)
            first = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
            name = "cache" if "cache" in first else "past_key_values"
            more = {"input_ids": first.sequences, "attention_mask": torch.ones_like(first.sequences)}
            more[name] = copy.deepcopy(first[name])
            assert torch.equal(whole, model.generate(**more, max_new_tokens=NEW, do_sample=False))

    def test_generate_does_not_depend_on_left_padding(self) -> None:
        for model, inputs in self._models():
            padded = dict(inputs)
            fill = {"input_ids": self.model_tester.pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0}
            for name, value in fill.items():
                if name in inputs:
                    padded[name] = torch.nn.functional.pad(inputs[name], (3, 0), value=value)
            found = model.generate(**padded, max_new_tokens=NEW, do_sample=False)
            assert torch.equal(found[:, 3:], model.generate(**inputs, max_new_tokens=NEW, do_sample=False))
