"""The embedded model and a few grid questions, for tests that ask it. No answer is expected: weights change."""

from __future__ import annotations

import functools

import pytest
import torch

from ficoco_ext.apps import checkpoint
from ficoco_ext.gridvqa import GridVQA

WIDTH, MLP, TEXT_MLP, VOCABULARY, LAYERS, TEXT_LAYERS, PATCHES, PIXELS = 128, 512, 352, 128, 8, 6, 144, 3 * 14 * 14
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
