"""Faults of what is done in a language model's sequence: ``ficoco_ext/ops/sequence.py`` and ``reduce_sequence``."""

from __future__ import annotations

from mutations import Mutation

SEQUENCE = "ficoco_ext/ops/sequence.py"
FILE = "ficoco_ext/ops/_reduce_sequence.py"
TESTS = "python_tests/ops/test_reduce_sequence.py"
BITS = f"{TESTS}::test_on_the_cpu_it_is_its_operators"
SETTINGS = f"{TESTS}::test_settings"
NO_TEXT = f"{TESTS}::test_no_text"
STAGED = "python_tests/reduce/test_sequence.py::test_stages_in_turn_give_what_the_operator_gives"

MUTATIONS = [
    Mutation(
        SEQUENCE,
        "chosen = columns > visual[:, -1:]",
        "chosen = columns >= visual[:, -1:]",
        (SETTINGS,),
        "The last visual token counts as text.",
    ),
    Mutation(
        SEQUENCE,
        "        chosen = chosen & real[:, tokens - count :]\n",
        "        pass\n",
        (BITS,),
        "Padding counts as text, so an answer depends on the longest prompt of its batch.",
    ),
    Mutation(
        SEQUENCE,
        "torch.where(chosen, columns, visual[:, -1:])",
        "columns.expand(len(visual), -1)",
        ("python_tests/decoder/test_text_limits.py::test_padding_may_be_nan",),
        "NaN in the padding of one prompt stops a whole batch.",
    ),
    Mutation(
        SEQUENCE,
        "return (columns * real).amax(1, keepdim=True)",
        "return columns[-1:].expand(visual.shape[0], 1)",
        (BITS,),
        "FastV asks a padding token what it attends to.",
    ),
    Mutation(
        SEQUENCE,
        '.clamp(min=1) if reduce == "mean"',
        ' if reduce == "mean"',
        (NO_TEXT,),
        "A prompt that ends with its picture gives NaN.",
    ),
    Mutation(
        SEQUENCE,
        "torch.where(text.chosen.any(1, keepdim=True), with_text, -among)",
        "torch.where(text.chosen.any(1, keepdim=True), with_text, 0)",
        (NO_TEXT,),
        "Without text and with beta = 0 all visual tokens are equally redundant.",
    ),
    Mutation(
        SEQUENCE,
        'weights[:, 0, :n] = 1 / n if visual_reduce == "mean" else 1',
        'weights[:, 0, :n] = 1 / n if text_reduce == "mean" else 1',
        (SETTINGS,),
        "The choice of sum or mean for visual tokens follows that for the text.",
    ),
    Mutation(
        SEQUENCE,
        "        column=probs,\n        causal=computed,",
        "        column=False,\n        causal=computed,",
        (BITS,),
        "With probabilities the filter asks what visual tokens give to later text, which is nothing.",
    ),
    Mutation(
        SEQUENCE,
        "token_attention(attn, visual, last, ones, **how, key_mask=real)",
        "token_attention(attn, visual, last, ones, **how, key_mask=None)",
        (BITS,),
        "FastV's last token attends to padding.",
    ),
    Mutation(
        FILE,
        "if not 0 <= r < count:",
        "if not 0 <= r <= count:",
        (f"{TESTS}::test_bad_argument",),
        "A picture can lose all of its tokens, and nothing is left to inherit them.",
    ),
    Mutation(
        FILE,
        "            beta, penalty = 0.0, 1.0\n",
        "            beta = 0.0\n",
        ("python_tests/ops/test_torch.py", "python_tests/ops/test_limits.py"),
        "FastV asks for a grid that it does not use.",
    ),
    Mutation(
        FILE,
        "return (grad, *[None] * (ctx.inputs - 1))",
        "return (grad * 2, *[None] * (ctx.inputs - 1))",
        (f"{TESTS}::test_gradients_are_those_of_the_operators_in_turn",),
        "Training a reduced model follows wrong gradients.",
    ),
    Mutation(
        FILE,
        "ctx.mark_non_differentiable(*output[1:])",
        "ctx.mark_non_differentiable(*output[2:])",
        (f"{TESTS}::test_gradients_are_those_of_the_operators_in_turn",),
        "Sizes claim to have a gradient.",
    ),
]
