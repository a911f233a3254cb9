"""Faults of the geometry of pictures of several crops, and of whose crops are in the tower."""

from __future__ import annotations

from mutations import Mutation

CROPS = "ficoco_ext/stages/crops.py"
TESTS = "python_tests/methods/test_crops.py"
KNOWN, ORIGINS = f"{TESTS}::test_known_pictures", f"{TESTS}::test_origins_are_the_cells_of_the_canvas_in_reading_order"
PROCESSOR = f"{TESTS}::test_as_many_tokens_as_the_processor_writes"
EQUAL = f"{TESTS}::test_of_equal_canvases_the_first"
GRAPH = "python_tests/families/test_next_graphs.py"
NUMBERS = "python_tests/models/test_crop_pictures.py::test_other_sizes_are_refused"
WHOLE = "python_tests/models/test_crop_pictures.py::test_sizes_are_integers_of_any_kind"
PICTURES = "ficoco_ext/models/crop_pictures.py"
ROWS = "python_tests/models/test_crop_pictures.py::test_rows_are_thumbnails_and_crops"
OUTSIDE = "python_tests/models/test_crop_pictures.py::test_outside_of_a_call_and_in_another_thread_there_are_none"

MUTATIONS = [
    Mutation(
        CROPS, "int(round(height * (columns / width), 7))", "round(height * (columns / width))", (PROCESSOR,), "Rows."
    ),
    Mutation(CROPS, "rank = shown, shown - canvas", "rank = shown, canvas", (PROCESSOR,), "Most padding."),
    Mutation(CROPS, "if rank > most:", "if rank >= most:", (EQUAL,), "Of equal canvases the last one."),
    Mutation(
        CROPS,
        "    best, most = (0, 0), (-1, 0)\n",
        "    best, most = max(map(tuple, pinpoints), key=lambda one: (0, *one)), (-1, 0)\n",
        (f"{GRAPH}::test_the_encoder_is_one_graph",),
        "The choice of a canvas breaks the graph of every picture.",
    ),
    Mutation(CROPS, "1 + y // g * across + x // g", "1 + y // g + x // g * across", (ORIGINS,), "Crops by columns."),
    Mutation(CROPS, "sum(min(one, left) for one in self.valid)", "len(self.valid) * left", (KNOWN,), "Padding counts."),
    Mutation(CROPS, "return operator.index(number)", "return int(number)", (NUMBERS,), "A size of 20.9 becomes 20."),
    Mutation(CROPS, "isinstance(number, bool)", "number is None", (NUMBERS,), "True is a size of 1."),
    Mutation(CROPS, "type(one) is int else _integer(one)", "type(one) is int else 0", (WHOLE,), "No numpy integers."),
    Mutation(
        PICTURES,
        "if count is not None and len(sizes) != count:",
        "if count is not None and len(sizes) > count:",
        (NUMBERS,),
        "Pictures without a size.",
    ),
    Mutation(PICTURES, "now.pictures = outer", "now.pictures = ()", (ROWS,), "An outer call loses its pictures."),
    Mutation(PICTURES, "if wanted != rows:", "if wanted > rows:", (OUTSIDE,), "A tower on its own has no padding."),
    Mutation(
        CROPS,
        "if not whole or got < 1:",
        "if not whole:",
        (f"{TESTS}::test_sides_are_whole_numbers",),
        "A crop may have no patches or pixels.",
    ),
    Mutation(
        "ficoco_ext/methods/globalcom2.py",
        "kind = ValueError if whole else TypeError",
        "kind = TypeError",
        ("python_tests/methods/test_globalcom2.py",),
        "A wrong number of tokens is a wrong type.",
    ),
    Mutation(
        "ficoco_ext/methods/combined.py",
        "if not isinstance(method, AnyMethod):",
        "if False:",
        ("python_tests/methods/test_combined.py::test_names_are_not_methods",),
        "A name among methods is an AttributeError.",
    ),
]
