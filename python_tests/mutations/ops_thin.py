"""Faults of bipartite_thin: its specification, its checks in both languages, its price and its CUDA kernel."""

from __future__ import annotations

from mutations import Mutation

FILE = "ficoco_ext/ops/_bipartite_thin.py"
TESTS = "python_tests/ops/test_bipartite_thin.py"
COUNTS, MASKED = f"{TESTS}::test_every_count", f"{TESTS}::test_a_masked_token_is_not_there"

MUTATIONS = [
    Mutation(
        FILE,
        "r = torch.minimum(evens, (left - count).clamp(0, step))",
        "r = (left - count).clamp(0, step)",
        (COUNTS, MASKED),
        "More tokens of a short list leave than stand at its even places.",
    ),
    Mutation(
        FILE,
        "place_a, place_b = at[:width] - r, evens - r + at[: b.shape[1]]",
        "place_a, place_b = at[:width] - r + odds, at[: b.shape[1]]",
        (COUNTS,),
        "The next round starts with the tokens between.",
    ),
    Mutation(
        FILE,
        'score = between.masked_fill((at[: b.shape[1]] >= odds)[:, None, :], float("-inf")).amax(2)',
        "score = between.amax(2)",
        (MASKED,),
        "Padding, and tokens that have left, decide who leaves.",
    ),
    Mutation(
        FILE,
        "return torch.where(r > 0, new, held), left - r",
        "return new, left - r",
        (MASKED,),
        "A short list is mixed up while a longer one of the batch is thinned.",
    ),
    Mutation(
        FILE,
        "cosine = cosine.masked_fill(cosine > ALIKE, 1.0)",
        "",
        (f"{TESTS}::test_equal_tokens_leave_from_the_front",),
        "Rounding decides which of equal tokens leaves.",
    ),
    Mutation(
        FILE,
        "if not (rows(features, order).isfinite().all(-1) | ~real).all():",
        "if not rows(features, order).isfinite().all():",
        (MASKED,),
        "What padding holds is refused.",
    ),
    Mutation(
        FILE,
        "return order.new_empty(order.shape[0], count)",
        "return order.new_empty(order.shape)",
        ("python_tests/ops/test_torch.py",),
        "A compiled model has another number of tokens than are left.",
    ),
    Mutation(
        "ficoco_ext/cost/flop_counter.py",
        "_counted(costs.BIPARTITE_THIN, b=b, n=n, h=d)",
        "_counted(costs.BIPARTITE_THIN, b=b, n=n, h=n)",
        (f"{TESTS}::test_cost",),
        "What is counted does not depend on the width of the features.",
    ),
    Mutation(
        "csrc/ops/bipartite_thin.h",
        "count >= 0 && count <= length",
        "count <= length",
        (f"{TESTS}::test_refusals",),
        "A negative count ends in an error of torch.",
    ),
    Mutation(
        "csrc/ops/bipartite_thin.h",
        "order.dim() == 2 ? std::min(order.size(1), n) : n",
        "order.dim() == 2 ? order.size(1) : n",
        (f"{TESTS}::test_refusals",),
        "A list with more tokens than there are, some of them twice, is thinned.",
    ),
    Mutation(
        "csrc/ops/device_cpu.cpp",
        'check::in_range("bipartite_thin", "order", call.order, call.params.tokens);',
        "",
        (f"{TESTS}::test_values_are_checked_where_reading_is_free",),
        "An index out of range reads memory of others.",
    ),
    Mutation(
        FILE,
        "score = (score * GRID).round()",
        "pass",
        (f"{TESTS}::test_copies_tie_in_float64",),
        "In float64 rounding decides which of two copies leaves.",
    ),
]
