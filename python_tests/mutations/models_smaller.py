"""Faults of pictures that are resized before the tower, and of what is said of them."""

from __future__ import annotations

from mutations import Mutation

SMALLER = "ficoco_ext/models/smaller_pictures.py"
METHOD = "ficoco_ext/methods/downsample.py"
TESTS = "python_tests/models/test_downsample.py"
BY_HAND = f"{TESTS}::test_forward_and_generate_are_those_of_smaller_pictures[llava-clip-one_picture-original]"

MUTATIONS = [
    Mutation(
        SMALLER,
        'mode="bicubic", antialias=True',
        'mode="bicubic", antialias=False',
        (BY_HAND,),
        "Small pictures are full of aliases.",
    ),
    Mutation(
        SMALLER,
        "middle = (2 * torch.arange(fewer, device=device) + 1) * cells // (2 * fewer)",
        "middle = torch.arange(fewer, device=device) * cells // fewer",
        (BY_HAND,),
        "A token has the position of its cell's first patch, and the picture moves up and to the left.",
    ),
    Mutation(
        METHOD,
        "(one[0] * one[1], -stretched(one), -one[0])",
        "(-stretched(one), one[0] * one[1], -one[0])",
        (f"{TESTS}::test_no_other_grid_is_larger",),
        "Fewer tokens are left than were asked for, to keep the proportion exactly.",
    ),
    Mutation(
        METHOD,
        "return max(near or every,",
        "return max(every,",
        (f"{TESTS}::test_no_other_grid_is_larger",),
        "A square picture becomes one wide line.",
    ),
    Mutation(
        "ficoco_ext/resolve.py",
        "if not self.method.resizes or grid is None or wanted == before:",
        "if True:",
        (f"{TESTS}::test_with_a_method_of_the_language_model",),
        "Static counts promise tokens that a smaller picture does not have.",
    ),
    Mutation(
        "ficoco_ext/cost/projected.py",
        "return part is not None and part.resizes",
        "return False",
        (f"{TESTS}::test_the_tower_costs_less_too",),
        "The tower is billed for pictures that it never saw.",
    ),
]
