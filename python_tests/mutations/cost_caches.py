"""Faults in what output-aware caches cost."""

from mutations import Mutation

TESTS = "python_tests/cost/test_caches.py"

MUTATIONS = [
    Mutation(
        file="ficoco_ext/cost/caches.py",
        old="return [*entering[:first], *(final for _ in entering[first:])]",
        new="return [*entering[: first + 1], *(final for _ in entering[first + 1 :])]",
        tests=(f"{TESTS}::test_bytes_by_hand",),
        why="The first reducing layer counts as uncut.",
    ),
    Mutation(
        file="ficoco_ext/cost/caches.py",
        old='resolve.require_whole_first_layer("cost", schedule.layers)',
        new="pass",
        tests=(f"{TESTS}::test_what_is_refused",),
        why="The cost of something that attach refuses is shown.",
    ),
    Mutation(
        file="ficoco_ext/cost/caches.py",
        old="if left == before:",
        new="if False:",
        tests=(f"{TESTS}::test_cutting_costs_bytes_and_no_operation",),
        why="Layers that lose nothing pay for a cut.",
    ),
    Mutation(
        file="ficoco_ext/cost/model.py",
        old="_resident(rules, shape, lines, kv if read is None else read)",
        new="_resident(rules, shape, lines, kv)",
        tests=(f"{TESTS}::test_the_prefill_runs_and_holds_what_it_did",),
        why="Less memory is promised than a prefill holds before its cache is cut.",
    ),
    Mutation(
        file="ficoco_ext/cost/model.py",
        old="cached = text_tokens + kept[index] + generated",
        new="cached = text_tokens + n[index] + generated",
        tests=(f"{TESTS}::test_a_new_token_reads_the_cut_cache",),
        why="A new token pays for what the cache no longer holds.",
    ),
    Mutation(
        file="ficoco_ext/cost/planner.py",
        old='rest["cache"] = keeps',
        new="pass",
        tests=(f"{TESTS}::test_a_budget_of_cache_with_a_cut_cache",),
        why="A budget of cache is met by a schedule for another kind of cache.",
    ),
    Mutation(
        file="ficoco_ext/cli/plan.py",
        old="""given += "" if cache is None else f', cache="{cache}"'""",
        new='given += ""',
        tests=("python_tests/cli/test_cost_cache.py::test_a_plan_for_it",),
        why="The printed call attaches another kind of cache than was planned for.",
    ),
    Mutation(
        "ficoco_ext/cost/schedules.py",
        '    require_numbers("its cost", method)\n',
        "",
        ("python_tests/cost/test_caches.py::test_what_the_data_decide_is_neither_billed_nor_planned",),
        "What the data decide is billed as if it were known.",
    ),
    Mutation(
        "ficoco_ext/cost/planner.py",
        '    require_numbers("what reaches a budget", chosen)\n',
        "",
        ("python_tests/cost/test_caches.py::test_what_the_data_decide_is_neither_billed_nor_planned",),
        "What the data decide is planned.",
    ),
    Mutation(
        "ficoco_ext/cost/projected.py",
        '        require_numbers("its cost", projector.method, ("projector",))\n',
        "",
        ("python_tests/cost/test_caches.py::test_what_the_data_decide_is_neither_billed_nor_planned",),
        "What the data decide after the projector is billed as if it were known.",
    ),
    Mutation(
        "ficoco_ext/amounts.py",
        "if one is not None and one.data_decides:",
        "if one is method and one.data_decides:",
        ("python_tests/cost/test_caches.py::test_what_the_data_decide_is_neither_billed_nor_planned",),
        "What the data decide in a part of a method is billed as if it were known.",
    ),
]
