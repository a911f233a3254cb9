"""Faults of window_similarity, received_from and top_of_segments: specifications, checks and prices."""

from __future__ import annotations

from mutations import Mutation

WINDOWS, RECEIVED = "ficoco_ext/ops/_window_similarity.py", "ficoco_ext/ops/_received_from.py"
SEGMENTS = "ficoco_ext/ops/_top_of_segments.py"
OF_WINDOWS, OF_RECEIVED = "python_tests/ops/test_window_similarity.py", "python_tests/ops/test_received_from.py"
OF_SEGMENTS = "python_tests/ops/test_top_of_segments.py"

MUTATIONS = [
    Mutation(
        WINDOWS,
        "((both - own) / (patches * (patches - 1)))",
        "(both / (patches * patches))",
        (f"{OF_WINDOWS}::test_float64_is_the_specification",),
        "A patch is like itself, so windows of few patches look alike.",
    ),
    Mutation(
        WINDOWS,
        "LEAST = 1e-8",
        "LEAST = 1e-12",
        (f"{OF_WINDOWS}::test_short_vectors_count_as_longer_ones",),
        "A patch of nearly zeros has a direction, which the release does not give it.",
    ),
    Mutation(
        WINDOWS,
        "    if down * across == 0:  # no window fits\n        return x.new_zeros(x.shape[0], 0)\n",
        "",
        (f"{OF_WINDOWS}::test_nothing",),
        "A window larger than the grid ends in an error of torch.",
    ),
    Mutation(
        WINDOWS,
        'checks.fail(OP, "window", "at least 2"',
        'checks.fail(OP, "window", "at least 1"',
        (f"{OF_WINDOWS}::test_refusals",),
        "The error allows what it refuses.",
    ),
    Mutation(
        WINDOWS,
        "(height // window) * (width // window), dtype=result_dtype(tokens)",
        "(height // window) * (width // window), dtype=tokens.dtype",
        ("python_tests/ops/test_torch.py",),
        "A compiled model takes similarities for halves.",
    ),
    Mutation(
        RECEIVED,
        'peak = torch.maximum(peak, block.masked_fill(hidden, float("-inf")).amax(1))',
        "peak = torch.maximum(peak, block.masked_fill(hidden, 0).amax(1))",
        (f"{OF_RECEIVED}::test_one_chosen_row_among_many",),
        "A row that does not count raises the largest logit to 0.",
    ),
    Mutation(
        RECEIVED,
        "total = total + block.masked_fill(hidden, 0).sum(1)",
        "total = total + (block * ~hidden).sum(1)",
        (f"{OF_RECEIVED}::test_a_row_that_is_not_chosen_is_not_there",),
        "NaN of padding reaches every token.",
    ),
    Mutation(
        RECEIVED,
        "peak.masked_fill(~chosen.any(1, keepdim=True), 0)",
        "peak",
        (f"{OF_RECEIVED}::test_no_chosen_row_gives_zeros",),
        "A prompt without text gets minus infinity.",
    ),
    Mutation(
        RECEIVED,
        "part = text[:, start : start + step]",
        "part = text[:, : start + step]",
        (f"{OF_RECEIVED}::test_the_blocks_of_the_specification_are_one",),
        "Rows of a long text count once for every block after them.",
    ),
    Mutation(
        RECEIVED,
        "def received_from(\n    attn: QueryKey,\n    visual: Tensor,\n    text: Tensor,\n    chosen: Tensor,\n    *,\n"
        "    probs: bool = True,\n    causal: bool = True,",
        "def received_from(\n    attn: QueryKey,\n    visual: Tensor,\n    text: Tensor,\n    chosen: Tensor,\n    *,\n"
        "    probs: bool = True,\n    causal: bool = False,",
        (f"{OF_RECEIVED}::test_float64_and_the_call",),
        "A decoder's text attends to what comes after it.",
    ),
    Mutation(
        SEGMENTS,
        "sort(dim=1, descending=True, stable=True)",
        "sort(dim=1, descending=True, stable=False)",
        (f"{OF_SEGMENTS}::test_many_small_cases", f"{OF_SEGMENTS}::test_more_tokens_than_a_tile"),
        "Of equal scores any may stay.",
    ),
    Mutation(
        SEGMENTS,
        "(sizes.cumsum(1) - sizes).gather(1, segment)",
        "sizes.cumsum(1).gather(1, segment)",
        (f"{OF_SEGMENTS}::test_sizes",),
        "Ranks begin at those of the next segment.",
    ),
    Mutation(
        SEGMENTS,
        "return leaves.sort(dim=1, stable=True).indices[:, :total].contiguous()",
        "return order[:, :total].contiguous()",
        (f"{OF_SEGMENTS}::test_sizes",),
        "What stays is not in the order of the tokens.",
    ),
    Mutation(
        SEGMENTS,
        "if not ((counts >= 0) & (counts <= sizes)).all():",
        "if not (counts <= sizes).all():",
        (f"{OF_SEGMENTS}::test_values_are_checked_where_reading_is_free",),
        "A negative count of one segment gives another one more than it was to keep.",
    ),
    Mutation(
        SEGMENTS,
        "if scores.isnan().any():",
        "if False:",
        (f"{OF_SEGMENTS}::test_values_are_checked_where_reading_is_free",),
        "NaN is the best of all scores.",
    ),
    Mutation(
        "ficoco_ext/ops/costs.py",
        '"2*b*a*d*o*u", loads="b*(o*a+u*k)*d"',
        '"2*b*a*d*o*l", loads="b*(o*a+u*k)*d"',
        (f"{OF_RECEIVED}::test_cost",),
        "Logits cost what a softmax over all keys does.",
    ),
    Mutation(
        "ficoco_ext/cost/flop_counter.py",
        "_counted(costs.WINDOW_SIMILARITY, b=b, n=n, h=c)",
        "_counted(costs.WINDOW_SIMILARITY, b=1, n=n, h=c)",
        (f"{OF_WINDOWS}::test_cost",),
        "A batch costs what one picture does.",
    ),
]
