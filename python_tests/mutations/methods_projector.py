"""Faults of the methods after the projector, and of names that are joined."""

from __future__ import annotations

from mutations import Mutation

M = "ficoco_ext/methods"
TESTS = "python_tests/methods/test_projector_method.py"
COMBINED = "python_tests/methods/test_combined.py"
SELECTION = "python_tests/methods/test_projector_selection.py"

MUTATIONS = [
    Mutation(
        f"{M}/projector_method.py",
        "features.masked_fill(~mask.unsqueeze(-1), 0)",
        "features",
        (f"{TESTS}::test_padding_goes_nowhere",),
        "NaN in the padding of one picture spoils what is merged.",
    ),
    Mutation(
        f"{M}/projector_method.py",
        "size = None if mask is None else mask.unsqueeze(-1).to(ops.result_dtype(features))",
        "size = None",
        (f"{TESTS}::test_padding_goes_nowhere",),
        "Zeros of the padding are averaged into the tokens that stay.",
    ),
    Mutation(
        f"{M}/projector_method.py",
        "source_map = source_map.masked_fill(~mask, -1)",
        "pass",
        (f"{TESTS}::test_padding_goes_nowhere",),
        "The record says that padding went into a token.",
    ),
    Mutation(
        f"{M}/projector_method.py",
        "weights = weights.masked_fill(~mask.gather(1, selection.sources).unsqueeze(-1), 0.0)",
        "pass",
        (f"{TESTS}::test_padding_goes_nowhere",),
        "The record gives padding a share.",
    ),
    Mutation(
        f"{M}/projector_method.py",
        "for plane in others)",
        "for plane in planes)",
        (f"{TESTS}::test_padding_goes_nowhere",),
        "NaN in the padding of DeepStack's levels spoils what is merged.",
    ),
    Mutation(
        f"{M}/projector_method.py",
        "return self.correlate is None or CorrelateStage.of(self.correlate).drops",
        "return self.correlate is None",
        (f"{TESTS}::test_a_correlate_without_targets_drops",),
        "A correlate without targets is described as merging.",
    ),
    Mutation(
        f"{M}/projector_method.py",
        "if need != needs.QUERY_AND_KEY",
        "if need",
        (f"{TESTS}::test_a_method_says_what_it_does",),
        "Families whose attention cannot be read are refused a method that reads none.",
    ),
    Mutation(
        f"{M}/projector_method.py",
        '"head_dim": shape.channels}',
        '"head_dim": shape.head_dim}',
        (f"{TESTS}::test_cost",),
        "Merging is priced by the width of one head of the model.",
    ),
    Mutation(
        f"{M}/projector_method.py",
        "tokens=shape.visual, class_token",
        "class_token",
        (f"{TESTS}::test_cost",),
        "The bytes of the text count in a selection that does not read it.",
    ),
    Mutation(
        f"{M}/combined.py",
        "                if part in found:",
        "                if part in found and False:",
        (f"{COMBINED}::test_parts_that_do_not_go_together",),
        "Of two methods for one part the first is dropped without a word.",
    ),
    Mutation(
        f"{M}/combined.py",
        "if got is not None and getattr(got, part, None) is not got:",
        "if got is not None and getattr(got, part, None) is None:",
        (f"{COMBINED}::test_parts_that_do_not_go_together",),
        "A method of two parts stands in for one, and its other part is lost.",
    ),
    Mutation(
        f"{M}/divprune.py",
        'select=GreedySelect("max-min")',
        'select=GreedySelect("coverage")',
        (f"{SELECTION}::test_divprune_is_brute_force",),
        "DivPrune keeps what covers most.",
    ),
    Mutation(
        f"{M}/divprune.py",
        'filter=GreedyFilter("max-min")',
        'filter=GreedyFilter("coverage")',
        (f"{SELECTION}::test_in_the_tower",),
        "DivPrune in the tower keeps what covers most.",
    ),
    Mutation(
        f"{M}/scope.py",
        'select=GreedySelect("coverage", weigh=alpha)',
        'select=GreedySelect("coverage", weigh=1.0)',
        (f"{SELECTION}::test_scope_is_coverage_times_saliency",),
        "alpha is ignored.",
    ),
    Mutation(
        f"{M}/scope.py",
        'filter=GreedyFilter("coverage", weigh=alpha)',
        'filter=GreedyFilter("coverage")',
        (f"{SELECTION}::test_in_the_tower",),
        "In the tower class attention has no say.",
    ),
    Mutation(
        f"{M}/stride.py",
        "merge=merge, source",
        "merge=False, source",
        (f"{TESTS}::test_merging_gives_means_of_the_most_similar",),
        "merge is ignored, and tokens are dropped.",
    ),
    Mutation(
        f"{M}/parts.py",
        "compress = Compress(size_weighted=True)",
        "compress = Compress()",
        (f"{TESTS}::test_a_method_says_what_it_does",),
        "A token that stands for several counts once.",
    ),
    Mutation(
        f"{M}/parts.py",
        "proportional_attention=merge",
        "proportional_attention=False",
        (f"{SELECTION}::test_in_the_tower",),
        "Merged tokens lose their weight in later layers.",
    ),
    Mutation(
        f"{M}/parts.py",
        'INTO_THE_NEAREST = Correlate(by="key", targets=1)',
        'INTO_THE_NEAREST = Correlate(by="key")',
        (f"{TESTS}::test_a_method_says_what_it_does",),
        "With many tokens kept, what leaves is split over several of them.",
    ),
    Mutation(
        f"{M}/random.py",
        "select=RandomSelect(seed)",
        "select=RandomSelect()",
        ("python_tests/reduce/test_select_merge.py::test_hyperparameters_reach_the_method",),
        "All seeds keep the same tokens after the projector.",
    ),
    Mutation(
        f"{M}/topk.py",
        '("probs",) if part == "projector" else ("probs", "logits")',
        '("probs", "logits")',
        (f"{TESTS}::test_refusals",),
        "Logits are asked for after the projector, and probabilities read.",
    ),
    Mutation(
        f"{M}/registry.py",
        "if first in METHODS and (rest",
        "if first and (rest",
        (f"{COMBINED}::test_names_that_are_none",),
        "A misspelt name ends in a KeyError.",
    ),
    Mutation(
        f"{M}/registry.py",
        "for key, value in given.items() if key in has}",
        "for key, value in given.items()}",
        (f"{COMBINED}::test_names_joined_by_plus",),
        "A hyperparameter of one method is refused by the other.",
    ),
    Mutation(
        f"{M}/description.py",
        'said.append("none: after the projector")',
        "pass",
        (f"{TESTS}::test_a_method_says_what_it_does",),
        "A table does not say where a method acts.",
    ),
]
