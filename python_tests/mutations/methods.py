"""Faults of the methods themselves: ``ficoco_ext/methods``."""

from mutations import Mutation

M = "ficoco_ext/methods"
TESTS = "python_tests/methods"
REDUCE = "python_tests/reduce"
ARGUMENTS = "python_tests/decoder/test_arguments.py"
SCORES = "python_tests/decoder/test_scores.py"
RESOLVE = f"{TESTS}/test_resolve.py"
STAGED = f"{TESTS}/test_staged.py"
ONE_FILE = f"{TESTS}/test_one_file.py"

MUTATIONS = [
    Mutation(
        file=f"{M}/evit.py",
        old='compress=Fuse(normalize=fuse == "mean")',
        new='compress=Fuse(normalize=fuse != "mean")',
        tests=(f"{TESTS}/test_evit.py::test_the_fused_token",),
        why="Sum and mean are exchanged.",
    ),
    Mutation(
        file="ficoco_ext/methods/evit.py",
        old='filter=Filter(lam=0.0, attention="probs", normalize=False, penalty=1.0)',
        new='filter=Filter(lam=0.0, attention="probs", normalize=True)',
        tests=("python_tests/methods/test_evit.py::test_the_kept_are_the_top",),
        why="A penalty moves what EViT keeps.",
    ),
    Mutation(
        file=f"{M}/fastv.py",
        old='amount=(("keep_ratio", 0.5),)',
        new='amount=(("keep_ratio", 0.25),)',
        tests=(RESOLVE,),
        why="FastV without an amount removes more than was published.",
    ),
    Mutation(
        file=f"{M}/ficoco_l.py",
        old="max(layers // 8, min(1, layers - 1))",
        new="max(layers // 8 - 1, min(1, layers - 1))",
        tests=(RESOLVE,),
        why="FiCoCo-L begins a layer early.",
    ),
    Mutation(
        file=f"{M}/ficoco_l.py",
        old="    if not direct:\n        gamma = 0.0\n",
        new="    if not direct:\n        gamma = 1.0\n",
        tests=(f"{SCORES}::test_ficoco_l_by_hand",),
        why="An ablation measures the opposite of what it says.",
    ),
    Mutation(
        file=f"{M}/ficoco_l.py",
        old='alpha = "softmax" if correlation_attention == "logits" else chosen["alpha"]',
        new='alpha = "softmax" if attention == "logits" else chosen["alpha"]',
        tests=(f"{SCORES}::test_ficoco_l_by_hand",),
        why="A correlation of another kind than the filter gets shares that do not fit it.",
    ),
    Mutation(
        file="ficoco_ext/methods/ficoco_l.py",
        old="    beta: float = 0.6,",
        new="    beta: float = 0.4,",
        tests=("python_tests/decoder/test_scores.py::test_ficoco_l_by_hand",),
        why="The default weight is not the paper's.",
    ),
    Mutation(
        file="ficoco_ext/methods/ficoco_l.py",
        old='variant: str = "paper",',
        new='variant: str = "released",',
        tests=("python_tests/decoder/test_scores.py::test_the_reading_of_the_paper_is_the_default",),
        why="The default reading is the one that measured worse.",
    ),
    Mutation(
        file=f"{M}/ficoco_v.py",
        old='    if not class_attention:\n        chosen["lam"] = 1.0',
        new='    if not class_attention:\n        chosen["lam"] = 0.0',
        tests=(f"{REDUCE}/test_reduce.py::test_explicit_values_override_the_variant",),
        why="An ablation measures the opposite of what it says.",
    ),
    Mutation(
        file=f"{M}/ficoco_v.py",
        old="if value is not None}",
        new="if value}",
        tests=(
            f"{REDUCE}/test_reduce.py::test_explicit_values_override_the_variant",
            f"{REDUCE}/test_reduce.py::test_every_hyperparameter_changes_what_it_should",
        ),
        why="normalize=False and lam=0 are ignored.",
    ),
    Mutation(
        file="ficoco_ext/methods/ficoco_v.py",
        old='"lam": 0.35, "attention": "probs"',
        new='"lam": 0.65, "attention": "probs"',
        tests=("python_tests/reduce/test_stages.py::test_presets_are_declarations",),
        why="The paper's reading has the released code's weight.",
    ),
    Mutation(
        file=f"{M}/ficoco_vl.py",
        old="language_method=ficoco_l(**language)",
        new="language_method=ficoco_l()",
        tests=(f"{ARGUMENTS}::test_hyperparameters_of_ficoco_vl_reach_their_sides",),
        why="Hyperparameters of the language model's part are ignored.",
    ),
    Mutation(
        file=f"{M}/pool.py",
        old="        layers=last_layer,\n",
        new="",
        tests=(RESOLVE,),
        why="Pooling is attached to several layers, and refused.",
    ),
    Mutation(
        file=f"{M}/presets.py",
        old='return _preset("balanced", 0.25)',
        new='return _preset("balanced", 0.5)',
        tests=(f"{ONE_FILE}::test_presets",),
        why="The preset for a start removes half as much as it says.",
    ),
    Mutation(
        file="ficoco_ext/methods/presets.py",
        old='return _preset("fast", 0.1)',
        new='return _preset("fast", 0.2)',
        tests=("python_tests/methods/test_one_file.py::test_presets",),
        why="The preset for speed keeps twice as much as it says.",
    ),
    Mutation(
        file=f"{M}/prumerge.py",
        old='        name="prumerge+",\n        filter=SingleHeadFilter(spatial),',
        new='        name="prumerge+",\n        filter=SingleHeadFilter(),',
        tests=(f"{TESTS}/test_prumerge.py::test_plus_equals_loops",),
        why="PruMerge+ is PruMerge.",
    ),
    Mutation(
        file="ficoco_ext/methods/prumerge.py",
        old="def prumerge_plus(*, neighbours: int = 32, spatial: float = 0.75",
        new="def prumerge_plus(*, neighbours: int = 32, spatial: float = 0.25",
        tests=("python_tests/cli/test_methods.py::test_words_follow_the_hyperparameters",),
        why="PruMerge+ samples a third of what it says.",
    ),
    Mutation(
        file=f"{M}/prune_then_merge.py",
        old="self.merge, 1 - self.split)",
        new="self.merge, self.split)",
        tests=(f"{STAGED}::test_prune_then_merge_layer_by_layer", STAGED),
        why="The share of r that merges prunes instead.",
    ),
    Mutation(
        file=f"{M}/prune_then_merge.py",
        old="math.floor(layers * self.merge_layers + 0.5)",
        new="math.floor(layers * self.merge_layers)",
        tests=(f"{STAGED}::test_prune_then_merge_layer_by_layer",),
        why="One layer less than asked for merges.",
    ),
    Mutation(
        file=f"{M}/pyramiddrop.py",
        old='        rounding="floor",\n',
        new="",
        tests=(RESOLVE,),
        why="An odd number of visual tokens keeps one more than published.",
    ),
    Mutation(
        file=f"{M}/pyramiddrop.py",
        old="max(1, layers * part // 4)",
        new="layers * part // 4",
        tests=(RESOLVE,),
        why="A model of three layers would reduce before layer 0, which is refused.",
    ),
    Mutation(
        file="ficoco_ext/methods/pyramiddrop.py",
        old="        before_attention=True,\n",
        new="",
        tests=("python_tests/methods/test_resolve.py::test_stages_that_a_language_model_is_too_small_for",),
        why="PyramidDrop's layers see the tokens that should have left, and its cost is not theirs.",
    ),
    Mutation(
        file=f"{M}/random.py",
        old="filter=RandomFilter(seed)",
        new="filter=RandomFilter()",
        tests=(f"{TESTS}/test_baselines.py::test_a_seed_is_a_choice",),
        why="All seeds drop the same patches, so a spread over seeds is 0.",
    ),
    Mutation(
        file=f"{M}/tome.py",
        old="        proportional_attention=proportional_attention,\n",
        new="",
        tests=(f"{TESTS}/test_tome.py::test_a_declaration",),
        why="ToMe runs without its proportional attention.",
    ),
    Mutation(
        file=f"{M}/topk.py",
        old="filter=Filter(lam=0.0, attention=attention, normalize=False, penalty=1.0)",
        new="filter=Filter(lam=0.0, attention=attention, normalize=False)",
        tests=(f"{REDUCE}/test_reduce.py::test_topk_prunes_by_class_attention",),
        why="Pruning by class attention needs a grid and drops what it should keep.",
    ),
    Mutation(
        file=f"{M}/prumerge.py",
        old="def prumerge(*, neighbours: int = 32",
        new="def prumerge(*, neighbours: int = 16",
        tests=(f"{TESTS}/test_declarations.py",),
        why="Patches borrow from half as many neighbours as published.",
    ),
]
