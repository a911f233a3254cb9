"""Faults of greedy_cover and cosines: specifications, checks and prices."""

from __future__ import annotations

from mutations import Mutation

FILE, COSINES = "ficoco_ext/ops/_greedy_cover.py", "ficoco_ext/ops/_cosines.py"
TESTS, OF_COSINES = "python_tests/ops/test_greedy_cover.py", "python_tests/ops/test_cosines.py"
BRUTE = f"{TESTS}::test_equal_to_brute_force_in_float64"

MUTATIONS = [
    Mutation(
        FILE,
        "gain = (amount - covered).clamp_min(0).sum(2)",
        "gain = (amount - covered).sum(2)",
        (BRUTE,),
        "What is covered already lowers the gain of other tokens.",
    ),
    Mutation(
        FILE,
        "covered = torch.maximum(covered, rows(amount, best))",
        "covered = rows(amount, best)",
        (BRUTE,),
        "Only the last pick counts as cover.",
    ),
    Mutation(
        FILE,
        "mask.clone()",
        "~mask",
        (f"{TESTS}::test_a_masked_token_is_not_there",),
        "Padding is picked, and nothing else.",
    ),
    Mutation(
        FILE,
        "if not cover[valid].isfinite().all():",
        "if cover[valid].isnan().any():",
        (f"{TESTS}::test_values_are_checked_where_reading_is_free",),
        "An infinite cover is picked without a word.",
    ),
    Mutation(
        FILE,
        "order = cover.new_empty(cover.shape[0], count, dtype=torch.int64)",
        "order = cover.new_empty(cover.shape[0], cover.shape[1], dtype=torch.int64)",
        ("python_tests/ops/test_torch.py",),
        "A compiled model has another number of tokens than it picks.",
    ),
    Mutation(
        COSINES,
        "things.shape[1], dtype=result_dtype(features)",
        "things.shape[1], dtype=features.dtype",
        ("python_tests/ops/test_torch.py",),
        "A compiled model takes cosines for halves.",
    ),
    Mutation(
        COSINES,
        "if things.dtype != features.dtype:",
        "if False:",
        (f"{OF_COSINES}::test_refusals",),
        "Two dtypes end in an error of torch, or not at all.",
    ),
    Mutation(
        "ficoco_ext/ops/attention.py",
        "torch.autocast(kind, enabled=False)",
        "torch.autocast(kind, enabled=torch.is_autocast_enabled(kind))",
        (f"{OF_COSINES}::test_autocast_does_not_apply",),
        "Without kernels autocast rounds cosines to three digits, and other tokens stay.",
    ),
    Mutation(
        "ficoco_ext/ops/costs.py",
        '"2*b*n*c*h"',
        '"b*n*c*h"',
        (f"{OF_COSINES}::test_cost",),
        "Cosines cost half of what they do.",
    ),
    Mutation(
        "ficoco_ext/cost/flop_counter.py",
        "_counted(costs.GREEDY_COVER, b=b, n=n, c=things)",
        "_counted(costs.GREEDY_COVER, b=b, n=n, c=n)",
        (f"{TESTS}::test_cost",),
        "Covering costs the same with any number of words.",
    ),
]
