"""Faults of the rule for the first layer of a language model that can reduce."""

from mutations import Mutation

NEWER = "python_tests/decoder/test_newer_families.py"

MUTATIONS = [
    Mutation(
        file="ficoco_ext/resolve.py",
        old="lowest = max(int(first.before_attention), facts.first)",
        new="lowest = int(first.before_attention)",
        tests=(f"{NEWER}::test_layers_that_deepstack_needs_whole_are_refused",),
        why="Layers that DeepStack needs whole reduce.",
    ),
    Mutation(
        file="ficoco_ext/resolve.py",
        old="if facts.first <= layer < facts.layers) or (facts.first,)",
        new="if layer < facts.layers) or (facts.first,)",
        tests=(f"{NEWER}::test_layers_that_deepstack_needs_whole_are_refused",),
        why="The message names layers that are refused again.",
    ),
    Mutation(
        file="ficoco_ext/resolve.py",
        old="method.instead_of((facts.first,)) or",
        new="",
        tests=(f"{NEWER}::test_layers_that_deepstack_needs_whole_are_refused",),
        why="FastV's message names layers=, which FastV refuses.",
    ),
    Mutation(
        file="ficoco_ext/resolve.py",
        old="if facts.first >= facts.layers:",
        new="if facts.first > facts.layers:",
        tests=(f"{NEWER}::test_a_language_model_that_deepstack_fills_cannot_reduce",),
        why="The message names a layer that does not exist.",
    ),
    Mutation(
        "ficoco_ext/resolve.py",
        "said = amount.share_of or next(iter(given.items()))",
        "said = next(iter(given.items()))",
        ("python_tests/methods/test_resolve.py::test_too_much_names_what_was_passed",),
        "A share of a part is named, which was not passed.",
    ),
    Mutation(
        "ficoco_ext/resolve.py",
        'if name != "r":\n            wanted, got',
        "if False:\n            wanted, got",
        ("python_tests/methods/test_resolve.py::test_too_much_names_what_was_passed",),
        "What was passed is measured in patches that leave.",
    ),
]
