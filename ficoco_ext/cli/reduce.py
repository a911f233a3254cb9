"""``ficoco reduce``: one reduction of random or given tensors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import ficoco_ext

from .. import Reduction, build_info, get_method
from ..apps.checkpoint import parse_device
from ..apps.timing import available_bytes
from ..io import files
from ..ops import Attention, QueryKey
from . import common

_DTYPES = ("float32", "float16", "bfloat16", "float64")
_RECORD = ("tokens", "size", "kept", "sources", "source_map", "targets", "weights")


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
        raise ValueError(f"--shape must be positive, got {shape}")
    if heads < 1 or c % heads:
        raise ValueError(f"--heads must divide the {c} channels of --shape, got {heads}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"--seed must be an integer of 64 bits, got {seed}")
    needed, there = 3 * 4 * b * n * c, available_bytes(torch.device("cpu"))
    if max(shape) >= 2**31 or (there is not None and needed > there):
        raise MemoryError(f"--shape {b},{n},{c} needs {needed:,} bytes for its tensors, {there or 0:,} are available")
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
    """Start and length of a span with text before it, an eighth of all, and as much behind it.

    Example:
        >>> middle(577)
        (72, 433)
    """
    if tokens < 2:
        raise ValueError(f"--shape must have at least 2 tokens for text and visual tokens, got {tokens}")
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


def _span(text: str) -> tuple[int, int]:
    start, length = common.integers("--visual", text, 2)
    return start, length


def command(
    shape: Annotated[
        str, typer.Option(metavar="B,N,C", help="Random tokens; N counts class token and text.")
    ] = "1,577,1024",
    heads: Annotated[int, typer.Option(help="Heads of the random query and key.")] = 16,
    input_: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="safetensors with tokens, and query and key or attn."),
    ] = None,
    r: Annotated[
        int | None,
        typer.Option("--r", help="Tokens to remove; a quarter of those that may leave if not given."),
    ] = None,
    grid: Annotated[str | None, typer.Option(metavar="H,W", help="Grid of the patches; a square if not given.")] = None,
    class_token: Annotated[
        bool | None,
        typer.Option(
            "--class-token/--no-class-token",
            help="Token 0 is a class token; if not given yes, and no for methods of the language model.",
        ),
    ] = None,
    visual: Annotated[
        str | None,
        typer.Option(
            metavar="START,LENGTH",
            help="Methods of the language model: which tokens are visual. Of random tokens a middle span if not given.",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="A method's name; see ficoco methods.")] = "ficoco-v",
    set_: Annotated[list[str] | None, common.SetOption] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16, bfloat16 or float64.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's own choice if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random tensors.")] = 0,
    repeats: Annotated[int, typer.Option(help="Timed runs.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the Reduction as safetensors.")
    ] = None,
    json_: Annotated[bool, common.JsonOption] = False,
    debug: Annotated[bool, common.DebugOption] = False,
) -> None:
    """Run one reduction on random or given tensors, time it, and check that nothing was lost."""
    with common.reported(debug):
        hyperparameters = common.assignments(set_)
        where = parse_device(device)
        files.require_apart([input_], **{"--output": output})
        if dtype is not None and dtype not in _DTYPES:
            raise ValueError(f"--dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
        if repeats < 1:
            raise ValueError(f"--repeats must be at least 1, got {repeats}")
        chosen = None if dtype is None else getattr(torch, dtype)
        if input_ is None:
            tokens, attn = random_inputs(common.integers("--shape", shape, 3), heads, chosen or torch.float32, seed)
        else:
            tokens, attn = given_inputs(input_, chosen)
        tokens = tokens.to(where)
        attn = QueryKey(attn[0].to(where), attn[1].to(where)) if isinstance(attn, QueryKey) else attn.to(where)
        chosen_method = get_method(method, **hyperparameters)
        of_text = chosen_method.tower is None
        span = None if visual is None else _span(visual)
        if of_text and span is None:
            if input_ is not None:
                raise ValueError(f"--visual START,LENGTH must say which tokens of --input are visual for {method}")
            span = middle(tokens.shape[1])
        token = not of_text if class_token is None else class_token
        may_leave = tokens.shape[1] - token if span is None else span[1]
        removed = may_leave // 4 if r is None else r
        cells = None if grid is None else common.integers("--grid", grid, 2)

        def call() -> Reduction:
            return ficoco_ext.reduce(
                tokens,
                attn,
                removed,
                method=method,
                class_token=token,
                visual=span,
                grid=None if cells is None else (cells[0], cells[1]),
                return_reduction=True,
                **hyperparameters,
            )

        with common.cpu_threads(threads):
            result, runs = _timed(call, where, repeats)
            used = torch.get_num_threads()
        if output is not None:
            save(result, output, {"method": method, "hyperparameters": repr(hyperparameters)})
        info = build_info()
        operators = info["cuda"] if where.type == "cuda" else info["cpu"]
        reason = info["reasons"].get(where.type) if operators == "reference" else None
        if tokens.dtype == torch.float64:
            operators, reason = "reference", "float64 is computed by the specification"
        inputs = {"tokens": tokens, **(attn._asdict() if isinstance(attn, QueryKey) else {"attn": attn})}
        shapes = {f"in: {name}": tuple(t.shape) for name, t in inputs.items() if isinstance(t, Tensor)}
        shapes |= {f"out: {name}": tuple(getattr(result, name).shape) for name in _RECORD}
        report = Report(
            method=method,
            hyperparameters=hyperparameters,
            r=removed,
            visual=span,
            dtype=str(tokens.dtype).removeprefix("torch."),
            device=str(where),
            threads=used,
            operators=operators,
            reason=reason,
            shapes=shapes,
            seconds=statistics.median(runs),
            runs=runs,
            conservation=conservation(result),
            output=None if output is None else str(output),
        )
        if json_:
            common.print_json(asdict(report))
        else:
            _show(report)
        if not report.conservation.ok:
            raise RuntimeError("sizes do not add up to the tokens that went in")


def _show(report: Report) -> None:
    console = common.console()
    shapes = common.table("tensor", "shape")
    for name, shape in report.shapes.items():
        shapes.add_row(name, str(shape))
    console.print(shapes)
    facts = common.table("what", "value")
    facts.add_row("method", f"{report.method} {report.hyperparameters or ''}".strip())
    facts.add_row("removed", str(report.r))
    if report.visual is not None:
        start, length = report.visual
        facts.add_row("visual tokens", f"{length}, columns {start} to {start + length - 1}; the others are text")
    facts.add_row("runs on", f"{report.device}, {report.dtype}, {report.threads} thread{'s' * (report.threads > 1)}")
    facts.add_row("operators", report.operators + (f": {report.reason}" if report.reason else ""))
    spread = f"{common.seconds(min(report.runs))} to {common.seconds(max(report.runs))}"
    facts.add_row("time", f"{common.seconds(report.seconds)} (median of {len(report.runs)}, {spread})")
    kept = report.conservation
    verdict = "ok" if kept.ok else "VIOLATED"
    facts.add_row("conservation", f"{verdict}: sizes sum to {kept.size_sum:g}, {kept.expected:g} expected")
    if kept.dropped:
        facts.add_row("dropped", f"{kept.dropped} tokens are held by nobody")
    if report.output:
        facts.add_row("written", report.output)
    common.show(console, facts)
