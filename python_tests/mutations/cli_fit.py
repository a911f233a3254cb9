"""Faults of ``ficoco fit``."""

from __future__ import annotations

from mutations import Mutation

FIT = "ficoco_ext/cli/fit.py"
TESTS = "python_tests/apps/test_fitting.py"

MUTATIONS = [
    Mutation(
        FIT,
        "for item in itertools.islice(rows.items, samples):",
        "for item in rows.items:",
        (f"{TESTS}::test_the_command_reads_questions_of_a_file",),
        "A large file of questions is read to its end.",
    ),
    Mutation(
        FIT,
        "range({recipe.layers[0]}, {recipe.layers[-1] + 1})",
        "range({recipe.layers[0]}, {recipe.layers[-1]})",
        (f"{TESTS}::test_the_command_writes_what_it_says",),
        "The call that is printed is refused.",
    ),
    Mutation(
        FIT,
        "        if samples < 1:\n",
        "        if samples < 0:\n",
        (f"{TESTS}::test_mistakes_on_the_command_line",),
        "No sample is an error about pictures that are there.",
    ),
]
