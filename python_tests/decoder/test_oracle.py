"""A reduced language model against one of full length in which dropped columns are hidden, targets merged by hand."""

import pytest
import torch
from helpers.decoder import generated, tiny, worst_error
from helpers.models import (
    batch,
    image,
    one_thread,  # noqa: F401
    with_unlike_norms,
    words,
)

import ficoco_ext
from ficoco_ext import get_method

pytest.importorskip("transformers")

STEPS = 9  # the prefill's logits and those of 8 decoding steps
ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
LAST = [*words(1, 2, 3), *image()]  # nothing after the picture
TEXT = words(11, 12, 13, 14)
L = {"method": "ficoco-l"}
DART = get_method("dart", part="language_model")
MUSTDROP = {"method": "mustdrop", "part": "language_model", "cache": "staircase"}
CASES = {
    "one row": ([ONE], L | {"r": 10}),
    "equal rows": ([ONE, ONE], L | {"keep_ratio": 0.25}),
    "left padding, several images": ([ONE, TWO], L | {"keep_ratio": 0.3, "layers": (0, 1, 2)}),
    "text-only row": ([TWO, ONE, TEXT], L | {"r": 12}),
    "more than a row has": ([ONE, TWO], L | {"r": (30, 20, 20), "layers": (1, 2, 3)}),
    "nothing after the picture": ([LAST, ONE], L | {"r": 8}),
    "layer 0": ([ONE, TWO], L | {"tokens": 9, "layers": (0,)}),
    "last layer": ([ONE, TWO], L | {"tokens": 9, "layers": (3,)}),
    "logits": ([ONE, TWO], L | {"r": 9, "variant": "released"}),
    "logits, text-only row": ([TWO, ONE, TEXT], L | {"r": 12, "variant": "released"}),
    "logits, nothing after the picture": ([LAST, ONE], L | {"r": 8, "variant": "released"}),
    "correlation by logits": ([ONE, TWO], L | {"r": 9, "correlation_attention": "logits"}),
    "several targets": ([ONE], L | {"r": 9, "targets": 3}),
    "before attention": ([ONE, TWO], L | {"r": 9, "before_attention": True}),
    "pruning": ([ONE, TWO], L | {"r": 9, "targets": 0}),
    "penalty": ([ONE, TWO], L | {"r": 9, "penalty": 3.0}),
    "fastv": ([ONE, TWO, TEXT], {"method": "fastv"}),
    "pyramiddrop": ([ONE, TWO, TEXT], {"method": "pyramiddrop"}),
    "sparsevlm": ([ONE, TWO, TEXT], {"method": "sparsevlm"}),
    "sparsevlm, several clusters": ([TWO, ONE], {"method": "sparsevlm", "r": 17, "layers": (1, 2)}),
    "sparsevlm, nothing after the picture": ([LAST, ONE], {"method": "sparsevlm", "tokens": 9}),
    "sparsevlm 2.0": ([ONE, TWO], {"method": "sparsevlm", "version": "2.0", "average_tokens": 64}),
    "fitprune": ([ONE, TWO, TEXT], {"method": "fitprune", "r": (9, 3, 12, 5)}),
    "fitprune, nothing after the picture": ([LAST, ONE], {"method": "fitprune", "r": 8}),
    "dart": ([ONE, TWO, TEXT], {"method": DART, "tokens": 14}),
    "dart, nothing after the picture": ([LAST, ONE], {"method": DART, "tokens": 14}),
    "mustdrop": ([ONE, TWO, TEXT], MUSTDROP | {"keep_ratio": (0.6, 0.3, 0.1)}),
    "mustdrop, nothing after the picture": ([LAST, ONE], MUSTDROP | {"tokens": 9}),
    "mustdrop, both parts": ([ONE, TWO], MUSTDROP | {"part": "both", "keep_ratio": 0.4}),
    "static counts": ([ONE, ONE], L | {"r": 9, "static_counts": True}),
    "static counts, padding": ([ONE, [*words(1, 2, 3), *ONE]], L | {"r": 9, "static_counts": True}),
    "both sides": ([ONE, TWO], {"method": "ficoco-vl", "keep_ratio": 0.3}),
}


def equal_length(short, long):
    """``short`` with words in front, so that rows of unequal numbers of pictures need no padding."""
    return [*words(*([1] * (len(long) - len(short)))), *short]


CASES["no mask, unequal images"] = ([equal_length(ONE, TWO), TWO], L | {"r": 25, "layers": (1, 2)})


def run(model, rows, options, **generation):
    """A generation with reduction: what was seen, every row's reductions, the plan."""
    inputs = batch(*rows)
    with torch.no_grad(), ficoco_ext.attach(model, **options) as handle:
        seen = generated(model, inputs, STEPS, **generation)
        return seen, handle.decoder_reductions, handle.plan


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("kind", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("mistral", "sdpa"), ("qwen2", "sdpa")]
)
def test_generation_equals_the_language_model_by_hand(case, kind, attention):
    rows, options = CASES[case]
    model = tiny(kind, attention, seed=4)
    seen, reductions, plan = run(model, rows, options)
    new = seen.sequences[:, -STEPS:]
    with torch.no_grad():
        check = {"new_ids": new, "steps": STEPS}
        assert worst_error(model, seen, reductions, plan, **check) <= 2e-5
        # The test must be able to fail: dropping matters, and so does merging where there is any. What the last layer
        # drops, nobody would have read.
        if plan.layers == (len(model.model.language_model.layers) - 1,):
            return
        assert worst_error(model, seen, reductions, plan, dropping=False, **check) > 1e-2
        if any(step.targets.shape[-1] for row in reductions for step in row):
            assert worst_error(model, seen, reductions, plan, merging=False, **check) > 1e-2


def test_grouped_and_ungrouped_keys():
    for kv_heads in (1, 4):
        model = tiny(seed=5, kv_heads=kv_heads)
        seen, reductions, plan = run(model, [ONE, TWO], L | {"r": 10})
        with torch.no_grad():
            assert worst_error(model, seen, reductions, plan, STEPS, new_ids=seen.sequences[:, -STEPS:]) <= 2e-5


def test_static_cache_equals_dynamic():
    model = tiny(seed=6)
    for rows in ([ONE, ONE], [ONE, TWO], [TWO, TEXT]):
        dynamic, _, _ = run(model, rows, L | {"r": 10})
        static, reductions, _ = run(model, rows, L | {"r": 10}, cache_implementation="static", disable_compile=True)
        assert torch.equal(dynamic.sequences, static.sequences)
        for a, b in zip(dynamic.logits, static.logits, strict=True):
            assert (a - b).abs().max() <= 2e-5
        assert [len(row) for row in reductions] == [3 if row is not TEXT else 0 for row in rows]


@pytest.mark.parametrize("options", [L | {"r": 9}, L | {"r": 9, "before_attention": True}], ids=["after", "before"])
def test_layers_whose_norms_differ(options):
    """Norms of a new model are alike, so that a layer that takes another's would not be noticed."""
    model = with_unlike_norms(tiny(seed=4))
    seen, reductions, plan = run(model, [ONE, TWO], options)
    with torch.no_grad():
        assert worst_error(model, seen, reductions, plan, STEPS, new_ids=seen.sequences[:, -STEPS:]) <= 2e-5
