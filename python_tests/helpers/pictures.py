"""Chains of reductions as a tower gives them, and the merge matrices that they amount to."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import ficoco_ext
from ficoco_ext import Schedule
from ficoco_ext.reduction import Reduction
from ficoco_ext.viz.traces import trace


def chain(methods, grid=(6, 6), *, ratio=0.25, batch=2, seed=0, **hyperparameters):
    """Reductions in a row, one a method; each method's hyperparameters under its name."""
    generator = torch.Generator().manual_seed(seed)
    patches = grid[0] * grid[1]
    tokens, previous, told = torch.randn(batch, 1 + patches, 16, generator=generator), None, []
    for step, method in zip(
        Schedule.build(patches, layers=range(len(methods)), keep_ratio=ratio).steps, methods, strict=True
    ):
        attn = ficoco_ext.QueryKey(*torch.randn(2, batch, 2, tokens.shape[1], 8, generator=generator))
        options = hyperparameters.get(method.replace("-", "_"), {})
        given = {} if previous is not None else {"grid": grid}
        previous = ficoco_ext.reduce(
            tokens, attn, step.r, method=method, previous=previous, return_reduction=True, **given, **options
        )
        tokens = previous.tokens
        told.append(previous.without_tokens())
    return told


def merge_matrix(reductions, item=0, upto=None):
    """(P, P) float64: entry [j, i] is the share of patch i that patch j holds after ``upto`` layers.

    A product of one matrix a layer: survivors stay, a source's column holds its weights at its targets.
    """
    first = int(reductions[0].class_token)
    count = reductions[0].source_map.shape[1] - first
    total = torch.eye(count, dtype=torch.float64)
    for reduction in reductions[:upto]:
        kept = (reduction.kept[item] - first).tolist()
        step = torch.zeros(count, count, dtype=torch.float64)
        for survivor in kept:
            if survivor >= 0:
                step[survivor, survivor] = 1
        for source, targets, weights in zip(
            (reduction.sources[item] - first).tolist(),
            reduction.targets[item].tolist(),
            reduction.weights[item].tolist(),
            strict=True,
        ):
            for target, weight in zip(targets, weights, strict=True):
                if target >= 0:
                    step[kept[target], source] += weight
        total = step @ total
    return total


def reduction(sources=((4, 0), (5, 2)), kept=(0, 1, 2, 3), grid=(2, 3), tokens=None):
    """Of a grid without a class token: each of ``sources`` went to the patch beside it, -1: to none."""
    index_of, holder = {patch: index for index, patch in enumerate(kept)}, dict(sources)
    held = [index_of.get(holder.get(patch, patch), -1) for patch in range(grid[0] * grid[1])]
    return Reduction(
        tokens=tokens,
        size=torch.ones(1, len(kept), 1),
        kept=torch.tensor([kept]),
        sources=torch.tensor([[source for source, _ in sources]]),
        source_map=torch.tensor([held]),
        targets=torch.tensor([[[index_of.get(target, -1)] for _, target in sources]]),
        weights=torch.ones(1, len(sources), 1),
        class_token=False,
        grid=grid,
    )


def picture(grid=(6, 6), scale=14):
    """A picture with as many colours as patches and more."""
    ramp = Image.linear_gradient("L").resize((grid[1] * scale, grid[0] * scale))
    return Image.merge("RGB", (ramp, ramp.rotate(180), ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))


def assert_traces(told, patches, item=0):
    """Every trace is what the matrices say, after every layer; returns the shares of every patch, summed."""
    matrices = [merge_matrix(told, item, upto) for upto in range(1, len(told) + 1)]
    total = torch.zeros(patches, dtype=torch.float64)
    for patch in range(patches):
        found = trace(told, patch, item=item)
        assert len(found.steps) == len(told)
        for step, matrix in zip(found.steps, matrices, strict=True):
            wanted = matrix[:, patch]
            assert set(step.shares) == set(wanted.nonzero()[:, 0].tolist())
            for holder, share in step.shares.items():
                assert share == pytest.approx(float(wanted[holder]), abs=1e-6)
            assert list(step.shares.values()) == sorted(step.shares.values(), reverse=True)
        assert found.shares == found.steps[-1].shares
        assert sum(found.shares.values()) + found.dropped == pytest.approx(1, abs=1e-12)
        for holder, share in found.shares.items():
            total[holder] += share
    return total
