"""Faults of greedy_cover's and cosines' CPU kernels, and of what their headers check."""

from __future__ import annotations

from mutations import Mutation

FILE, COSINES = "csrc/cpu/greedy_cover.cpp", "csrc/cpu/cosines.cpp"
TESTS, OF_COSINES = "python_tests/ops/test_greedy_cover.py", "python_tests/ops/test_cosines.py"

MUTATIONS = [
    Mutation(
        FILE,
        "while (computed[first] != step) {",
        "while (computed[first] < step - 1) {",
        (f"{TESTS}::test_lazy_equals_eager",),
        "A gain of the pick before is taken for a gain of this one.",
    ),
    Mutation(
        FILE,
        "if (free[j]) ranks.push_back(falling_rank(bound[j], j));",
        "ranks.push_back(falling_rank(bound[j], j));",
        (f"{TESTS}::test_a_masked_token_is_not_there",),
        "Padding is picked.",
    ),
    Mutation(
        FILE,
        "bad |= !(std::fabs(x[i]) <= std::numeric_limits<float>::max());",
        "bad |= x[i] != x[i];",
        (f"{TESTS}::test_values_are_checked_where_reading_is_free",),
        "An infinite cover is picked without a word.",
    ),
    Mutation(
        FILE,
        "if (std::count(free.begin(), free.end(), 1) < p.count) return Fault::kTooFewToCover;",
        "",
        (f"{TESTS}::test_values_are_checked_where_reading_is_free",),
        "The process ends where the real tokens do not suffice.",
    ),
    Mutation(
        COSINES,
        "float* out = p.cosines + (begin + i) * p.thing_count + t;",
        "float* out = p.cosines + (begin + i) * p.thing_count;",
        (f"{OF_COSINES}::test_sizes",),
        "Only the last 64 things are compared, as the first ones.",
    ),
    Mutation(
        COSINES,
        "unit_keys(p.things, p.thing_count, p.width)",
        "unit_keys(p.things, p.tokens, p.width)",
        (f"{OF_COSINES}::test_sizes",),
        "Things are read beyond the last one.",
    ),
    Mutation(
        "csrc/ops/cosines.h",
        "things_.size(0) == b && things_.size(2) == d",
        "things_.size(2) == d",
        (f"{OF_COSINES}::test_refusals",),
        "Words of another batch are read beyond their end.",
    ),
    Mutation(
        "csrc/ops/greedy_cover.h",
        "count >= 0 && count <= n",
        "count <= n",
        (f"{TESTS}::test_refusals",),
        "A negative count ends in an error of torch.",
    ),
]
