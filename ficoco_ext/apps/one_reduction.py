"""One reduction of random or given tensors: what it did, how long it took, and whether nothing was lost.

Computation only: :func:`run` returns a :class:`Report` of plain values.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..api import reduce
from ..io import files
from ..io.suggest import did_you_mean
from ..methods import get_method
from ..ops import Attention, QueryKey
from ..ops.backend import build_info
from ..reduction import Reduction
from .checkpoint import parse_device
from .timing import available_bytes

DTYPES = ("float32", "float16", "bfloat16", "float64")
_RECORD = ("tokens", "size", "kept", "sources", "source_map", "targets", "weights")


@dataclass(frozen=True)
class Request:
    """What is to be reduced.

    Attributes:
        shape: (B, N, C) of random tokens; N counts class token and text. heads: of their query and key. seed: of both.
        input: a safetensors file with tokens, and query and key or attn, instead.
        r: tokens to remove; None is a quarter of those that may leave.
        grid: (height, width) of the patches; None is a square.
        class_token: token 0 is one; None is yes, and no for methods of the language model.
        visual: (start, length) of the visual tokens, for methods of the language model; None is a middle span of random
            tokens.
        method, hyperparameters: as :func:`ficoco_ext.reduce` takes them.
        dtype, device: by name; dtype None is float32, or that of the input.
        repeats: timed runs, after two that warm up.
        output: where to write the :class:`ficoco_ext.Reduction`; None writes none.
    """

    shape: tuple[int, ...] = (1, 577, 1024)
    heads: int = 16
    seed: int = 0
    input: Path | None = None
    r: int | None = None
    grid: tuple[int, ...] | None = None
    class_token: bool | None = None
    visual: tuple[int, ...] | None = None
    method: str = "ficoco-v"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    device: str = "cpu"
    repeats: int = 10
    output: Path | None = None


@dataclass(frozen=True)
class Conservation:
    """Whether every original token is accounted for: sizes add up to the tokens that were not dropped."""

    size_sum: float
    expected: float
    dropped: int
    ok: bool


@dataclass(frozen=True)
class Report:
    """What one reduction did and how long it took."""

    method: str
    hyperparameters: dict[str, Any]
    r: int
    visual: tuple[int, int] | None
    dtype: str
    device: str
    threads: int
    operators: str
    reason: str | None
    shapes: dict[str, tuple[int, ...]]
    seconds: float
    runs: tuple[float, ...]
    conservation: Conservation
    output: str | None


def random_inputs(shape: tuple[int, ...], heads: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Attention]:
    """Normal tokens (B, N, C), and query and key of ``heads`` heads, each of width C / heads."""
    b, n, c = shape
    if min(shape) < 1:
        raise ValueError(f"shape must be positive, got {shape}")
    if heads < 1 or c % heads:
        raise ValueError(f"heads must divide the {c} channels of --shape, got {heads}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must be an integer of 64 bits, got {seed}")
    needed, there = 3 * 4 * b * n * c, available_bytes(torch.device("cpu"))
    if max(shape) >= 2**31 or (there is not None and needed > there):
        raise MemoryError(f"shape={b},{n},{c} needs {needed:,} bytes for its tensors, {there or 0:,} are available")
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(b, n, c, generator=generator)
    query, key = torch.randn(2, b, heads, n, c // heads, generator=generator)
    return tokens.to(dtype), QueryKey(query.to(dtype), key.to(dtype))


def given_inputs(path: Path, dtype: torch.dtype | None) -> tuple[Tensor, Attention]:
    """Tensors ``tokens`` and either ``query`` and ``key`` or ``attn`` of a safetensors file, in its dtype by default.

    Raises:
        FileNotFoundError, ValueError: no such file, not a safetensors file, or other tensors in it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"input not found: {path}")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"cannot read {path} as safetensors: {error}") from error
    if dtype is not None:
        found = {name: tensor.to(dtype) for name, tensor in found.items()}
    names = set(found)
    if names == {"tokens", "query", "key"}:
        return found["tokens"], QueryKey(found["query"], found["key"])
    if names == {"tokens", "attn"}:
        return found["tokens"], found["attn"]
    raise ValueError(
        f"{path} must hold tokens, and query and key or attn; it holds {', '.join(sorted(names)) or 'nothing'}"
    )


def middle(tokens: int) -> tuple[int, int]:
    """Start and length of a span with text before it, an eighth of all, and as much after it.

    Example:
        >>> middle(577)
        (72, 433)
    """
    if tokens < 2:
        raise ValueError(f"shape must have at least 2 tokens for text and visual tokens, got {tokens}")
    start = tokens // 8
    return start, tokens - 2 * start if start else tokens - 1


def save(reduction: Reduction, path: Path, about: dict[str, str]) -> None:
    """Write the tensors of ``reduction`` as safetensors."""
    from safetensors.torch import save as as_bytes

    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {path.absolute().parent} for the output {path.name}")
    grid = "" if reduction.grid is None else ",".join(map(str, reduction.grid))
    about = about | {"class_token": str(reduction.class_token), "grid": grid}
    tensors = {name: getattr(reduction, name).contiguous() for name in _RECORD}
    with files.replacing(path) as file:
        file.write(as_bytes(tensors, metadata=about))


def conservation(reduction: Reduction) -> Conservation:
    """Sizes sum to the tokens that went in, less those dropped; rounding may be off by 1e-4 of them."""
    dropped = int((reduction.source_map < 0).sum())
    expected = float(reduction.source_map.numel() - dropped)
    total = float(reduction.size.double().sum())
    return Conservation(total, expected, dropped, abs(total - expected) <= 1e-4 * expected)


def _timed(call: Callable[[], Reduction], device: torch.device, repeats: int) -> tuple[Reduction, tuple[float, ...]]:
    """The result, and seconds of ``repeats`` runs after two that warm up."""
    runs = []
    for turn in range(-2, repeats):
        start = time.perf_counter()
        result = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn >= 0:
            runs.append(time.perf_counter() - start)
    return result, tuple(runs)


def run(request: Request) -> Report:
    """Reduce as ``request`` says, several times, and check the sizes.

    Raises:
        ValueError, TypeError, OSError, MemoryError: what cannot be done, and why.

    Example:
        >>> from ficoco_ext.apps import one_reduction
        >>> report = one_reduction.run(one_reduction.Request(shape=(1, 17, 8), heads=2, r=4, repeats=1))
        >>> report.shapes["out: tokens"], report.conservation.ok
        ((1, 13, 8), True)
    """
    device = parse_device(request.device)
    files.require_apart([request.input], output=request.output)
    if request.repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {request.repeats}")
    tokens, attn = _inputs(request, device)
    how = _arguments(request, tokens.shape[1])

    def call() -> Reduction:
        return reduce(tokens, attn, **how, return_reduction=True)

    result, runs = _timed(call, device, request.repeats)
    if request.output is not None:
        about = {"method": request.method, "hyperparameters": repr(request.hyperparameters)}
        save(result, request.output, about)
    inputs = {"tokens": tokens, **(attn._asdict() if isinstance(attn, QueryKey) else {"attn": attn})}
    shapes = {f"in: {name}": tuple(t.shape) for name, t in inputs.items() if isinstance(t, Tensor)}
    shapes |= {f"out: {name}": tuple(getattr(result, name).shape) for name in _RECORD}
    operators, reason = _operators(tokens.dtype, device)
    return Report(
        method=request.method,
        hyperparameters=request.hyperparameters,
        r=how["r"],
        visual=how["visual"],
        dtype=str(tokens.dtype).removeprefix("torch."),
        device=str(device),
        threads=torch.get_num_threads(),
        operators=operators,
        reason=reason,
        shapes=shapes,
        seconds=statistics.median(runs),
        runs=runs,
        conservation=conservation(result),
        output=None if request.output is None else str(request.output),
    )


def _inputs(request: Request, device: torch.device) -> tuple[Tensor, Attention]:
    if request.dtype is not None and request.dtype not in DTYPES:
        near = did_you_mean(request.dtype, DTYPES)
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {request.dtype!r}{near}")
    chosen = None if request.dtype is None else getattr(torch, request.dtype)
    if request.input is None:
        tokens, attn = random_inputs(request.shape, request.heads, chosen or torch.float32, request.seed)
    else:
        tokens, attn = given_inputs(request.input, chosen)
    if isinstance(attn, QueryKey):
        return tokens.to(device), QueryKey(attn.query.to(device), attn.key.to(device))
    return tokens.to(device), attn.to(device)


def _arguments(request: Request, tokens: int) -> dict[str, Any]:
    """What :func:`ficoco_ext.reduce` gets besides the tensors, for ``tokens`` tokens."""
    in_text = get_method(request.method, **request.hyperparameters).tower is None
    visual = request.visual
    if in_text and visual is None:
        if request.input is not None:
            raise ValueError(f"visual must say which tokens of the input are visual for {request.method}")
        visual = middle(tokens)
    class_token = not in_text if request.class_token is None else request.class_token
    may_leave = tokens - class_token if visual is None else visual[1]
    return {
        "r": may_leave // 4 if request.r is None else request.r,
        "method": request.method,
        "class_token": class_token,
        "visual": visual,
        "grid": request.grid,
        **request.hyperparameters,
    }


def _operators(dtype: torch.dtype, device: torch.device) -> tuple[str, str | None]:
    """What computes on this device, and why not kernels."""
    if dtype == torch.float64:
        return "reference", "float64 is computed by the specification"
    info = build_info()
    operators = info["cuda"] if device.type == "cuda" else info["cpu"]
    return operators, info["reasons"].get(device.type) if operators == "reference" else None
