"""Faults of ``reduce``, its result, schedules and their resolution."""

from mutations import Mutation

SCHEDULE = "python_tests/reduce/test_schedule.py"

MUTATIONS = [
    Mutation(
        file="ficoco_ext/schedule.py",
        old='0.5 if rounding == "half_up" else 1e-9',
        new='0.5 if rounding == "half_up" else 0.0',
        tests=(f"{SCHEDULE}::test_a_ratio_after_each_layer",),
        why="100 patches at a ratio of 0.29, rounded down, keep 28.",
    ),
    Mutation(
        file="ficoco_ext/schedule.py",
        old="return left if self.before_attention else (self.patches, *left[:-1])",
        new="return left",
        tests=(f"{SCHEDULE}::test_tokens_entering",),
        why="Costs count the layer that reduces after its attention with too few tokens.",
    ),
]
