"""Bad input for every argument of ficoco_ext.reduce: the message names the argument and what to do."""

import re

import pytest
import torch
from helpers.reductions import C, N, P, inputs, record

from ficoco_ext import METHODS, Method, QueryKey, get_method, reduce

TOKENS, ATTN = inputs()
MAP = torch.rand(2, 3, N, N)
PREVIOUS = record(*inputs(n=N + 6), 6, grid=(10, 7))  # N survivors

CASES = {
    "tokens": [
        ({"tokens": [[1.0]]}, TypeError),
        ({"tokens": TOKENS[0]}, ValueError),
        ({"tokens": TOKENS[None]}, ValueError),
        ({"tokens": TOKENS.long()}, TypeError),
        ({"tokens": TOKENS > 0}, TypeError),
        ({"tokens": TOKENS.to(torch.complex64)}, TypeError),
        ({"tokens": TOKENS[:, :0]}, ValueError),
    ],
    "attn": [
        ({"attn": None}, TypeError),
        ({"attn": (ATTN.query, ATTN.key)}, TypeError),
        ({"attn": MAP[0, 0]}, ValueError),
        ({"attn": MAP.long()}, TypeError),
        ({"attn": MAP[..., :-1]}, ValueError),
        ({"attn": MAP[:1]}, ValueError),
        ({"attn": MAP[..., 1:, 1:]}, ValueError),
        ({"attn": MAP[:, :0]}, ValueError),
        ({"attn": MAP.to("meta")}, ValueError),
    ],
    "query": [
        ({"attn": QueryKey(ATTN.query[0], ATTN.key)}, ValueError),
        ({"attn": QueryKey(ATTN.query.long(), ATTN.key)}, TypeError),
        ({"attn": QueryKey(ATTN.query[:1], ATTN.key[:1])}, ValueError),
        ({"attn": QueryKey(ATTN.query[:, :, 1:], ATTN.key[:, :, 1:])}, ValueError),
        ({"attn": QueryKey(ATTN.query.to("meta"), ATTN.key.to("meta"))}, ValueError),
    ],
    "key": [
        ({"attn": QueryKey(ATTN.query, ATTN.key[0])}, ValueError),
        ({"attn": QueryKey(ATTN.query, ATTN.key.long())}, TypeError),
        ({"attn": QueryKey(ATTN.query, ATTN.key.half())}, TypeError),
        ({"attn": QueryKey(ATTN.query, ATTN.key[:, :3])}, ValueError),
        ({"attn": QueryKey(ATTN.query, ATTN.key[:, :, 1:])}, ValueError),
        ({"attn": QueryKey(ATTN.query, ATTN.key[..., 1:])}, ValueError),
        ({"attn": QueryKey(ATTN.query, ATTN.key.to("meta"))}, ValueError),
        ({"attn": QueryKey(ATTN.query[:, :0], ATTN.key[:, :0])}, ValueError),
    ],
    "r": [
        ({"r": -1}, ValueError),
        ({"r": P}, ValueError),
        ({"r": 10**9}, ValueError),
        ({"r": True}, TypeError),
        ({"r": 4.0}, TypeError),
        ({"r": "4"}, TypeError),
        ({"r": None}, TypeError),
        ({"r": torch.tensor(4)}, TypeError),
    ],
    "class_token": [({"class_token": 1}, TypeError), ({"class_token": "yes"}, TypeError)],
    "grid": [
        ({"grid": 8}, ValueError),
        ({"grid": (8,)}, ValueError),
        ({"grid": (8, 8, 1)}, ValueError),
        ({"grid": (8.0, 8.0)}, ValueError),
        ({"grid": (-8, -8)}, ValueError),
        ({"grid": (64, 0)}, ValueError),
        ({"grid": (8, 9)}, ValueError),
        ({"grid": (8, 8), "previous": PREVIOUS}, ValueError),
    ],
    "size": [
        ({"size": 2.0}, TypeError),
        ({"size": torch.ones(2, N)}, ValueError),
        ({"size": torch.ones(2, P, 1)}, ValueError),
        ({"size": torch.ones(2, N, 1).long()}, TypeError),
        ({"size": torch.ones(2, N, 1, device="meta")}, ValueError),
    ],
    "previous": [
        ({"previous": TOKENS}, TypeError),
        ({"previous": record(TOKENS, ATTN)}, ValueError),
        ({"previous": record(TOKENS[:1], QueryKey(ATTN.query[:1], ATTN.key[:1]), 0)}, ValueError),
        ({"previous": record(TOKENS, ATTN, 0, class_token=False)}, ValueError),
    ],
}


@pytest.mark.parametrize(
    ("argument", "case"),
    [pytest.param(name, case, id=f"{name}-{i}") for name in CASES for i, case in enumerate(CASES[name])],
)
@pytest.mark.parametrize("r", [16, 0])
def test_bad_argument(argument, case, r):
    """Also with r = 0, which computes nothing."""
    wrong, kind = case
    with pytest.raises(kind, match=rf"ficoco::reduce: [^:]*\b{argument}\b.* must be .*, got .*; .+"):
        reduce(**({"tokens": TOKENS, "attn": ATTN, "r": r} | wrong))


def test_the_good_calls_are_good():
    reduce(TOKENS, ATTN, 16)
    reduce(TOKENS, MAP, 16)
    reduce(TOKENS, ATTN, 16, previous=PREVIOUS)
    reduce(TOKENS, ATTN, P - 1)


def test_the_largest_r_is_named():
    for n in (N, 2, 1):
        tokens, attn = inputs(n=n)
        with pytest.raises(ValueError, match=re.escape(f"[0, {max(n - 2, 0)}] for {n - 1} patches, got {n} (int)")):
            reduce(tokens, attn, n)
        with pytest.raises(ValueError, match=f"the largest legal r is {max(n - 2, 0)}"):
            reduce(tokens, attn, n)


def test_only_a_class_token():
    """N = 1 with a class token: nothing can leave, and nothing does."""
    tokens, attn = inputs(n=1)
    assert torch.equal(reduce(tokens, attn, 0), tokens)


HYPERPARAMETERS = {
    "variant": ("original", None, 1),
    "lam": (-0.1, 1.1, float("nan"), "0.5", True),
    "eps": (-0.1, 1.1, float("nan"), "0.5", None),
    "penalty": (0.5, 0, -2, float("inf"), float("nan"), "2"),
    "window": (0, -1, 2.0, True, "2"),
    "normalize": ("yes", 2),
    "alpha": ("mean", 1, ""),
    "attention": ("softmax", 1),
    "redundancy": ("rows", 1),
    "targets": (-1, 1.5, "all", True, None),
    "correlation": ("keys", None),
    "class_attention": (0, "no", None),
    "local_redundancy": (0, "no", None),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in HYPERPARAMETERS.items() for value in values], ids=str
)
def test_bad_hyperparameter(name, value):
    shown = "by" if name == "correlation" else name
    with pytest.raises(ValueError, match=rf"\b({shown}|{name})\b must be"):
        reduce(TOKENS, ATTN, 16, **{name: value})


def test_every_hyperparameter_has_a_case():
    import inspect

    assert set(HYPERPARAMETERS) == set(inspect.signature(METHODS["ficoco-v"]).parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "released", "alpha": "ratio"}, "alpha='ratio'.*attention='probs'"),
        ({"variant": "paper", "correlation": "key"}, "alpha='ratio'.*alpha='softmax'"),
        ({"class_attention": False, "local_redundancy": False}, "nothing is left to filter by"),
        ({"targets": P - 15}, r"ficoco::correlate: k must be in \[0, 48\].*lower k or r"),
    ],
)
def test_values_that_do_not_fit_together(options, message):
    with pytest.raises(ValueError, match=message):
        reduce(TOKENS, ATTN, 16, **options)


def test_ratio_of_a_map_with_negatives():
    """The map is said to hold probabilities, but does not."""
    with pytest.raises(ValueError, match="ficoco::correlate: attn must be non-negative"):
        reduce(TOKENS, -MAP, 16, variant="paper")


def test_key_correlation_needs_keys():
    with pytest.raises(ValueError, match=r"correlation='key'.*QueryKey"):
        reduce(TOKENS, MAP, 16, correlation="key")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_attention_that_is_not_finite(value):
    query = ATTN.query.clone()
    query[1, 2, 30, 4] = value
    with pytest.raises(ValueError, match="ficoco::filter: redundancy must be finite"):
        reduce(TOKENS, QueryKey(query, ATTN.key), 16)
    attn = MAP.clone()
    attn[0, 0, 5, 6] = value
    with pytest.raises(ValueError, match="ficoco::filter: redundancy must be finite"):
        reduce(TOKENS, attn, 16)


def test_key_that_is_not_finite_without_patch_attention():
    """The filter reads the class token's row alone; the sources' rows are read by correlate."""
    key = ATTN.key.clone()
    query = ATTN.query.clone()
    query[:, :, 1:] = float("nan")
    with pytest.raises(ValueError, match="ficoco::correlate: correlations must be finite"):
        reduce(TOKENS, QueryKey(query, key), 16, local_redundancy=False)


@pytest.mark.parametrize("method", ["ficoco", "", None, 3, ["ficoco-v"]], ids=str)
def test_unknown_method(method):
    with pytest.raises((ValueError, TypeError), match=r"method must be a Method or one of 'ficoco-v', "):
        reduce(TOKENS, ATTN, 16, method=method)


def test_unknown_hyperparameter():
    with pytest.raises(TypeError, match="method 'ficoco-v' has no hyperparameter 'lambda_'; it has variant, lam"):
        reduce(TOKENS, ATTN, 16, lambda_=0.3)
    with pytest.raises(TypeError, match="method 'topk' has no hyperparameter 'lam'; it has attention"):
        reduce(TOKENS, ATTN, 16, method="topk", lam=0.3)
    with pytest.raises(TypeError, match="lam can be given with a method's name, not with a Method"):
        reduce(TOKENS, ATTN, 16, method=get_method("ficoco-v"), lam=0.3)


def test_a_method_that_is_not_called_like_one():
    assert isinstance(get_method("topk"), Method)
    assert get_method(get_method("topk")) == get_method("topk")


def test_unmerge():
    result = record(TOKENS, ATTN)
    for tokens in (TOKENS, TOKENS[:, :49, 0], TOKENS[:1, :49]):
        with pytest.raises(
            ValueError, match=r"Reduction.unmerge: tokens must be \(2, 49, C\), got .*; pass the survivors"
        ):
            result.unmerge(tokens)
    with pytest.raises(ValueError, match="this record holds no tokens; pass the survivors"):
        result.without_tokens().unmerge()
    assert result.unmerge().shape == (2, N, C)
