"""Faults of greedy_select's CPU kernel."""

from __future__ import annotations

from mutations import Mutation

FILE = "csrc/cpu/greedy_select.cpp"
COSINES = "csrc/cpu/pair_cosines.cpp"
TESTS = "python_tests/ops/test_greedy_select.py"

MUTATIONS = [
    Mutation(
        COSINES,
        "scores[s] = scores[s] > kAlike ? 1.f : scores[s];",
        "",
        (f"{TESTS}::test_nearly_equal_tokens_are_equal",),
        "Rounding of cosines decides between equal tokens.",
    ),
    Mutation(
        "csrc/params.h",
        "kAlike = 0.99999f",
        "kAlike = 0.99f",
        (f"{TESTS}::test_near_tokens_are_not_equal",),
        "Tokens that differ are the same.",
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
        "std::copy_n(unit.data() + j * p.width, p.width, unit.data() + real.size() * p.width);",
        "",
        (f"{TESTS}::test_a_masked_token_is_not_there",),
        "The first tokens are compared, hidden or not, instead of the real ones.",
    ),
    Mutation(
        FILE,
        "p.order[step] = real[p.order[step]];",
        "p.order[step] += 0;",
        (f"{TESTS}::test_a_masked_token_is_not_there",),
        "Picks are positions among the real tokens.",
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
        "if (p.saliency) among.saliency = saliency.data();",
        "",
        (f"{TESTS}::test_a_masked_token_is_not_there",),
        "Real tokens have the saliency of the first ones, hidden or not.",
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
