"""Faults of towers without a class token."""

from mutations import Mutation

MODELS = "python_tests/models"
SIGLIP = f"{MODELS}/test_siglip.py"
PROMPTS = "python_tests/families/test_tower_prompts.py"

MUTATIONS = [
    Mutation(
        file="ficoco_ext/models/vision_tower.py",
        old="wanted = self.facts.class_token + self.step.before",
        new="wanted = 1 + self.step.before",
        tests=(f"{SIGLIP}::test_records_speak_of_patches_alone",),
        why="Every picture is refused in a SigLIP tower.",
    ),
    Mutation(
        file="ficoco_ext/models/vision_tower.py",
        old="class_token=facts.class_token,",
        new="class_token=True,",
        tests=(f"{SIGLIP}::test_selection_is_that_of_reduce_without_a_class_token",),
        why="The first patch of a SigLIP never leaves, and its attention counts as a class token's.",
    ),
    Mutation(
        file="ficoco_ext/models/facts.py",
        old="class_token = tower is None or tower.class_token",
        new="class_token = True",
        tests=(f"{SIGLIP}::test_records_speak_of_patches_alone",),
        why="A SigLIP is taken for a tower with a class token.",
    ),
    Mutation(
        file="ficoco_ext/models/facts.py",
        old='else tower.class_token or strategy == "full"',
        new="else True",
        tests=(f"{MODELS}/test_attach_plan.py::test_facts_of_a_model_whose_tower_cannot_be_reduced",),
        why="A model that leaves out the first patch of a SigLIP is said to have all of them.",
    ),
    Mutation(
        file="ficoco_ext/models/model_checks.py",
        old='if strategy == "default" and not known.class_token:',
        new="if False:",
        tests=(f"{SIGLIP}::test_a_strategy_that_leaves_out_a_patch_is_refused",),
        why="A model that leaves out the first patch is reduced, and prompts do not fit what is left.",
    ),
    Mutation(
        file="ficoco_ext/resolve.py",
        old="wanting = None if facts.class_token else next(",
        new="wanting = None if facts else next(",
        tests=(f"{SIGLIP}::test_methods_that_need_a_class_token_are_refused",),
        why="EViT fails in the middle of a picture instead of at attach.",
    ),
    Mutation(
        file="ficoco_ext/models/attention_rows.py",
        old="return known is not None and known.class_token",
        new="return known is not None",
        tests=("python_tests/viz/test_models.py::test_errors_say_what_there_is",),
        why="The attention of a patch is drawn as the class token's.",
    ),
    Mutation(
        file="ficoco_ext/models/transformers_release.py",
        old="for name in family.towers:",
        new="for name in family.towers[:1]:",
        tests=(f"{MODELS}/test_transformers_api.py::test_a_structure_that_is_not_known",),
        why="A release with other SigLIP layers is taken for one that we know.",
    ),
    Mutation(
        file="ficoco_ext/models/count_cutter.py",
        old="                names[name] = self._types(op, name, options[name], ids, short)",
        new="                pass",
        tests=(PROMPTS,),
        why="Token types of the whole prompt come with a short one, and PaliGemma fails.",
    ),
    Mutation(
        file="ficoco_ext/models/count_cutter.py",
        old="types.gather(1, short.indices.clamp(min=0))",
        new="types[:, -short.indices.shape[1] :]",
        tests=(PROMPTS,),
        why="Words of the answer get the type of the prompt, and see what comes after them.",
    ),
    Mutation(
        file="ficoco_ext/models/count_cutter.py",
        old="or types.shape != ids.shape:",
        new="or False:",
        tests=(PROMPTS,),
        why="Token types that do not fit the prompt fail inside torch.",
    ),
    Mutation(
        file="ficoco_ext/models/model_checks.py",
        old='strategy = getattr(config, "vision_feature_select_strategy", "full")',
        new='strategy = getattr(config, "vision_feature_select_strategy", "default")',
        tests=(PROMPTS,),
        why="PaliGemma is refused, for a strategy that it has not.",
    ),
    Mutation(
        file="ficoco_ext/stages/match.py",
        old="(needs.CLASS_TOKEN,) if self.distill_token else ()",
        new="()",
        tests=(f"{SIGLIP}::test_a_distillation_token_comes_after_a_class_token",),
        why="ToMe with a distillation token fails in the middle of a picture of a SigLIP.",
    ),
]
