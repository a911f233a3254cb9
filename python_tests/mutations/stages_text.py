"""Faults of the stages inside a language model that read the text: raters, recycling, strongest heads, pivots."""

from __future__ import annotations

from mutations import Mutation

RATERS = "ficoco_ext/stages/raters.py"
RECYCLE = "ficoco_ext/stages/recycle.py"
STRONGEST = "ficoco_ext/stages/strongest_head.py"
PIVOTS = "ficoco_ext/stages/decoder_pivots.py"
DECODER = "ficoco_ext/stages/decoder.py"
TESTS = "python_tests/decoder/test_text_methods.py"
LIMITS = "python_tests/decoder/test_text_limits.py"

MUTATIONS = [
    Mutation(
        RATERS,
        "above = is_text & (share > share.sum(1, keepdim=True) / is_text.sum(1, keepdim=True).clamp(min=1))",
        "above = is_text & (share > share.sum(1, keepdim=True) / is_text.shape[1])",
        (f"{TESTS}::test_raters_by_hand",),
        "Padding after the text changes who rates.",
    ),
    Mutation(
        RATERS,
        "chosen = torch.where(above.any(1, keepdim=True), above, is_text)",
        "chosen = above",
        (f"{TESTS}::test_all_the_text_rates_where_no_word_is_above_the_mean",),
        "A question of one word rates nothing, and the first tokens of the picture leave.",
    ),
    Mutation(
        RATERS,
        "rating = layout.marks.gather(1, columns) & is_text",
        "rating = is_text",
        (f"{TESTS}::test_raters_come_from_the_prompt_where_there_is_one",),
        "All the text rates, template and all.",
    ),
    Mutation(
        RATERS,
        "similar.masked_fill(~is_text.unsqueeze(1), -torch.inf)",
        "similar",
        (f"{TESTS}::test_raters_by_hand",),
        "Padding takes a share of the likeness.",
    ),
    Mutation(
        RECYCLE,
        "order[:, : self.clustered(removed)].sort(1).values",
        "order[:, -self.clustered(removed) :].sort(1).values",
        (f"{TESTS}::test_recycling_by_hand",),
        "The worst of the tokens that leave are recycled.",
    ),
    Mutation(
        RECYCLE,
        "while removed < tokens - 1 and removed",
        "while removed",
        (f"{TESTS}::test_every_number_of_columns_can_leave",),
        "A small picture loses every token, or is an error in the middle of a prompt.",
    ),
    Mutation(
        RECYCLE,
        "centres, cluster = density_peaks(hidden, clusters, clusters,",
        "centres, cluster = density_peaks(hidden, clusters, 1,",
        (f"{TESTS}::test_several_clusters_by_hand",),
        "Densities are all alike, and centres are the first tokens.",
    ),
    Mutation(
        RECYCLE,
        "holders = source_map.gather(1, sources).masked_fill(links.weights.amax(2) == 0, -1)",
        "holders = source_map.gather(1, sources)",
        (f"{TESTS}::test_recycling_by_hand",),
        "Pictures show dropped patches as merged into the first one that stays.",
    ),
    Mutation(
        RECYCLE,
        "int(self.share * removed + 1e-9) + 1",
        "int(self.share * removed + 1e-9)",
        (f"{TESTS}::test_recycling_by_hand",),
        "Fewer tokens stay than the paper's.",
    ),
    Mutation(
        RECYCLE,
        "if type(self.size) is not int or self.size < 2:",
        "if self.size < 2:",
        (f"{LIMITS}::test_clusters_are_of_two_tokens_or_more",),
        "Clusters of 10.5 tokens are a number that no layer takes.",
    ),
    Mutation(
        RATERS,
        "with without_autocast(text):",
        "if True:",
        (f"{LIMITS}::test_autocast_does_not_change_who_rates",),
        "Under autocast large channels overflow, and other words rate.",
    ),
    Mutation(
        DECODER,
        "if not 0 <= r < n:",
        "if not 0 <= r <= n:",
        (f"{LIMITS}::test_a_filter_leaves_at_least_one_token",),
        "Removing every token is a division by zero.",
    ),
    Mutation(
        STRONGEST,
        "weights[:, 0, :n] = 1 / n",
        "weights[:, 0, :] = 1 / n",
        (f"{TESTS}::test_the_lowest_scores_leave",),
        "The text is counted among the picture.",
    ),
    Mutation(
        STRONGEST,
        "among * text, among)",
        "among * text, text)",
        (f"{TESTS}::test_text_is_copied_bit_for_bit", f"{TESTS}::test_without_text_the_picture_alone_decides"),
        "Without text the first tokens of the picture leave.",
    ),
    Mutation(
        STRONGEST,
        'heads: ClassVar[str] = "max"',
        'heads: ClassVar[str] = "mean"',
        (f"{TESTS}::test_a_map_of_all_heads_is_read_by_its_strongest_head",),
        "A map of attention is averaged where query and key are not.",
    ),
    Mutation(
        PIVOTS,
        "torch.cat([layout.visual.gather(1, own), text.gather(1, theirs)], 1)",
        "torch.cat([layout.visual.gather(1, own), theirs], 1)",
        (f"{TESTS}::test_dart_by_hand",),
        "The first tokens of the prompt are pivots instead of the text after the picture.",
    ),
    Mutation(
        PIVOTS,
        "masked_fill(~is_text, -1.0)",
        "masked_fill(~is_text, 1e9)",
        (f"{TESTS}::test_dart_by_hand",),
        "Padding is a pivot.",
    ),
    Mutation(
        PIVOTS,
        "hidden if layout.norm is None else layout.norm(hidden)",
        "hidden",
        (f"{TESTS}::test_dart_compares_what_the_final_norm_makes_of_tokens",),
        "Channels that the model's last norm mutes decide.",
    ),
]
