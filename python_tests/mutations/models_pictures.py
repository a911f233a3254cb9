"""Faults of what is drawn."""

from mutations import Mutation

MODELS = "python_tests/models"
VIZ = "python_tests/viz"

MUTATIONS = [
    Mutation(
        file="ficoco_ext/models/pictures.py",
        old="kept=step.kept[:, first:] - first",
        new="kept=step.kept[:, first:]",
        tests=(f"{MODELS}/test_pictures.py::test_every_patch_is_accounted_for",),
        why="Patches of a picture move by one.",
    ),
    Mutation(
        file="ficoco_ext/models/pictures.py",
        old="targets=step.targets - first",
        new="targets=step.targets",
        tests=(f"{MODELS}/test_pictures.py::test_every_patch_is_accounted_for",),
        why="Merges are drawn to the patch after the target.",
    ),
    Mutation(
        file="ficoco_ext/models/pictures.py",
        old="mass[positions] = start.size[0, :, 0].double()",
        new="mass[positions] = 1.0",
        tests=(f"{MODELS}/test_pictures.py::test_every_patch_is_accounted_for",),
        why="The language model's sizes forget what the tower merged.",
    ),
    Mutation(
        file="ficoco_ext/models/pictures.py",
        old="targets = step.kept[0][step.targets[0]]",
        new="targets = step.targets[0]",
        tests=(f"{MODELS}/test_pictures.py::test_every_patch_is_accounted_for",),
        why="Mass goes to the wrong patches after a first reduction.",
    ),
    Mutation(
        file="ficoco_ext/models/pictures.py",
        old="t[item : item + 1].cpu()",
        new="t[:1].cpu()",
        tests=(f"{MODELS}/test_pictures.py::test_pictures_of_a_padded_row_are_told_apart",),
        why="Every image of a batch gets the story of the first.",
    ),
    Mutation(
        file="ficoco_ext/models/pictures.py",
        old="positions = first + (kept >= shape.extra).nonzero()[:, 0]",
        new="positions = first + (kept >= 0).nonzero()[:, 0]",
        tests=(f"{MODELS}/test_pictures.py::test_the_class_token_in_front_of_an_image_is_no_patch",),
        why="With strategy 'full' the class token is taken for the first patch.",
    ),
    Mutation(
        file="ficoco_ext/models/pictures.py",
        old="left = shape.extra + (tower[-1].patch_ids.shape[1] if tower else shape.patches)",
        new="left = shape.extra + shape.patches",
        tests=(f"{VIZ}/test_models.py::test_every_patch_is_traced_through_tower_and_language_model",),
        why="A method of both parts cannot be shown.",
    ),
    Mutation(
        file="ficoco_ext/models/pictures.py",
        old="int(positions.max()) >= length:",
        new="int(positions.max()) > length:",
        tests=(f"{MODELS}/test_pictures.py::test_positions_just_beside_the_prompt_are_refused",),
        why="A position just beyond the prompt ends in an index error.",
    ),
    Mutation(
        file="ficoco_ext/models/pictures.py",
        old="torch.arange(tokens - left, tokens)",
        new="torch.arange(left)",
        tests=(f"{MODELS}/test_pictures.py::test_a_class_token_after_the_projector_is_no_patch",),
        why="With a class token every patch that leaves after the projector is drawn beside its place.",
    ),
    Mutation(
        file="ficoco_ext/models/pictures.py",
        old="one_of(projection.reduction, projection.item)",
        new="one_of(projection.reduction, 0)",
        tests=(f"{MODELS}/test_pictures.py::test_pictures_that_were_reduced_together_have_records_of_their_own",),
        why="Pictures of one call are all drawn as the first.",
    ),
    Mutation(
        file="ficoco_ext/models/pictures.py",
        old="        start = found[-1]\n    positions",
        new="    positions",
        tests=(f"{MODELS}/test_pictures.py::test_after_the_projector_every_patch_is_accounted_for",),
        why="What the language model removes is drawn as if nothing had left before.",
    ),
    Mutation(
        file="ficoco_ext/models/projector_reduction.py",
        old="steps |= {number: (step, row) for row, number in enumerate(numbers)}",
        new="steps |= {number: (step, 0) for number in numbers}",
        tests=(f"{MODELS}/test_pictures.py::test_pictures_that_were_reduced_together_have_records_of_their_own",),
        why="Pictures of one call have the record of the first.",
    ),
    Mutation(
        file="ficoco_ext/models/attention_rows.py",
        old="if even > 0 else 0.0",
        new="if even >= 0 else 0.0",
        tests=(f"{VIZ}/test_models.py::test_a_layer_without_attention_is_not_the_sharpest",),
        why="A map without any attention is called the sharpest.",
    ),
    Mutation(
        file="ficoco_ext/models/attention_rows.py",
        old="torch.full((1, 1, len(words)), 1 / len(words),",
        new="torch.full((1, 1, len(words)), 1.0,",
        tests=(f"{VIZ}/test_models.py::test_maps_are_rows_of_the_eager_maps_with_heads_averaged",),
        why="A map of two words is twice as bright.",
    ),
    Mutation(
        file="ficoco_ext/models/attention_rows.py",
        old="probs=True, column=True, causal=True)[0, 0]",
        new="probs=True, column=True, causal=False)[0, 0]",
        tests=(f"{VIZ}/test_models.py::test_maps_are_rows_of_the_eager_maps_with_heads_averaged",),
        why="A word attends to what comes after it.",
    ),
    Mutation(
        file="ficoco_ext/models/attention_rows.py",
        old="(sharpness(maps[layer]), -layer)",
        new="(sharpness(maps[layer]), layer)",
        tests=(f"{VIZ}/test_models.py::test_the_sharpest_layer_gives_much_attention_to_few_patches",),
        why="Of equally sharp maps the last is shown.",
    ),
    Mutation(
        file="ficoco_ext/models/attention_rows.py",
        old="torch.special.xlogy(exact, exact / even)",
        new="torch.special.xlogy(exact, exact)",
        tests=(f"{VIZ}/test_models.py::test_the_sharpest_layer_gives_much_attention_to_few_patches",),
        why="The sharpest map is the one with the least attention.",
    ),
    Mutation(
        file="ficoco_ext/models/attention_rows.py",
        old="if not 0 <= layer < len(all_layers):",
        new="if not layer < len(all_layers):",
        tests=(f"{VIZ}/test_models.py::test_a_layer_does_not_count_from_the_end",),
        why="A negative layer is shown under a name that it does not have.",
    ),
    Mutation(
        file="ficoco_ext/models/attention_rows.py",
        old="    finally:\n        changes.undo()",
        new="    finally:\n        pass",
        tests=(f"{VIZ}/test_models.py::test_maps_are_rows_of_the_eager_maps_with_heads_averaged",),
        why="A map leaves its hooks in the model.",
    ),
]
