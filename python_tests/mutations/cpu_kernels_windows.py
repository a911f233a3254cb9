"""Faults of the CPU kernels of window_similarity, received_from and top_of_segments, and of their checks."""

from __future__ import annotations

from mutations import Mutation

WINDOWS, RECEIVED = "csrc/cpu/window_similarity.cpp", "csrc/cpu/received_from.cpp"
SEGMENTS = "csrc/cpu/top_of_segments.cpp"
OF_WINDOWS, OF_RECEIVED = "python_tests/ops/test_window_similarity.py", "python_tests/ops/test_received_from.py"
OF_SEGMENTS = "python_tests/ops/test_top_of_segments.py"

MUTATIONS = [
    Mutation(
        WINDOWS,
        "corner_row * p.grid_width + window % p.across * p.window",
        "corner_row * p.across * p.window + window % p.across * p.window",
        (f"{OF_WINDOWS}::test_sizes",),
        "In a grid that windows do not fill, all but the first line of windows are read from elsewhere.",
    ),
    Mutation(
        WINDOWS,
        "constexpr double kLeast = 1e-8;",
        "constexpr double kLeast = 1e-12;",
        (f"{OF_WINDOWS}::test_short_vectors_count_as_longer_ones",),
        "A patch of nearly zeros has a direction.",
    ),
    Mutation(
        WINDOWS,
        "own += simd.dot(unit.data() + i * c, unit.data() + i * c, c);",
        "own = simd.dot(unit.data() + i * c, unit.data() + i * c, c);",
        (f"{OF_WINDOWS}::test_sizes",),
        "Only one patch's likeness to itself is taken off.",
    ),
    Mutation(
        RECEIVED,
        "peak = value > peak || value != value ? value : peak;",
        "peak = value > peak ? value : peak;",
        (f"{OF_RECEIVED}::test_nan_of_a_chosen_row_shows_in_both",),
        "A broken layer shows in the sum alone.",
    ),
    Mutation(
        RECEIVED,
        "if (p.chosen[r]) text.push_back(p.text[r]);",
        "text.push_back(p.text[r]);",
        (f"{OF_RECEIVED}::test_a_row_that_is_not_chosen_is_not_there",),
        "Padding asks too.",
    ),
    Mutation(
        RECEIVED,
        "panel_part(p, h, keys, reader.stride(), text.data() + begin, panel,",
        "panel_part(p, h, keys, reader.stride(), text.data(), panel,",
        (f"{OF_RECEIVED}::test_counts",),
        "Of a long text the first 96 rows count again and again.",
    ),
    Mutation(
        RECEIVED,
        "reader.read(h / group, 0, p.keys)",
        "reader.read(h % p.key.heads, 0, p.keys)",
        (f"{OF_RECEIVED}::test_layouts_and_grouped_heads",),
        "Grouped heads ask the wrong keys.",
    ),
    Mutation(
        RECEIVED,
        "text.empty() ? 0.f : -std::numeric_limits<float>::infinity()",
        "0.f",
        (f"{OF_RECEIVED}::test_one_chosen_row_among_many",),
        "No logit is the largest below 0.",
    ),
    Mutation(
        SEGMENTS,
        "if (cut != last) std::nth_element(first, cut, last);",
        "",
        (f"{OF_SEGMENTS}::test_sizes",),
        "The first tokens of a segment stay instead of the best.",
    ),
    Mutation(
        SEGMENTS,
        "if (p.counts[g] < 0 || p.counts[g] > end[g + 1]) return Fault::kSegmentCount;",
        "if (p.counts[g] > end[g + 1]) return Fault::kSegmentCount;",
        (f"{OF_SEGMENTS}::test_values_are_checked_where_reading_is_free",),
        "A negative count reads before the scores.",
    ),
    Mutation(
        SEGMENTS,
        "if (all != p.total) return Fault::kSegmentTotal;",
        "",
        (f"{OF_SEGMENTS}::test_values_are_checked_where_reading_is_free",),
        "More indices are written than there is room for.",
    ),
    Mutation(
        "csrc/ops/top_of_segments.h",
        ".segment_stride = segments.dim() == 2 ? n : 0,",
        ".segment_stride = 0,",
        (f"{OF_SEGMENTS}::test_sizes",),
        "All pictures have the segments of the first.",
    ),
    Mutation(
        "csrc/ops/received_from.h",
        "chosen.sizes() == at::IntArrayRef({b, r})",
        "chosen.dim() == 2",
        (f"{OF_RECEIVED}::test_refusals",),
        "Flags are read beyond the last one.",
    ),
    Mutation(
        "csrc/ops/window_similarity.h",
        "height * width == patches",
        "height * width >= patches",
        (f"{OF_WINDOWS}::test_refusals",),
        "A grid that is too large reads beyond the patches.",
    ),
    Mutation(
        "csrc/ops/device_cpu.cpp",
        'check::in_range("received_from", "text", call.text, call.params.keys, call.params.offset);',
        'check::in_range("received_from", "text", call.text, call.params.keys);',
        (f"{OF_RECEIVED}::test_indices_are_checked_where_reading_is_free",),
        "A row of the cached prefix reads before the queries.",
    ),
    Mutation(
        "csrc/cpu/masked_softmax.h",
        "const int64_t nearest = *std::min_element(queries, queries + count);",
        "const int64_t nearest = *std::max_element(queries, queries + count);",
        (f"{OF_RECEIVED}::test_later_tokens_receive_nothing", f"{OF_RECEIVED}::test_sizes"),
        "Earlier rows of a panel see what comes after them.",
    ),
]
