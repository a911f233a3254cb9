"""Faults of the grid scenes: wrong answers, shared material, pictures that show something else."""

from __future__ import annotations

from mutations import Mutation

_TESTS = "python_tests/evaluation/test_gridvqa.py::"

MUTATIONS: list[Mutation] = [
    Mutation(
        file="ficoco_ext/gridvqa/dataset.py",
        old="yield from (Row(image, question, answer, kind, index)",
        new="yield from (Row(image, question, answer, kind, 0)",
        tests=(_TESTS + "test_rows_are_scene_by_scene_and_share_their_picture",),
        why="All questions seem to be of one scene, so there is no interval.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/dataset.py",
        old="asking.questions(rng, scene, self.per_scene, self.kinds)",
        new="asking.questions(rng, scene, self.per_scene)",
        tests=(_TESTS + "test_some_kinds_alone_and_balance",),
        why="Kinds that were not asked for are asked.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/drawing.py",
        old="else (_FIRST_TEST_DIGIT, len(images))",
        new="else (0, len(images))",
        tests=(_TESTS + "test_training_shares_no_digit_font_or_column_with_the_other_splits",),
        why="Digits of training are in the test.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/drawing.py",
        old='low, high = (0, border) if split == "train" else (border, width)',
        new='low, high = (0, border) if split == "train" else (0, width)',
        tests=(_TESTS + "test_training_shares_no_digit_font_or_column_with_the_other_splits",),
        why="Photographs of training are in the test.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/drawing.py",
        old="draw.ellipse([big * 0.27, big * 0.27, big * 0.73, big * 0.73], fill=0)",
        new="draw.ellipse([big * 0.27, big * 0.27, big * 0.73, big * 0.73], fill=255)",
        tests=(_TESTS + "test_shapes_look_like_what_they_are_called",),
        why="A ring looks like a circle.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/questions.py",
        old="return question, QUADRANTS[2 * (y > SIDE / 2) + (x > SIDE / 2)]",
        new="return question, QUADRANTS[2 * (x > SIDE / 2) + (y > SIDE / 2)]",
        tests=(_TESTS + "test_every_answer_is_true",),
        why="Top right and bottom left are swapped.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/questions.py",
        old="> _CLEAR]",
        new="> 0]",
        tests=(_TESTS + "test_every_answer_is_true",),
        why="Where is asked of things that stand in the middle.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/questions.py",
        old="<= _APART:",
        new="<= 0:",
        tests=(_TESTS + "test_sides_are_asked_of_what_stands_side_by_side",),
        why="The left digit is asked for where one stands above the other.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/questions.py",
        old="others.remove(truth)\n",
        new="others = others[1:]\n",
        tests=(_TESTS + "test_every_answer_is_true",),
        why="The truth stands among the options twice.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/scene.py",
        old="np.random.default_rng([seed, SPLITS.index(split), index])",
        new='np.random.default_rng([seed, split != "train", index])',
        tests=(_TESTS + "test_a_scene_depends_on_seed_split_and_its_number_alone",),
        why="dev and test are the same scenes.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/scene.py",
        old=".transpose(0, 2, 1, 3).reshape(grid * grid, -1)",
        new=".reshape(grid * grid, -1)",
        tests=(_TESTS + "test_patches_name_the_thing_that_covers_them",),
        why="Patches are said to show things that are elsewhere.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/scene.py",
        old="left + width + _GAP < a or c + _GAP < left or",
        new="left + width < a or c < left or",
        tests=(_TESTS + "test_things_stand_apart",),
        why="Things touch each other.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/sheet.py",
        old="key=lambda pair: (-pair[1], pair[0])",
        new="key=lambda pair: (pair[1], pair[0])",
        tests=(_TESTS + "test_some_kinds_alone_and_balance",),
        why="What is reached without looking is said to be far too little.",
    ),
    Mutation(
        file="ficoco_ext/gridvqa/vocabulary.py",
        old="words = [PAD, BOS, EOS, IMAGE, UNKNOWN,",
        new="words = [PAD, BOS, EOS, UNKNOWN, IMAGE,",
        tests=(_TESTS + "test_the_embedded_tokenizer_has_these_words_in_this_order",),
        why="A newly trained model has other ids than its tokenizer.",
    ),
]
