"""Faults of pictures of several crops in demo and show."""

from __future__ import annotations

from mutations import Mutation

_CROPS = "python_tests/apps/test_crops.py::"
_SHOWN = _CROPS + "test_show_counts_crop_by_crop_and_looks_over_all_crops"

MUTATIONS: list[Mutation] = [
    Mutation(
        file="ficoco_ext/apps/next_dress.py",
        old="_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))",
        new="_GRIDS = ((2, 1), (1, 2), (2, 2), (3, 1), (1, 3))",
        tests=(_CROPS + "test_a_picture_is_cut_as_the_processor_cuts_it",),
        why="Of equal canvases another one is taken than is said.",
    ),
    Mutation(
        file="ficoco_ext/apps/next_dress.py",
        old="line_end = torch.zeros(",
        new="line_end = torch.ones(",
        tests=(_CROPS + "test_the_dress_shares_the_trained_weights_and_answers",),
        why="Line ends say something to a model that never saw one.",
    ),
    Mutation(
        file="ficoco_ext/apps/next_dress.py",
        old="(LLAVA, NEXT) if family is None else (FAMILIES[family],)",
        new="(LLAVA, NEXT)",
        tests=(_CROPS + "test_a_checkpoint_of_another_family_is_refused",),
        why="A checkpoint of another family than was asked for is taken.",
    ),
    Mutation(
        file="ficoco_ext/apps/attention_maps.py",
        old="float(values[crop, patch]) / (1 + crops.count)",
        new="float(values[crop, patch])",
        tests=(_SHOWN,),
        why="The class token seems to look at more than everything.",
    ),
    Mutation(
        file="ficoco_ext/apps/attention_maps.py",
        old="if token not in ends]",
        new="]",
        tests=(_SHOWN,),
        why="Attention on line ends is drawn on patches, all of them in wrong places.",
    ),
    Mutation(
        file="ficoco_ext/apps/global_scores.py",
        old="reads = min(shape.used, shape.layers - 1)",
        new="reads = shape.used - 1",
        tests=(_CROPS + "test_scores_rank_what_globalcom2_keeps_highest",),
        why="The scores that are shown are not those by which the method chooses.",
    ),
    Mutation(
        file="ficoco_ext/apps/global_scores.py",
        old="(scores <= scores.unsqueeze(1)) & same",
        new="(scores <= scores.unsqueeze(1))",
        tests=(_CROPS + "test_scores_rank_what_globalcom2_keeps_highest",),
        why="Scores of different crops, which cannot be compared, are ranked together.",
    ),
    Mutation(
        file="ficoco_ext/apps/layer_tokens.py",
        old="return self.visual - self.line_ends if self.line_ends else",
        new="return",
        tests=(_CROPS + "test_the_demonstration_counts_and_answers",),
        why="Of several crops the patches of one are said to reach the language model.",
    ),
    Mutation(
        file="ficoco_ext/apps/layer_tokens.py",
        old="visual = len(handle.projections[0].kept)",
        new="visual = crops.before",
        tests=(_CROPS + "test_what_the_data_decide_is_counted",),
        why="Where the data decide, nothing seems to leave.",
    ),
    Mutation(
        file="ficoco_ext/apps/patches.py",
        old="if crops is None or sheet is None:",
        new="if crops is not None or sheet is None:",
        tests=(_SHOWN,),
        why="A picture of several crops is read as one.",
    ),
    Mutation(
        file="ficoco_ext/apps/show_request.py",
        old="if cells and row * width + column not in cells:",
        new="if False:",
        tests=(_CROPS + "test_what_a_sheet_cannot_show_is_refused",),
        why="A patch that there is not is followed.",
    ),
    Mutation(
        "ficoco_ext/apps/demo.py",
        '    require_numbers("what leaves in each layer", chosen, ("language_model",))\n',
        "",
        ("python_tests/cli/test_cli.py",),
        "A demonstration of what the data decide speaks of a keep_ratio that was not given.",
    ),
    Mutation(
        "ficoco_ext/apps/show_request.py",
        "method = get_method(name, **given)",
        "method = get_method(name)",
        ("python_tests/cli/test_cli.py",),
        "A picture of what the data decide speaks of a keep_ratio that was not given.",
    ),
]
