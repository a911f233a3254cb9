"""The ways to run the operators, and the one tolerance of their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

import ficoco_ext
from ficoco_ext.ops import reference
from helpers import emulated_kernels

NO_GPU = "needs a GPU"

KERNELS = ficoco_ext.build_info()["cpu"] == "kernels"


def tolerance(length: int, out: torch.dtype = torch.float32) -> float:
    """THE tolerance: the largest error allowed, relative to the largest magnitude among the expected values.

    Everything accumulates in float32, so a sum of ``length`` terms may be off by 2 eps(float32) sqrt(length): rounding
    errors are independent, and the 2 leaves room for the next few operations (a scale, a softmax, a division). That is
    never allowed to exceed 1e-5, which is what the package promises for float32. A result that is rounded to ``out``
    may be off by another eps(out). The expected values are those of the specification in float64, computed from the
    very inputs that the kernel got, so the rounding of half-precision inputs is no part of the error.

        length            8        64       577      1024     >= 1765
        float32        6.7e-7    1.9e-6   5.7e-6    7.6e-6    1e-5
        float16        + 9.8e-4
        bfloat16       + 7.8e-3
    """
    accumulated = min(2 * torch.finfo(torch.float32).eps * max(length, 1) ** 0.5, 1e-5)
    return accumulated + (torch.finfo(out).eps if out in (torch.float16, torch.bfloat16) else 0.0)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _move(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """``tensor`` on ``device`` with its strides and storage offset."""
    if tensor.device.type == device:
        return tensor
    flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).to(device)
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class Backend(NamedTuple):
    """One way to run the operators. Calling it also checks what every operator promises about its tensors."""

    name: str
    device: str
    find: Callable[[str], Callable]
    missing: str = ""

    @property
    def reads_values(self) -> bool:
        """Whether values are checked: on a GPU, and so in its emulation, nothing is read."""
        return self.name in ("reference", "cpu")

    def __call__(self, name: str, *args):
        """Results, on the CPU, of the overload ``name`` (such as ``correlate.map``) on CPU arguments ``args``."""
        args = [_move(arg, self.device) if isinstance(arg, torch.Tensor) else arg for arg in args]
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        before = [_bytes(tensor).clone() for tensor in tensors]
        results = self.find(name)(*args)
        results = (results,) if isinstance(results, torch.Tensor) else results
        for tensor, old in zip(tensors, before, strict=True):
            assert torch.equal(_bytes(tensor), old), f"{name} wrote into an input"
        held = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        for result in results:
            assert result.is_contiguous(), f"{name} returned a tensor that is not contiguous"
            assert result.device.type == self.device
            assert result.numel() == 0 or result.untyped_storage().data_ptr() not in held, f"{name} returned an input"
        return tuple(result.cpu() for result in results)


def _overload(namespace, name: str) -> Callable:
    packet, _, overload = name.partition(".")
    return getattr(getattr(namespace, packet), overload or "default")


def _dispatched(name: str) -> Callable:
    return _overload(torch.ops.ficoco, name)


def emulated(name: str) -> Callable:
    emulated_kernels.load()
    return _overload(torch.ops.ficoco_emu, name)


def _specified(name: str) -> Callable:
    return getattr(reference, name.replace(".", "_"))


BACKENDS = {  # one more way to run the operators is one more line
    "reference": Backend("reference", "cpu", _specified),
    "cpu": Backend("cpu", "cpu", _dispatched),
    "emulated": Backend("emulated", "cpu", emulated, emulated_kernels.missing()),
    "cuda": Backend("cuda", "cuda", _dispatched, "" if torch.cuda.is_available() else NO_GPU),
}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)


def needs_emulation(test):
    """For a test of the emulated kernels alone: marked ``emulated``, skipped where they cannot be built."""
    missing = BACKENDS["emulated"].missing
    return pytest.mark.emulated(pytest.mark.skipif(bool(missing), reason=missing)(test))
