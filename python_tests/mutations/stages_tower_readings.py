"""Faults of the stages after the projector that read more of the vision tower than its saliency."""

from __future__ import annotations

from mutations import Mutation

CONTEXTUAL = "ficoco_ext/stages/contextual.py"
ANCHORS = "ficoco_ext/stages/anchors.py"
PROJECTOR = "ficoco_ext/methods/projector_method.py"
COST = "ficoco_ext/cost/reduction.py"
ZIP = "python_tests/methods/test_visionzip.py"
PRUNE = "python_tests/methods/test_hiprune.py"

MUTATIONS = [
    Mutation(
        ANCHORS,
        "order = (~real).view(b, frames, n // frames)",
        "order = (real & ~real).view(b, frames, n // frames)",
        (f"{PRUNE}::test_without_a_grid_neighbours_are_those_that_are_there",),
        "Hidden tokens part neighbours where there is no grid.",
    ),
    Mutation(
        CONTEXTUAL,
        "min(max(round(share * kept), 1), kept - 1)",
        "min(round(share * kept), kept - 1)",
        (f"{ZIP}::test_published_numbers",),
        "With few tokens all that leaves is lost, though a share of them are centres.",
    ),
    Mutation(
        CONTEXTUAL,
        "(number % step == 0) & (number < centres * step)",
        "(number < centres)",
        (f"{ZIP}::test_it_is_the_loop",),
        "All centres lie at the top of the picture.",
    ),
    Mutation(
        CONTEXTUAL,
        "(others.sum(1, keepdim=True) // centres).clamp(min=1)",
        "(others.shape[1] - count + centres) // centres",
        (f"{ZIP}::test_padding_goes_nowhere",),
        "Padding decides how far apart centres are, and their number.",
    ),
    Mutation(
        CONTEXTUAL,
        "others = real & ~stays",
        "others = ~stays",
        (f"{ZIP}::test_padding_goes_nowhere",),
        "Padding becomes a centre.",
    ),
    Mutation(
        CONTEXTUAL,
        "slots = ranked[:, salient:].sort(dim=1).values",
        "slots = ranked[:, salient:]",
        (f"{ZIP}::test_a_centre_without_members_stays_itself",),
        "Of equally similar centres a later one inherits.",
    ),
    Mutation(
        CONTEXTUAL,
        "keys = keys.masked_fill(~visual.mask.unsqueeze(-1), 0)",
        "pass",
        (f"{ZIP}::test_padding_goes_nowhere",),
        "Padding without finite keys ends in an error.",
    ),
    Mutation(
        CONTEXTUAL,
        "before.to(mass.dtype) * (1 - own / held)",
        "before.to(mass.dtype)",
        (f"{ZIP}::test_it_is_the_loop",),
        "A centre is counted more than once in what it becomes.",
    ),
    Mutation(
        CONTEXTUAL,
        "own = torch.ones_like(mass) if counted is None else counted.gather(1, index).to(mass.dtype)",
        "own = torch.ones_like(mass)",
        (f"{ZIP}::test_tokens_that_stand_for_several",),
        "A centre that stands for several tokens is taken for one.",
    ),
    Mutation(
        CONTEXTUAL,
        "size_out, _ = ops.compress(tokens[..., :1], *given, size=size, size_weighted=False)",
        "size_out, _ = ops.compress(tokens[..., :1], *given, size=None, size_weighted=False)",
        (f"{ZIP}::test_tokens_that_stand_for_several",),
        "Sizes of merged tokens are lost.",
    ),
    Mutation(
        CONTEXTUAL,
        "width = contextual_count(shape.kept, self.share), shape.tower_head_dim or shape.channels",
        "width = contextual_count(shape.kept, self.share), shape.channels",
        (f"{ZIP}::test_cost",),
        "The tower's keys are priced as wide as the language model.",
    ),
    Mutation(
        ANCHORS,
        "round(count * self.alpha / 5)",
        "int(count * self.alpha / 5)",
        (f"{PRUNE}::test_it_is_the_loop",),
        "There is an anchor less than published.",
    ),
    Mutation(
        ANCHORS,
        "score = torch.where(buffer, early.to(score.dtype), score)",
        "score = score",
        (f"{PRUNE}::test_too_many_neighbours_leave_by_early_saliency",),
        "Of too many neighbours those of the late layer stay.",
    ),
    Mutation(
        ANCHORS,
        "buffer = _around(anchor, visual, real) & real & ~anchor",
        "buffer = _around(anchor, visual, real) & ~anchor",
        (f"{PRUNE}::test_what_is_hidden_is_no_anchor_and_no_neighbour",),
        "Padding beside an anchor stays.",
    ),
    Mutation(
        ANCHORS,
        "grid = marked.view(b, frames, visual.grid[0] // frames, visual.grid[1])",
        "grid = marked.view(b, 1, visual.grid[0], visual.grid[1])",
        (f"{PRUNE}::test_neighbours_end_with_the_frame",),
        "The last row of a frame is beside the first of the next.",
    ),
    Mutation(
        ANCHORS,
        "    if visual.grid is None:\n        order",
        "    if True:\n        order",
        (f"{PRUNE}::test_neighbours_end_with_the_grid",),
        "Neighbours go across the ends of rows, and none are above or below.",
    ),
    Mutation(
        PROJECTOR,
        "not (isinstance(layer, float) and 0 < layer <= 1)",
        "not isinstance(layer, float)",
        (f"{PRUNE}::test_mistakes",),
        "A share of layers above 1 is taken, and fails in the model.",
    ),
    Mutation(
        COST,
        "layers.insert(0, _early_layer(method, tower))",
        "pass",
        (f"{PRUNE}::test_cost_counts_both_layers",),
        "The early layer's saliency costs nothing.",
    ),
    Mutation(
        "ficoco_ext/models/projector_reduction.py",
        "early_layer=method.early_layer,",
        "early_layer=None,",
        ("python_tests/families/test_tower_methods.py::test_the_early_layer_is_the_one_that_is_named",),
        "The early layer that a user names is ignored.",
    ),
    Mutation(
        "ficoco_ext/methods/visionzip.py",
        "ToCentres(contextual), compress",
        "ToCentres(), compress",
        (f"{ZIP}::test_it_is_the_loop",),
        "Another share of centres selects than merges.",
    ),
    Mutation(
        "ficoco_ext/methods/hiprune.py",
        "saliency=saliency, early_layer=early_layer)",
        "early_layer=early_layer)",
        (f"{PRUNE}::test_it_says_what_it_does",),
        "HiPrune ranks CLIP's patches by the class token's row instead of the column.",
    ),
]
