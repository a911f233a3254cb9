"""Faults of prompts that are cut by what the encoders kept."""

from __future__ import annotations

from mutations import Mutation

CUTTER = "ficoco_ext/models/feature_cutter.py"
PROMPTS = "python_tests/models/test_projector_prompts.py"
STATE = "python_tests/models/test_projector_state.py"
CUT = "python_tests/models/test_prompt_cut.py"
COMPILE = "python_tests/models/test_projector_compile.py"
GENERATE = "python_tests/families/test_projector_generate.py"

MUTATIONS = [
    Mutation(
        CUTTER,
        "if mask is not None and not (isinstance(mask, Tensor) and tuple(mask.shape) == shape):",
        "if mask is not None and not isinstance(mask, Tensor):",
        (f"{PROMPTS}::test_masks_of_other_kinds_are_refused",),
        "A mask of four axes is cut along the wrong one.",
    ),
    Mutation(
        CUTTER,
        "outer, now.generating = now.generating, True",
        "outer, now.generating = now.generating, False",
        (f"{GENERATE}::test_generate_is_the_hand_cut_without_a_cache[llava-clip-unequal_rows-original]",),
        "The prompt is cut once more where generate calls the model.",
    ),
    Mutation(
        CUTTER,
        "now.generating, now.record = outer, None",
        "now.record = None",
        (f"{STATE}::test_a_deep_copy_is_attached_by_itself[projector]",),
        "After generate no direct call is cut any more.",
    ),
    Mutation(
        CUTTER,
        "now.generating, now.record = outer, None\n            self.features.forget()",
        "now.generating, now.record = outer, None",
        (f"{STATE}::test_an_exception_leaves_nothing_behind",),
        "Features of a generate that failed are kept in memory.",
    ),
    Mutation(
        CUTTER,
        "if (given.shape[1] > 1 or not api.is_static(cache)) and int(cache.get_seq_length()) == 0:",
        "if False:",
        (f"{PROMPTS}::test_a_cache_that_was_emptied_is_for_another_prompt",),
        "Text on an emptied cache is counted from the end of a prompt that is gone.",
    ),
    Mutation(
        CUTTER,
        'if record.next is None or options.get("position_ids") is not None:',
        "if record.next is None:",
        (f"{PROMPTS}::test_steps_after_a_prompt_continue_its_positions",),
        "Positions of the caller's own are overwritten in a loop of their own.",
    ),
    Mutation(
        CUTTER,
        'return {"position_ids": positions + self.family.first_position}',
        'return {"position_ids": positions}',
        (f"{GENERATE}::test_a_loop_of_ones_own[paligemma]",),
        "New tokens of a family that counts from 1 are at the position of the last one.",
    ),
    Mutation(
        CUTTER,
        "        _forget(api.cache_of(options, self.cache_name))\n        found = self.features.encode(options)",
        "        found = self.features.encode(options)",
        (f"{PROMPTS}::test_an_emptied_cache_is_not_that_of_a_longer_prompt",),
        "A prompt that loses nothing is counted on as the one that its cache held before.",
    ),
    Mutation(
        CUTTER,
        "if not any(one.removed for one in found.values()):",
        "if not all(one.removed for one in found.values()):",
        (f"{PROMPTS}::test_one_kind_loses_nothing",),
        "Nothing is cut if pictures lose something and videos do not.",
    ),
    Mutation(
        CUTTER,
        'first = self.family.first_position if op == "forward" else 0',
        "first = self.family.first_position",
        (f"{PROMPTS}::test_positions_of_a_family_that_counts_from_one",),
        "generate of a family that counts from 1 begins at 2.",
    ),
    Mutation(
        CUTTER,
        'changed["input_ids"] = cut.of(ids, self.filler)',
        'changed["input_ids"] = cut.of(ids)',
        (f"{PROMPTS}::test_padding_is_no_placeholder_whatever_its_id",),
        "Padding that is added is taken for placeholders where their id is 0.",
    ),
    Mutation(
        CUTTER,
        "cut.of_vectors(embeddings, self._embedded(ids.new_tensor(self.filler)))",
        "cut.of_vectors(embeddings, embeddings[0, 0])",
        (f"{PROMPTS}::test_padding_that_is_added_to_embeddings",),
        "Padding that is added to embeddings is a word, or a placeholder.",
    ),
    Mutation(
        CUTTER,
        'changed["mm_encoder_outputs"] = {**options["mm_encoder_outputs"], **outputs}',
        "pass",
        (f"{STATE}::test_features_that_the_caller_encoded",),
        "The model gets all features that a caller encoded for a prompt that was cut.",
    ),
    Mutation(
        CUTTER,
        'placeholders.moved(cut.indices, options["logits_to_keep"], cut.length)',
        'options["logits_to_keep"]',
        (f"{PROMPTS}::test_logits_of_chosen_columns",),
        "Logits of other tokens are returned than those that were asked for.",
    ),
    Mutation(
        CUTTER,
        'positions = changed["position_ids"] - first',
        'positions = changed["position_ids"]',
        (f"{GENERATE}::test_a_loop_of_ones_own[paligemma]",),
        "New tokens of a family that counts from 1 leave a gap.",
    ),
    Mutation(
        CUTTER,
        "self.model.model.rope_deltas = deltas",
        "pass",
        (f"{PROMPTS}::test_what_a_model_remembers_of_its_last_prompt",),
        "Answers of Qwen-VL are counted on from the prompt of an earlier call.",
    ),
    Mutation(
        CUTTER,
        "if not now.generating:\n            self.features.forget()",
        "pass",
        (f"{STATE}::test_features_of_a_call_are_not_kept",),
        "Features of the last call are kept in memory.",
    ),
    Mutation(
        CUTTER,
        "if removed % b:",
        "if False:",
        (f"{COMPILE}::test_a_promise_that_is_not_kept_is_noticed_where_reading_is_free",),
        "A promise of counts that cannot hold ends in other words.",
    ),
    Mutation(
        CUTTER,
        "if free_to_read(ids) and (found_widths := keep.sum(1).tolist()) != widths:",
        "if False:",
        (f"{COMPILE}::test_a_promise_that_is_not_kept_is_noticed_where_reading_is_free",),
        "Rows that lose unequal numbers of tokens lose words instead.",
    ),
    Mutation(
        CUTTER,
        "if free_to_read(ids) and (found_widths := keep.sum(1).tolist()) != widths:",
        "if (found_widths := keep.sum(1).tolist()) != widths:",
        (f"{COMPILE}::test_a_prefill_reads_the_device_once_or_not_at_all",),
        "A prefill with static counts waits for the device.",
    ),
    Mutation(
        CUTTER,
        "keep = prompt_cut.drop_padding(keep, functools.reduce(torch.logical_or, visual.values()), mask)",
        "pass",
        (f"{PROMPTS}::test_padding_that_is_added_is_masked",),
        "A short prompt is as long as the row with the most words and the fewest pictures, plus its padding.",
    ),
    Mutation(
        CUTTER,
        "positions = positions - cut.left_out.cumsum(1)",
        "pass",
        (f"{PROMPTS}::test_positions_of_the_callers_own",),
        "Contiguous positions that a caller passes jump.",
    ),
    Mutation(
        CUTTER,
        "return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)",
        "return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)",
        (f"{PROMPTS}::test_padding_that_is_added_is_masked",),
        "A row with padding on the left is at other positions than alone.",
    ),
    Mutation(
        CUTTER,
        "if isinstance(mask, Tensor) and mask.shape[-1] > ids.shape[1]:  # over cached and new tokens",
        "if False:",
        (f"{PROMPTS}::test_a_conversation_by_new_ids_alone",),
        "A conversation by new ids alone is taken for another one.",
    ),
    Mutation(
        CUTTER,
        "head, tail = tensor[:, : record.cut.length], tensor[:, record.cut.length :]",
        "head, tail = tensor[:, : record.cut.length], tensor[:, record.cut.length :] * 0",
        (f"{PROMPTS}::test_a_conversation_is_counted_on_from_the_whole_prompt",),
        "New tokens of a conversation are masked.",
    ),
    Mutation(
        CUTTER,
        "ids = torch.where(found, token, ids)",
        "ids = torch.where(found, self.filler, ids)",
        (f"{PROMPTS}::test_embeddings_equal_ids",),
        "Prompts of embeddings have no placeholders.",
    ),
    Mutation(
        CUTTER,
        "last[-3:].amax(0, keepdim=True).expand(3, -1, -1)",
        "last[-3:-2].expand(3, -1, -1)",
        (f"{PROMPTS}::test_the_next_position_is_after_all_axes",),
        "The answer after a wide picture begins inside it.",
    ),
    Mutation(
        CUTTER,
        "numbers[len(found) + number] = [0] * b",
        "pass",
        (f"{PROMPTS}::test_a_prompt_that_ends_with_a_picture",),
        "A prompt that ends with a picture whose last patch the tower dropped is refused.",
    ),
    Mutation(
        CUTTER,
        "stays = keep.gather(1, last) | torch.tensor(put_back, device=keep.device).unsqueeze(1)",
        "stays = keep.gather(1, last)",
        (f"{PROMPTS}::test_a_prompt_that_ends_with_a_picture",),
        "A prompt that ends with a picture has a feature without a placeholder.",
    ),
    Mutation(
        "ficoco_ext/models/prompt_reader.py",
        "if self.per_image is not None and not self.cut_by_features:",
        "if self.per_image is not None:",
        (f"{PROMPTS}::test_a_prompt_that_ends_with_a_picture",),
        "With a method of the language model besides, a prompt that ends with a picture is refused.",
    ),
    Mutation(
        "ficoco_ext/models/prompt_cut.py",
        "return (columns if mask is None else columns * (mask != 0)).amax(1, keepdim=True)",
        "return columns[:, -1:]",
        (f"{CUT}::test_the_last_column_that_the_mask_shows",),
        "With padding on the right the last token of a picture may leave, from which the answer is read.",
    ),
    Mutation(
        "ficoco_ext/models/prompt_cut.py",
        "return [bisect_left(ends, total) for total, end",
        "return [row for row, (total, end) in enumerate(zip(accumulate(rows), ended, strict=True)) if end]\n"
        "    return [bisect_left(ends, total) for total, end",
        (f"{CUT}::test_pictures_at_the_end_of_rows",),
        "A row's number is taken for that of its last picture.",
    ),
]
