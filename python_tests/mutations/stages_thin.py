"""Faults of the selects by thinning and by pivots, and of VisPruner and DART."""

from __future__ import annotations

from mutations import Mutation

THIN, PIVOTS = "ficoco_ext/stages/thin.py", "ficoco_ext/stages/pivots.py"
VISPRUNER, DART = "python_tests/methods/test_vispruner.py", "python_tests/methods/test_dart.py"

MUTATIONS = [
    Mutation(
        THIN,
        "saliency = saliency.masked_fill(~visual.mask, -1.0)",
        "pass",
        (f"{VISPRUNER}::test_padding_is_not_there",),
        "Padding is kept for its saliency.",
    ),
    Mutation(
        THIN,
        "return int(count * self.share)",
        "return round(count * self.share)",
        (f"{VISPRUNER}::test_every_count",),
        "Of an odd number more than half go by saliency.",
    ),
    Mutation(
        THIN,
        "if not self.before_projector:\n            return visual.features.detach()",
        "if visual.tower_features is None:\n            return visual.features.detach()",
        (f"{VISPRUNER}::test_what_is_compared",),
        "before_projector=False compares features of the tower all the same.",
    ),
    Mutation(
        THIN,
        "self._compared(visual), others, count - important, step=self.step, mask=visual.mask",
        "self._compared(visual), others, count - important, mask=visual.mask",
        (f"{VISPRUNER}::test_steps",),
        "The step changes nothing.",
    ),
    Mutation(
        THIN,
        "width = shape.tower_channels if self.before_projector and shape.tower_channels else shape.channels",
        "width = shape.channels",
        (f"{VISPRUNER}::test_price",),
        "Features of the tower are priced at the width of the language model.",
    ),
    Mutation(
        PIVOTS,
        "torch.linalg.vector_norm(vectors, 1, dim=2, ",
        "torch.linalg.vector_norm(vectors, 2, dim=2, ",
        (f"{DART}::test_norms_are_sums_of_magnitudes",),
        "Pivots are the longest by squares.",
    ),
    Mutation(
        PIVOTS,
        "norm = norm.masked_fill(~mask, -1.0)",
        "pass",
        (f"{DART}::test_padding_is_not_there", f"{DART}::test_prompts_of_different_length"),
        "Padding becomes a pivot.",
    ),
    Mutation(
        PIVOTS,
        "quota = (part + (before < rest)) * real[:, pivot : pivot + 1]",
        "quota = (part + (before >= every - rest)) * real[:, pivot : pivot + 1]",
        (f"{DART}::test_by_hand",),
        "The remainder goes to the words, not to the longest tokens.",
    ),
    Mutation(
        PIVOTS,
        "every = real.sum(1, keepdim=True)",
        "every = real.new_tensor(real.shape[1], dtype=torch.int64)",
        (f"{DART}::test_prompts_of_different_length",),
        "A prompt with few words keeps fewer tokens than asked for.",
    ),
    Mutation(
        PIVOTS,
        "picked, free = picked | chosen, free & ~chosen",
        "picked = picked | chosen",
        (f"{DART}::test_every_count",),
        "Two pivots pick the same token, and fewer stay than asked for.",
    ),
    Mutation(
        PIVOTS,
        "return (cosine / FINEST).round() if cosine.dtype == torch.float64 else cosine",
        "return cosine",
        (f"{DART}::test_duplicates_stay_from_the_front",),
        "Rounding decides which of equal tokens stays.",
    ),
    Mutation(
        PIVOTS,
        "c=images + self.pivots[1]",
        "c=images",
        (f"{DART}::test_price",),
        "Words cost nothing.",
    ),
    Mutation(
        "ficoco_ext/methods/dart.py",
        "pivots = (image_pivots, text_pivots)",
        "pivots = (image_pivots, 4)",
        (f"{DART}::test_without_words_none_are_read",),
        "text_pivots=0 still asks for words.",
    ),
    Mutation(
        "ficoco_ext/methods/vispruner.py",
        "step: int = 8",
        "step: int = 1",
        (f"{VISPRUNER}::test_every_count",),
        "By default one token leaves in a round, which is another method eight times as slow.",
    ),
    Mutation(
        "ficoco_ext/methods/fastervlm.py",
        "saliency=saliency",
        'saliency="column"',
        ("python_tests/methods/test_vispruner.py",),
        "FasterVLM keeps what patches attend to, whatever is asked for.",
    ),
]
