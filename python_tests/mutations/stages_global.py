"""Faults of GlobalCom2: what each crop keeps, how it is asked for, read in the tower and laid out."""

from __future__ import annotations

from mutations import Mutation

SELECT = "ficoco_ext/stages/global_select.py"
METHOD = "ficoco_ext/methods/globalcom2.py"
GROUPS = "ficoco_ext/models/picture_groups.py"
TESTS, MODEL = "python_tests/methods/test_globalcom2.py", "python_tests/families/test_globalcom2.py"
GOLDEN, EVERY = f"{TESTS}::test_golden", f"{TESTS}::test_every_option_is_the_reference"
SHARES = f"{TESTS}::test_shares_are_whole_numbers_with_the_sum"

MUTATIONS = [
    Mutation(SELECT, "(found.sum(1, keepdim=True) + 1e-8)", "found.sum(1, keepdim=True)", (GOLDEN,), "Other ratios."),
    Mutation(SELECT, "- found.mean(1, keepdim=True)))", "))", (GOLDEN,), "Every crop keeps more than the share."),
    Mutation(SELECT, "clamp(max=rows - 1)", "clamp(max=rows)", (GOLDEN, EVERY), "What is left over is in no cell."),
    Mutation(
        SELECT,
        "full = full | (share > sizes)",
        "full = full | (share < 0)",
        (SHARES, EVERY),
        "A crop is asked for more patches than it has.",
    ),
    Mutation(SELECT, "((share - whole) * 1e6).round()", "(share - whole)", (SHARES,), "Rounding decides remainders."),
    Mutation(
        SELECT,
        "remainder.sort(dim=1, descending=True, stable=True)",
        "remainder.flip(1).sort(dim=1, descending=True, stable=True)",
        (SHARES,),
        "What is left over goes to other crops.",
    ),
    Mutation(SELECT, "+ 0.5) * (side", ") * (side", (GOLDEN,), "The thumbnail is shown half a patch away."),
    Mutation(
        SELECT, "values.square(), crops).sqrt()", "values.abs(), crops)", (GOLDEN,), "Lengths are sums of absolutes."
    ),
    Mutation(
        SELECT,
        "each = sizes if self.keep_ratio == 1 else ",
        "each = ",
        (f"{TESTS}::test_a_share_of_one_keeps_everything",),
        "All that is asked for is not kept.",
    ),
    Mutation(
        SELECT,
        "logits.masked_fill(~visual.mask, 0)",
        "logits",
        ("python_tests/methods/test_select_universal.py::test_what_hidden_tokens_and_words_hold_does_not_matter",),
        "What hidden tokens hold decides how many a crop keeps.",
    ),
    Mutation(METHOD, "count = min(tokens, crops.tokens)", "count = tokens", (EVERY,), "More than there are."),
    Mutation(
        METHOD,
        '"released": "floor"',
        '"released": "exact"',
        (f"{TESTS}::test_the_floor_may_keep_fewer",),
        "The released rule is not to be had.",
    ),
    Mutation(
        METHOD,
        "    if count is None or select.data_decides:\n",
        "    if count is None:\n",
        (EVERY,),
        "The floor of a number of tokens is refused.",
    ),
    Mutation(
        "ficoco_ext/resolve.py",
        "if self.keep_ratio is None and not self.method.data_decides:",
        "if self.keep_ratio is None or not self.method.data_decides:",
        (f"{TESTS}::test_the_plan_asks_the_method_how_many_stay", MODEL),
        "The share that is asked for is taken from a rounded number.",
    ),
    Mutation(
        GROUPS,
        "(crops.columns + 1) + crops.patches",
        "crops.columns + crops.patches",
        (f"{MODEL}::test_equals_the_official_packing_of_what_stays",),
        "Line ends are taken for patches.",
    ),
    Mutation(
        GROUPS,
        "found.setdefault(alike._replace(left=left), []).append(number)",
        "found.setdefault(alike._replace(left=counts[0]), []).append(number)",
        (f"{MODEL}::test_pictures_of_different_grids_do_not_meddle",),
        "All pictures keep as many as the first.",
    ),
    Mutation(
        "ficoco_ext/models/tower_layers.py",
        "min(read_layer_of(core, tower, body) + 1,",
        "min(read_layer_of(core, tower, body),",
        (f"{MODEL}::test_the_layer_that_reads_what_is_selected",),
        "Logits are those of the layer that makes the features.",
    ),
    Mutation(
        "ficoco_ext/models/tower_saliency.py",
        "(attn.logit_scale / heads)",
        "attn.logit_scale",
        (f"{MODEL}::test_keeps_what_the_scores_of_eager_layers_say",),
        "Sums over heads sharpen the shares of crops.",
    ),
    Mutation(
        "ficoco_ext/models/model_checks.py",
        "tower is None or not tower.class_token",
        "tower is None",
        (f"{MODEL}::test_models_that_are_refused",),
        "A tower without a class token is refused by its first call alone.",
    ),
    Mutation(
        "ficoco_ext/models/layouts.py",
        "(known.before, known.line_ends) == (count, ends)",
        "known.before > 0",
        (f"{MODEL}::test_pictures_that_are_refused",),
        "Patches are taken for others where a model packs otherwise.",
    ),
]
