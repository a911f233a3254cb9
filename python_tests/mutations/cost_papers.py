"""Faults of the papers' rows, of selection's share and of published accuracies."""

from mutations import Mutation

ROWS, SELECTION = "python_tests/cost/test_paper_rows.py", "python_tests/cost/test_selection.py"
PUBLISHED, COUNTER = "python_tests/docs/test_published.py", "python_tests/cost/test_counter.py"

MUTATIONS = [
    Mutation(
        file="ficoco_ext/cost/paper_presets.py",
        old="((4.2, 29), (3.3, 35)",
        new="((4.2, 28), (3.3, 35)",
        tests=(f"{ROWS}::test_the_integers_of_ficoco_v_are_the_only_ones_that_round",),
        why="An integer that does not round to the printed value.",
    ),
    Mutation(
        file="ficoco_ext/cost/paper_presets.py",
        old='reading("from layers 2, 6, 15 on", (2, 6, 15)),',
        new='reading("from layers 2, 6, 15 on", (3, 7, 16)),',
        tests=(f"{ROWS}::test_sparsevlm_keeps_and_recycles",),
        why="SparseVLM's layers are one too late.",
    ),
    Mutation(
        file="ficoco_ext/cost/paper_presets.py",
        old="7: 21, 8: 18, 9: 4,",
        new="7: 21, 8: 81, 9: 4,",
        tests=(f"{ROWS}::test_fitprunes_recipe",),
        why="A number of FitPrune's recipe is wrong.",
    ),
    Mutation(
        file="ficoco_ext/cost/paper_presets.py",
        old="_ficoco_l((44, 1), (43, 12), (15, 1))",
        new="_ficoco_l((44, 1), (43, 11), (58, 1))",
        tests=(f"{ROWS}::test_fitted_schedules_are_what_the_planner_finds",),
        why="A fitted schedule is not what the planner finds.",
    ),
    Mutation(
        file="ficoco_ext/cost/paper_rows.py",
        old="ours = cost.tflops / 2",
        new="ours = cost.tflops",
        tests=(f"{ROWS}::test_pyramiddrop_in_its_own_unit",),
        why="A multiply-add counts twice in PyramidDrop's own unit.",
    ),
    Mutation(
        file="ficoco_ext/cost/paper_rows.py",
        old='if one.preset.basis != "fitted")',
        new="if one.preset.basis)",
        tests=(f"{ROWS}::test_rows_that_do_not_reproduce_are_these_and_say_why",),
        why="What was fitted to a cell counts as reproducing it.",
    ),
    Mutation(
        file="ficoco_ext/cost/paper_rows.py",
        old='",".join(cell.task for cell in said)',
        new='",".join(cell.task for cell in self.accuracy)',
        tests=(f"{ROWS}::test_the_command_of_a_cell_attaches_the_rows_method",),
        why="The command of a row measures what the row does not print.",
    ),
    Mutation(
        file="ficoco_ext/cost/selection.py",
        old="return Share(model, round(cost.tokens.final), cost.reduction_share)",
        new="return Share(model, round(cost.tokens.final), cost.selection_share)",
        tests=(f"{SELECTION}::test_selection_is_below_two_percent_or_an_exception",),
        why="Only what is chosen after the projector has a price.",
    ),
    Mutation(
        file="ficoco_ext/cost/selection.py",
        old="own = None if at or not chosen.amount else _share(model, chosen, {})",
        new="own = None",
        tests=(f"{SELECTION}::test_a_method_that_takes_no_number_of_tokens",),
        why="A method that takes no number of tokens is never counted.",
    ),
    Mutation(
        file="ficoco_ext/cost/selection.py",
        old="if any(one.share > LIMIT for one in found)",
        new="if all(one.share > LIMIT for one in found)",
        tests=(f"{SELECTION}::test_words",),
        why="An exception is named only where every budget is one.",
    ),
    Mutation(
        file="ficoco_ext/cost/bill.py",
        old="return 0.0 if own is None else own.operations / self.total.operations",
        new="return 0.0 if own is None else own.operations / (self.total.operations - own.operations)",
        tests=(f"{SELECTION}::test_by_hand",),
        why="The share is of what is left without selection.",
    ),
    Mutation(
        file="ficoco_ext/cost/advice.py",
        old='if share > LIMIT else ""',
        new='if share < LIMIT else ""',
        tests=(f"{SELECTION}::test_what_is_printed_beside_a_bill",),
        why="Cheap selections are called dear.",
    ),
    Mutation(
        file="ficoco_ext/cost/architecture.py",
        old="return (whole * self.window**2 + rest**2) ** 2",
        new="return (whole * self.window**2) ** 2",
        tests=(f"{COUNTER}::test_a_layer_of_qwen2_5_vl_in_windows_and_without",),
        why="Windows that the picture's border cuts are not counted.",
    ),
    Mutation(
        file="ficoco_ext/cost/architecture.py",
        old="if not self.window or layer in self.full:",
        new="if not self.window:",
        tests=(f"{COUNTER}::test_a_layer_of_qwen2_5_vl_in_windows_and_without",),
        why="Layers that see the whole picture are counted in windows.",
    ),
    Mutation(
        file="ficoco_ext/cost/model.py",
        old="chooses, images, text_tokens)",
        new="after_it, images, after)",
        tests=("python_tests/cost/test_after_projector.py::test_words_of_the_prompt_have_a_price",),
        why="Words before the picture are read for nothing.",
    ),
    Mutation(
        file="ficoco_ext/cost/published.py",
        old="if cell.benchmark in MEAN_OF and",
        new="if",
        tests=(f"{PUBLISHED}::test_values_by_hand",),
        why="The mean is over other benchmarks than it says.",
    ),
    Mutation(
        file="ficoco_ext/cost/published.py",
        old="if len(ratios) >= 5 else None",
        new="if ratios else None",
        tests=(f"{PUBLISHED}::test_values_by_hand",),
        why="A mean over three benchmarks stands beside those over seven.",
    ),
    Mutation(
        file="ficoco_ext/cost/published.py",
        old='"" if sets == len(MEAN_OF) else f" ({sets})"',
        new='""',
        tests=(f"{PUBLISHED}::test_the_rows_of_ficoco_are_computed",),
        why="Rows with fewer benchmarks do not say so.",
    ),
    Mutation(
        file="ficoco_ext/cli/cost_rows.py",
        old="if row.reason not in [reason for _, reason in notes]:",
        new="if not notes:",
        tests=(f"{ROWS}::test_the_command_line_prints_them",),
        why="Only the first reason is printed.",
    ),
    Mutation(
        file="ficoco_ext/cli/methods.py",
        old="if worst is not None and worst.share > LIMIT",
        new="if worst is not None",
        tests=(f"{SELECTION}::test_the_command_line_says_it",),
        why="Every method is named as an exception.",
    ),
]
