"""Faults of the selects of videos, and of what they are told of frames."""

from __future__ import annotations

from mutations import Mutation

FRAMES = "ficoco_ext/stages/frames.py"
OUTLIERS = "ficoco_ext/stages/outliers.py"
LAYOUTS = "ficoco_ext/models/layouts.py"
TREES = "ficoco_ext/stages/scene_trees.py"
TESTS = "python_tests/reduce/test_outliers.py"
SCENES = "python_tests/reduce/test_scene_trees.py"
APART = "python_tests/reduce/test_scene_trees_distances.py"
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
        "    return total\n",
        "    return torch.stack([(distance / (-2 * width)).exp() for width in WIDTHS]).sum(0)\n",
        (f"{TESTS}::test_of_copies_the_first_stay",),
        "Of equal tokens any stays, by where it lies.",
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
        "ficoco_ext/models/picture_groups.py",
        "frames=layout.frames, crops=layout.crops, **of_tokens",
        "crops=layout.crops, **of_tokens",
        (f"{VIDEOS}::test_what_is_kept_follows_from_the_frames",),
        "Frames are known and never reach the method.",
    ),
    Mutation(
        TREES,
        "ends = count * before // before[:, -1:]",
        "ends = count * before.clamp(max=1)",
        (f"{SCENES}::test_exactly_as_many_as_asked_for",),
        "The first frame alone has diverse tokens.",
    ),
    Mutation(
        TREES,
        "wanted = (shares.double() * self.diverse - _ROUNDING).ceil()",
        "wanted = (shares.double() * self.diverse).floor()",
        (f"{SCENES}::test_equals_the_description",),
        "Fewer tokens are picked by diversity than are published.",
    ),
    Mutation(
        TREES,
        "wanted = (shares.double() * self.diverse - _ROUNDING).ceil()",
        "wanted = (shares * self.diverse - _ROUNDING).ceil()",
        (f"{APART}::test_shares_that_are_integers_are_not_rounded_up",),
        "Float32 picks 52 of 85 tokens where 0.6 of them are 51.",
    ),
    Mutation(
        TREES,
        "alike = ops.cosines(rows, rows)",
        "alike = F.normalize(rows, dim=-1, eps=TINY) @ F.normalize(rows, dim=-1, eps=TINY).mT",
        (f"{APART}::test_of_copies_the_same_stay_with_a_mask_and_under_autocast",),
        "With a mask copies have other cosines, and other tokens stay.",
    ),
    Mutation(
        TREES,
        'heads, mode = _rows(means, kept), "donot_use_mm_for_euclid_dist"',
        'heads, mode = _rows(means, kept), "use_mm_for_euclid_dist"',
        (f"{APART}::test_a_root_without_a_centre_in_its_frame_goes_to_the_nearest",),
        "Where one channel is large, tokens go to any token that stays.",
    ),
    Mutation(
        TREES,
        "return least < frames",
        "return least < 0",
        (f"{APART}::test_a_root_without_a_centre_in_its_frame_goes_to_the_nearest",),
        "Roots of frames without a centre go to the first token that stays.",
    ),
    Mutation(
        TREES,
        "if not isinstance(made, Trees) or made.settings != self.trees:",
        "if not isinstance(made, Trees):",
        (f"{APART}::test_with_what_the_select_noted_links_are_the_same",),
        "A correlate with settings of its own follows the trees of another select.",
    ),
    Mutation(
        TREES,
        "        made = self.trees(visual, count)\n        return made.kept, made\n",
        "        return self(visual, count), None\n",
        (f"{APART}::test_distances_are_made_once_and_priced",),
        "All is computed twice where tokens are merged.",
    ),
    Mutation(
        FRAMES,
        "4.0 * there.shape[1] * there.shape[2]",
        "4.0 * there[0].numel()",
        ("python_tests/methods/test_select_universal.py::test_no_pictures_are_no_tokens",),
        "A batch of no videos ends in an error of torch.",
    ),
    Mutation(
        TREES,
        "links &= strongest < there.sum((1, 2), keepdim=True) - count",
        "pass",
        (f"{SCENES}::test_as_many_roots_stay_as_are_wanted",),
        "In a video that stands still too few roots are left, and tokens that are in trees stay instead.",
    ),
    Mutation(
        TREES,
        "root = root.gather(1, root)",
        "pass",
        (f"{SCENES}::test_equals_the_description",),
        "A token goes to the frame before, and what went there from a later frame is lost.",
    ),
    Mutation(
        TREES,
        "begins = (alike < self.cut) |",
        "begins = (alike < -2) |",
        (f"{SCENES}::test_a_cut_ends_trees",),
        "Trees run through cuts.",
    ),
    Mutation(
        TREES,
        "cummax(1).values",
        "clone()",
        (f"{SCENES}::test_padding_is_not_there",),
        "A frame of padding between two frames of a scene ends it.",
    ),
    Mutation(
        TREES,
        "means = ops.compress(torch.cat([tokens, tokens], 1), *links, size=size, size_weighted=True)[0]",
        "means = tokens",
        (f"{SCENES}::test_equals_the_description",),
        "Clusters compare roots alone, whatever is in their trees.",
    ),
    Mutation(
        TREES,
        "centre = ((slot >= 0) & ~made.diverse)",
        "centre = (slot >= 0)",
        (f"{SCENES}::test_merged_is_the_mean_of_all_that_a_token_holds", f"{SCENES}::test_equals_the_description"),
        "Diverse tokens are mixed with what leaves.",
    ),
    Mutation(
        TREES,
        "centre.any(2, keepdim=True).expand_as(centre).flatten(1) & (slot < 0)",
        "centre.any(2, keepdim=True).expand_as(centre).flatten(1) & (slot < -1)",
        (f"{SCENES}::test_equals_the_description",),
        "What has no centre in its frame goes into the first token that stays.",
    ),
    Mutation(
        TREES,
        "weight = relative(saliency, there.view(b * frames, each)) ** self.weigh",
        "weight = relative(saliency, there.view(b * frames, each))",
        (f"{SCENES}::test_equals_the_description",),
        "The power of saliency is ignored.",
    ),
    Mutation(
        "ficoco_ext/methods/flashvid.py",
        "SceneTrees(diverse, cut, scenes, link, neighbours, weigh)",
        "SceneTrees(diverse, link, scenes, cut, neighbours, weigh)",
        (f"{SCENES}::test_by_name",),
        "Scenes end where tokens should be linked, and the other way round.",
    ),
    Mutation(
        "ficoco_ext/methods/vidcom2.py",
        "Outliers(channels, temperature)",
        "Outliers(channels)",
        (f"{TESTS}::test_by_name",),
        "The temperature of VidCom2 is ignored.",
    ),
]
