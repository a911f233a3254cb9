"""Faults of the loss and of the gradients of a prompt that became shorter."""

from mutations import Mutation

DECODER = "python_tests/decoder"

MUTATIONS = [
    Mutation(
        file="ficoco_ext/models/loss.py",
        old="(length - labels.shape[1], 0), value=-100)",
        new="(0, length - labels.shape[1]), value=-100)",
        tests=(f"{DECODER}/test_training.py::test_labels_of_the_last_logits",),
        why="Labels of the last tokens are compared with the first ones.",
    ),
    Mutation(
        file="ficoco_ext/models/loss.py",
        old="return prefill.labels(labels)[:, -width:]",
        new="return prefill.labels(labels)[:, :width]",
        tests=(f"{DECODER}/test_training.py::test_labels_of_the_last_logits",),
        why="With logits_to_keep the labels are those of the first tokens.",
    ),
    Mutation(
        file="ficoco_ext/models/loss.py",
        old="if tuple(labels.shape) not in ((b, length), (b, last)):",
        new="if labels.shape[0] != b:",
        tests=(f"{DECODER}/test_training.py::test_labels_that_do_not_fit",),
        why="Labels of another length are padded without a word.",
    ),
    Mutation(
        file="ficoco_ext/models/loss.py",
        old="if prefill is not None:",
        new='if prefill is not None and not options.get("logits_to_keep"):',
        tests=(f"{DECODER}/test_training.py::test_labels_of_the_last_logits",),
        why="With logits_to_keep the loss is that of the prompt before the reduction.",
    ),
    Mutation(
        file="ficoco_ext/models/placeholders.py",
        old="real.cumsum(1) - real.long() == 0",
        new="real.cumsum(1) == 0",
        tests=(f"{DECODER}/test_training.py::test_the_loss_is_that_of_what_is_left",),
        why="The loss counts the label of the first token, which nothing predicts.",
    ),
    Mutation(
        file="ficoco_ext/models/reduced_prefill.py",
        old="labels.to(held.indices.device).gather(1, held.indices)",
        new="labels.to(held.indices.device)[:, : held.indices.shape[1]]",
        tests=(f"{DECODER}/test_training.py::test_the_loss_is_that_of_what_is_left",),
        why="Labels are those of the first positions, not of those that are left.",
    ),
    Mutation(
        file="ficoco_ext/models/reduced_prefill.py",
        old="if len(self._stages) == step + 1:",
        new="if True:",
        tests=(f"{DECODER}/test_training.py::test_gradient_checkpointing_changes_no_gradient",),
        why="Gradient checkpointing records every reduction twice.",
    ),
]
