"""Faults of the operators of the decoder, and of what all share: checks, prices, loading. ``ficoco_ext/ops``."""

from mutations import Mutation

OPS = "python_tests/ops"
SPEC = f"{OPS}/test_spec.py"
FAKE = f"{OPS}/test_torch.py::test_fake_shapes"
BAD = f"{OPS}/test_errors.py::test_bad_argument"
DECLARED = "python_tests/methods/test_declarations.py"
TOKENS, ATTENTION = "ficoco_ext/ops/_correlate_tokens.py", "ficoco_ext/ops/_token_attention.py"
CHECKS, COSTS = "ficoco_ext/ops/checks.py", "ficoco_ext/ops/costs.py"

MUTATIONS = [
    Mutation(
        file=TOKENS,
        old="scores = gamma * attention_block",
        new="scores = attention_block",
        tests=(f"{OPS}/test_correlate_tokens.py::test_the_formula",),
        why="Direct attention always counts in full, whatever gamma says.",
    ),
    Mutation(
        file=TOKENS,
        old="way, onward = ends[..., : sources.shape[1]].mT, ends[..., sources.shape[1] :]",
        new="way, onward = ends[..., -sources.shape[1] :].mT, ends[..., : candidates.shape[1]]",
        tests=(f"{OPS}/test_correlate_tokens.py",),
        why="By way of the text, sources and candidates are exchanged.",
    ),
    Mutation(
        file=TOKENS,
        old="    return best_targets(scores, k, alpha, 0)",
        new="    return best_targets(scores, k, alpha, 1)",
        tests=(f"{OPS}/test_correlate_tokens.py::test_the_formula",),
        why="Every source in a language model goes to the neighbour of its target.",
    ),
    Mutation(
        file=TOKENS,
        old="    if not 0 <= gamma <= 1:",
        new="    if not gamma <= 1:",
        tests=(f"{OPS}/test_correlate_tokens.py::test_bad_argument",),
        why="A negative gamma is taken, and correlations change their sign.",
    ),
    Mutation(
        file="ficoco_ext/ops/_correlate_tokens.py",
        old="way = attention_block(query, key, sources, others, *how)",
        new="way = attention_block(query, key, others, sources, *how).mT",
        tests=("python_tests/ops/test_correlate_tokens.py::test_the_formula",),
        why="By way of the text, rows and columns are exchanged.",
    ),
    Mutation(
        file=ATTENTION,
        old="<= query_token.unsqueeze(-1)",
        new="< query_token.unsqueeze(-1)",
        tests=(f"{OPS}/test_token_attention.py::test_counts",),
        why="Under the causal mask a token does not see itself, so all probabilities are wrong.",
    ),
    Mutation(
        file=ATTENTION,
        old=".softmax(-1).masked_fill(~allowed, 0)",
        new=".softmax(-1)",
        tests=(f"{OPS}/test_token_attention.py::test_a_query_that_may_attend_to_nobody_gives_nothing",),
        why="A query of a padded row gives NaN to the scores of the whole row.",
    ),
    Mutation(
        file=ATTENTION,
        old="row_tokens - (key.shape[2] - query.shape[2])",
        new="row_tokens",
        tests=(f"{OPS}/test_token_attention.py::test_behind_a_cached_prefix",),
        why="After a cached prefix the queries of other tokens are read.",
    ),
    Mutation(
        file=ATTENTION,
        old="key[:, head * key.shape[1] // h]",
        new="key[:, head % key.shape[1]]",
        tests=(f"{OPS}/test_token_attention.py::test_layouts_and_grouped_heads",),
        why="With grouped heads a query meets the keys of another group.",
    ),
    Mutation(
        file="ficoco_ext/ops/_token_attention.py",
        old="dtype=result_dtype(query))",
        new="dtype=query.dtype)",
        tests=("python_tests/ops/test_torch.py::test_fake_shapes",),
        why="A compiled language model in half precision is traced with scores of another type.",
    ),
    Mutation(
        file="ficoco_ext/ops/attention.py",
        old="        logits = q @ accumulate(key[:, head * key.shape[1] // h]).mT * scale",
        new="        logits = q @ accumulate(key[:, head % key.shape[1]]).mT * scale",
        tests=(f"{OPS}/test_correlate.py::test_layouts", f"{SPEC}::test_attention_rows"),
        why="With grouped heads sources go where another group's keys say.",
    ),
    Mutation(
        file="ficoco_ext/ops/attention.py",
        old="self.query.shape[-1] ** -0.5 if self.scale is None",
        new="self.query.shape[-1] ** -0.5 if not self.scale",
        tests=(
            f"{OPS}/test_token_attention.py::test_scale",
            "python_tests/reduce/test_reduce.py::test_scale_of_query_key",
        ),
        why="A scale of 0, which makes all attention equal, is replaced by the default.",
    ),
    Mutation(
        file="ficoco_ext/ops/attention.py",
        old="accumulate(key).mean(1), dim=-1, eps=TINY",
        new="accumulate(key)[:, 0], dim=-1, eps=TINY",
        tests=(f"{OPS}/test_match.py::test_sizes", f"{SPEC}::test_correlate_by_key"),
        why="Tokens are compared by their first head alone.",
    ),
    Mutation(
        file="ficoco_ext/ops/_to_sequence.py",
        old="left = ((~leaves).cumsum(1) - 1).gather(1, visual.gather(1, kept))",
        new="left = (~leaves).cumsum(1).gather(1, visual.gather(1, kept))",
        tests=(f"{OPS}/test_to_sequence.py::test_sizes",),
        why="In a language model everything is merged one token too late.",
    ),
    Mutation(
        file="ficoco_ext/ops/_to_sequence.py",
        old="and (visual.diff(dim=1) > 0).all()",
        new="and (visual.diff(dim=1) >= 0).all()",
        tests=(f"{OPS}/test_to_sequence.py::test_lists_that_do_not_ascend_or_share_a_place",),
        why="A position that is named twice passes, and a token is lost.",
    ),
    Mutation(
        file="ficoco_ext/ops/_to_sequence.py",
        old="    positions = visual.new_empty(b, tokens - r)",
        new="    positions = visual.new_empty(b, tokens)",
        tests=(FAKE, f"{OPS}/test_to_sequence.py::test_compile"),
        why="A compiled language model is traced with a sequence that never gets shorter.",
    ),
    Mutation(
        file="ficoco_ext/ops/_to_sequence.py",
        old="if tokens < n:",
        new="if tokens <= 0:",
        tests=("python_tests/ops/test_to_sequence.py::test_bad_argument",),
        why="A sequence shorter than its visual tokens is taken.",
    ),
    Mutation(
        file="ficoco_ext/ops/library.py",
        old="    if tensor.dtype == torch.float64:\n        return _SPECIFICATIONS[name]\n",
        new="",
        tests=(f"{OPS}/test_torch.py::test_float64_goes_to_the_specification",),
        why="Float64 is computed in float32.",
    ),
    Mutation(
        file="ficoco_ext/ops/backend.py",
        old="if asked and asked not in known:",
        new="if asked and asked in known:",
        tests=("python_tests/packaging/test_info.py::test_an_unknown_instruction_set_is_refused",),
        why="A misspelt FICOCO_CPU_SIMD is ignored, and a right one refused.",
    ),
    Mutation(
        file="ficoco_ext/ops/backend.py",
        old='built = others[0].name.split(".")[0].removeprefix("_C_torch").replace("_", ".")',
        new="built = torch.__version__",
        tests=("python_tests/packaging/test_info.py::test_a_build_for_another_torch_is_not_loaded",),
        why="Whoever upgraded torch reads that the kernels were built for the torch that is there.",
    ),
    Mutation(
        file=CHECKS,
        old="(cached and key.shape[2] > n)",
        new="key.shape[2] > n",
        tests=(BAD,),
        why="Query and key of different layers pass in a tower.",
    ),
    Mutation(
        file=CHECKS,
        old="and h % key.shape[1] == 0",
        new="",
        tests=(BAD,),
        why="Heads that do not divide are computed with the wrong keys.",
    ),
    Mutation(
        file=CHECKS,
        old="largest = max((tokens - class_token - distill_token) // 2, 0)",
        new="largest = max((tokens - class_token) // 2, 0)",
        tests=(f"{OPS}/test_match.py::test_largest_r",),
        why="With a distillation token one pair too many is asked for.",
    ),
    Mutation(
        file=CHECKS,
        old="if tensor is not None and tensor.device != reference.device:",
        new="if tensor is not None and tensor.device.type != reference.device.type:",
        tests=(f"{OPS}/test_errors.py::test_another_gpu_is_another_device",),
        why="Tensors on two GPUs are not told apart.",
    ),
    Mutation(
        file="ficoco_ext/ops/checks.py",
        old="kind = TypeError if tensor.dtype != torch.int64 else ValueError",
        new="kind = ValueError",
        tests=("python_tests/ops/test_errors.py::test_bad_argument",),
        why="A wrong dtype is reported as a wrong value.",
    ),
    Mutation(
        file="ficoco_ext/ops/checks.py",
        old="if not 0 <= k <= candidates:",
        new="if not 0 <= k:",
        tests=("python_tests/ops/test_errors.py::test_the_largest_r_and_k_are_named",),
        why="More targets than survivors are asked for.",
    ),
    Mutation(
        file="ficoco_ext/ops/checks.py",
        old="    if tokens <= int(class_token):",
        new="    if tokens < int(class_token):",
        tests=("python_tests/ops/test_errors.py::test_bad_argument",),
        why="A picture without patches gives means of nothing.",
    ),
    Mutation(
        file=COSTS,
        old='"probs": Operation("attention_stats", "2*b*n*n*a*d"',
        new='"probs": Operation("attention_stats", "2*b*n*a*d"',
        tests=(DECLARED,),
        why="Probabilities look as cheap as logits.",
    ),
    Mutation(
        file=COSTS,
        old='{"z": max((tokens + 1) // 2 - class_token, 0), "o"',
        new='{"z": max(tokens // 2 - class_token, 0), "o"',
        tests=("python_tests/ops/test_match.py::test_flops",),
        why="Matching of an odd number of tokens looks cheaper than it is.",
    ),
    Mutation(
        file=COSTS,
        old='COMPRESS = Operation("compress", "2*b*r*g*h", loads="b*l*h", stores="b*(l-r)*h")',
        new='COMPRESS = Operation("compress", "2*b*r*g*h", loads="b*l*h", stores="b*l*h")',
        tests=(DECLARED,),
        why="A reduction is billed for writing tokens that are gone.",
    ),
    Mutation(
        file="ficoco_ext/ops/costs.py",
        old='"logits": Operation("token_attention", "2*b*a*d*j*(u+o)"',
        new='"logits": Operation("token_attention", "2*b*a*d*j*u"',
        tests=("python_tests/cost/test_model.py::test_one_reduction_of_the_language_model_by_hand",),
        why="The text looks free in a language model's filter.",
    ),
]
