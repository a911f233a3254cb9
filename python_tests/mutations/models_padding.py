"""Faults of padding first: what leaves crops before all else, and what tower, plan and handle know of it."""

from __future__ import annotations

from mutations import Mutation

M = "ficoco_ext/models"
RULE, TOWER = f"{M}/padding_first.py", f"{M}/vision_tower.py"
TESTS = "python_tests/families/test_next_tower.py"
RECORDS = f"{TESTS}::test_records_say_what_left_each_crop"
BY_HAND = f"{TESTS}::test_calls_and_generate_are_those_of_a_tower_by_hand"
ROWS = "python_tests/models/test_padding_first.py"
UNSEEN = f"{TESTS}::test_nothing_of_padding_is_seen_where_anything_else_leaves"
COUNTS, ALONE = (
    f"{TESTS}::test_tokens_of_a_picture",
    f"{TESTS}::test_a_tower_that_is_called_alone_cannot_know_its_pictures",
)
AGAIN = f"{TESTS}::test_gradients_are_those_without_checkpointing[tome-False]"
LAYERS = f"{TESTS}::test_each_layer_may_have_a_method_of_its_own[first-pool-first]"
NOTHING = f"{TESTS}::test_padding_where_nothing_leaves_is_said_to_change_nothing"
CLASS = f"{TESTS}::test_a_class_token_among_crops_is_refused"


def one(file: str, old: str, new: str, test: str, why: str) -> Mutation:
    return Mutation(file, old, new, (test,), why)


MUTATIONS = [
    one(
        RULE,
        "first = 0 if places is not None else min(padding, r)",
        "first = min(padding, r)",
        f"{BY_HAND}[pool-contiguous]",
        "Padding leaves before a method that needs the whole grid.",
    ),
    one(
        RULE,
        "padding = padding - first if places is None else self._outside(places, part)",
        "padding = padding - first",
        LAYERS,
        "After pooling more padding is expected than is left.",
    ),
    one(
        RULE,
        "leaves = padding & (padding.cumsum(1) <= count)",
        "leaves = padding & (padding.sum(1, keepdim=True) - padding.cumsum(1) < count)",
        f"{RECORDS}[topk]",
        "The last padding leaves first.",
    ),
    one(
        RULE,
        "padding = padding.gather(1, previous.patch_ids)",
        "padding = padding[:, : previous.patch_ids.shape[1]]",
        f"{RECORDS}[topk]",
        "After the first layer other patches than padding leave first.",
    ),
    one(
        RULE,
        "among = attention_among(of_mine, stays)",
        "among = attention_among(of_mine, torch.arange(stays.shape[1]).expand_as(stays))",
        f"{UNSEEN}[ficoco-v]",
        "The method reads the attention of padding.",
    ),
    one(RULE, "done = as_one(done, late)", "done = late", f"{RECORDS}[topk]", "A record forgets the padding."),
    one(
        RULE,
        "if previous is None else picked(previous.size, stays)",
        "",
        LAYERS,
        "What a token stands for is forgotten where padding leaves.",
    ),
    one(
        RULE,
        "order = [at[row] for row in range(len(at))]",
        "order = list(at.values())",
        f"{BY_HAND}[topk-contiguous]",
        "Crops come back in the order of their groups.",
    ),
    one(
        RULE,
        "unused = int(parts[0].class_token)",
        "unused = 0",
        f"{RECORDS}[tome]",
        "A record names the class token as a target.",
    ),
    one(
        RULE,
        "torch.stack([rows[number][row] for number, row in order])",
        "torch.cat([tensors[number][row : row + 1] for number, row in order])",
        f"{ROWS}::test_the_backward_pass_is_linear_in_the_rows",
        "The backward pass of many crops is quadratic.",
    ),
    one(
        RULE,
        "if list(order) == [(number, first + offset) for offset in range(len(order))]:",
        "if False:",
        f"{ROWS}::test_rows_of_several_tensors",
        "Rows that lie together are copied.",
    ),
    one(
        RULE,
        "if list(order) == [(number, first + offset) for offset in range(len(order))]:",
        "if order[-1] == (number, first + len(order) - 1):",
        f"{ROWS}::test_rows_of_several_tensors",
        "Rows come back in another order.",
    ),
    one(TOWER, "before.padding.leaving[number]", "before.padding.leaving[0]", f"{RECORDS}[topk]", "Too early."),
    one(
        TOWER,
        "return known._replace(records=known.records[:number])",
        "return Pass(known.records[:number])",
        f"{BY_HAND}[topk-contiguous]",
        "Padding leaves first in the first layer alone.",
    ),
    one(
        TOWER,
        "pictures = self.pictures.of_batch(tokens.shape[0])",
        "pictures = self.pictures._now.here.pictures",
        ALONE,
        "A tower that is called alone fails without a reason.",
    ),
    one(
        TOWER,
        "if before.padding is None:",
        "if before.padding is None or len(running.state.records) > number:",
        AGAIN,
        "A layer that is computed again sees no padding.",
    ),
    one(
        f"{M}/handle.py", "first += 1 + one.count", "first += one.count", f"{RECORDS}[topk]", "Rows of another picture."
    ),
    one(
        f"{M}/attach_plan.py",
        '(of_crops or self.positions == "original")',
        'self.positions == "original"',
        f"{BY_HAND}[topk-contiguous]",
        "A prompt with crops is cut as if all pictures were equal.",
    ),
    one(
        f"{M}/attach_plan.py",
        "whole = all(one == crops.patches for one in crops.valid)",
        "whole = True",
        COUNTS,
        "A number that the data decide is said before they are known.",
    ),
    one(
        f"{M}/attach_plan.py",
        "if plan.removed and plan.changes_features:",
        "if False:",
        f"{TESTS}::test_what_cannot_be_is_refused",
        "What the tower left is cut a second time, line ends too.",
    ),
    one(
        f"{M}/attach_plan.py",
        'if plan.static_counts and plan.removed and plan.padding == "after":',
        "if False:",
        f"{TESTS}::test_what_cannot_be_is_refused",
        "A forward that is promised to read no device reads one in its tower.",
    ),
    one(
        f"{M}/attach_plan.py",
        'return request.padding or ("first" if sum(schedule.r) else None)',
        'return (request.padding or "first") if sum(schedule.r) else None',
        NOTHING,
        "What was asked for is forgotten without a word.",
    ),
    one(
        f"{M}/attach_plan.py",
        'plan.static_counts and plan.removed and plan.padding == "after"',
        'plan.static_counts and plan.padding == "after"',
        NOTHING,
        "A promise is refused for a tower that is left alone.",
    ),
    one(
        f"{M}/facts.py",
        'return strategy == "default" if tower.class_token and family.crops else',
        "return",
        CLASS,
        "Crops with a class token among them are taken for grids.",
    ),
    one(
        f"{M}/model_checks.py",
        'if family.crops and known.class_token and strategy == "full":',
        "if False:",
        CLASS,
        "A class token is packed as a patch.",
    ),
    one(
        f"{M}/model_checks.py",
        "has no index; use 'default'",
        "has no index",
        CLASS,
        "What to do about a class token among crops is left open.",
    ),
    one(
        f"{M}/transformers_release.py",
        '_takes(inner, _PACKING, "pack_image_features")',
        "pass",
        "python_tests/models/test_transformers_api.py::test_a_packing_that_is_not_known",
        "A packing that a release changed is replaced by the one that we know.",
    ),
    one(
        "ficoco_ext/stages/positional.py",
        "found += [row * width + column for column in range(width) if column * runs % width < runs]",
        "found += [row * width + column for column in range(runs)]",
        "python_tests/methods/test_baselines.py::test_the_places_of_cells_are_known_without_a_reduction",
        "Pooling keeps other patches than it says.",
    ),
]
