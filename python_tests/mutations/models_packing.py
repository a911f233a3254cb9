"""Faults of the packing of what the tower leaves of crops, and of prompts that are cut by it."""

from __future__ import annotations

from mutations import Mutation

PACKING, PACKED = "ficoco_ext/models/crop_packing.py", "python_tests/models/test_crop_packing.py"
HAND = f"{PACKED}::test_line_ends_and_padding_by_hand"
ORACLE, RANDOM = f"{PACKED}::test_as_transformers_packs_whole_crops", f"{PACKED}::test_random_pictures"
TOGETHER = f"{PACKED}::test_pictures_together_are_as_each_alone"
AFTER = f"{PACKED}::test_padding_that_leaves_after_the_tower"
SIZES = f"{PACKED}::test_sizes_are_numbers_of_the_host_for_the_encoder"
CUTTER, CUT = "ficoco_ext/models/feature_cutter.py", "ficoco_ext/models/prompt_cut.py"
PROJECTOR = "ficoco_ext/models/projector_reduction.py"
PROMPTS = "python_tests/models/test_crop_prompts.py"
FIT, SHORT = f"{PROMPTS}::test_prompts_that_do_not_fit_are_refused", f"{PROMPTS}::test_a_prompt_that_is_short_already"
SELECTION = "python_tests/models/test_encoder_selection.py::test_another_selection_is_refused"
TORN = "python_tests/models/test_prompt_cut.py::test_masks_that_hide_a_part_of_a_picture"
INSIDE = "python_tests/models/test_prompt_cut.py::test_rows_that_end_inside_a_picture"

MUTATIONS = [
    Mutation(
        PACKING, "row = crop // across * side", "row = crop % across * side", (ORACLE,), "Crops column by column."
    ),
    Mutation(PACKING, "length = crops.columns + 1", "length = crops.columns", (HAND,), "A line end is the next row's."),
    Mutation(PACKING, "(column < right)", "(column <= right)", (RANDOM,), "A column of padding is packed."),
    Mutation(PACKING, "column >= left", "column > left", (RANDOM,), "The first column is padding."),
    Mutation(
        PACKING, "expand(crops.lines, -1)", "expand(crops.lines, -1) * 0", (ORACLE,), "Line ends of nothing but zeros."
    ),
    Mutation(
        PACKING,
        "return tokens.index_select(0, order.indices[:count]), order.values[:count]",
        "return tokens[:count], order.values[:count]",
        (ORACLE, TOGETHER),
        "Rows of the picture torn apart by crops.",
    ),
    Mutation(
        PACKING,
        "for at in unknown]\n            counts",
        "for at in unknown[:1] * len(unknown)]\n            counts",
        (AFTER,),
        "The first picture's number for all.",
    ),
    Mutation(
        PACKING,
        "if each.shape[1] != ids.shape[1]:",
        "if each.shape[1] < ids.shape[1]:",
        (f"{PACKED}::test_features_of_another_layer_are_refused",),
        "Features of a layer before the last reduction are packed as others.",
    ),
    Mutation(
        PROJECTOR,
        "        self.owner.require_selection(self.modality.method, options)\n",
        "",
        (SELECTION,),
        "An encoder that is asked for another layer of the tower returns scrambled tokens.",
    ),
    Mutation(
        PROJECTOR,
        "(tower, self.readings, self.smaller)",
        "(tower,)",
        (SELECTION,),
        "What is read of one layer chooses among the features of another.",
    ),
    Mutation(
        "ficoco_ext/models/key_sets.py",
        "        require_selection(self.modality.method, self.owner.model, self.owner.selection, options)\n",
        "",
        (SELECTION,),
        "The key set of one layer is that of the features of another.",
    ),
    Mutation(PACKING, "now.kept), (), []", "now.kept), now.pictures, now.kept", (TOGETHER,), "Taken twice."),
    Mutation(PACKING, "len(pixels) if pixels.dim() == 5", "len(pixels) if pixels.dim() == 9", (SIZES,), "Fewer sizes."),
    Mutation(
        PACKING,
        '{**options, "image_sizes": sizes}',
        "{**options}",
        (SIZES,),
        "Transformers would read the sizes from the device, picture by picture.",
    ),
    Mutation(
        PROJECTOR,
        "return tuple(one.before for one in pictures), of_pictures",
        "return tuple(one.before for one in pictures[:1] * len(pictures)), of_pictures",
        (f"{PROMPTS}::test_known_numbers", FIT),
        "All pictures as large as the first.",
    ),
    Mutation(
        CUTTER,
        "if self.original or self.features.tower is None:",
        "if self.features.tower is None:",
        (SHORT,),
        "A short prompt has lost the positions of the full one.",
    ),
    Mutation(
        CUTTER,
        "sum(rows) == sum(kept) and",
        "sum(rows) != sum(kept) and",
        (SHORT,),
        "A prompt that is short already is cut again.",
    ),
    Mutation(
        CUTTER, "if row is not None:\n            wanted", "if False:\n            wanted", (FIT,), "Torn pictures."
    ),
    Mutation(CUT, "& ~starts[:, 1:]", "", (TORN,), "Two pictures of which one is hidden are a torn one."),
    Mutation(
        CUT, "ends = {0, *accumulate(counts)}", "ends = {*accumulate(counts)}", (INSIDE,), "Rows of text are torn."
    ),
]
