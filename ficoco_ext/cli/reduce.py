"""``ficoco reduce``: one reduction of random or given tensors."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from . import common, completion, options, values

if TYPE_CHECKING:
    from ..apps.one_reduction import Report

_TENSORS = "Tensors"
_DTYPES = (*completion.DTYPES, "float64")
_Shape = Annotated[
    str, options.option(panel=_TENSORS, metavar="B,N,C", help="Random tokens; N counts class token and text.")
]
_Heads = Annotated[int, options.option(panel=_TENSORS, help="Heads of the random query and key.")]
_Seed = Annotated[int, options.option(panel=_TENSORS, help="Seed of the random tensors.")]
_Input = Annotated[
    Path | None,
    options.option(
        "--input", panel=_TENSORS, metavar="FILE", help="safetensors with tokens, and query and key or attn."
    ),
]
_ClassToken = Annotated[
    bool | None,
    options.option(
        "--class-token/--no-class-token",
        panel=_TENSORS,
        help="Whether token 0 is a class token; if not given yes, for methods in the language model no.",
    ),
]
_Grid = Annotated[
    str | None, options.option(panel=_TENSORS, metavar="H,W", help="Grid of the patches; a square if not given.")
]
_Visual = Annotated[
    str | None,
    options.option(
        panel=_TENSORS,
        metavar="START,LENGTH",
        help="Which tokens are visual, for methods in the language model; if not given a middle span of random tokens.",
    ),
]
_Dtype = Annotated[
    str | None,
    options.option(panel=options.MACHINE, values=_DTYPES, help="Precision; if not given float32, or that of --input."),
]
_R = Annotated[
    int | None,
    options.option(
        "--r", panel=options.REMOVE, help="Tokens to remove; if not given a quarter of those that may be removed."
    ),
]
_Threads = Annotated[
    int | None, options.option(panel=options.MACHINE, help="CPU threads; torch's own choice if not given.")
]
_Repeats = Annotated[int, options.option(panel=options.MACHINE, help="Timed runs.")]
_Output = Annotated[
    Path | None,
    options.option("--output", "-o", panel=options.OUTPUT, metavar="FILE", help="Write the Reduction as safetensors."),
]


def command(
    shape: _Shape = "1,577,1024",
    heads: _Heads = 16,
    seed: _Seed = 0,
    input_: _Input = None,
    class_token: _ClassToken = None,
    grid: _Grid = None,
    visual: _Visual = None,
    r: _R = None,
    method: options.Method = "ficoco-v",
    set_: options.Set = None,
    dtype: _Dtype = None,
    device: options.Device = "cpu",
    threads: _Threads = None,
    repeats: _Repeats = 10,
    output: _Output = None,
    json_: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run one reduction on random or given tensors, time it, and check that nothing was lost."""
    with common.reported(debug):
        request: dict[str, Any] = {
            "shape": values.integers("--shape", shape, 3),
            "heads": heads,
            "seed": seed,
            "input": input_,
            "class_token": class_token,
            "grid": None if grid is None else values.integers("--grid", grid, 2),
            "visual": None if visual is None else values.integers("--visual", visual, 2),
            "r": r,
            "method": method,
            "hyperparameters": values.assignments(set_),
            "dtype": dtype,
            "device": device,
            "repeats": repeats,
            "output": output,
        }

        from ..apps import one_reduction

        with common.cpu_threads(threads), common.progress() as progress:
            progress("reducing")
            report = one_reduction.run(one_reduction.Request(**request))
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
        facts.add_row("dropped", f"{kept.dropped} tokens are in no other token")
    if report.output:
        facts.add_row("written", report.output)
    common.show(console, facts)
