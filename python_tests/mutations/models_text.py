"""Faults of what methods note of a prompt before the first layer, and of the last norm that they are given."""

from __future__ import annotations

from mutations import Mutation

PREFILL = "ficoco_ext/models/reduced_prefill.py"
REDUCTION = "ficoco_ext/models/decoder_reduction.py"
LAYOUT = "ficoco_ext/stages/decoder.py"
TESTS = "python_tests/decoder/test_text_models.py"

MUTATIONS = [
    Mutation(
        PREFILL,
        "group.of(marks.to(part.indices.device)).gather(1, part.indices)",
        "group.of(marks.to(part.indices.device))[:, : part.indices.shape[1]]",
        (f"{TESTS}::test_raters_stay_with_their_columns",),
        "After the first reduction other words rate.",
    ),
    Mutation(
        PREFILL,
        "noted.index_copy(0, group.rows.to(marks.device), marks)",
        "noted.index_copy(0, torch.arange(marks.shape[0]), marks)",
        (f"{TESTS}::test_raters_stay_with_their_columns",),
        "In a batch of unequal prompts the words of another row rate.",
    ),
    Mutation(
        PREFILL,
        "for method in dict.fromkeys(methods):",
        "for method in methods:",
        (f"{TESTS}::test_the_prompt_is_read_once_for_methods_that_are_alike",),
        "The prompt is read again for every layer that reduces.",
    ),
    Mutation(
        REDUCTION,
        "call.prefill.norm = self.final_norm",
        "pass",
        (f"{TESTS}::test_pivots_compare_what_the_last_norm_makes",),
        "Pivots compare hidden states that the last norm has not weighed.",
    ),
    Mutation(
        REDUCTION,
        'call.prefill.read_prompt(options["inputs_embeds"], self.methods)',
        "pass",
        (f"{TESTS}::test_raters_are_of_the_prompt_in_every_layer",),
        "Raters are chosen by the hidden states of the layer.",
    ),
]
