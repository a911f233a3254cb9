"""Faults of the sums of the strongest head."""

from __future__ import annotations

from mutations import Mutation

OPERATOR = "ficoco_ext/ops/strongest_head.py"
TESTS = "python_tests/decoder/test_text_methods.py"
LIMITS = "python_tests/decoder/test_text_limits.py"

MUTATIONS = [
    Mutation(
        OPERATOR,
        "index = (part - (t - query.shape[2]))",
        "index = part",
        (f"{TESTS}::test_the_last_queries_alone_are_enough",),
        "After a cached prefix queries of other tokens are read.",
    ),
    Mutation(
        OPERATOR,
        "weights[:, :, start : start + step]",
        "weights[:, :, :step]",
        (f"{TESTS}::test_blocks_of_rows_change_nothing",),
        "In long prompts later queries count with the weights of the first.",
    ),
    Mutation(
        OPERATOR,
        "allowed if key_mask is None else allowed & key_mask.unsqueeze(1)",
        "allowed",
        (f"{TESTS}::test_the_lowest_scores_leave",),
        "Padding takes attention.",
    ),
    Mutation(
        OPERATOR,
        "with without_autocast(attn.query):",
        "if True:",
        (f"{LIMITS}::test_autocast_changes_nothing",),
        "Under autocast other tokens leave.",
    ),
    Mutation(
        OPERATOR,
        "strongest = values.amax(1)",
        "strongest = values.mean(1)",
        (f"{TESTS}::test_the_lowest_scores_leave",),
        "Heads are averaged.",
    ),
]
