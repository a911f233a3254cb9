"""Faults of families whose language model alone is reduced: DeepStack, experts, what each is served with."""

from mutations import Mutation

NEWER = "python_tests/decoder/test_newer_families.py"
API = "python_tests/models/test_transformers_api.py"

MUTATIONS = [
    Mutation(
        file="ficoco_ext/models/families.py",
        old="return 0 if self.deepstack is None else len(",
        new="return 0 if self.deepstack is None else -1 + len(",
        tests=(f"{NEWER}::test_layers_that_deepstack_needs_whole_are_refused",),
        why="Qwen3-VL reduces in a layer after which DeepStack adds features to every visual token.",
    ),
    Mutation(
        file="ficoco_ext/models/families.py",
        old='language_models=("mistral", "ministral3"),',
        new='language_models=("mistral",),',
        tests=(f"{NEWER}::test_removing_nothing_and_detaching_change_no_bit",),
        why="A Mistral3 on a Ministral is refused.",
    ),
    Mutation(
        file="ficoco_ext/models/families.py",
        old='language_models=("llama", "qwen2", "qwen3", "qwen3_moe"),',
        new='language_models=("llama", "qwen2"),',
        tests=(f"{NEWER}::test_removing_nothing_and_detaching_change_no_bit",),
        why="An InternVL3 on a Qwen3 is refused.",
    ),
    Mutation(
        file="ficoco_ext/models/facts.py",
        old="family.first_layer(model.config)",
        new="0",
        tests=(f"{NEWER}::test_layers_that_deepstack_needs_whole_are_refused",),
        why="Layers that DeepStack needs whole reduce, and the model fails in the middle of a prompt.",
    ),
    Mutation(
        file="ficoco_ext/models/generate_options.py",
        old="    if asked is None:\n        asked =",
        new="    if False:\n        asked =",
        tests=(f"{NEWER}::test_router_logits_of_unequal_layers_are_refused",),
        why="Router logits that the config asks for fail in transformers' own loss.",
    ),
    Mutation(
        file="ficoco_ext/models/decoder_reduction.py",
        old="        refuse_router_logits(self.model, options)\n",
        new="",
        tests=(f"{NEWER}::test_router_logits_of_unequal_layers_are_refused",),
        why="The load balancing loss compares layers of unequal length with one mask.",
    ),
    Mutation(
        file="ficoco_ext/models/transformers_release.py",
        old="(_DEEPSTACK if family.deepstack else set())",
        new="set()",
        tests=(f"{API}::test_a_structure_that_is_not_known",),
        why="A release in which DeepStack comes in another way is taken for one that we know.",
    ),
    Mutation(
        file="ficoco_ext/models/attach.py",
        old="language_model = getattr(model.model, family_of(model).language_model)",
        new="language_model = model.model.language_model",
        tests=(f"{NEWER}::test_llama_inside_other_models",),
        why="SmolVLM, whose language model has another name, cannot be reduced in it.",
    ),
]
