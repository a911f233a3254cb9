"""Faults of greedy_select's CPU kernel."""

from __future__ import annotations

from mutations import Mutation

FILE = "csrc/cpu/greedy_select.cpp"
COSINES = "csrc/cpu/pair_cosines.cpp"
TESTS = "python_tests/ops/test_greedy_select.py"

MUTATIONS = [
    Mutation(
        COSINES,
        "if (itself > kItself) itself = 1.f;",
        "",
        (f"{TESTS}::test_equal_vectors_of_any_length_tie",),
        "Rounding of a token's cosine with itself decides between equals.",
    ),
    Mutation(
        COSINES,
        "if (panels - 1 - i != i) panel(panels - 1 - i);",
        "if (i > 0) panel(panels - 1 - i);",
        (f"{TESTS}::test_kernels_pick_as_the_specification_does",),
        "Cosines of the last tokens are never computed.",
    ),
    Mutation(
        FILE,
        "if (i != j && c.free[i] && row[i] > best) best = row[i];",
        "if (i != j && row[i] > best) best = row[i];",
        (f"{TESTS}::test_a_masked_token_is_not_there",),
        "Padding counts as a neighbour of the first pick.",
    ),
    Mutation(
        FILE,
        "if (step == 0) std::fill(nearest.begin(), nearest.end(), -kInfinity);",
        "",
        (f"{TESTS}::test_sizes",),
        "The second pick still remembers the neighbours that only the first one asks for.",
    ),
    Mutation(
        FILE,
        "c.best(mmr && step == 0 ? p.saliency : c.gain.data())",
        "c.best(c.gain.data())",
        (f"{TESTS}::test_the_first_of_mmr_is_the_most_salient_even_if_saliency_weighs_nothing",),
        "Without a weight of saliency the first pick is token 0.",
    ),
    Mutation(
        FILE,
        "covered[i] = c.free[i] ? 0.f : kInfinity;",
        "covered[i] = 0.f;",
        (f"{TESTS}::test_a_masked_token_is_not_there",),
        "Padding wants to be covered.",
    ),
    Mutation(
        FILE,
        "if (step == 0) first = factor[picked];",
        "first = factor[picked];",
        (f"{TESTS}::test_when_nothing_is_left_to_add_saliency_decides",),
        "Rounding errors decide once the determinant has vanished.",
    ),
    Mutation(
        FILE,
        "if (exhausted) picked = c.best(saliency.data());",
        "",
        (f"{TESTS}::test_when_nothing_is_left_to_add_saliency_decides",),
        "What is left is picked by rounding errors instead of saliency.",
    ),
    Mutation(
        FILE,
        "column[j] = own * row[j] * saliency[j];",
        "column[j] = row[j] * saliency[j];",
        (f"{TESTS}::test_sizes",),
        "Determinants forget the saliency of the picked token.",
    ),
    Mutation(
        FILE,
        "if (p.mask && !p.mask[j]) continue;\n    ++real;",
        "++real;\n    if (p.mask && !p.mask[j]) continue;",
        (f"{TESTS}::test_values_are_checked_where_reading_is_free",),
        "Padding is picked when the real tokens do not suffice.",
    ),
    Mutation(
        FILE,
        "real < p.count ? Fault::kTooFewTokens : Fault::kNone",
        "Fault::kNone",
        (f"{TESTS}::test_values_are_checked_where_reading_is_free",),
        "The process ends where the real tokens do not suffice.",
    ),
    Mutation(
        "csrc/cpu/simd_body.h",
        "s1 += c > d ? c - d : Vec{};",
        "s1 += c - d;",
        (f"{TESTS}::test_kernels_pick_as_the_specification_does",),
        "Tokens that are covered already lower the gain of others.",
    ),
    Mutation(
        "csrc/cpu/simd_body.h",
        "total += x[i] > held[i] ? x[i] - held[i] : 0.f;",
        "total += 0.f;",
        (f"{TESTS}::test_sizes",),
        "The last tokens of a row need no cover.",
    ),
]
