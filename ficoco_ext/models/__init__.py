"""Hooks into Hugging Face models. Nothing here imports transformers before ``attach`` or ``resolve`` is called.

- what ``attach`` does, in this order: ``request`` (what was asked for), ``model_checks`` and ``facts`` (of the model),
  ``attach_plan`` (what to do), ``handle``
- which models: ``families``; the rest of transformers: ``transformers_api``, ``transformers_release``
- in the vision tower: ``vision_tower``, and for its prompts ``short_prompts``, ``placeholders``, ``callbacks``
- in the language model: ``decoder_reduction``, ``decoder_layer``, ``prompt_reader``, ``reduced_prefill``,
  ``positions``, ``kv_cache``, ``row_reductions``, ``loss``
- after the projector: ``projector_reduction``, ``projections``, ``feature_cutter``, ``prompt_cut``, ``cut_prompt``,
  ``prompt_words``, ``modalities``, ``layouts``, ``tower_saliency``
- for several: ``qk_capture``, ``model_changes``, ``per_thread``, ``generate_options``, ``tracing``
- for pictures: ``pictures``, ``attention_rows``
"""

from .attach import attach, resolve
from .attach_plan import AttachPlan
from .handle import Handle
from .prompt_words import template_ids

__all__ = ["AttachPlan", "Handle", "attach", "resolve", "template_ids"]
