"""Faults of greedy_select: its specification, its checks and its price."""

from __future__ import annotations

from mutations import Mutation

FILE = "ficoco_ext/ops/_greedy_select.py"
TESTS = "python_tests/ops/test_greedy_select.py"
BRUTE = f"{TESTS}::test_equal_to_brute_force_in_float64"

MUTATIONS = [
    Mutation(
        FILE,
        'self.similarity.masked_fill(itself | ~self.valid[:, None, :], float("-inf"))',
        'self.similarity.masked_fill(~self.valid[:, None, :], float("-inf"))',
        (BRUTE,),
        "Every token is its own nearest neighbour, so the first pick is token 0.",
    ),
    Mutation(
        FILE,
        "gain = self.saliency * (1 - nearest)",
        "gain = 1 - nearest",
        (BRUTE,),
        "max-min does not look at saliency.",
    ),
    Mutation(
        FILE,
        "return self.trade * self.saliency, self.saliency",
        "return self.saliency, self.saliency",
        (f"{TESTS}::test_ties_take_the_lowest_index",),
        "The first gain of mmr is on another scale than the others.",
    ),
    Mutation(
        FILE,
        "self.trade * self.saliency - (1 - self.trade) * self.nearest",
        "self.trade * self.saliency - self.trade * self.nearest",
        (BRUTE,),
        "Similarity weighs as saliency should.",
    ),
    Mutation(
        FILE,
        "more.masked_fill(~self.valid[:, None, :], 0.0).sum(2)",
        "more.sum(2)",
        (f"{TESTS}::test_a_masked_token_is_not_there",),
        "Padding wants to be covered.",
    ),
    Mutation(
        FILE,
        "self.exhausted = (largest < EXHAUSTED * self.first) | (largest <= 0)",
        "self.exhausted = largest <= 0",
        (f"{TESTS}::test_when_nothing_is_left_to_add_saliency_decides",),
        "Rounding errors decide once the determinant has vanished.",
    ),
    Mutation(
        FILE,
        "if not ((saliency >= 0) & saliency.isfinite())[valid].all():",
        "if not saliency.isfinite()[valid].all():",
        (f"{TESTS}::test_values_are_checked_where_reading_is_free",),
        "Negative saliency gives an order that means nothing.",
    ),
    Mutation(
        FILE,
        'if objective == "mmr" and saliency is None:',
        "if False:",
        (f"{TESTS}::test_refusals",),
        "mmr without saliency ends in an error of torch.",
    ),
    Mutation(
        FILE,
        "order = features.new_empty(features.shape[0], count, dtype=torch.int64)",
        "order = features.new_empty(features.shape[0], features.shape[1], dtype=torch.int64)",
        ("python_tests/ops/test_torch.py",),
        "A compiled model has another number of tokens than it picks.",
    ),
    Mutation(
        "ficoco_ext/ops/costs.py",
        '"b*n*(n*h+m*m)"',
        '"b*n*(n*h+m)"',
        (f"{TESTS}::test_cost",),
        "A determinant's price forgets that each pick looks at those before.",
    ),
    Mutation(
        "ficoco_ext/cost/flop_counter.py",
        "_counted(costs.greedy_select(objective), b=b, n=n, h=d, m=count)",
        "_counted(costs.greedy_select(objective), b=b, n=n, h=d, m=n)",
        (f"{TESTS}::test_cost",),
        "What is counted does not depend on how many tokens are picked.",
    ),
    Mutation(
        FILE,
        "TIED.get(rank.dtype, 0.0) * scale",
        "0.0 * scale",
        (f"{TESTS}::test_copies_tie_in_float64",),
        "In float64 a copy is picked before the token that it repeats.",
    ),
    Mutation(
        FILE,
        "similarity = similarity.masked_fill(similarity > ALIKE, 1.0)",
        "",
        (f"{TESTS}::test_nearly_equal_tokens_are_equal",),
        "The specification tells tokens apart that are one to the kernels.",
    ),
]
