"""Faults of the fit of a recipe."""

from __future__ import annotations

from mutations import Mutation

FITTING = "ficoco_ext/apps/fitting.py"
WATCH = "ficoco_ext/models/layer_watch.py"
TESTS = "python_tests/apps/test_fitting.py"

MUTATIONS = [
    Mutation(
        FITTING,
        "leaves = _may_leave(visual, left, alpha) & _may_leave(text, left, alpha)",
        "leaves = _may_leave(visual, left, alpha) | _may_leave(text, left, alpha)",
        (f"{TESTS}::test_the_rule_by_hand",),
        "What the question needs leaves because the picture does not.",
    ),
    Mutation(
        FITTING,
        "enough = after >= received.sum() * (1 - alpha)",
        "enough = after >= rest[0] * (1 - alpha)",
        (f"{TESTS}::test_the_rule_by_hand",),
        "Every layer may lose alpha again of what the layers before it left.",
    ),
    Mutation(
        FITTING,
        "            high, best = middle, tried\n",
        "            high = middle\n",
        (f"{TESTS}::test_the_smallest_alpha_that_saves_enough",),
        "The recipe removes all it can, whatever the ratio.",
    ),
    Mutation(
        FITTING,
        "zip(*seen[group::groups], strict=True)",
        "zip(*seen[: len(layers)], strict=True)",
        (f"{TESTS}::test_measured_sums_by_hand", f"{TESTS}::test_rows_with_unequal_pictures_are_measured_apart"),
        "Of a batch with unequal pictures layers and groups are mixed.",
    ),
    Mutation(
        FITTING,
        "layout.real.sum(1) - n",
        "layout.real.sum(1)",
        (f"{TESTS}::test_measured_sums_by_hand",),
        "Visual tokens count as words, and less seems saved.",
    ),
    Mutation(
        WATCH,
        "chosen = range(plan.facts.language_model.first, last + 1)",
        "chosen = range(last + 1)",
        (f"{TESTS}::test_layers_after_deepstack_alone_are_fitted",),
        "A recipe names layers in which nothing can leave.",
    ),
    Mutation(
        WATCH,
        "        changes.undo()\n",
        "        pass\n",
        (f"{TESTS}::test_measuring_leaves_the_model_as_it_was",),
        "The model stays changed after the fit.",
    ),
    Mutation(
        "ficoco_ext/cli/fit.py",
        "itertools.islice(rows.items, samples)",
        "rows.items",
        ("python_tests/apps/test_fitting.py::test_the_command_reads_questions_of_a_file",),
        "All rows of a file are read, however many were asked for.",
    ),
    Mutation(
        "ficoco_ext/cli/fit.py",
        "recipe.layers[-1] + 1",
        "recipe.layers[-1]",
        ("python_tests/apps/test_fitting.py::test_the_command_writes_what_it_says",),
        "The call that is shown leaves the last layer out.",
    ),
]
