"""Faults of pictures of several crops: their tokens, their padding, and the papers' tables of LLaVA-NeXT."""

from mutations import Mutation

SHAPES = "ficoco_ext/cost/architecture.py"
POINTS = "ficoco_ext/cost/pinpoints.py"
PROJECTED = "ficoco_ext/cost/projected.py"
REDUCTION = "ficoco_ext/cost/reduction.py"
FLASH = "ficoco_ext/cost/flash.py"
ROWS = "ficoco_ext/cost/rows.py"
TABLES = "ficoco_ext/cost/reproduce.py"

PICTURES = "python_tests/cost/test_pictures.py"
MUSTDROP = "python_tests/cost/test_mustdrop.py"
RUN = "python_tests/cost/test_pictures_that_run.py"
WITH_FLASH = "python_tests/cost/test_flash.py"
REPRODUCE = "python_tests/cost/test_reproduce.py"

MUTATIONS = [
    Mutation(
        SHAPES,
        "return self.picture.after(patches)",
        "return self.picture.before - self.picture.patches + patches",
        (f"{PICTURES}::test_tokens_are_those_of_the_geometry",),
        "Only the thumbnail loses patches.",
    ),
    Mutation(
        SHAPES,
        "if self.picture is None else self.crops * patches",
        "if self.picture is None else self.tokens_with(patches)",
        (f"{PICTURES}::test_tokens_are_those_of_the_geometry",),
        "The projector is not billed for padding, which it projects.",
    ),
    Mutation(
        SHAPES,
        "lost = min(max(before - one, 0), r)",
        "lost = min(max(self.tower.patches - one, 0), r)",
        (f"{PICTURES}::test_padding_leaves_first_in_random_pictures",),
        "Padding that has left leaves again in the next layer.",
    ),
    Mutation(
        SHAPES,
        "found = {0: self.crops - len(valid)}",
        "found = {0: self.crops}",
        (f"{PICTURES}::test_padding_leaves_first_in_random_pictures",),
        "Crops are counted twice.",
    ),
    Mutation(
        SHAPES,
        "return 0 if self.picture is None else self.picture.lines",
        "return 0",
        (f"{PICTURES}::test_line_ends_stay_after_the_projector",),
        "Line ends are removed with the rest.",
    ),
    Mutation(
        SHAPES,
        "if given != wanted:",
        "if False:",
        (f"{PICTURES}::test_what_is_refused",),
        "An architecture may contradict its picture.",
    ),
    Mutation(
        SHAPES,
        "if self.picture is None and self.extra:",
        "if False:",
        (f"{PICTURES}::test_what_is_refused",),
        "Crops with class tokens are laid out, which no model does.",
    ),
    Mutation(
        POINTS,
        "return LLAVA_NEXT if side == _SIDE else ()",
        "return LLAVA_NEXT",
        (f"{PICTURES}::test_pinpoints_of_a_config",),
        "Crops of another size get the canvases of LLaVA-NeXT.",
    ),
    Mutation(
        POINTS,
        "not isinstance(n, bool) and n >= 1",
        "not isinstance(n, bool)",
        (f"{PICTURES}::test_pinpoints_of_a_config",),
        "A canvas may have no pixels.",
    ),
    Mutation(
        PROJECTED,
        "return images * shape.pictures * (left + shape.line_ends)",
        "return images * shape.pictures * left",
        (f"{PICTURES}::test_line_ends_enter_the_language_model",),
        "The language model does not get line ends.",
    ),
    Mutation(
        PROJECTED,
        "return projector.count(before, grid_of_picture(shape, vision), shape.picture)",
        "return projector.count(before, grid_of_picture(shape, vision))",
        (f"{RUN}::test_what_globalcom2_keeps_is_said_beforehand",),
        "GlobalCom2 is priced for one token more than it keeps.",
    ),
    Mutation(
        REDUCTION,
        "images * crops, before - padding, r - padding",
        "images * crops, before, r",
        (f"{PICTURES}::test_a_method_is_billed_for_what_padding_leaves_it",),
        "A method is billed for padding that it never sees.",
    ),
    Mutation(
        REDUCTION,
        "        if padding < r:\n",
        "        if True:\n",
        (f"{PICTURES}::test_all_padding_and_no_rows",),
        "A method is billed where only padding leaves.",
    ),
    Mutation(
        REDUCTION,
        "at = min(tower.used, tower.layers - 1)",
        "at = tower.used - 1",
        (f"{RUN}::test_globalcom2_of_full_crops_is_as_its_table_counts",),
        "Class logits are read one layer too early.",
    ),
    Mutation(
        "ficoco_ext/cost/schedules.py",
        "if padded and any(map(whole_grid, method.of_layers(1))):",
        "if False:",
        (f"{PICTURES}::test_what_is_refused",),
        "Pooling of a padded picture gets the price of another method.",
    ),
    Mutation(
        "ficoco_ext/cost/advice.py",
        "if shape.leaves_first(patches, patches) == {0: shape.crops}:",
        "if False:",
        (f"{PICTURES}::test_advice_on_padding",),
        "Pictures without padding are said to have some.",
    ),
    Mutation(
        "ficoco_ext/cli/values.py",
        'r"([0-9]{1,9})x([0-9]{1,9})"',
        'r"([0-9]+)x([0-9]+)"',
        (f"{PICTURES}::test_a_size_that_is_none_is_one_clear_line",),
        "A size beyond all pictures is taken.",
    ),
    Mutation(
        "ficoco_ext/models/attach_plan.py",
        "return self.projector.count(crops.tokens, None, crops) + crops.lines",
        "return self.projector.count(crops.tokens) + crops.lines",
        (f"{RUN}::test_what_globalcom2_keeps_is_said_beforehand",),
        "The handle says a number that GlobalCom2 does not keep.",
    ),
    Mutation(
        TABLES,
        "return round(mb / 1000, 1) * 1024 if mb >= 1000 else float(round(mb))",
        "return round(mb / 1024, 1) * 1024 if mb >= 1000 else float(round(mb))",
        (f"{REPRODUCE}::test_its_caches_are_rounded_twice",),
        "Caches are rounded otherwise than the table does.",
    ),
    Mutation(
        TABLES,
        'ours = cost.tflops / 2 if row.get("unit") == "macs" else cost.bit_scaled_tflops',
        "ours = cost.bit_scaled_tflops",
        (f"{REPRODUCE}::test_table_10_counts_multiply_adds_of_the_picture_alone",),
        "Table 10 is compared in another unit.",
    ),
    Mutation(
        TABLES,
        'given["decoder"] = Schedule(visual, (layer,), (visual - left,), before_attention=True)',
        'given["decoder"] = Schedule(visual, (layer,), (left,), before_attention=True)',
        (f"{REPRODUCE}::test_readings_of_what_mustdrop_saves",),
        "What leaves is taken for what stays.",
    ),
    Mutation(
        ROWS,
        "        r -= r % unit\n",
        "",
        (f"{MUSTDROP}::test_a_floor_leaves_whole_windows",),
        "A plan removes a part of a window, which attach refuses.",
    ),
    Mutation(
        ROWS,
        "dataclasses.replace(schedule, after_mlp=late) if late else schedule",
        "schedule",
        (f"{MUSTDROP}::test_plans_of_windows_can_be_attached_and_none_comes_closer",),
        "A plan reduces before the MLP of a layer, and attach after it.",
    ),
    Mutation(
        REDUCTION,
        '"key_set", 1)',
        '"key_set")',
        (f"{MUSTDROP}::test_the_key_set_is_read_in_the_block_that_reads_the_features",),
        "The class token's attention to itself is free.",
    ),
    Mutation(
        "ficoco_ext/models/key_sets.py",
        "saliency=CLASS, after=True",
        "saliency=CLASS, after=False",
        ("python_tests/models/test_key_sets.py",),
        "The key set is that of the block before the one that reads the features.",
    ),
    Mutation(
        "ficoco_ext/stages/dual_attention.py",
        "costs.received_from(probs=True), o=shape.text + 1)",
        "costs.received_from(probs=True), o=shape.text)",
        ("python_tests/cost/test_counter.py::test_a_whole_prefill_with_and_without_reduction",),
        "The row that stands in for a missing text is free.",
    ),
    Mutation(
        FLASH,
        '"fused_attention": fused',
        '"fused_attention": True',
        (f"{WITH_FLASH}::test_flash_attention_saves_the_maps_and_no_operation",),
        "Without flash attention nothing is counted otherwise.",
    ),
    Mutation(
        FLASH,
        "fused in {cell.flash_attention for cell in cells}",
        "True",
        (f"{WITH_FLASH}::test_every_row_of_the_table_is_there_both_ways",),
        "Rows that the paper has not are called printed.",
    ),
    Mutation(
        "ficoco_ext/cost/schedules.py",
        "        require_single_patches(OP, shape, removing)\n",
        "",
        (f"{MUSTDROP}::test_windows_of_crops_are_neither_billed_nor_planned",),
        "Windows of crops, which attach refuses, are billed.",
    ),
    Mutation(
        "ficoco_ext/cost/schedules.py",
        "    require_single_patches(op, shape, method.of_layers(1))\n",
        "",
        (f"{MUSTDROP}::test_windows_of_crops_are_neither_billed_nor_planned",),
        "Windows of crops are planned.",
    ),
    Mutation(
        "ficoco_ext/cost/schedules.py",
        "strict=True) if step.r]\n        require",
        "strict=True)]\n        require",
        (f"{MUSTDROP}::test_of_crops_windows_may_stay_and_the_language_model_reduces",),
        "Windows are refused where none leaves.",
    ),
    Mutation(
        "ficoco_ext/cost/model.py",
        "        if shape.pinpoints:\n            resolve.",
        "        if False:\n            resolve.",
        (f"{MUSTDROP}::test_windows_of_crops_are_neither_billed_nor_planned",),
        "A given schedule of windows of crops is billed.",
    ),
    Mutation(
        "ficoco_ext/cost/schedules.py",
        "alone=method is method.language_model",
        "alone=True",
        (f"{MUSTDROP}::test_too_few_layers_name_what_this_method_takes",),
        "Layers are recommended to a method of two parts, which takes none.",
    ),
    Mutation(
        "ficoco_ext/models/attach_plan.py",
        "alone = request.tower is None and request.projector is None",
        "alone = True",
        ("python_tests/models/test_mustdrop.py::test_too_few_layers_name_what_this_method_takes",),
        "Layers are recommended to a method of two parts, which takes none.",
    ),
]
