"""Inputs of a whole reduction, its record, and when two records are the same."""

from __future__ import annotations

from dataclasses import fields

import torch

from ficoco_ext import QueryKey, Reduction, reduce
from helpers.ops import query_key

N, P, C = 65, 64, 12  # a class token and a grid of 8 x 8


def inputs(b=2, n=N, c=C, d=8, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    query, key = query_key(b, 4, 4, n, d, dtype)
    return torch.randn(b, n, c).to(dtype), QueryKey(query, key)


def same(one: Reduction, other: Reduction, tol=0.0) -> bool:
    """Equal, floating parts up to ``tol``."""
    for field in fields(Reduction):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if not isinstance(a, torch.Tensor):
            equal = a == b
        elif a.is_floating_point() and tol:
            equal = torch.allclose(a, b, rtol=tol, atol=tol)
        else:
            equal = torch.equal(a, b)
        if not equal:
            return False
    return True


def record(tokens, attn, r=16, **options):
    return reduce(tokens, attn, r, return_reduction=True, **options)
