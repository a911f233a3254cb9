"""The embedded model and a few grid questions, for tests of the evaluation. No answer is expected: weights change."""

from __future__ import annotations

import functools

import pytest
import torch

from ficoco_ext.apps import checkpoint
from ficoco_ext.gridvqa import GridVQA

METHODS = {
    None: {},
    "ficoco-v": {"keep_ratio": 0.3},
    "tome": {"keep_ratio": 0.6},
    "ficoco-l": {"keep_ratio": 0.3},
    "fastv": {"keep_ratio": 0.5},
    "ficoco-vl": {"keep_ratio": 0.3},
}


@pytest.fixture(autouse=True)
def one_thread(_reproducible):
    torch.set_num_threads(1)  # layers this small only wait for each other on two


@functools.cache
def embedded():
    """Loaded once; tests leave it as they found it."""
    return checkpoint.load(None, torch.float32, torch.device("cpu"))


def grid(scenes=2, per_scene=4, **more):
    """A few questions."""
    return GridVQA("test", scenes=scenes, per_scene=per_scene, **more)
