"""Faults of the geometry of pictures of several crops, and of whose crops are in the tower."""

from __future__ import annotations

from mutations import Mutation

CROPS = "ficoco_ext/stages/crops.py"
TESTS = "python_tests/methods/test_crops.py"
KNOWN, ORIGINS = f"{TESTS}::test_known_pictures", f"{TESTS}::test_origins_are_the_cells_of_the_canvas_in_reading_order"
PROCESSOR = f"{TESTS}::test_as_many_tokens_as_the_processor_writes"
PICTURES = "ficoco_ext/models/crop_pictures.py"
ROWS = "python_tests/models/test_crop_pictures.py::test_rows_are_thumbnails_and_crops"
OUTSIDE = "python_tests/models/test_crop_pictures.py::test_outside_of_a_call_and_in_another_thread_there_are_none"

MUTATIONS = [
    Mutation(
        CROPS, "int(round(height * (columns / width), 7))", "round(height * (columns / width))", (PROCESSOR,), "Rows."
    ),
    Mutation(
        CROPS, "return shown, shown - one[0] * one[1]", "return shown, one[0] * one[1]", (PROCESSOR,), "Most padding."
    ),
    Mutation(CROPS, "1 + y // g * across + x // g", "1 + y // g + x // g * across", (ORIGINS,), "Crops by columns."),
    Mutation(CROPS, "sum(min(one, left) for one in self.valid)", "len(self.valid) * left", (KNOWN,), "Padding counts."),
    Mutation(PICTURES, "now.pictures = outer", "now.pictures = ()", (ROWS,), "An outer call loses its pictures."),
    Mutation(PICTURES, "if wanted != rows:", "if wanted > rows:", (OUTSIDE,), "A tower on its own has no padding."),
]
