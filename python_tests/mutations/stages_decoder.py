"""Faults of the stages that look at positions, compare keys or act in a language model: ``ficoco_ext/stages``."""

from mutations import Mutation

STAGES = "ficoco_ext/stages"
REDUCE = "python_tests/reduce"
METHODS = "python_tests/methods"
SCORES = "python_tests/decoder/test_scores.py"
BY_HAND = "python_tests/cost/test_model.py"
DECLARED = f"{METHODS}/test_declarations.py"

MUTATIONS = [
    Mutation(
        file=f"{STAGES}/decoder.py",
        old="return min(self.targets, candidates)",
        new="return self.targets",
        tests=("python_tests/decoder/test_arguments.py::test_targets_are_capped_by_what_is_kept",),
        why="A prompt with a small picture is an error in the middle of a generation.",
    ),
    Mutation(
        file=f"{STAGES}/decoder.py",
        old="return [shape.price(operation, e=shape.text if self.gamma < 1 else 0)]",
        new="return [shape.price(operation, e=shape.text)]",
        tests=(DECLARED,),
        why="Correlation without the text is billed as if the text were read.",
    ),
    Mutation(
        file=f"{STAGES}/decoder.py",
        old="        return [shape.price(costs.token_attention(probs=True, column=True), o=1, j=1)]",
        new="        return [shape.price(costs.token_attention(probs=True, column=False), o=1, j=1)]",
        tests=(f"{BY_HAND}::test_other_reductions_by_hand",),
        why="FastV is billed for the attention of all visual tokens instead of one row.",
    ),
    Mutation(
        file="ficoco_ext/stages/decoder.py",
        old="                layout.visual.gather(1, kept),\n",
        new="                kept,\n",
        tests=("python_tests/reduce/test_sequence.py::test_stages_in_turn_give_what_the_operator_gives",),
        why="Sources in a language model go to the tokens at the start of the prompt.",
    ),
    Mutation(
        file="ficoco_ext/stages/decoder.py",
        old="                column=probs,\n                causal=probs and not given,",
        new="                column=False,\n                causal=probs and not given,",
        tests=("python_tests/reduce/test_sequence.py::test_stages_in_turn_give_what_the_operator_gives",),
        why="By way of later text nothing is correlated.",
    ),
    Mutation(
        file=f"{STAGES}/frozen.py",
        old='    if not math.isfinite(got):\n        reject(stage, field, "finite", got)\n',
        new="",
        tests=(f"{REDUCE}/test_stages.py::test_bad_fields",),
        why="An infinite penalty is taken.",
    ),
    Mutation(
        file=f"{STAGES}/frozen.py",
        old="if isinstance(got, bool) or not isinstance(got, (int, float))",
        new="if not isinstance(got, (int, float))",
        tests=(f"{REDUCE}/test_stages.py::test_bad_fields",),
        why="True is taken for a weight of 1.",
    ),
    Mutation(
        file=f"{STAGES}/match.py",
        old="scores = redundancy.gather(1, edges.sources - first)",
        new="scores = redundancy.gather(1, edges.sources - 1)",
        tests=(f"{METHODS}/test_staged.py::test_weighed_matching",),
        why="Without a class token weighed matching reads the scores of other patches.",
    ),
    Mutation(
        file=f"{STAGES}/match.py",
        old="class_attention.argsort(dim=1, stable=True).argsort(dim=1) / max(n - first - 1, 1)",
        new="class_attention.argsort(dim=1, stable=True, descending=True).argsort(dim=1) / max(n - first - 1, 1)",
        tests=(f"{METHODS}/test_staged.py::test_weighed_matching",),
        why="What the class token attends to is merged first.",
    ),
    Mutation(
        file=f"{STAGES}/match.py",
        old="return max((tokens - class_token - self.distill_token) // 2, 0)",
        new="return max((tokens - class_token) // 2, 0)",
        tests=("python_tests/methods/test_resolve.py::test_half_of_what_enters_a_layer",),
        why="With a distillation token attach plans for a pair that there is not, and fails in the forward pass.",
    ),
    Mutation(
        file=f"{STAGES}/match.py",
        old="        return [shape.price(costs.attention_stats(probs=True, patches=False)), pairing]",
        new="        return [pairing]",
        tests=(DECLARED,),
        why="Weighing by class attention looks free.",
    ),
    Mutation(
        file=f"{STAGES}/needs.py",
        old="_IMPLIED = {CLASS_TOKEN: CLASS_TOKEN_OR_KEYS, WHOLE_GRID: GRID}",
        new="_IMPLIED = {CLASS_TOKEN: CLASS_TOKEN_OR_KEYS}",
        tests=(DECLARED,),
        why="A method is said to need the grid twice, in two ways.",
    ),
    Mutation(
        file=f"{STAGES}/positional.py",
        old="        if least < 0 or scatter < least:",
        new="        if least < 0 or scatter <= least:",
        tests=(
            f"{METHODS}/test_baselines.py::test_the_number_of_bands_leaves_patches_nearest_to_centres",
            f"{METHODS}/test_baselines.py",
        ),
        why="Of equally good cuts another one than documented is taken.",
    ),
    Mutation(
        file=f"{STAGES}/positional.py",
        old="_hash(index ^ _hash(seed))",
        new="_hash(index + seed)",
        tests=(f"{METHODS}/test_baselines.py::test_seeds_are_no_shifts_of_each_other",),
        why="Seeds drop shifted copies of one pattern, so several seeds are no independent draws.",
    ),
    Mutation(
        file=f"{STAGES}/positional.py",
        old="class_token=class_token))\n\n\ndef bands_of",
        new="class_token=False))\n\n\ndef bands_of",
        tests=(
            f"{METHODS}/test_baselines.py::test_layers_drop_what_one_layer_drops",
            f"{METHODS}/test_baselines.py::test_random_takes_anything",
        ),
        why="Random dropping can drop the class token.",
    ),
    Mutation(
        file=f"{STAGES}/positional.py",
        old="if patches != height * width:",
        new="if patches > height * width:",
        tests=(f"{METHODS}/test_baselines.py::test_pooling_needs_the_whole_grid",),
        why="Pooling a grid of which patches have left averages patches that are far apart.",
    ),
    Mutation(
        file=f"{STAGES}/positional.py",
        old="sources, kept = order[cells:], order[:cells] + first",
        new="sources, kept = order[cells:], order[:cells]",
        tests=(f"{METHODS}/test_baselines.py::test_pooling_with_sizes_and_class_token",),
        why="Pooling keeps the patches beside those that it averages into.",
    ),
    Mutation(
        file="ficoco_ext/stages/positional.py",
        old="start = band * cells // bands",
        new="start = band * (cells // bands)",
        tests=("python_tests/methods/test_baselines.py::test_cells_are_rectangles_of_near_equal_size",),
        why="Cells of neighbouring bands are mixed up.",
    ),
    Mutation(
        file=f"{STAGES}/shape.py",
        old='"m": self.kept + self.class_token,',
        new='"m": self.kept,',
        tests=(f"{BY_HAND}::test_logits_of_one_reduction_by_hand",),
        why="The predicted cost of correlation is not what a forward pass counts.",
    ),
    Mutation(
        file="ficoco_ext/stages/shape.py",
        old="return self.visual - self.r",
        new="return self.tokens - self.r",
        tests=("python_tests/methods/test_declarations.py::test_what_is_left_out_is_neither_needed_nor_paid_for",),
        why="Text counts among the tokens that may inherit.",
    ),
]
