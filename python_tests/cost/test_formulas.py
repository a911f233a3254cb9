"""Formulas of the counter against products that are counted by hand."""

from __future__ import annotations

import pytest
import torch

from ficoco_ext import QueryKey, get_method, ops, reduce
from ficoco_ext.cost import flop_counter


def test_attention_of_unequal_lengths():
    """2 d for each pair of query and key, and 2 d' for its value."""
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    with flop_counter.counter() as mode, torch.inference_mode():
        torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert mode.get_total_flops() == 2 * 2 * 4 * 5 * 9 * (8 + 8)
    assert flop_counter.cpu_attention((2, 4, 5, 8), (2, 4, 9, 8), (2, 4, 9, 6)) == 2 * 2 * 4 * 5 * 9 * (8 + 6)


def test_an_operator_is_counted_by_its_own_overload():
    noted = flop_counter._Noted()
    assert noted.overload("reduce") is None
    noted.running.append(torch.ops.ficoco.correlate.key)
    assert (noted.overload("correlate"), noted.overload("reduce")) == ("key", None)


def test_a_score_by_the_class_token_alone():
    """Without redundancy among patches only the class token's row of probabilities is made: 2 N d for each head."""
    b, h, n, d, c, r = 2, 3, 10, 4, 5, 2
    query, key, tokens = torch.randn(b, h, n, d), torch.randn(b, h, n, d), torch.randn(b, n, c)
    counts = {}
    for lam in (0.0, 0.5):
        method = get_method("ficoco-v", variant="paper", lam=lam, targets=1, penalty=1)
        with flop_counter.counter() as mode:
            reduce(tokens, QueryKey(query, key), r, method=method)
        counts[lam] = mode.get_total_flops()
    rest = 2 * b * r * n * h * d + 2 * b * r * c  # correlation by probabilities, and one target each
    assert counts[0.0] == 2 * b * h * n * d + rest
    assert counts[0.5] == 2 * b * h * n * n * d + rest


@pytest.mark.parametrize("probs", [False, True])
def test_correlating_is_counted_against_what_is_kept(probs):
    """2 d for each source and each kept patch; of probabilities each source's row has all tokens."""
    b, h, n, d, r = 2, 3, 9, 8, 3
    query, key = torch.randn(2, b, h, n, d)
    sources, kept = torch.tensor([[1, 2, 5]] * b), torch.tensor([[0, 3, 4, 6, 7, 8]] * b)
    with flop_counter.counter() as mode:
        ops.correlate(QueryKey(query, key), sources, kept, 1, alpha="softmax", class_token=True, probs=probs)
    assert mode.get_total_flops() == 2 * b * r * (n if probs else n - r) * h * d
