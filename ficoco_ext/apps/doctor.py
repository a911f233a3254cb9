"""Checks every operator on small awkward shapes against its specification in float64.

Computation only: :func:`run` returns a :class:`Result` of plain values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import library
from ..ops.backend import BuildInfo, build_info
from .operator_cases import DTYPES, SMALL, Probe, Results, probes

_PROMISED = 1e-5  # what the package promises of float32, relative to the largest value of a result
_MOVED = 3e-6  # the relative size of rounding errors that a choice must survive to be compared
_DRAWS = 4

Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Precision:
    """What was found with inputs of one dtype.

    Attributes:
        error: the largest error of any result, relative to the largest value of that result; None where a number was
            not finite that should be.
        allowed: the tolerance of that result; the result shown is the one that comes closest to its tolerance.
    """

    dtype: str
    error: float | None
    allowed: float


@dataclass(frozen=True)
class Operator:
    """What was found of one operator on one device.

    Attributes:
        probes: calls that were checked.
        compared: values that were compared. undecided: those left out, because rounding may choose another token there.
        wrong: what is wrong, one sentence each; empty if nothing is.
    """

    name: str
    device: str
    probes: int
    compared: int
    undecided: int
    precisions: tuple[Precision, ...]
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """All that was found. ``right``: nothing is wrong, and every operator was checked on every device."""

    verdict: str
    right: bool
    operators: tuple[Operator, ...]


def operators() -> tuple[str, ...]:
    """Every overload that is defined in the library ``ficoco``.

    Example:
        >>> [name for name in operators() if name.startswith("correlate")]
        ['correlate', 'correlate.key', 'correlate.map', 'correlate.tokens']
    """
    return tuple(sorted(library.SCHEMAS))


def devices() -> tuple[str, ...]:
    """The CPU, and ``cuda`` where torch finds a GPU."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def tolerance(dtype: torch.dtype) -> float:
    """The largest error allowed of a result of this dtype, relative to its largest value."""
    return _PROMISED + (0.0 if dtype == torch.float32 else torch.finfo(dtype).eps)


def run(step: Step = lambda text, done, total: None) -> Result:
    """Check every operator on every device.

    Args:
        step: gets what is checked next, the operators done and all that there are.

    Example:
        >>> from ficoco_ext.apps import doctor
        >>> doctor.run().right
        True
    """
    names, threads = operators(), torch.get_num_threads()
    found: list[Operator] = []
    total = len(names) * len(devices())
    torch.set_num_threads(1)  # the shapes are so small that more threads only wait for each other
    try:
        for device in devices():
            for name in names:
                step(f"{name} on {device}", len(found), total)
                found.append(check(name, device))
    finally:
        torch.set_num_threads(threads)
    return Result(_verdict(found, build_info()), not any(one.wrong for one in found), tuple(found))


def check(name: str, device: str) -> Operator:
    """All probes of one operator on one device."""
    judged: list[tuple[Probe, _Comparison]] = []
    wrong = []
    for dtype in DTYPES:
        for case in SMALL:
            for probe in probes(case, dtype, torch.device(device), name):
                try:
                    comparison = _compare(probe)
                except Exception as error:  # an error of a broken kernel is a finding, not the end of the check
                    wrong.append(f"{probe.key}: {type(error).__name__}: {error}")
                    continue
                judged.append((probe, comparison))
                wrong += [f"{probe.key}: {text}" for text in comparison.wrong]
    if not judged and not wrong:
        wrong.append("no check is known for this operator")
    return Operator(
        name=name,
        device=device,
        probes=len(judged),
        compared=sum(one.compared for _, one in judged),
        undecided=sum(one.undecided for _, one in judged),
        precisions=tuple(_precisions(judged)),
        wrong=tuple(wrong),
    )


@dataclass
class _Comparison:
    """Counts and findings of one probe. ``errors``: pairs of error and tolerance, one for each floating result."""

    compared: int
    undecided: int
    errors: list[tuple[float, float]]
    wrong: list[str]


def _precisions(judged: list[tuple[Probe, _Comparison]]) -> Iterator[Precision]:
    for dtype in DTYPES:
        errors = [pair for probe, one in judged if probe.dtype == dtype for pair in one.errors]
        if errors:
            error, allowed = max(errors, key=lambda pair: pair[0] / pair[1])
            yield Precision(str(dtype).removeprefix("torch."), error if math.isfinite(error) else None, allowed)


def _compare(probe: Probe) -> _Comparison:
    """The call twice, compared with the specification in float64 and with itself."""
    got = probe.run(torch.ops.ficoco)
    kept = tuple(result.clone() for result in got)
    for result in got:  # the second call may get this memory: what it does not write shows
        result.fill_(torch.nan if result.is_floating_point() else -1)
    del got
    again = probe.run(torch.ops.ficoco)
    wanted, near = probe.wanted(), _moved(probe)
    found = _Comparison(0, 0, [], [])
    if [one.shape for one in kept] != [one.shape for one in wanted]:
        found.wrong.append(f"shapes {[tuple(one.shape) for one in kept]}, not {[tuple(one.shape) for one in wanted]}")
        return found
    for index, (one, other) in enumerate(zip(kept, wanted, strict=True)):
        if not torch.equal(_bytes(one), _bytes(again[index])):
            found.wrong.append(f"result {index} differs between two equal calls")
        _compare_result(found, index, one, other, [draw[index] for draw in near])
    return found


def _moved(probe: Probe) -> list[Results]:
    """The specification after small random changes of its inputs, of the size of rounding errors."""
    generator = torch.Generator().manual_seed(0)

    def move(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
        return tensor * (1 + _MOVED * noise)

    return [probe.wanted(move) for _ in range(_DRAWS)]


def _compare_result(found: _Comparison, index: int, got: Tensor, wanted: Tensor, near: list[Tensor]) -> None:
    """Add what one result of a call shows. Values that the changes of ``near`` make another choice of are left out."""
    if not wanted.numel():
        return
    if not wanted.is_floating_point():
        decided = torch.stack([one == wanted for one in near]).all(0)
        off = int((got != wanted)[decided].sum())
        if got.dtype != wanted.dtype or off:
            found.wrong.append(f"result {index}: {off} of {int(decided.sum())} indices differ")
    else:
        finite = wanted.isfinite()
        scale = float(wanted[finite].abs().max()) if finite.any() else 1.0
        allowed = tolerance(got.dtype)
        decided = torch.stack([_distance(one, wanted) for one in near]).amax(0) <= allowed * scale
        error = float(_distance(got.double(), wanted)[decided].max()) / (scale or 1.0) if decided.any() else 0.0
        found.errors.append((error, allowed))
        if not error <= allowed:
            found.wrong.append(f"result {index}: off by {error:.2g} of the largest value, allowed {allowed:.2g}")
    found.compared += int(decided.sum())
    found.undecided += int((~decided).sum())


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Absolute differences; 0 between equal infinities, infinite where one is not a number."""
    return (one - other).abs().nan_to_num(nan=torch.inf).masked_fill(one == other, 0.0)


def _bytes(tensor: Tensor) -> Tensor:
    return (
        torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device).copy_(tensor.flatten()).view(torch.uint8)
    )


def _verdict(found: list[Operator], info: BuildInfo) -> str:
    """One sentence for each device."""
    said = []
    for device in dict.fromkeys(one.device for one in found):
        here = [one for one in found if one.device == device]
        wrong = [one.name for one in here if one.wrong]
        runs = info["cuda"] if device == "cuda" else info["cpu"]
        if runs == "kernels":
            of = torch.cuda.get_device_name() if device == "cuda" else info["cpu_simd"]
            runs += f", {of}" if of else ""
        else:
            runs = "plain PyTorch, no kernels"
        if wrong:
            said.append(f"{len(wrong)} of {len(here)} operators are WRONG on {device} ({runs}): {', '.join(wrong)}.")
        else:
            said.append(f"All {len(here)} operators are right on {device} ({runs}).")
    return " ".join(said)
