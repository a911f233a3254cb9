"""Faults of the CPU kernel of reduce_sequence, and of the correlation of logits as one product."""

from __future__ import annotations

from mutations import Mutation

FILE = "csrc/cpu/reduce_sequence.cpp"
LINKS = "csrc/cpu/correlate_tokens.cpp"
TESTS = "python_tests/ops/test_reduce_sequence.py"
BITS = f"{TESTS}::test_on_the_cpu_it_is_its_operators"
NO_TEXT = f"{TESTS}::test_no_text"
DIRECT = "python_tests/ops/test_correlate_tokens.py"

MUTATIONS = [
    Mutation(
        FILE,
        "chosen[t] = column > last_visual && (!p.real || p.real[column]) ? 1.f : 0.f;",
        "chosen[t] = column > last_visual ? 1.f : 0.f;",
        (BITS,),
        "Padding counts as text, so an answer depends on the longest prompt of its batch.",
    ),
    Mutation(
        FILE,
        "columns[t] = chosen[t] > 0.f ? column : last_visual;",
        "columns[t] = column;",
        (f"{TESTS}::test_padding_may_hold_nan",),
        "NaN in the padding of one prompt stops a whole batch.",
    ),
    Mutation(
        FILE,
        "while (last > 0 && p.real && !p.real[last]) --last;",
        "",
        (BITS,),
        "FastV asks a padding token what it attends to.",
    ),
    Mutation(
        FILE,
        "if (text.count == 0.f) {",
        "if (false) {",
        (NO_TEXT,),
        "Without text half of the redundancy is missing.",
    ),
    Mutation(
        FILE,
        "1.f / std::max(count, 1.f)",
        "1.f / count",
        (NO_TEXT,),
        "A prompt that ends with its picture gives NaN.",
    ),
    Mutation(
        LINKS,
        "for (float& x : panel) x *= p.gamma;",
        "",
        (DIRECT,),
        "The direct attention counts whole, whatever gamma is.",
    ),
    Mutation(
        LINKS,
        "const float share = (1.f - p.gamma) * p.others_weight[t] * factor;",
        "const float share = (1.f - p.gamma) * factor;",
        (DIRECT,),
        "All tokens after the picture correlate, also those that are no text.",
    ),
]
