"""Faults of what the vision tower looks at: the tap, the numbers, the layer, and the order of the tokens."""

from mutations import Mutation

TESTS = "python_tests/models/test_tower_saliency.py"
USE = "python_tests/models/test_tower_saliency_use.py"
EAGER = f"{TESTS}::test_it_is_what_eager_attention_says"
SAME = f"{TESTS}::test_a_part_of_the_picture_is_the_same_token_in_features_and_numbers"
TAP = "ficoco_ext/models/attention_tap.py"
MEASURE = "ficoco_ext/models/tower_saliency.py"
LAYOUTS = "ficoco_ext/models/tower_layouts.py"
FAMILIES = "ficoco_ext/models/tower_families.py"

MUTATIONS = [
    Mutation(
        file=TAP,
        old="api.attention_name(tap.config)",
        new='"sdpa"',
        tests=(f"{USE}::test_with_kernels_that_take_pictures_in_one_call[llava-siglip]",),
        why="The layer that is measured runs another kernel than the user chose.",
    ),
    Mutation(
        file=TAP,
        old='QueryKey(query, key, kwargs.get("scaling"))',
        new='QueryKey(key, query, kwargs.get("scaling"))',
        tests=(EAGER,),
        why="What a patch gives is taken for what it receives.",
    ),
    Mutation(
        file=MEASURE,
        old="        if not state.running or state.seen is None:\n            return\n",
        new="        assert state.seen is not None\n",
        tests=(f"{USE}::test_a_layer_that_is_computed_again_is_not_measured_again",),
        why="Gradient checkpointing measures a layer twice, and the numbers do not fit the tokens.",
    ),
    Mutation(
        file=MEASURE,
        old="register_forward_hook(self.end, always_call=True)",
        new="register_forward_hook(self.end)",
        tests=(f"{USE}::test_a_call_that_fails_leaves_nothing_to_the_next",),
        why="After an exception a thread keeps what it measured.",
    ),
    Mutation(
        file=MEASURE,
        old="attn.query.detach(), attn.key.detach()",
        new="attn.query, attn.key",
        tests=(f"{USE}::test_it_is_a_constant_of_the_gradient",),
        why="Numbers carry a graph into the selection.",
    ),
    Mutation(
        file=MEASURE,
        old="or [query.shape[2]]",
        new="and [query.shape[2]]",
        tests=(f"{EAGER}[mistral3-column]",),
        why="Pictures of one sequence look at each other, though the tower masks them.",
    ),
    Mutation(
        file=MEASURE,
        old="CLASS if body.class_token == TRAINED else COLUMN",
        new="CLASS if body.class_token is not None else COLUMN",
        tests=(f"{TESTS}::test_which_layer_and_what_is_read",),
        why="InternVL is ranked by a class token that was never used.",
    ),
    Mutation(
        file=MEASURE,
        old="if kind == CLASS and body.class_token is None:",
        new="if kind == CLASS and body.class_token == TRAINED:",
        tests=(f"{USE}::test_refusals", f"{EAGER}[llava-clip-class]"),
        why="A tower without a class token is read as if its first patch were one.",
    ),
    Mutation(
        file=MEASURE,
        old="seen, self._state.here.seen = self._state.here.seen, None",
        new="seen = self._state.here.seen",
        tests=(f"{USE}::test_numbers_are_taken_once",),
        why="Numbers of one picture are given to the next.",
    ),
    Mutation(
        file=MEASURE,
        old="        if len(found) != sum(counts):",
        new="        if len(found) < sum(counts):",
        tests=(f"{USE}::test_it_joins_a_reduction_inside_the_tower",),
        why="Numbers of tokens that a method removed inside the tower are refused in torch's words, not ours.",
    ),
    Mutation(
        file=MEASURE,
        old="left = torch.searchsorted(records[-2].patch_ids.to(found.device).contiguous(), left.contiguous())",
        new="pass",
        tests=(f"{USE}::test_it_joins_a_reduction_inside_the_tower",),
        why="After two reductions inside the tower a token has the number of another.",
    ),
    Mutation(
        file=MEASURE,
        old="if not records or records[-1].patch_ids.shape[1] == found.shape[1]:",
        new="if not records:",
        tests=(f"{USE}::test_it_joins_a_reduction_inside_the_tower",),
        why="Numbers of what is left are looked up as if they were of all patches.",
    ),
    Mutation(
        file=MEASURE,
        old="share.sum(1, keepdim=True).clamp(min=1)",
        new="real.shape[1]",
        tests=(f"{TESTS}::test_padding_of_a_picture_counts_for_nothing",),
        why="A padded picture's patches seem to be looked at less.",
    ),
    Mutation(
        file=MEASURE,
        old="column=True, key_mask=real)[:, 0]",
        new="column=True)[:, 0]",
        tests=(f"{TESTS}::test_padding_of_a_picture_counts_for_nothing",),
        why="Patches that are padding get a share of the attention.",
    ),
    Mutation(
        file=MEASURE,
        old="key = key * real",
        new="key = key * 1",
        tests=(f"{TESTS}::test_padding_of_a_picture_counts_for_nothing",),
        why="Padding moves the mean key.",
    ),
    Mutation(
        file=MEASURE,
        old="(1 + unlike).clamp(min=0)",
        new="unlike.clamp(min=0)",
        tests=(EAGER,),
        why="All patches whose key is like the mean count the same.",
    ),
    Mutation(
        file=MEASURE,
        old="query, key = (one[:, :, int(class_token) :] for one in attn[:2])",
        new="query, key = attn[:2]",
        tests=(f"{EAGER}[llava-clip-keys]",),
        why="The class token's key is taken for a patch's.",
    ),
    Mutation(
        file=MEASURE,
        old="count + 1 + one for one in chosen) - 1",
        new="count + one for one in chosen)",
        tests=(f"{TESTS}::test_the_layer_follows_the_selected_features",),
        why="With a layer counted from the front, the layer after the selected one is measured.",
    ),
    Mutation(
        file=MEASURE,
        old="last = max(",
        new="last = min(",
        tests=(f"{TESTS}::test_the_layer_follows_the_selected_features",),
        why="With features of several layers the first is measured.",
    ),
    Mutation(
        file=MEASURE,
        old="return max(usable)",
        new="return last",
        tests=(f"{TESTS}::test_the_last_layer_with_full_attention_is_read",),
        why="Qwen2.5-VL is measured in a layer of windows.",
    ),
    Mutation(
        file=MEASURE,
        old="if layer <= last]",
        new="if layer <= count]",
        tests=(f"{TESTS}::test_the_layer_follows_the_selected_features", f"{USE}::test_refusals"),
        why="A layer is measured whose output the language model never gets.",
    ),
    Mutation(
        file=LAYOUTS,
        old="units[seen.order.to(units.device).argsort()]",
        new="units[seen.order.to(units.device)]",
        tests=(f"{EAGER}[qwen2.5-vl-column]",),
        why="Qwen2.5-VL's windows are sorted twice instead of back.",
    ),
    Mutation(
        file=LAYOUTS,
        old="units if seen.order is None else",
        new="units if True else",
        tests=(f"{EAGER}[qwen2.5-vl-column]",),
        why="Qwen2.5-VL's numbers stay in the order of windows.",
    ),
    Mutation(
        file=LAYOUTS,
        old="seen.sequence().view(-1, size * size).mean(1)",
        new="seen.sequence().view(size * size, -1).mean(0)",
        tests=(f"{SAME}[qwen2-vl]",),
        why="A token gets the mean of patches from all over the picture.",
    ),
    Mutation(
        file=LAYOUTS,
        old="found.view(len(found), *_square(found), 1)\n",
        new="found.view(len(found), *_square(found), 1).transpose(1, 2)\n",
        tests=(f"{SAME}[internvl]",),
        why="InternVL's rows and columns are exchanged.",
    ),
    Mutation(
        file=LAYOUTS,
        old="found = nn.functional.pad(seen.pictures(), (1, 0)).flatten()",
        new="found = nn.functional.pad(seen.pictures(), (0, 1)).flatten()",
        tests=(f"{TESTS}::test_the_class_token_of_full_features_has_none",),
        why="With strategy 'full' each number belongs to the patch before.",
    ),
    Mutation(
        file=LAYOUTS,
        old='mine["image_newline"] = found.new_zeros(1)',
        new='mine["image_newline"] = found.new_ones(1)',
        tests=(f"{EAGER}[llava-next-class]",),
        why="Line ends are kept before every patch.",
    ),
    Mutation(
        file=LAYOUTS,
        old="sum(counts) > found.numel()",
        new="sum(counts) < found.numel()",
        tests=(f"{EAGER}[llava-onevision-video-column]",),
        why="Videos of LLaVA-OneVision end in an error about a reduction that there is not.",
    ),
    Mutation(
        file=LAYOUTS,
        old="(height // patch, width // patch)",
        new="(width // patch, height // patch)",
        tests=(f"{EAGER}[mistral3-column]",),
        why="Pictures that are not square are cut into blocks along the wrong side.",
    ),
    Mutation(
        file=FAMILIES,
        old="class_token=TRAINED",
        new="class_token=UNUSED",
        tests=(f"{TESTS}::test_which_layer_and_what_is_read",),
        why="LLaVA is not ranked by its class token.",
    ),
    Mutation(
        file=FAMILIES,
        old='"attention",\n    one_sequence=True,',
        new='"attention",\n    one_sequence=False,',
        tests=(f"{EAGER}[llava-pixtral-column]",),
        why="Pictures of one call look at each other.",
    ),
]
