"""Tests of transformers that end otherwise on an attached model than on the unmodified one, each with its reason."""

from foreign.modes import CLASSES
from foreign.outcomes import Expected

FAMILIES = tuple(CLASSES)
LANGUAGE_MODEL = ("idle-language-model", "language-model")
ALL = (*LANGUAGE_MODEL, "idle-tower", "tower")

EXPECTED = (
    Expected(
        ALL,
        FAMILIES,
        ("test_attn_implementation_composite_models",),
        "The attention of a reducing layer names our capture, which calls the kernel that the model's config names.",
    ),
    Expected(
        LANGUAGE_MODEL,
        FAMILIES,
        ("test_causal_lm_loss_honors_shift_labels",),
        "Labels are shifted once it is known which tokens are left, so shifted ones are refused.",
    ),
    Expected(
        ("language-model", "tower"),
        FAMILIES,
        ("test_generate_hidden_states_have_the_length_of_the_prompt",),
        "Hidden states are those of the tokens that are left.",
    ),
    Expected(
        ("language-model",),
        FAMILIES,
        ("test_generate_is_the_same_with_and_without_cache",),
        "Without a cache every step reads, and reduces, a longer prompt, so that other tokens may leave.",
        always=False,
    ),
    Expected(
        ("tower",),
        ("llava",),
        ("test_attention_outputs", "test_hidden_states_output"),
        "Hidden states and attentions are those of the tokens that are left.",
    ),
)
