"""Faults of MustDrop: its windows, its filter, its presets, and the key set between tower and language model."""

from __future__ import annotations

from mutations import Mutation

WINDOWS, DUAL = "ficoco_ext/stages/windows.py", "ficoco_ext/stages/dual_attention.py"
METHOD, KEYS = "ficoco_ext/methods/mustdrop.py", "ficoco_ext/models/key_sets.py"
PURE = "python_tests/methods/test_mustdrop.py"
INSIDE, MODELS = "python_tests/models/test_key_sets.py", "python_tests/models/test_mustdrop.py"
MARKS, HANDED = "ficoco_ext/models/encoder_marks.py", "python_tests/models/test_encoder_marks.py"
PROMPTS = "python_tests/models/test_key_sets_and_prompts.py"

MUTATIONS = [
    Mutation(
        WINDOWS,
        "(self.window // 2) * (self.window + 1)",
        "self.unit // 2 - 1",
        (f"{PURE}::test_all_windows_leave_one_token_each",),
        "A mean is held by a patch beside the centre.",
    ),
    Mutation(
        WINDOWS,
        "similarity.sort(dim=1, descending=True, stable=True)",
        "similarity.sort(dim=1, stable=True)",
        (f"{PURE}::test_golden_windows",),
        "The least alike windows merge.",
    ),
    Mutation(
        WINDOWS,
        "corners = (down * window * width).unsqueeze(1) + across * window",
        "corners = (down * width).unsqueeze(1) + across * window",
        (f"{PURE}::test_members_of_windows", f"{PURE}::test_golden_windows"),
        "Windows overlap.",
    ),
    Mutation(
        WINDOWS,
        "receivers.gather(1, order) + first",
        "receivers + first",
        (f"{PURE}::test_golden_windows",),
        "Patches of one window merge into that of another.",
    ),
    Mutation(
        WINDOWS,
        "    if r % unit:",
        "    if False:",
        (f"{PURE}::test_an_r_of_no_whole_windows",),
        "An r of no whole windows removes fewer without a word.",
    ),
    Mutation(
        DUAL,
        "return torch.maximum(shares(total) * (alpha / largest), peak * (gamma / largest))",
        "return torch.maximum(shares(total) * (gamma / largest), peak * (alpha / largest))",
        (f"{PURE}::test_both_statistics_decide",),
        "The thresholds change places.",
    ),
    Mutation(
        DUAL,
        "return math.ceil(share * tokens - 1e-9)",
        "return math.ceil(share * tokens)",
        (f"{PURE}::test_how_many_tokens_are_keys",),
        "Rounding of floats makes the key set larger by one.",
    ),
    Mutation(
        DUAL,
        "torch.cat([chosen, none], 1)",
        "torch.cat([chosen, none & False], 1)",
        (f"{PURE}::test_without_text_the_last_visual_token_is_the_text",),
        "A prompt without text after its picture keeps its first tokens.",
    ),
    Mutation(
        DUAL,
        "order = order.gather(1, keys.gather(1, order).byte().sort(dim=1, descending=True, stable=True).indices)",
        "order = order.gather(1, keys.byte().sort(dim=1, descending=True, stable=True).indices)",
        (f"{PURE}::test_dual_filter_by_loops",),
        "Other tokens than the key set are protected.",
    ),
    Mutation(
        DUAL,
        "return (shares(total) >= gamma) | (peak >= alpha)",
        "return (shares(total) > gamma) | (peak > alpha)",
        (f"{PURE}::test_without_text_or_attention_the_first_stay",),
        "With a threshold of 0 unread tokens leave.",
    ),
    Mutation(
        DUAL,
        ".clamp(max=stays.shape[1] - 1)",
        "",
        (f"{MODELS}::test_one_token_stays_of_all_below_the_thresholds",),
        "A picture of which nothing is above the thresholds ends in an error.",
    ),
    Mutation(
        METHOD,
        "chosen.append(max(block * layers // _LAYERS, chosen[-1] + 1 if chosen else 1))",
        "chosen.append(max(block * layers // _LAYERS, chosen[-1] + 1 if chosen else 0))",
        (f"{PURE}::test_blocks_at_the_same_shares_of_the_depth",),
        "A small model reduces in layer 0, which an output-aware cache refuses.",
    ),
    Mutation(
        METHOD,
        "        after_mlp=True,\n",
        "",
        (f"{INSIDE}::test_windows_merge_in_what_leaves_the_first_layer",),
        "Windows merge before the MLP, which makes other tokens.",
    ),
    Mutation(
        METHOD,
        "return math.floor(self.share * windows + 0.5) * self.filter.unit",
        "return math.floor(self.share * windows) * self.filter.unit",
        (f"{PURE}::test_windows_that_merge_if_no_amount_is_given",),
        "SigLIP's grid merges a window less than documented.",
    ),
    Mutation(
        KEYS,
        "return (flat[index].view_as(rows) & rows).repeat_interleave(times, 0)",
        "return (flat[index].view_as(rows) & rows).repeat(times, 1)",
        (f"{INSIDE}::test_every_way_to_call_finds_the_key_set",),
        "Beams of one picture protect the tokens of another.",
    ),
    Mutation(
        KEYS,
        "        if kept is not None:\n",
        "        if False:\n",
        (f"{INSIDE}::test_after_the_projector_keys_are_among_what_it_leaves",),
        "After a reduction behind the projector other tokens are protected.",
    ),
    Mutation(
        KEYS,
        "owners, sizes = [crop for crop, _ in layout.crops.origins], (layout.crops.patches, *layout.crops.valid)",
        "pass",
        (f"{MODELS}::test_every_crop_has_its_own_key_set",),
        "One crop of a picture takes the key set of all.",
    ),
    Mutation(
        KEYS,
        "if plan.facts.crops is not None and (plan.removed or plan.changes_features):",
        "if False:",
        (f"{MODELS}::test_key_sets_need_all_patches_of_a_crop",),
        "Key sets of crops that lost patches end in an error of a tensor's shape.",
    ),
    Mutation(
        "ficoco_ext/models/projector_reduction.py",
        "self.keys.mark(modality, output, held.looked, [one.kept for one in projections])",
        "pass",
        (f"{PROMPTS}::test_a_last_token_that_is_put_back_may_be_a_key",),
        "After a prompt that ends with a picture later key sets are out of step.",
    ),
    Mutation(
        KEYS,
        "if not times or times * len(flat) != features or len(visual) % times:",
        "if not times:",
        (f"{PROMPTS}::test_key_sets_of_other_numbers_than_the_features_are_refused",),
        "Key sets that do not fit the features protect tokens of other pictures.",
    ),
    Mutation(
        MARKS,
        "all(one is other for one, other in zip(now, mark.entries, strict=True))",
        "True",
        (f"{HANDED}::test_other_features_in_an_output_are_refused",),
        "Marks of an output's first features hold for others: marked outputs are swapped.",
    ),
    Mutation(
        MARKS,
        "return tuple(known[id(entry)] for entry in now) if",
        "return mark.known[: len(now)] if",
        (f"{HANDED}::test_some_pictures_of_an_output_in_any_order",),
        "Marks of reordered features: marked outputs are out of step.",
    ),
    Mutation(
        KEYS,
        "outputs[name] = copy.copy(outputs[name])",
        "pass",
        (f"{HANDED}::test_some_pictures_of_an_output_in_any_order",),
        "Beams repeat the features in the caller's output: marked outputs grow.",
    ),
    Mutation(
        "ficoco_ext/models/feature_cutter.py",
        "outputs = {name: copy.copy(one) for name, one in outputs.items()}",
        "pass",
        (f"{HANDED}::test_some_pictures_of_an_output_in_any_order",),
        "Beams of reduced features repeat them in the caller's output: marked outputs grow.",
    ),
    Mutation(
        KEYS,
        "always_call=True",
        "always_call=False",
        (f"{HANDED}::test_nothing_of_an_output_is_held",),
        "What a failed call read is held until the next: held outputs.",
    ),
    Mutation(
        KEYS,
        "        if now.called is None:\n",
        "        if False:\n",
        (f"{HANDED}::test_nothing_of_an_output_is_held", f"{INSIDE}::test_a_tuple_is_returned_to_whom_asks_for_one"),
        "A direct call of the encoder is noted as one of the model: held outputs.",
    ),
    Mutation(
        "ficoco_ext/models/reduced_prefill.py",
        "            columns = part.indices.gather(1, visual)\n",
        "            columns = visual\n",
        (f"{INSIDE}::test_the_key_set_stays_to_the_end",),
        "From the second stage on other tokens are protected.",
    ),
    Mutation(
        "ficoco_ext/models/vision_tower.py",
        "return self._reduce(before, running, hidden_states, attn) if self.method.after_mlp else hidden_states",
        "return hidden_states",
        (f"{INSIDE}::test_windows_merge_in_what_leaves_the_first_layer",),
        "A reduction after the MLP never happens.",
    ),
    Mutation(
        "ficoco_ext/amounts.py",
        "left[0] += (patches - left[0]) % unit",
        "pass",
        (f"{PURE}::test_an_amount_for_both_parts_is_kept_in_the_end",),
        "A budget for both parts leaves more than was asked for.",
    ),
    Mutation(
        "ficoco_ext/resolve.py",
        "whole = tuple(r - r % unit for r, unit in zip(schedule.r, units, strict=True))",
        "whole = schedule.r",
        (f"{PURE}::test_a_ratio_is_rounded_to_whole_windows",),
        "A ratio of no whole windows ends in an error.",
    ),
    Mutation(
        "ficoco_ext/schedule.py",
        "before[layer + (layer not in self.after_mlp)]",
        "before[layer + 1]",
        (f"{PURE}::test_presets_leave_the_mean_that_names_them",),
        "The cost of an MLP that all patches pass through is that of fewer.",
    ),
]
