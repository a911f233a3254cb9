"""Faults of what demo and show print of pictures of several crops."""

from __future__ import annotations

from mutations import Mutation

_CROPS = "python_tests/apps/test_crops.py::"

MUTATIONS: list[Mutation] = [
    Mutation(
        file="ficoco_ext/cli/crops.py",
        old="padding = canvas - sum(crops.valid)",
        new="padding = sum(crops.valid) - canvas",
        tests=(_CROPS + "test_tables_name_crops_and_places",),
        why="Padding is a negative number.",
    ),
    Mutation(
        file="ficoco_ext/cli/crops.py",
        old="canvas = crops.count * crops.patches",
        new="canvas = (1 + crops.count) * crops.patches",
        tests=(_CROPS + "test_tables_name_crops_and_places",),
        why="The thumbnail is taken for a part of the canvas.",
    ),
    Mutation(
        file="ficoco_ext/cli/show.py",
        old="made.add_row(one.method, *map(str, one.per_crop))",
        new="made.add_row(one.method, *map(str, cut.valid))",
        tests=(_CROPS + "test_tables_name_crops_and_places",),
        why="Every crop seems to keep all of its patches.",
    ),
]
