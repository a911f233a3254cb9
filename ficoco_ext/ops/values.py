"""Whether the values of a tensor can be read now: not while a graph is recorded, and a fake tensor has none."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def has_values(tensor: Tensor) -> bool:
    """Whether ``tensor`` has values that Python may read. Not asked of the device."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def free_to_read(tensor: Tensor) -> bool:
    """Whether ``tensor`` has values that cost nothing to read: those on the CPU, without a wait for a device."""
    return tensor.device.type == "cpu" and has_values(tensor)
