"""Faults in output-aware caches, and where the data decide how many tokens leave."""

from mutations import Mutation

AWARE = "python_tests/decoder/test_output_aware.py"
COUNTS = "python_tests/decoder/test_data_counts.py"

MUTATIONS = [
    Mutation(
        file="ficoco_ext/models/output_aware.py",
        old="for layer in range(first, len(stage_of_layer)):",
        new="for layer in range(first + 1, len(stage_of_layer)):",
        tests=(f"{AWARE}::test_what_the_cache_holds",),
        why="The first reducing layer keeps the whole picture.",
    ),
    Mutation(
        file="ficoco_ext/models/output_aware.py",
        old="now[layer] = end",
        new="pass",
        tests=(f"{AWARE}::test_later_tokens_attend_to_what_is_left",),
        why="The mask of a shorter cache is that of the longer one.",
    ),
    Mutation(
        file="ficoco_ext/models/output_aware.py",
        old="real if held.real is None else real & held.real, True)",
        new="held.real, held.holes)",
        tests=(f"{AWARE}::test_a_static_cache_hides_what_a_dynamic_one_loses",),
        why="In a static cache later tokens still attend to what left.",
    ),
    Mutation(
        file="ficoco_ext/models/output_aware.py",
        old="there = there.scatter(1, _entries(final, length), True)",
        new="there = there.scatter(1, final.indices, True)",
        tests=(f"{AWARE}::test_a_picture_at_the_very_beginning",),
        why="Empty entries of a shorter row show its first position, in a static cache.",
    ),
    Mutation(
        file="ficoco_ext/models/transformers_api.py",
        old="type(layers[layer]) is DynamicLayer",
        new="isinstance(layers[layer], DynamicLayer)",
        tests=(f"{AWARE}::test_a_quantized_cache_hides_what_left",),
        why="A quantized cache is taken for one of plain tensors.",
    ),
    Mutation(
        file="ficoco_ext/models/decoder_reduction.py",
        old="of_layer = self.stage_of_layer if call.state is None else call.state.stage_of_layer",
        new="of_layer = self.stage_of_layer",
        tests=(f"{AWARE}::test_later_tokens_attend_to_what_is_left",),
        why="New tokens get the masks of the uncut cache.",
    ),
    Mutation(
        file="ficoco_ext/models/kv_cache.py",
        old="if self.made_by != made_by:",
        new="if self.made_by[:2] != made_by[:2]:",
        tests=(f"{AWARE}::test_a_cache_of_the_other_kind_is_refused",),
        why="A conversation goes on with another kind of cache than it began with.",
    ),
    Mutation(
        file="ficoco_ext/models/attach_plan.py",
        old="require_whole_first_layer(OP, plan.plan.layers)",
        new="pass",
        tests=(f"{AWARE}::test_what_is_refused",),
        why="Layer 0 loses columns, and every length that is counted from it is wrong.",
    ),
    Mutation(
        file="ficoco_ext/models/request.py",
        old="if len(said) > 1 or said[0] not in CACHES:",
        new="if said[0] not in CACHES:",
        tests=(f"{AWARE}::test_a_method_may_ask_for_it",),
        why="The first of two methods decides silently what the cache keeps.",
    ),
    Mutation(
        file="ficoco_ext/models/row_groups.py",
        old="group.rows.index_select(0, at.to(group.rows.device))",
        new="at",
        tests=(f"{COUNTS}::test_a_row_in_a_batch_loses_what_it_loses_alone",),
        why="A group that is divided takes rows of another one.",
    ),
    Mutation(
        file="ficoco_ext/models/row_groups.py",
        old="[self.left[row] for row in rows]",
        new="self.left[: len(rows)]",
        tests=(f"{COUNTS}::test_generation_equals_the_language_model_by_hand",),
        why="The batch becomes narrower than a row needs, or wider.",
    ),
    Mutation(
        file="ficoco_ext/models/row_groups.py",
        old="if not 0 <= count <= most",
        new="if not 0 <= count",
        tests=(f"{COUNTS}::test_a_method_that_says_too_many_is_refused",),
        why="A method that removes every visual token fails somewhere inside.",
    ),
    Mutation(
        file="ficoco_ext/models/reduced_prefill.py",
        old="if visual.shape[1] > 1:  # else",
        new="if visual.shape[1]:  # else",
        tests=(f"{COUNTS}::test_one_token_left_stays",),
        why="Counts are taken for those of other rows once a row is down to one token.",
    ),
    Mutation(
        file="ficoco_ext/models/attach_plan.py",
        old="if plan.plan.by_data and plan.static_counts:",
        new="if False:",
        tests=(f"{COUNTS}::test_what_is_refused",),
        why="A prefill that promised to read nothing reads.",
    ),
    Mutation(
        file="ficoco_ext/resolve.py",
        old="return said == {True}",
        new="return False",
        tests=(f"{COUNTS}::test_the_plan_says_it",),
        why="A method that decides by the data is asked for an amount.",
    ),
]
