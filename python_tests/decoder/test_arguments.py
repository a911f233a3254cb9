"""Bad input for the arguments of ficoco_ext.reduce that methods inside a language model have."""

import re

import pytest
import torch
from helpers.scores import HK, LENGTH, VISUAL, B, N, sequence

from ficoco_ext import QueryKey, get_method, reduce
from ficoco_ext.methods import Combined, DecoderMethod

TOKENS, ATTN = sequence()
FLAGS = torch.zeros(B, N, dtype=torch.bool)
FLAGS[:, 9:34] = True
UNEVEN = FLAGS.clone()
UNEVEN[0, 0] = True
METHODS = ("ficoco-l", "fastv", "pyramiddrop")
PREVIOUS = reduce(TOKENS, ATTN, 0, method="fastv", visual=VISUAL, return_reduction=True)
ONE = reduce(
    TOKENS[:1], QueryKey(ATTN.query[:1], ATTN.key[:1]), 0, method="fastv", visual=VISUAL, return_reduction=True
)
TOWER = reduce(TOKENS, ATTN, 0, method="topk", grid=(7, 7), return_reduction=True)

CASES = {
    "visual": [
        ({"visual": None}, ValueError),
        ({"visual": 9}, ValueError),
        ({"visual": (9,)}, ValueError),
        ({"visual": (9, 5, 1)}, ValueError),
        ({"visual": (9.0, 5)}, ValueError),
        ({"visual": (True, 5)}, ValueError),
        ({"visual": (-1, 5)}, ValueError),
        ({"visual": (9, 0)}, ValueError),
        ({"visual": (9, N - 8)}, ValueError),
        ({"visual": "all"}, ValueError),
        ({"visual": FLAGS.long()}, TypeError),
        ({"visual": FLAGS[:1]}, TypeError),
        ({"visual": FLAGS[:, 1:]}, TypeError),
        ({"visual": FLAGS[0]}, TypeError),
        ({"visual": torch.zeros_like(FLAGS)}, ValueError),
        ({"visual": UNEVEN}, ValueError),
        ({"visual": FLAGS.to("meta")}, ValueError),
    ],
    "mask": [
        ({"mask": FLAGS.long()}, TypeError),
        ({"mask": FLAGS[:1]}, TypeError),
        ({"mask": FLAGS[:, 1:]}, TypeError),
        ({"mask": [[True] * N] * B}, TypeError),
        ({"mask": FLAGS[:, None, None]}, TypeError),
        ({"mask": FLAGS.to("meta")}, ValueError),
    ],
    "class_token": [
        ({"class_token": True}, ValueError),
        ({"class_token": 1}, TypeError),
        ({"class_token": 0}, TypeError),
        ({"class_token": "no"}, TypeError),
    ],
    "r": [
        ({"r": -1}, ValueError),
        ({"r": LENGTH}, ValueError),
        ({"r": N}, ValueError),
        ({"r": True}, TypeError),
        ({"r": 4.0}, TypeError),
        ({"r": None}, TypeError),
        ({"r": torch.tensor(4)}, TypeError),
    ],
    "grid": [
        ({"grid": 5}, ValueError),
        ({"grid": (25,)}, ValueError),
        ({"grid": (5.0, 5.0)}, ValueError),
        ({"grid": (-5, -5)}, ValueError),
        ({"grid": (5, 4)}, ValueError),
        ({"grid": (5, 5), "previous": PREVIOUS}, ValueError),
    ],
    "tokens": [
        ({"tokens": TOKENS[0]}, ValueError),
        ({"tokens": TOKENS.long()}, TypeError),
        ({"tokens": None}, TypeError),
    ],
    "attn": [
        ({"attn": None}, TypeError),
        ({"attn": torch.rand(B, N - 1, N - 1)}, ValueError),
        ({"attn": torch.rand(B, 3, N, N).to("meta")}, ValueError),
    ],
    "query": [({"attn": QueryKey(ATTN.query[:, :, 1:], ATTN.key[:, :, 1:])}, ValueError)],
    "key": [({"attn": QueryKey(ATTN.query, ATTN.key[:, [0] * (HK + 1)])}, ValueError)],
    "size": [({"size": torch.ones(B, N)}, ValueError), ({"size": 1.0}, TypeError)],
    "previous": [
        ({"previous": TOKENS}, TypeError),
        ({"previous": ONE}, ValueError),
        ({"previous": TOWER}, ValueError),
    ],
}


@pytest.mark.parametrize(
    ("argument", "case"),
    [pytest.param(name, case, id=f"{name}-{i}") for name in CASES for i, case in enumerate(CASES[name])],
)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("r", [8, 0])
def test_bad_argument(argument, case, method, r):
    """Also with r = 0, which computes nothing."""
    wrong, kind = case
    with pytest.raises(kind, match=rf"ficoco::reduce: [^:]*\b{argument}\b.* must be .*, got .*; .+"):
        reduce(**({"tokens": TOKENS, "attn": ATTN, "r": r, "method": method, "visual": VISUAL} | wrong))


def test_the_good_calls_are_good():
    for options in ({}, {"mask": FLAGS | True}, {"previous": PREVIOUS}, {"class_token": False}, {"grid": (5, 5)}):
        for method in METHODS:
            reduce(TOKENS, ATTN, LENGTH - 1, method=method, visual=VISUAL, **options)


def test_the_largest_r_is_named():
    message = re.escape(f"r must be in [0, 24] for 25 visual tokens, got 25 (int); the largest legal r is {LENGTH - 1}")
    with pytest.raises(ValueError, match=message):
        reduce(TOKENS, ATTN, LENGTH, method="fastv", visual=VISUAL)
    with pytest.raises(ValueError, match=r"the largest legal r is 0"):
        reduce(TOKENS, ATTN, 1, method="fastv", visual=(3, 1))


def test_rows_with_unequal_numbers_are_told():
    with pytest.raises(ValueError, match="equally many in every row, at least 1, got rows with 25, 26 visual tokens"):
        reduce(TOKENS, ATTN, 3, method="fastv", visual=UNEVEN)


@pytest.mark.parametrize("method", ["ficoco-v", "topk", "tome"])
def test_arguments_of_the_other_side_are_refused(method):
    for name, value in (("visual", VISUAL), ("mask", FLAGS)):
        with pytest.raises(ValueError, match=rf"reduce: {name} must be None with method '{method}', got"):
            reduce(TOKENS, ATTN, 3, method=method, **{name: value})


def test_two_methods_at_once_are_refused():
    both = Combined.of(get_method("topk"), get_method("fastv"))
    for method in ("ficoco-vl", both):
        with pytest.raises(ValueError, match=r"reduce: method must be one reduction, got .* \+ .*; reduce with its"):
            reduce(TOKENS, ATTN, 3, method=method, visual=VISUAL)


def test_penalty_needs_the_grid():
    message = r"local penalty needs the visual tokens' grid; pass grid=\(height, width\), or penalty=1"
    with pytest.raises(ValueError, match=message):
        reduce(TOKENS, ATTN, 3, method="ficoco-l", visual=VISUAL, penalty=2.0)


HYPERPARAMETERS = {
    "variant": ("original", None, 1),
    "beta": (-0.1, 1.1, float("nan"), "0.5", True),
    "gamma": (-0.1, 1.1, float("nan"), "0.5", None),
    "eps": (-0.1, 1.1, float("nan"), "0.5", None),
    "alpha": ("mean", 1, ""),
    "targets": (-1, 1.5, "all", True, None),
    "attention": ("softmax", 1),
    "correlation_attention": ("softmax", 1, ""),
    "direct": (0, "no", None),
    "indirect": (1, "no", None),
    "text_relevance": (0, "no", None),
    "visual_redundancy": (0, "no", None),
    "visual_reduce": ("max", None, 1),
    "text_reduce": ("max", None, 1),
    "indirect_reduce": ("max", None, 1),
    "penalty": (0.5, 0, -2, float("inf"), float("nan"), "2"),
    "window": (0, -1, 2.0, True, "2"),
    "before_attention": (0, "no", None),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in HYPERPARAMETERS.items() for value in values], ids=str
)
def test_bad_hyperparameter(name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b must be .*got {re.escape(repr(value))}"):
        reduce(TOKENS, ATTN, 8, method="ficoco-l", visual=VISUAL, **{name: value})


def test_every_hyperparameter_has_a_case():
    from ficoco_ext.methods import hyperparameters

    assert set(HYPERPARAMETERS) == set(hyperparameters("ficoco-l"))
    assert hyperparameters("fastv") == {"layer": 2} and hyperparameters("pyramiddrop") == {}
    assert set(hyperparameters("ficoco-vl")) == set(hyperparameters("ficoco-l")) | set(hyperparameters("ficoco-v"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "released", "alpha": "ratio"}, "alpha='ratio'.*correlation_attention='probs', or alpha='softmax'"),
        ({"correlation_attention": "logits", "alpha": "ratio"}, "alpha='ratio'.*correlation_attention='probs'"),
        ({"direct": False, "indirect": False}, "direct and indirect are both False; nothing is left to correlate by"),
        ({"text_relevance": False, "visual_redundancy": False}, "both False; nothing is left to filter by"),
    ],
)
def test_values_that_do_not_fit_together(options, message):
    with pytest.raises(ValueError, match=message):
        get_method("ficoco-l", **options)


@pytest.mark.parametrize("layer", [0, -1, 2.0, True, "2", None])
def test_fastv_has_a_layer_behind_the_first(layer):
    with pytest.raises(ValueError, match=r"fastv: layer must be an integer >= 1, got .*; block 0 needs all tokens"):
        get_method("fastv", layer=layer)


def test_hyperparameters_that_nobody_has():
    for method in ("ficoco-l", "fastv", "pyramiddrop", "ficoco-vl"):
        with pytest.raises(TypeError, match=f"method '{method}' has no hyperparameter 'strength'"):
            get_method(method, strength=1)
    with pytest.raises(TypeError, match="beta can be given with a method's name, not with a Method"):
        get_method(get_method("ficoco-l"), beta=0.5)


def test_hyperparameters_of_ficoco_vl_reach_their_sides():
    both = get_method("ficoco-vl", lam=0.2, beta=0.3, eps=0.9)
    assert both == Combined.of(get_method("ficoco-v", lam=0.2, eps=0.9), get_method("ficoco-l", beta=0.3, eps=0.9))
    assert both.name == "ficoco-v + ficoco-l" and isinstance(both.language_method, DecoderMethod)


def test_targets_are_capped_by_what_is_kept():
    """Prompts differ in their pictures; the same method serves them all."""
    result = reduce(TOKENS, ATTN, 22, method="ficoco-l", targets=7, visual=VISUAL, return_reduction=True)
    assert result.targets.shape == (B, 22, 3)
    assert torch.allclose(result.weights.sum(-1), torch.ones(B, 22))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_attention_that_is_not_finite(value):
    query = ATTN.query.clone()
    query[1, 2, 20, 4] = value
    with pytest.raises(ValueError, match=r"ficoco::filter: .* must be finite"):
        reduce(TOKENS, QueryKey(query, ATTN.key), 8, method="ficoco-l", visual=VISUAL)


def test_ratio_of_a_map_with_negatives():
    """The map is said to hold probabilities, but does not."""
    with pytest.raises(ValueError, match="ficoco::correlate: attn must be non-negative"):
        reduce(TOKENS, -torch.rand(B, 3, N, N), 8, method="ficoco-l", variant="paper", gamma=1.0, visual=VISUAL)
