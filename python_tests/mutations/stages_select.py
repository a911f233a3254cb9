"""Faults of the selects of projected features, and of what they are given."""

from __future__ import annotations

from mutations import Mutation

SELECT = "ficoco_ext/stages/select.py"
FEATURES = "ficoco_ext/stages/features.py"
TESTS = "python_tests/reduce/test_selects.py"
CALLS = "python_tests/reduce/test_select_merge.py"

MUTATIONS = [
    Mutation(
        SELECT,
        "mask=visual.mask,\n",
        "mask=None,\n",
        (f"{TESTS}::test_padding_is_not_there",),
        "Padding is picked instead of tokens of the picture.",
    ),
    Mutation(
        SELECT,
        "return picked.order.sort(1).values",
        "return picked.order",
        (f"{TESTS}::test_ascending_distinct_and_as_many_as_asked_for",),
        "Tokens reach the language model in the order of picking.",
    ),
    Mutation(
        SELECT,
        "** self.weigh if self.weigh",
        "** 1.0 if self.weigh",
        (f"{TESTS}::test_what_the_operator_picks_stays",),
        "The power of saliency is ignored.",
    ),
    Mutation(
        SELECT,
        "saliency / largest.clamp_min(torch.finfo(saliency.dtype).tiny), 1.0)",
        "saliency, 1.0)",
        (f"{TESTS}::test_the_unit_of_saliency_does_not_matter",),
        "Small saliency to a power vanishes, and its unit decides what stays.",
    ),
    Mutation(
        SELECT,
        "tiny), 1.0)",
        "tiny), 0.0)",
        ("python_tests/methods/test_projector_selection.py::test_zero_saliency_is_coverage_alone",),
        "A tower that looks at nothing keeps the first tokens of the picture.",
    ),
    Mutation(
        SELECT,
        "saliency = saliency.masked_fill(~mask, 0)",
        "pass",
        (f"{TESTS}::test_hidden_saliency_is_no_unit",),
        "What padding holds is the unit of saliency.",
    ),
    Mutation(
        SELECT,
        "saliency = saliency.masked_fill(~visual.mask, -1.0)",
        "saliency = saliency.masked_fill(~visual.mask, 0.0)",
        (f"{TESTS}::test_the_highest_saliency_stays_and_of_equal_ones_the_first",),
        "Padding stays before real tokens that nothing looks at.",
    ),
    Mutation(
        SELECT,
        "return saliency.sort(dim=1, descending=True, stable=True)",
        "return saliency.sort(dim=1, descending=False, stable=True)",
        (f"{TESTS}::test_the_highest_saliency_stays_and_of_equal_ones_the_first",),
        "The tokens that matter least stay.",
    ),
    Mutation(
        SELECT,
        "hashed(visual.mask.cumsum(1) - 1, self.seed)",
        "hashed(visual.mask.cumsum(1), self.seed)",
        (f"{TESTS}::test_padding_is_not_there",),
        "A padded picture keeps other tokens at random than alone.",
    ),
    Mutation(
        SELECT,
        "return (odd * n // (2 * count)).repeat(b, 1)",
        "return ((odd - 1) * n // (2 * count)).repeat(b, 1)",
        (f"{TESTS}::test_every_kth",),
        "Every k-th token is counted from the first one: the lower right of the picture is never kept.",
    ),
    Mutation(
        SELECT,
        "odd * visual.mask.sum(1, keepdim=True) // (2 * count)",
        "odd * n // (2 * count)",
        (f"{TESTS}::test_padding_is_not_there",),
        "Every k-th token of a padded picture is padding.",
    ),
    Mutation(
        SELECT,
        "n=shape.visual, h=shape.channels, m=shape.kept",
        "n=shape.visual, h=shape.head_dim, m=shape.visual",
        ("python_tests/methods/test_projector_method.py::test_cost",),
        "Selection is priced as if all tokens were picked.",
    ),
    Mutation(
        FEATURES,
        "fewest := int(mask.sum(1).min())) < count:",
        "fewest := int(mask.sum(1).max())) < count:",
        (f"{CALLS}::test_refused",),
        "A picture with too few tokens keeps padding without a word.",
    ),
    Mutation(
        FEATURES,
        "(kept.diff(dim=1) > 0)",
        "(kept.diff(dim=1) >= 0)",
        ("python_tests/methods/test_projector_method.py::test_a_select_that_does_not_keep_its_word",),
        "A select of one's own that keeps a token twice is believed.",
    ),
    Mutation(
        FEATURES,
        "not visual.mask.gather(1, kept).all()",
        "False",
        ("python_tests/methods/test_projector_method.py::test_a_select_that_does_not_keep_its_word",),
        "A select of one's own that keeps padding is believed.",
    ),
    Mutation(
        FEATURES,
        "there = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if mask is None else mask",
        "there = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)",
        (f"{CALLS}::test_a_picture_without_words_is_refused_where_words_are_needed",),
        "A picture whose words are all hidden is reduced by none of them, without a word.",
    ),
    Mutation(
        FEATURES,
        "visual.frames < 1 or n % visual.frames",
        "visual.frames < 1",
        (f"{CALLS}::test_refused",),
        "Frames of unequal size are cut in the middle.",
    ),
    Mutation(
        FEATURES,
        "return bool((legal if mask is None else legal | ~mask).all())",
        "return bool(legal.all())",
        ("python_tests/methods/test_projector_method.py::test_padding_goes_nowhere",),
        "Pictures are refused for what their padding holds.",
    ),
    Mutation(
        FEATURES,
        "_where_real((given >= 0) & given.isfinite(), mask)",
        "_where_real(given.isfinite(), mask)",
        (f"{CALLS}::test_refused",),
        "Negative saliency to a power is NaN, and decides what stays.",
    ),
    Mutation(
        FEATURES,
        "grid[0] * grid[1] != tokens",
        "False",
        (f"{CALLS}::test_refused",),
        "A grid of another picture is recorded.",
    ),
    Mutation(
        FEATURES,
        "if need in needs and getattr(visual, argument) is None:",
        "if getattr(visual, argument) is None and False:",
        (f"{CALLS}::test_refused",),
        "What a method needs and does not get is named in a stage's words.",
    ),
    Mutation(
        "ficoco_ext/stages/positional.py",
        "not 0 <= seed < 2**32:",
        "not seed < 2**32:",
        (f"{TESTS}::test_refusals",),
        "A negative seed is taken.",
    ),
    Mutation(
        SELECT,
        "return falling[:, n - count :].sort(1).values",
        "return falling[:, :count].sort(1).values",
        (f"{TESTS}::test_random_is_that_of_the_tower",),
        "Random tokens after the projector are those that leave in the tower.",
    ),
    Mutation(
        "ficoco_ext/methods/projector_method.py",
        "order = leaves.sort(dim=1, descending=True, stable=True).indices",
        "order = leaves.sort(dim=1, stable=True).indices",
        (f"{TESTS}::test_videos_of_any_length_pass_where_features_are_compared_with_few_others",),
        "What stays is recorded as what leaves.",
    ),
]
