"""Faults of the stages that look at attention in a tower: ``ficoco_ext/stages``."""

from mutations import Mutation

STAGES = "ficoco_ext/stages"
REDUCE = "python_tests/reduce"
METHODS = "python_tests/methods"
COMMANDS = "python_tests/cli/test_methods.py"
DECLARED = f"{METHODS}/test_declarations.py"
UNIVERSAL = f"{METHODS}/test_universal.py"

MUTATIONS = [
    Mutation(
        file=f"{STAGES}/base.py",
        old='            for name in ("operations", "fused", "fused_in_sequence"):',
        new='            for name in ("operations",):',
        tests=(
            f"{COMMANDS}::test_a_stage_that_computes_in_its_own_way_has_no_price_of_its_parent",
            f"{REDUCE}/test_stages.py",
        ),
        why="A stage that computes in its own way is run as the one that it inherits from.",
    ),
    Mutation(
        file=f"{STAGES}/base.py",
        old='            for name in ("operations", "fused", "fused_in_sequence"):',
        new='            for name in ("fused",):',
        tests=(f"{COMMANDS}::test_a_stage_that_computes_in_its_own_way_has_no_price_of_its_parent",),
        why="A stage that computes in its own way is priced as the one that it inherits from.",
    ),
    Mutation(
        file=f"{STAGES}/base.py",
        old="return max(tokens - class_token - 1, 0)",
        new="return max(tokens - class_token, 0)",
        tests=("python_tests/methods/test_resolve.py::test_all_but_one_can_leave",),
        why="A layer may be asked to remove all patches that enter it.",
    ),
    Mutation(
        file="ficoco_ext/stages/base.py",
        old="return stage if isinstance(stage, cls) else cls.plain(stage)",
        new="return cls.plain(stage)",
        tests=("python_tests/methods/test_declarations.py::test_who_inherits_and_how",),
        why="Every stage is called by its class's name and has no price.",
    ),
    Mutation(
        file=f"{STAGES}/class_attention.py",
        old="* math.sqrt(heads)).softmax(-1)[:, 1:]",
        new="/ math.sqrt(heads)).softmax(-1)[:, 1:]",
        tests=(f"{METHODS}/test_prumerge.py::test_the_single_head",),
        why="PruMerge's attention of one head is flat.",
    ),
    Mutation(
        file=f"{STAGES}/class_attention.py",
        old="return (torch.cat([to_itself, to_patches], dim=1) * math.sqrt(heads)).softmax(-1)[:, 1:]",
        new="return (to_patches * math.sqrt(heads)).softmax(-1)",
        tests=(f"{METHODS}/test_prumerge.py::test_the_single_head",),
        why="PruMerge forgets the class token's own share, so its sums are too large.",
    ),
    Mutation(
        file=f"{STAGES}/class_attention.py",
        old="(values > high + 1.5 * (high - low))",
        new="(values > high + (high - low))",
        tests=(f"{METHODS}/test_prumerge.py::test_outliers",),
        why="The number of outliers, from which budgets are chosen, is too large.",
    ),
    Mutation(
        file=f"{STAGES}/class_attention.py",
        old="slots = attention.shape[1] - r - 1",
        new="slots = attention.shape[1] - r",
        tests=(f"{METHODS}/test_prumerge.py::test_plus_equals_loops",),
        why="The slot of the extra token is counted as one for samples.",
    ),
    Mutation(
        file=f"{STAGES}/class_attention.py",
        old='.scatter(2, kept, float("-inf"))',
        new="",
        tests=(f"{METHODS}/test_prumerge.py::test_equals_loops",),
        why="Every patch borrows from itself first.",
    ),
    Mutation(
        file=f"{STAGES}/class_attention.py",
        old="        if size is not None and size_weighted:\n",
        new="        if size is not None:\n",
        tests=(f"{UNIVERSAL}::test_two_in_a_row_are_told_in_original_tokens",),
        why="From the second layer on EViT weighs by size although that was not asked for.",
    ),
    Mutation(
        file=f"{STAGES}/class_attention.py",
        old="mixed = mixed / (1 + shares.sum(-1, keepdim=True))",
        new="mixed = mixed / shares.sum(-1, keepdim=True)",
        tests=(f"{METHODS}/test_prumerge.py::test_equals_loops",),
        why="A mean of a patch and its neighbours does not count the patch.",
    ),
    Mutation(
        file="ficoco_ext/stages/class_attention.py",
        old="weight = attention.to(dtype).clamp(min=_LEAST)",
        new="weight = attention.to(dtype)",
        tests=("python_tests/methods/test_universal.py::test_finite",),
        why="Attention that underflowed to 0 gives NaN.",
    ),
    Mutation(
        file="ficoco_ext/stages/class_attention.py",
        old="evenly = torch.arange(1, 2 * sampled, 2, device=rest.device) * rest.shape[1] // (2 * sampled)",
        new="evenly = torch.arange(sampled, device=rest.device)",
        tests=("python_tests/methods/test_prumerge.py::test_plus_equals_loops",),
        why="PruMerge+ samples the first rows of the picture only.",
    ),
    Mutation(
        file="ficoco_ext/stages/class_attention.py",
        old="count = min(self.nearest, patches - 1)",
        new="count = self.nearest",
        tests=("python_tests/methods/test_prumerge.py::test_equals_loops",),
        why="A small picture has fewer neighbours than asked for, and fails.",
    ),
    Mutation(
        file="ficoco_ext/stages/class_attention.py",
        old="inherited = fused.to(dtype) if self.normalize else fused.to(dtype) * mass",
        new="inherited = fused.to(dtype) * mass",
        tests=("python_tests/methods/test_evit.py::test_the_fused_token",),
        why="EViT's mean is its sum.",
    ),
    Mutation(
        file=f"{STAGES}/compress.py",
        old="size_weighted=self.size_weighted or size_weighted",
        new="size_weighted=self.size_weighted and size_weighted",
        tests=(
            f"{REDUCE}/test_stages.py::test_compress_adds_to_the_callers_choice",
            f"{METHODS}/test_tome.py::test_is_weighted_by_size_always",
        ),
        why="ToMe weighs by size only where sizes were passed in.",
    ),
    Mutation(
        file=f"{STAGES}/compress.py",
        old='return {"size_weighted": self.size_weighted}',
        new='return {"size_weighted": False}',
        tests=(f"{REDUCE}/test_stages.py::test_compress_adds_to_the_callers_choice",),
        why="The fused operator counts every token once, the stages weigh by size.",
    ),
    Mutation(
        file=f"{STAGES}/correlate.py",
        old="math.ceil(eps * (candidates - 1) - 1e-9)",
        new="math.ceil(eps * (candidates - 1))",
        tests=(
            "python_tests/ops/test_spec.py::test_adaptive_count_is_that_of_the_quantile",
            "python_tests/ops/test_spec.py::test_adaptive_counts_of_the_paper",
            f"{REDUCE}/test_stages.py::test_counts_of_targets",
        ),
        why="A quantile that falls on a token misses it by a rounding error.",
    ),
    Mutation(
        file=f"{STAGES}/correlate.py",
        old='self.targets != 0 and (self.by == "key" or self.attention == "logits")',
        new='self.targets != 0 and self.attention == "logits"',
        tests=(f"{REDUCE}/test_stages.py::test_ratio_needs_probabilities",),
        why="Ratios of cosines, which can be negative, are taken for shares.",
    ),
    Mutation(
        file=f"{STAGES}/correlate.py",
        old='"alpha": self.alpha}',
        new='"alpha": "softmax"}',
        tests=(
            f"{REDUCE}/test_reduce.py::test_every_hyperparameter_changes_what_it_should",
            f"{REDUCE}/test_reduce.py::test_paper_variant_is_the_equations",
        ),
        why="Without gradients the choice of alpha says nothing.",
    ),
    Mutation(
        file=f"{STAGES}/correlate.py",
        old="k = self.count(kept.shape[1] - int(class_token))",
        new="k = self.count(kept.shape[1])",
        tests=(f"{REDUCE}/test_stages.py::test_with_gradients_the_same_is_chosen",),
        why="With gradients a source may have one target more than without: training sees another model.",
    ),
    Mutation(
        file=f"{STAGES}/correlate.py",
        old="redundancy.gather(1, selection.kept[:, first:] - first).argmax(1, keepdim=True) + first",
        new="redundancy.gather(1, selection.kept[:, first:] - first).argmin(1, keepdim=True) + first",
        tests=(f"{METHODS}/test_evit.py::test_convergent", f"{METHODS}/test_evit.py::test_by_hand"),
        why="The most attended patch, not the least attended, is given up for the fused token.",
    ),
    Mutation(
        file="ficoco_ext/stages/correlate.py",
        old='if self.by == "key" and self.targets != 0 and not isinstance(attn, QueryKey):',
        new="if False:",
        tests=("python_tests/reduce/test_errors.py::test_key_correlation_needs_keys",),
        why="A map without keys fails with an assertion.",
    ),
    Mutation(
        file=f"{STAGES}/filter.py",
        old='            "normalize": self.normalize,\n',
        new='            "normalize": True,\n',
        tests=(
            f"{REDUCE}/test_reduce.py::test_every_hyperparameter_changes_what_it_should",
            f"{REDUCE}/test_reduce.py::test_paper_variant_is_the_equations",
        ),
        why="The reading of the paper is normalised where no gradients are needed.",
    ),
    Mutation(
        file=f"{STAGES}/filter.py",
        old="        found = (needs.CLASS_TOKEN_OR_KEYS,) if self.lam < 1 else ()",
        new="        found = (needs.CLASS_TOKEN_OR_KEYS,)",
        tests=(DECLARED,),
        why="A filter that ignores the class token is said to need one.",
    ),
    Mutation(
        file=f"{STAGES}/filter.py",
        old='read = class_token and self.lam < 1 and self.attention == "probs"',
        new="read = class_token and self.lam < 1",
        tests=(f"{METHODS}/test_evit.py::test_it_needs_a_class_token_and_probabilities",),
        why="EViT weighs by logits, which may be negative.",
    ),
    Mutation(
        file=f"{STAGES}/filter.py",
        old="if not class_token and self.lam < 1 and not isinstance(attn, QueryKey):",
        new="if False:",
        tests=(f"{REDUCE}/test_stages.py::test_filter_says_what_it_lacks",),
        why="Without a class token and keys, class attention is silently zero.",
    ),
    Mutation(
        file="ficoco_ext/stages/filter.py",
        old='"column": self.redundancy == "column",',
        new='"column": self.redundancy == "row",',
        tests=("python_tests/reduce/test_reduce.py::test_is_the_three_stages_of_the_specification",),
        why="Row and column means are exchanged where no gradients are needed.",
    ),
    Mutation(
        file="ficoco_ext/stages/filter.py",
        old="        if self.penalty != 1 and grid is None:",
        new="        if False:",
        tests=("python_tests/reduce/test_stages.py::test_filter_says_what_it_lacks",),
        why="A number of patches that is no square is reported as a grid of 0 by 0.",
    ),
]
