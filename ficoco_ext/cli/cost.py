"""``ficoco cost``: what a model costs with and without reduction, and how that was counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import common, completion, options, values

if TYPE_CHECKING:
    from ..cost import Architecture
    from ..cost.compare import Comparison

CONVENTIONS = ("matmul", "llmviewer")

ModelArgument = typer.Argument(
    metavar="MODEL",
    help="llava-1.5-7b, llava-next-7b, ..., a hub name, or a directory with a config.json.",
    autocompletion=completion.one_of(completion.ARCHITECTURES),
)
Gpu = Annotated[
    str,
    options.option(
        "--gpu",
        panel=options.MACHINE,
        metavar="NAME",
        help=f"For times: {', '.join(completion.GPUS[:-1])}, or cpu (measured).",
        autocompletion=completion.one_of(completion.GPUS),
    ),
]
TextTokens = Annotated[int, options.option(panel=options.PROMPT, help="Tokens of the prompt besides the visual ones.")]
Images = Annotated[int, options.option(panel=options.PROMPT, help="Images in the prompt.")]
Picture = Annotated[
    str | None,
    options.option(
        "--picture",
        panel=options.PROMPT,
        metavar="HEIGHTxWIDTH",
        help="Pixels of each image, for models that cut it into crops (LLaVA-NeXT); if not given full crops are "
        "counted, without line ends.",
    ),
]
NewTokens = Annotated[int, options.option(panel=options.PROMPT, help="Tokens in the answer.")]
Bits = Annotated[
    str, options.option("--precision", panel=options.PROMPT, help="fp16, int8, int4, or a mix such as w4a16kv4.")
]
Convention = Annotated[
    str,
    options.option(
        panel=options.PROMPT,
        values=CONVENTIONS,
        help="llmviewer: the language model alone, as papers count. matmul: all that runs, as torch counts.",
    ),
]
Cache = Annotated[
    str | None,
    options.option(
        panel=options.REMOVE,
        values=completion.CACHES,
        help="What layers of the language model keep once the prompt is read; if not given what the method says.",
    ),
]
Plot = Annotated[
    Path | None,
    options.option("--plot", panel=options.OUTPUT, metavar="FILE", help="Draw tokens and operations of every layer."),
]
Explain = Annotated[
    bool, options.option("--explain", panel=options.OUTPUT, help="Print the formula of every line with its numbers.")
]
_Reproduce = Annotated[bool, typer.Option("--reproduce", help="Print the papers' tables beside ours instead.")]


def command(
    model: Annotated[str | None, ModelArgument] = None,
    method: options.MethodIfAny = None,
    keep_ratio: options.KeepRatio = None,
    r: options.R = None,
    tokens: options.Tokens = None,
    layers: options.Layers = None,
    set_: options.Set = None,
    cache: Cache = None,
    text_tokens: TextTokens = 60,
    images: Images = 1,
    picture: Picture = None,
    new_tokens: NewTokens = 100,
    precision: Bits = "fp16",
    convention: Convention = "llmviewer",
    gpu: Gpu = "a100-80g",
    plot: Plot = None,
    explain: Explain = False,
    reproduce_: _Reproduce = False,
    json_: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Count operations, bytes and memory of a prompt, and bound its time. Nothing is loaded, nothing runs."""
    with common.reported(debug):
        if reproduce_:
            if model is not None or method is not None:
                raise ValueError("--reproduce prints the papers' tables; give no model and no method")
            _reproduce(json_)
            return
        if model is None:
            raise ValueError("give a MODEL, such as llava-1.5-7b, or --reproduce")
        require_plot(plot, model)
        amount = values.removal(keep_ratio, r, tokens)
        if method is None and (amount or layers is not None or set_):
            method = "ficoco-v"
        with common.progress() as progress:
            progress("counting")
            found = _compared(
                shape_of(model, picture),
                method,
                values.assignments(set_),
                amount,
                None if layers is None else values.integers("--layers", layers),
                gpu,
                precision,
                text_tokens=text_tokens,
                images=images,
                new_tokens=new_tokens,
                convention=convention,
                cache=cache,
            )
        report(found, explain=explain, plot=plot, json_=json_)


def shape_of(model: str, picture: str | None) -> Architecture:
    """The shapes of ``model``, with images of the size ``picture`` if that is said."""
    from ..cost import architecture

    return architecture(model, picture=None if picture is None else values.pixels("--picture", picture))


def _compared(
    shape: Architecture,
    method: str | None,
    hyperparameters: dict[str, Any],
    amount: dict[str, Any],
    layers: tuple[int, ...] | None,
    gpu: str,
    precision: str,
    **prompt: Any,
) -> Comparison:
    """The model's cost with all tokens and, if there is a method, with it."""
    from ..amounts import has_its_own
    from ..cost import hardware, schedules
    from ..cost.compare import compare
    from ..cost.precision import Precision
    from ..methods import get_method

    chosen = None if method is None else get_method(method, **hyperparameters)
    leaves = schedules.Schedules()
    if chosen is not None:
        if not amount and not has_its_own(chosen):
            amount = {"keep_ratio": 0.25}
        leaves = schedules.build(shape, chosen, images=prompt["images"], layers=layers, **amount)
    return compare(shape, chosen, leaves, precision=Precision.parse(precision), hardware=hardware(gpu), **prompt)


def require_plot(plot: Path | None, model: str) -> None:
    """Raise early what drawing would raise late, or if it would replace the config of ``model``."""
    if plot is not None:
        from .. import viz
        from ..io import files

        viz.require(plot)
        files.require_apart([Path(model) / "config.json"], **{"--plot": plot})


def report(
    found: Comparison,
    *,
    explain: bool,
    plot: Path | None,
    json_: bool,
    heading: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> None:
    """Draw and print; ``heading`` is above the tables, ``more`` is added to the JSON."""
    from .. import viz
    from ..cost import staircase
    from ..cost.advice import advice
    from . import cost_tables

    notes = advice(found)
    lines = cost_tables.explained(found) if explain else None
    if plot is not None:
        viz.save(staircase.draw(found), plot)
    if json_:
        document = {**found.to_dict(), "notes": notes, **(more or {})}
        document |= {"picture": str(plot)} if plot is not None else {}
        document |= {"explain": lines} if lines is not None else {}
        common.print_json(document)
        return
    for line in heading:
        common.console().print(line, style="bold", soft_wrap=True, highlight=False, markup=False)
    cost_tables.show(found, notes, lines)
    if plot is not None:
        common.console().print(f"picture {plot}", soft_wrap=True)


def _reproduce(json_: bool) -> None:
    from ..cost import flash, paper_presets, paper_rows, reproduce
    from . import cost_rows, cost_tables

    cells, rows = reproduce.reproduce(), paper_rows.paper_rows()
    if json_:
        document = {
            "source": reproduce.source(),
            "basis": reproduce.basis_meaning(),
            "cells": [{**asdict(cell), "error": cell.error} for cell in cells],
            "flash_attention": [asdict(one) for one in flash.memory()],
            "rows": [one.to_dict() for one in rows],
            "basis_of_rows": paper_presets.BASES,
        }
        common.print_json(document)
    else:
        cost_tables.show_tables(cells)
        cost_tables.show_flash(flash.memory())
        cost_rows.show(rows)
