"""Faults of the words of a prompt, and of what is said of a picture that was cut by them."""

from __future__ import annotations

from mutations import Mutation

WORDS = "ficoco_ext/models/prompt_words.py"
TESTS = "python_tests/families/test_prompt_words.py"

MUTATIONS = [
    Mutation(
        WORDS,
        "rows = torch.searchsorted(ends, starts, right=True)",
        "rows = torch.searchsorted(ends, starts)",
        (f"{TESTS}::test_each_picture_gets_the_words_of_its_row[llava-clip-unequal_rows]",),
        "A picture that begins where a row's pictures end is chosen by the words of the row before.",
    ),
    Mutation(
        WORDS,
        ".repeat_interleave(times)",
        ".repeat(times)",
        (f"{TESTS}::test_pictures_that_follow_themselves_have_the_words_of_one_row",),
        "With beams pictures that are encoded again are chosen by the words of other rows.",
    ),
    Mutation(
        WORDS,
        "there = there & (mask != 0)",
        "pass",
        (f"{TESTS}::test_embeddings_are_their_own_words",),
        "Padding counts as words where a prompt is given as embeddings.",
    ),
    Mutation(
        WORDS,
        "there = there & ~one",
        "pass",
        (f"{TESTS}::test_embeddings_are_their_own_words",),
        "Placeholders count as words where a prompt is given as embeddings.",
    ),
    Mutation(
        WORDS,
        "sorted({*special_ids(model.config), *tokens.values(), *left_out})",
        "sorted({*special_ids(model.config), *tokens.values()})",
        (f"{TESTS}::test_ids_that_are_not_words_are_left_out",),
        "The ids of the chat template count as words although the caller left them out.",
    ),
    Mutation(
        WORDS,
        "found |= special_ids(part)",
        "pass",
        (f"{TESTS}::test_by_default_all_but_special_ids_are_words",),
        "Special ids that only the language model's config names count as words.",
    ),
    Mutation(
        WORDS,
        "        self._said = True\n",
        "",
        (f"{TESTS}::test_a_conversation_that_goes_on_is_warned_of",),
        "Every turn of a conversation is warned of again.",
    ),
    Mutation(
        WORDS,
        ".input_ids for part in parts]",
        ".input_ids for part in parts[:1]]",
        ("python_tests/models/test_template_ids.py::test_what_stands_around_the_question",),
        "What a template writes after the question counts as its words.",
    ),
    Mutation(
        "ficoco_ext/models/projections.py",
        "return sum(one.before - len(one.kept) for one in self.projections)",
        "return sum(one.before for one in self.projections)",
        ("python_tests/models/test_projector_compile.py::test_static_counts_change_no_answer",),
        "With static counts prompts lose all columns of their pictures.",
    ),
    Mutation(
        "ficoco_ext/models/projections.py",
        "kept = torch.cat([kept, torch.arange(before, after, device=kept.device)])",
        "pass",
        ("python_tests/models/test_projector_state.py::test_tokens_that_the_model_adds_itself_stay",),
        "The end of line that a model adds to a video leaves the prompt, but not the features.",
    ),
    Mutation(
        "ficoco_ext/models/attach_plan.py",
        "if one.reads_question",
        "",
        (f"{TESTS}::test_a_method_that_reads_no_words_serves_any_question",),
        "Conversations are warned of with methods that read no words.",
    ),
]
