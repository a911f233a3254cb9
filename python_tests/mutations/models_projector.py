"""Faults of the reduction after the projector, and of prompts that are cut by it."""

from mutations import Mutation

FAMILIES = "python_tests/families"
FORWARD = f"{FAMILIES}/test_projector_families.py::test_forward_is_the_hand_cut"
REDUCTION = "ficoco_ext/models/projector_reduction.py"
CUTTER = "ficoco_ext/models/feature_cutter.py"
CUT = "ficoco_ext/models/prompt_cut.py"
LAYOUTS = "ficoco_ext/models/layouts.py"
MODALITIES = "ficoco_ext/models/modalities.py"

MUTATIONS = [
    Mutation(
        file=REDUCTION,
        old="now.encoding = True",
        new="now.encoding = False",
        tests=(f"{FORWARD}[qwen3-vl-one_video-original]",),
        why="A video that is encoded by the encoder of pictures is reduced twice.",
    ),
    Mutation(
        file=REDUCTION,
        old="free = before - len(layout.line_ends)",
        new="free = before",
        tests=(f"{FAMILIES}/test_projector_families.py::test_newlines_stay[llava-next-one_picture]",),
        why="Newlines count as tokens of the picture, so that too few of those stay.",
    ),
    Mutation(
        file="ficoco_ext/models/picture_groups.py",
        old="chosen[row], made[0][row]",
        new="chosen[row], made[0][0]",
        tests=(f"{FORWARD}[llava-clip-unequal_rows-original]",),
        why="All pictures of a batch get the features of the first.",
    ),
    Mutation(
        file="ficoco_ext/models/picture_groups.py",
        old="plane[number] = values[row]",
        new="plane[number] = values[0]",
        tests=(f"{FAMILIES}/test_projector_generate.py::test_beams[qwen3-vl]",),
        why="All pictures of a batch get the DeepStack features of the first.",
    ),
    Mutation(
        file=REDUCTION,
        old="self._said = True",
        new="self._said = False",
        tests=(f"{FAMILIES}/test_projector_families.py::test_more_tokens_than_there_are[internvl]",),
        why="Every call warns again.",
    ),
    Mutation(
        file=MODALITIES,
        old="if unit and len(one) % unit == 0",
        new="if unit and len(one) == unit",
        tests=(f"{FAMILIES}/test_projector_families.py::test_there_is_one_projection_for_each_picture[smolvlm]",),
        why="All tiles of a row share the tokens of one picture.",
    ),
    Mutation(
        file=MODALITIES,
        old="if held.dim() == 3 and len(",
        new="if held.dim() == 2 and len(",
        tests=(f"{FAMILIES}/test_projector_generate.py::test_beams[gemma3]",),
        why="Features of all pictures come as one, and beams do not find those of their row.",
    ),
    Mutation(
        file=LAYOUTS,
        old="return Layout((root, root), line_ends=(root * root,))",
        new="return Layout()",
        tests=(f"{FAMILIES}/test_projector_families.py::test_newlines_stay[llava-onevision-unequal_rows]",),
        why="The newline of a picture beside others may leave.",
    ),
    Mutation(
        file=CUT,
        old="[:, keep.shape[1] - width :]",
        new="[:, :width]",
        tests=(f"{FORWARD}[llava-clip-one_picture-original]",),
        why="The columns that left are kept.",
    ),
    Mutation(
        file=CUT,
        old="[sum(counts[:number]) for number in range(len(counts))]",
        new="[sum(counts[:1]) * number for number in range(len(counts))]",
        tests=(f"{FORWARD}[qwen2-vl-unequal_rows-original]",),
        why="With pictures of several sizes, the wrong columns leave.",
    ),
    Mutation(
        file=CUT,
        old="rank = visual.flatten().cumsum(0) - 1",
        new="rank = visual.cumsum(1).flatten() - 1",
        tests=(f"{FORWARD}[qwen2-vl-unequal_rows-original]",),
        why="Every row is cut as the first one is.",
    ),
    Mutation(
        file=CUT,
        old="min(widths) == width",
        new="min(widths) <= width",
        tests=(f"{FORWARD}[llava-clip-unequal_rows-original]",),
        why="Padding that was added is read as a part of the prompt.",
    ),
    Mutation(
        file=CUTTER,
        old="if mask is None and (self.original or cut.valid is not None):",
        new="if mask is None and cut.valid is not None:",
        tests=(f"{FAMILIES}/test_projector_families.py::test_a_call_without_a_mask_or_a_cache[llava-clip]",),
        why="Positions that jump are taken for several sequences, and the question does not see the picture.",
    ),
    Mutation(
        file=CUTTER,
        old="changed[name] = cut.of(options[name])",
        new="changed[name] = options[name][:, : cut.order.shape[1]]",
        tests=(f"{FORWARD}[gemma3-one_picture-original]",),
        why="Columns of words see each other in both directions, and those of pictures do not.",
    ),
    Mutation(
        file=CUTTER,
        old="placeholders.after_the_first(cut.of(labels, -100), real)",
        new="placeholders.after_the_first(cut.of(labels, -100), None)",
        tests=(f"{FAMILIES}/test_projector_calls.py::test_labels_of_the_full_prompt[llava-clip]",),
        why="The first token of a row counts in the loss, said by the padding before it.",
    ),
    Mutation(
        file=CUTTER,
        old="tail = record.continued(record.width, after.shape[1])",
        new="tail = record.continued(past, after.shape[1])",
        tests=(f"{FAMILIES}/test_projector_generate.py::test_a_conversation_goes_on[llava-clip]",),
        why="The second question of a conversation is at positions too far away.",
    ),
    Mutation(
        file="ficoco_ext/models/cut_prompt.py",
        old="device=self.next.device) + (past - self.width)",
        new="device=self.next.device)",
        tests=(f"{FAMILIES}/test_projector_generate.py::test_a_loop_of_ones_own[llava-clip]",),
        why="In a loop of one's own, every token has the position of the first answer.",
    ),
    Mutation(
        file=CUTTER,
        old="if cache is not None and not unread and int(cache.get_seq_length()) > 0:",
        new="if False:",
        tests=(f"{FAMILIES}/test_projector_calls.py::test_new_pictures_on_a_cache_are_refused[llava-clip]",),
        why="New pictures on a cache get positions from zero.",
    ),
    Mutation(
        file=CUTTER,
        old="if total != sum(reduced.counts):",
        new="if total > sum(reduced.counts):",
        tests=(f"{FAMILIES}/test_projector_calls.py::test_placeholders_that_do_not_fit_are_refused",),
        why="A prompt with too few placeholders is cut at random, and fails later in words of transformers.",
    ),
]
