"""Faults of csrc/cpu that concern attention, and of what its kernels share."""

from __future__ import annotations

from mutations import Mutation

STATS = "python_tests/ops/test_attention_stats.py"
CORRELATE = "python_tests/ops/test_correlate.py"
TOKENS = "python_tests/ops/test_correlate_tokens.py"
MATCH = "python_tests/ops/test_match.py"
SEQUENCE = "python_tests/ops/test_to_sequence.py"
ATTENTION = "python_tests/ops/test_token_attention.py"

MUTATIONS = [
    Mutation(
        "csrc/cpu/attention_stats.cpp",
        "p.query.heads == p.key.heads && p.query.stride_h == p.width",
        "p.query.stride_h == p.width",
        (f"{STATS}::test_layouts_and_grouped_heads",),
        "Grouped heads that lie side by side are read as if there were as many key heads as query heads.",
    ),
    Mutation(
        "csrc/cpu/attention_stats.cpp",
        "original.scale / static_cast<float>(original.query.heads)",
        "original.scale / static_cast<float>(p.query.heads)",
        (f"{STATS}::test_layouts_and_grouped_heads",),
        "The mean over heads is a sum where heads lie side by side.",
    ),
    Mutation(
        "csrc/cpu/attention_stats.cpp",
        "factor / static_cast<float>(p.tokens - p.first)",
        "factor / static_cast<float>(p.tokens)",
        (f"{STATS}::test_odd_widths",),
        "The mean over the patches counts the class token.",
    ),
    Mutation(
        "csrc/cpu/attention_stats.cpp",
        "simd.add(out.data() + h / group * p.width",
        "simd.add(out.data() + h % p.key.heads * p.width",
        (f"{STATS}::test_layouts_and_grouped_heads",),
        "A query head is added to the wrong group of heads.",
    ),
    Mutation(
        "csrc/cpu/attention_stats.cpp",
        "std::copy_n(rows.data() + h / group * p.width",
        "std::copy_n(rows.data() + h % p.key.heads * p.width",
        (f"{STATS}::test_layouts_and_grouped_heads",),
        "A query head is compared with the wrong key head.",
    ),
    Mutation(
        "csrc/cpu/attention_stats.cpp",
        "sums[i] + (p.first ? scores[i] : 0.f)",
        "sums[i]",
        (f"{STATS}::test_odd_widths",),
        "Probabilities sum to 1 without the class token.",
    ),
    Mutation(
        "csrc/cpu/attention_stats.cpp",
        "scores[j * width] = 0.f;  // the class token's query does not count for the patches, even if it is NaN",
        "",
        (f"{STATS}::test_the_class_tokens_query_is_no_patchs",),
        "A class token's query that is NaN makes the patches' statistics NaN.",
    ),
    Mutation(
        "csrc/cpu/attention_stats.cpp",
        "simd.dot_rows(scores.data() + p.first * width",
        "simd.dot_rows(scores.data()",
        (f"{STATS}::test_odd_widths",),
        "Every patch has the column of the token before it.",
    ),
    Mutation(
        "csrc/cpu/attention_stats.cpp",
        "const double tiny = 1e-12 * static_cast<double>(p.key.heads);",
        "const double tiny = 1e-12;",
        (f"{STATS}::test_cosines_of_keys_of_any_magnitude",),
        "Keys shorter than 1e-12 on average have a direction if there are several heads.",
    ),
    Mutation(
        "csrc/cpu/attention_stats.cpp",
        "simd.unit_rows(mean.data(), d, 1, d, tiny, mean.data());",
        "",
        (f"{STATS}::test_flat_and_empty_tokens",),
        "What stands for class attention grows with the keys.",
    ),
    Mutation(
        "csrc/cpu/attention_stats.cpp",
        "total / cells",
        "total / static_cast<float>(patches)",
        (f"{STATS}::test_map_layouts",),
        "Rows of a given map are summed over heads.",
    ),
    Mutation(
        "csrc/cpu/correlate_tokens.cpp",
        "(1.f - p.gamma) * p.others_weight[t] * way",
        "p.others_weight[t] * way",
        (f"{TOKENS}::test_the_formula",),
        "The way through other tokens has too much weight.",
    ),
    Mutation(
        "csrc/cpu/correlate_tokens.cpp",
        "readers[i].read(h, queries[i] - p.offset, 1)",
        "readers[i].read(h, queries[i], 1)",
        (f"{TOKENS}::test_behind_a_cached_prefix",),
        "After a cached prefix the queries are those of later tokens.",
    ),
    Mutation(
        "csrc/cpu/correlate_tokens.cpp",
        "keys.read(h / group, 0, p.keys)",
        "keys.read(h % p.key.heads, 0, p.keys)",
        (f"{TOKENS}::test_layouts_and_grouped_heads",),
        "A query head is compared with the wrong key head.",
    ),
    Mutation(
        "csrc/cpu/correlate_tokens.cpp",
        "p.column ? onward.row(t)[m + i] : row[m + t]",
        "p.column ? onward.row(t)[i] : row[m + t]",
        (f"{TOKENS}::test_the_formula",),
        "The column form goes by way of what the candidates receive.",
    ),
    Mutation(
        "csrc/cpu/token_attention.cpp",
        "shift = p.column ? p.offset : 0",
        "shift = 0",
        (f"{ATTENTION}::test_behind_a_cached_prefix",),
        "After a cached prefix the queries are those of later tokens.",
    ),
    Mutation(
        "csrc/cpu/token_attention.cpp",
        "(p.column ? h : h / group) * d",
        "(p.column ? h : h % p.key.heads) * d",
        (f"{ATTENTION}::test_layouts_and_grouped_heads",),
        "A query head is compared with the wrong key head.",
    ),
    Mutation(
        "csrc/cpu/token_attention.cpp",
        "weights[begin + i] * inverse[i]",
        "weights[i] * inverse[i]",
        (f"{ATTENTION}::test_counts",),
        "From the 25th other token on weights are those of the first.",
    ),
    Mutation(
        "csrc/cpu/token_attention.cpp",
        "simd.divide(p.out, static_cast<float>(heads), state);",
        "",
        (f"{ATTENTION}::test_widths",),
        "Attention is a sum over heads.",
    ),
    Mutation(
        "csrc/cpu/masked_softmax.h",
        "t <= queries[i]",
        "t < queries[i]",
        (f"{ATTENTION}::test_widths",),
        "A token does not attend to itself.",
    ),
    Mutation(
        "csrc/cpu/masked_softmax.h",
        "visible(queries[i], t) ? kNan : 0.f",
        "kNan",
        (f"{ATTENTION}::test_a_query_that_may_attend_to_nobody_gives_nothing",),
        "A query that sees nothing makes all sums NaN.",
    ),
    Mutation(
        "csrc/cpu/masked_softmax.h",
        "constexpr float kMasked = -std::numeric_limits<float>::infinity(),",
        "constexpr float kMasked = -1e30f,",
        (f"{ATTENTION}::test_padding_has_no_share_of_very_negative_products",),
        "Padding takes the attention of a query whose products are all very negative.",
    ),
    Mutation(
        "csrc/cpu/masked_softmax.h",
        "for (int64_t i = count; i < width; ++i) row[i] = 0.f;",
        "",
        (f"{ATTENTION}::test_padding_changes_nothing",),
        "Padding that is not finite gets NaN if the number of queries is no multiple of 8.",
    ),
    Mutation(
        "csrc/cpu/rows.h",
        "load(base + i * rows_.stride_n * size_of(rows_.dtype)",
        "load(base + i * width_ * size_of(rows_.dtype)",
        (f"{STATS}::test_layouts_and_grouped_heads",),
        "Rows in half precision are read as if they lay one after the other.",
    ),
    Mutation(
        "csrc/cpu/rows.h",
        "rows_.dtype == Dtype::kFloat ? rows_.stride_n : width_",
        "width_",
        (f"{STATS}::test_layouts_and_grouped_heads",),
        "Rows of floats are read as if they lay one after the other.",
    ),
    Mutation(
        "csrc/cpu/unit_keys.cpp",
        "heads * kTiny",
        "kTiny",
        (f"{CORRELATE}::test_keys_that_are_hardly_there",),
        "Keys shorter than 1e-12 on average have a direction if there are several heads.",
    ),
    Mutation(
        "csrc/cpu/unit_keys.cpp",
        "if (reader.stride() == width) {",
        "if (key.stride_n != 0) {",
        (f"{CORRELATE}::test_layouts",),
        "Keys that do not lie one after the other are read as if they did.",
    ),
    Mutation(
        "csrc/cpu/buffer.h",
        "std::align_val_t kLine{64}",
        "std::align_val_t kLine{16}",
        (f"{MATCH}::test_wide_twins_go_by_lowest_index",),
        "Aligned vectors are read from memory that is not: the process ends.",
    ),
    Mutation(
        "csrc/cpu/kernels.h",
        "*std::max_element(faults.begin(), faults.end())",
        "faults.front()",
        (f"{SEQUENCE}::test_one_bad_item_of_a_batch_is_found",),
        "Only the first image of a batch is checked.",
    ),
    Mutation(
        "csrc/cpu/parallel.h",
        "for (int64_t i = begin; i < end; ++i) run(i);",
        "for (int64_t i = begin; i < end - 1; ++i) run(i);",
        (f"{STATS}::test_layouts_and_grouped_heads",),
        "The last task of a thread is left out.",
    ),
]
