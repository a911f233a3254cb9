"""Faults of sheets, on which pictures of several crops are drawn."""

from __future__ import annotations

from mutations import Mutation

_SHEETS = "python_tests/viz/test_sheets.py::"

MUTATIONS: list[Mutation] = [
    Mutation(
        file="ficoco_ext/viz/sheets.py",
        old="self._block(top, bottom, self.side + 1 + left, self.side + 1 + right)",
        new="self._block(top, bottom, self.side + left, self.side + right)",
        tests=(_SHEETS + "test_cells_are_where_the_crops_have_their_patches",),
        why="The canvas is drawn one column off.",
    ),
    Mutation(
        file="ficoco_ext/viz/sheets.py",
        old="kept, order = cells[reduction.kept].sort(1)",
        new="kept, order = cells[reduction.kept], reduction.kept.argsort(1)",
        tests=(_SHEETS + "test_a_reduction_is_laid_cell_by_cell",),
        why="Patches that are left are not in the order of their cells.",
    ),
    Mutation(
        file="ficoco_ext/viz/sheets.py",
        old="source_map[:, cells] = moved(reduction.source_map)",
        new="source_map[:, cells] = reduction.source_map",
        tests=(_SHEETS + "test_a_reduction_is_laid_cell_by_cell",),
        why="Patches seem to be held by others than those that hold them.",
    ),
    Mutation(
        file="ficoco_ext/viz/sheets.py",
        old="1 + row // self.side * self.grid[1] + across",
        new="1 + row // self.side + across",
        tests=(_SHEETS + "test_cells_are_where_the_crops_have_their_patches",),
        why="Patches of one crop are counted in another.",
    ),
    Mutation(
        file="ficoco_ext/viz/steps.py",
        old="if holder not in (position, NO_PATCH)]",
        new="if holder != position]",
        tests=(_SHEETS + "test_what_is_no_patch_is_neither_kept_nor_removed",),
        why="Padding is drawn as dropped patches.",
    ),
    Mutation(
        file="ficoco_ext/viz/panels.py",
        old='f"Kept: {len(left)} of {count_patches(held)} patches"',
        new='f"Kept: {len(left)} of {len(held)} patches"',
        tests=(_SHEETS + "test_what_is_no_patch_is_neither_kept_nor_removed",),
        why="Padding counts as patches of the picture.",
    ),
    Mutation(
        file="ficoco_ext/viz/traces.py",
        old="return len(held) - held.count(NO_PATCH)",
        new="return len(held)",
        tests=(_SHEETS + "test_figures_say_how_much_each_crop_keeps",),
        why="A method seems to have started from more patches than there are.",
    ),
]
