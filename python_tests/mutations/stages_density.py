"""Faults of density peaks."""

from __future__ import annotations

from mutations import Mutation

DENSITY = "ficoco_ext/stages/density.py"
TESTS = "python_tests/reduce/test_density.py"

MUTATIONS = [
    Mutation(
        DENSITY,
        "found[:, rows, others], found[:, others, rows] = part, part.mT",
        "found[:, rows, others], found[:, others, rows] = part, part.roll(1, 1).mT",
        (f"{TESTS}::test_blocks_of_rows_change_nothing",),
        "Half of the distances are those of other tokens.",
    ),
    Mutation(
        DENSITY,
        "rows, others = slice(start, start + _STRIP), slice(start, m)",
        "rows, others = slice(start, start + _STRIP), slice(0, m)",
        ("python_tests/reduce/test_scene_trees_distances.py::test_distances_are_made_once_and_priced",),
        "Every distance is computed twice.",
    ),
    Mutation(
        DENSITY,
        "((others == own) & (index < index[part].unsqueeze(1)))",
        "((others == own) & (index > index[part].unsqueeze(1)))",
        (f"{TESTS}::test_copies_of_a_dense_token_are_no_other_centres",),
        "Of equal tokens the last is a centre first.",
    ),
    Mutation(
        DENSITY,
        "(others < own) | ((others == own)",
        "(others < own) & ((others == own)",
        (f"{TESTS}::test_it_is_the_definition",),
        "Every token gets the largest distance, and the densest place all centres.",
    ),
    Mutation(
        DENSITY,
        "separation.log().sub(nearest)",
        "(separation * (-nearest).exp())",
        (f"{TESTS}::test_tokens_far_from_all_others_still_have_an_order",),
        "Hidden states of large norm have density 0, and the first tokens are the centres.",
    ),
    Mutation(
        DENSITY,
        "return nearest.scatter(1, centres, own)",
        "return nearest",
        (f"{TESTS}::test_of_equal_tokens_the_first_is_the_densest_and_joins_itself",),
        "A centre that equals another joins it, and its own cluster is empty.",
    ),
    Mutation(
        DENSITY,
        "score = score.masked_fill(~mask, -math.inf)",
        "pass",
        (f"{TESTS}::test_padding_is_not_there",),
        "Padding is the centre of a cluster.",
    ),
]
