"""Faults of the inner loops of csrc/cpu: conversions, sums, panels, choices by column, and which set is used."""

from __future__ import annotations

from mutations import Mutation

STATS, COMPRESS = "python_tests/ops/test_attention_stats.py", "python_tests/ops/test_compress.py"
CORRELATE, FILTER = "python_tests/ops/test_correlate.py", "python_tests/ops/test_filter.py"
MATCH = "python_tests/ops/test_match.py"
SIMD = "python_tests/ops/test_simd.py"
LOOPS = "csrc/cpu/simd_body.h"

MUTATIONS = [
    Mutation(
        LOOPS,
        "exponent == 0 ? subnormal : (exponent",
        "magnitude == 0 ? subnormal : (exponent",
        (f"{COMPRESS}::test_every_half_precision_number_is_read_and_rounded",),
        "Half precision's subnormal numbers are read as 2^-15 and more.",
    ),
    Mutation(
        LOOPS,
        "(112 << 23) + 0xfff + ((magnitude >> 13) & 1)",
        "(112 << 23) + 0x1000",
        (f"{COMPRESS}::test_every_half_precision_number_is_read_and_rounded",),
        "Half precision rounds ties up instead of to even.",
    ),
    Mutation(
        LOOPS,
        "magnitude > 0x7f800000 ? IntVec{} + 0x7e00",
        "magnitude >= 0x7f800000 ? IntVec{} + 0x7e00",
        (f"{COMPRESS}::test_every_half_precision_number_is_read_and_rounded",),
        "Infinity becomes NaN in half precision.",
    ),
    Mutation(
        LOOPS,
        "(bits + 0x7fff + ((bits >> 16) & 1)) >> 16",
        "(bits + 0x8000) >> 16",
        (f"{COMPRESS}::test_every_half_precision_number_is_read_and_rounded",),
        "bfloat16 rounds ties up instead of to even.",
    ),
    Mutation(
        LOOPS,
        "x < splat(-87.f)",
        "x < splat(-100.f)",
        (f"{STATS}::test_exponentials_of_any_size",),
        "The least probabilities are huge or negative numbers.",
    ),
    Mutation(
        LOOPS,
        "f = f - n * splat(1.42860677e-6f);",
        "",
        (f"{STATS}::test_exponentials_of_any_size",),
        "Small probabilities are off by one in ten thousand.",
    ),
    Mutation(
        LOOPS,
        "p = p * f + splat(1.38888889e-3f);",
        "p = p * f;",
        (f"{STATS}::test_exponentials_of_any_size",),
        "Probabilities are off by 20 units in the last place.",
    ),
    Mutation(
        LOOPS,
        "for (; i < n; ++i) {\n    const uint32_t bits = static_cast<uint32_t>(src[i]) << 16;",
        "for (; i + 1 < n; ++i) {\n    const uint32_t bits = static_cast<uint32_t>(src[i]) << 16;",
        (f"{STATS}::test_layouts_and_grouped_heads",),
        "The last channel of an odd width in bfloat16 is not read.",
    ),
    Mutation(
        LOOPS,
        "for (int64_t i = 4 * quarter; i < n; ++i) s0 += x[i];",
        "",
        (f"{STATS}::test_map_layouts",),
        "The last patches of a row of a map are left out.",
    ),
    Mutation(
        LOOPS,
        "if (n % 2) s0 += static_cast<double>(x[n - 1]) * x[n - 1];",
        "",
        (f"{FILTER}::test_weights_and_windows",),
        "The length of an odd count of scores is that of all but the last.",
    ),
    Mutation(
        LOOPS,
        "for (; i < n; ++i) total += x[i] * x[i];",
        "",
        (f"{CORRELATE}::test_widths",),
        "The last channels of a key do not count for its length.",
    ),
    Mutation(
        LOOPS,
        "fast > 1e-30f && fast < 1e30f",
        "fast > 0.f",
        (f"{CORRELATE}::test_keys_of_any_magnitude",),
        "Large keys have no direction, and small ones a wrong one.",
    ),
    Mutation(
        LOOPS,
        "for (; j < count; ++j) {\n    const float* row = rows + j * stride;\n#pragma omp simd\n",
        "for (; j + 1 < count; ++j) {\n    const float* row = rows + j * stride;\n#pragma omp simd\n",
        (f"{STATS}::test_odd_widths",),
        "The last token is left out of the mean key.",
    ),
    Mutation(
        LOOPS,
        "out[j + 3] += s3;",
        "out[j + 3] = s3;",
        (f"{STATS}::test_layouts_and_grouped_heads",),
        "Of every fourth token only the last head counts.",
    ),
    Mutation(
        LOOPS,
        "storeu(panel + c * width + i, x * splat(factor));",
        "storeu(panel + c * width + i, x);",
        (f"{CORRELATE}::test_counts_of_sources",),
        "Products are not scaled.",
    ),
    Mutation(
        LOOPS,
        "static_cast<float>(x[i] / length)",
        "x[i] / static_cast<float>(length)",
        (f"{CORRELATE}::test_keys_of_any_magnitude",),
        "Keys longer than the largest float have no direction.",
    ),
    Mutation(
        LOOPS,
        "case 2: panel_all<2>",
        "case 2: panel_all<1>",
        (f"{CORRELATE}::test_counts_of_sources",),
        "Nine to sixteen sources are compared with the wrong numbers.",
    ),
    Mutation(
        LOOPS,
        "if (j >= first) total += e;",
        "total += e;",
        (f"{STATS}::test_odd_widths",),
        "What a patch gives the class token counts as given to a patch.",
    ),
    Mutation(
        LOOPS,
        "Vec top = splat(-std::numeric_limits<float>::infinity()), total = splat(0.f);",
        "Vec top = splat(0.f), total = splat(0.f);",
        (f"{STATS}::test_products_that_are_all_very_negative",),
        "Attention is NaN where all products are very negative.",
    ),
    Mutation(
        LOOPS,
        "const IntVec larger = value > top;",
        "const IntVec larger = value >= top;",
        (f"{MATCH}::test_ties_go_to_the_lowest_index",),
        "Of equal tokens the last wins.",
    ),
    Mutation(
        LOOPS,
        " | ((value == held) & (where < held_at))",
        "",
        (f"{CORRELATE}::test_equals_move_down_in_order",),
        "A high correlation that comes late changes the order of equal ones.",
    ),
    Mutation(
        LOOPS,
        "(value > held) | (held_at < 0) |",
        "(value > held) |",
        (f"{CORRELATE}::test_targets_of_minus_infinity",),
        "A target of minus infinity has index -1: memory outside is read.",
    ),
    Mutation(
        "csrc/cpu/simd.h",
        "constexpr int64_t kPanel = 24;",
        "constexpr int64_t kPanel = 32;",
        (f"{CORRELATE}::test_counts_of_sources",),
        "Panels are wider than any loop: their products stay 0.",
    ),
    Mutation(
        "csrc/cpu/simd.cpp",
        'return most == "avx2" || !vnni ? kAvx2 : kVnni;',
        "return !vnni ? kAvx2 : kVnni;",
        (f"{SIMD}::test_the_level_that_is_asked_for",),
        "FICOCO_CPU_SIMD=avx2 does not ask for less.",
    ),
    Mutation(
        "csrc/cpu/simd.cpp",
        'if (most == "baseline" || !avx2) return kBaseline;',
        "if (!avx2) return kBaseline;",
        (f"{SIMD}::test_the_level_that_is_asked_for",),
        "FICOCO_CPU_SIMD=baseline does not ask for less.",
    ),
    Mutation(
        "csrc/cpu/simd.cpp",
        "case Dtype::kBFloat16: simd.store_bfloat16(src",
        "case Dtype::kBFloat16: simd.store_half(src",
        (f"{COMPRESS}::test_channels",),
        "Merged tokens in bfloat16 hold other numbers.",
    ),
]
