"""``ficoco cost``: what a model costs with and without reduction, and how that was counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import viz
from ..cost import architecture, hardware, reproduce, schedules, staircase
from ..cost.advice import advice
from ..cost.compare import Comparison, compare
from ..cost.precision import Precision
from ..io import files
from ..methods import get_method
from . import common, cost_tables

ModelArgument = typer.Argument(
    metavar="MODEL", help="llava-1.5-7b, llava-next-7b, ... or a directory with a config.json."
)
MethodOption = typer.Option(help="A method's name; see ficoco methods.")
GpuOption = typer.Option("--gpu", help="For times: a100-80g, h100, h200, l40s, rtx-4090, mi300x, or cpu (measured).")
TextOption = typer.Option(help="Tokens of the prompt besides the visual ones.")
ImagesOption = typer.Option(help="Images in the prompt.")
NewOption = typer.Option(help="Length of the answer.")
PrecisionOption = typer.Option(help="fp16, int8, int4, or a mix such as w4a16kv4.")
ConventionOption = typer.Option(
    help="llmviewer: the language model alone, as papers count. matmul: all that runs, as torch counts."
)
PlotOption = typer.Option("--plot", metavar="FILE", help="Draw tokens and operations of every layer.")
ExplainOption = typer.Option("--explain", help="Print the formula of every line with its numbers.")


def command(
    model: Annotated[str | None, ModelArgument] = None,
    method: Annotated[str | None, MethodOption] = None,
    keep_ratio: Annotated[
        str | None, typer.Option(help="Visual tokens kept / all; one number, or one for each layer.")
    ] = None,
    r: Annotated[
        str | None, typer.Option("--r", help="Tokens removed in each layer; one number or one a layer.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Visual tokens kept.")] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="12,13,..", help="Layers that reduce; 12-22 is a range.")
    ] = None,
    set_: Annotated[list[str] | None, common.SetOption] = None,
    gpu: Annotated[str, GpuOption] = "a100-80g",
    text_tokens: Annotated[int, TextOption] = 60,
    images: Annotated[int, ImagesOption] = 1,
    new_tokens: Annotated[int, NewOption] = 100,
    precision: Annotated[str, PrecisionOption] = "fp16",
    convention: Annotated[str, ConventionOption] = "llmviewer",
    plot: Annotated[Path | None, PlotOption] = None,
    explain: Annotated[bool, ExplainOption] = False,
    reproduce_: Annotated[
        bool, typer.Option("--reproduce", help="Print the papers' efficiency tables beside ours instead.")
    ] = False,
    json_: Annotated[bool, common.JsonOption] = False,
    debug: Annotated[bool, common.DebugOption] = False,
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
        shape = architecture(model)
        amount = _amount(keep_ratio, r, tokens)
        if method is None and (amount or layers is not None or set_):
            method = "ficoco-v"
        chosen = None if method is None else get_method(method, **common.assignments(set_))
        pair: schedules.Pair = (None, None)
        if chosen is not None:
            if not amount and not chosen.amount:
                amount = {"keep_ratio": 0.25}
            at = None if layers is None else common.integers("--layers", layers)
            pair = schedules.build(shape, chosen, images=images, layers=at, **amount)
        found = compare(
            shape,
            chosen,
            pair,
            text_tokens=text_tokens,
            images=images,
            new_tokens=new_tokens,
            convention=convention,
            precision=Precision.parse(precision),
            hardware=hardware(gpu),
        )
        report(found, explain=explain, plot=plot, json_=json_)


def require_plot(plot: Path | None, model: str) -> None:
    """Raise early what drawing would raise late, or if it would replace the config of ``model``."""
    if plot is not None:
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


def _amount(keep_ratio: str | None, r: str | None, tokens: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if keep_ratio is not None:
        found["keep_ratio"] = _ratios(keep_ratio)
    if r is not None:
        counts = common.integers("--r", r)
        found["r"] = counts[0] if len(counts) == 1 else counts
    if tokens is not None:
        found["tokens"] = tokens
    if len(found) > 1:
        raise ValueError(f"give one of --keep-ratio, --r and --tokens, got {', '.join(found)}")
    return found


def _ratios(text: str) -> float | tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--keep-ratio must be numbers separated by commas, got {text!r}") from None
    return found[0] if len(found) == 1 else found


def _reproduce(json_: bool) -> None:
    cells = reproduce.reproduce()
    if json_:
        rows = [{**asdict(cell), "error": cell.error} for cell in cells]
        common.print_json({"source": reproduce.source(), "basis": reproduce.basis_meaning(), "cells": rows})
    else:
        cost_tables.show_tables(cells)
