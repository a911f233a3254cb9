"""Faults of SparseVLM and FitPrune as declarations, and of what a decoder method tells its filter."""

from __future__ import annotations

from mutations import Mutation

SPARSE = "ficoco_ext/methods/sparsevlm.py"
FIT = "ficoco_ext/methods/fitprune.py"
DECODER = "ficoco_ext/methods/decoder_method.py"
TESTS = "python_tests/decoder/test_text_methods.py"

MUTATIONS = [
    Mutation(
        SPARSE,
        "chosen.append(max(block * layers // _LAYERS, chosen[-1] + 1 if chosen else 0))",
        "chosen.append(block * layers // _LAYERS)",
        (f"{TESTS}::test_blocks_of_models_of_any_depth",),
        "A shallow model is refused because two blocks are one.",
    ),
    Mutation(
        SPARSE,
        "(_RECYCLE.clusters(tokens - stay) if recycles else 0)",
        "0",
        (f"{TESTS}::test_published_numbers_of_sparsevlm",),
        "What is recycled takes the place of what the text attends to.",
    ),
    Mutation(
        SPARSE,
        "filter=_RECYCLE if recycles else TextRaters(),",
        "filter=_RECYCLE,",
        (f"{TESTS}::test_the_lowest_scores_leave",),
        "Version 2.0 recycles.",
    ),
    Mutation(
        FIT,
        "tuple((_TOKENS - left) / _TOKENS for left in",
        "tuple(left / _TOKENS for left in",
        (f"{TESTS}::test_published_recipes_of_fitprune",),
        "A recipe keeps what it should remove.",
    ),
    Mutation(
        DECODER,
        "marks = self.mark(tokens, layout) if layout.marks is None else layout.marks",
        "marks = self.mark(tokens, layout)",
        (f"{TESTS}::test_raters_come_from_the_prompt_where_there_is_one",),
        "Raters are chosen by hidden states instead of the prompt's embeddings.",
    ),
    Mutation(
        DECODER,
        'heads = heads.amax(1) if reduce == "max" else heads.mean(1)',
        "heads = heads.mean(1)",
        (f"{TESTS}::test_a_map_of_all_heads_is_read_by_its_strongest_head",),
        "A map of attention is averaged where query and key are not.",
    ),
]
