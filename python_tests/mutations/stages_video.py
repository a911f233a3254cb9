"""Faults of the selects of videos, and of what they are told of frames."""

from __future__ import annotations

from mutations import Mutation

FRAMES = "ficoco_ext/stages/frames.py"
OUTLIERS = "ficoco_ext/stages/outliers.py"
LAYOUTS = "ficoco_ext/models/layouts.py"
TESTS = "python_tests/reduce/test_outliers.py"
VIDEOS = "python_tests/families/test_videos.py"
LAID = "python_tests/models/test_layouts.py"

MUTATIONS = [
    Mutation(
        OUTLIERS,
        "range(-3, 2)",
        "range(-3, 1)",
        (f"{TESTS}::test_widths",),
        "The widest Gaussian is left out, and far tokens look alike.",
    ),
    Mutation(
        OUTLIERS,
        "sort(dim=1, stable=True).indices[:, : self._count",
        "sort(dim=1, descending=True, stable=True).indices[:, : self._count",
        (f"{TESTS}::test_equals_the_equations",),
        "Tokens are compared by the channels that vary most.",
    ),
    Mutation(
        OUTLIERS,
        "spread = (tokens - first) * real",
        "spread = tokens * real",
        (f"{TESTS}::test_a_channel_that_does_not_vary_is_the_steadiest",),
        "Rounding makes a channel that does not vary seem to vary.",
    ),
    Mutation(
        OUTLIERS,
        "variance = ((spread - spread.sum(1, keepdim=True) / number) * real)",
        "variance = (spread - spread.sum(1, keepdim=True) / number)",
        (f"{TESTS}::test_padding_is_not_there",),
        "Padding decides which channels are compared.",
    ),
    Mutation(
        OUTLIERS,
        "return to_video + to_frame,",
        "return to_video,",
        (f"{TESTS}::test_equals_the_equations",),
        "A token that stands out in its frame alone leaves.",
    ),
    Mutation(
        OUTLIERS,
        "(to_video * there).sum(2)",
        "((to_video + to_frame) * there).sum(2)",
        (f"{TESTS}::test_equals_the_equations",),
        "Frames share by how uneven they are, not by how unlike the video.",
    ),
    Mutation(
        OUTLIERS,
        "dealt(rank(usual.masked_fill(~there, math.inf))",
        "dealt(rank((-usual).masked_fill(~there, math.inf))",
        (f"{TESTS}::test_a_single_frame_is_a_picture",),
        "The most usual tokens stay.",
    ),
    Mutation(
        OUTLIERS,
        "unusual = (-of_frames)",
        "unusual = of_frames",
        (f"{TESTS}::test_one_odd_frame_gets_more", f"{TESTS}::test_equals_the_equations"),
        "The most usual frames get more.",
    ),
    Mutation(
        FRAMES,
        "torch.where(turn == 0, first, turn + 1 - claim.unsqueeze(2))",
        "turn + 1 - claim.unsqueeze(2)",
        (f"{TESTS}::test_exactly_as_many_as_asked_for", f"{TESTS}::test_fewer_than_frames_go_to_the_most_unusual_ones"),
        "A frame that is like the others vanishes.",
    ),
    Mutation(
        OUTLIERS,
        "claim = each * ",
        "claim = there.shape[2] * ",
        (f"{TESTS}::test_padding_is_not_there",),
        "Padding has a claim, so a padded video shares otherwise than alone.",
    ),
    Mutation(
        OUTLIERS,
        "claim, rank(-unusual)",
        "claim, rank(unusual)",
        (f"{TESTS}::test_fewer_than_frames_go_to_the_most_unusual_ones",),
        "Where not every frame can keep a token, the usual ones do.",
    ),
    Mutation(
        FRAMES,
        "if visual.frames < 1 or n % visual.frames:",
        "if visual.frames < 1:",
        (f"{TESTS}::test_refusals",),
        "Frames of unequal size end in torch's message on shapes.",
    ),
    Mutation(
        LAYOUTS,
        "Layout((rows, columns), frames=frames)",
        "Layout((rows, columns))",
        (f"{LAID}::test_grids_of_merged_blocks", f"{VIDEOS}::test_what_is_kept_follows_from_the_frames"),
        "A video of a Qwen-VL is one frame.",
    ),
    Mutation(
        LAYOUTS,
        "line_ends=(tokens,), frames=frames)",
        "line_ends=(tokens,))",
        (f"{LAID}::test_videos_whose_frames_are_halved",),
        "A video of a LLaVA-OneVision is one frame.",
    ),
    Mutation(
        "ficoco_ext/models/projector_reduction.py",
        "frames=layout.frames, **of_tokens",
        "**of_tokens",
        (f"{VIDEOS}::test_what_is_kept_follows_from_the_frames",),
        "Frames are known and never reach the method.",
    ),
]
