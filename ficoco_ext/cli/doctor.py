"""``ficoco doctor``: what is installed, what runs, and whether every operator computes what it should."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from . import common, env, options

if TYPE_CHECKING:
    from ..apps import doctor

_MOST = 4  # findings of one operator that are printed


def command(json_: options.Json = False, debug: options.Debug = False) -> None:
    """Check every operator against float64, in about ten seconds, and show what is installed and what runs."""
    with common.reported(debug):
        with common.progress() as progress:
            progress("loading torch")
            from ..apps import doctor

            result = doctor.run(progress)
            progress("trying transformers")
            installed = env.collect()
        if json_:
            common.print_json(asdict(result) | {"installed": installed})
        else:
            _show(result, installed)
        if not result.right:
            raise typer.Exit(1)


def _show(result: doctor.Result, installed: dict[str, Any]) -> None:
    console = common.console()
    console.print(common.text(result.verdict, "bold" if result.right else "bold red"), soft_wrap=True)
    for device in dict.fromkeys(one.device for one in result.operators):
        common.show(console, _table(device, [one for one in result.operators if one.device == device]))
    console.print(
        common.text(
            "Errors of float32, float16 and bfloat16 inputs on small shapes, relative to the largest value of a "
            "result, and the error allowed there. Indices must be equal.",
            "dim",
        )
    )
    for one in result.operators:
        for text in one.wrong[:_MOST]:
            console.print(common.text(f"{one.name} on {one.device}: {text}", "red"), soft_wrap=True)
        if len(one.wrong) > _MOST:
            console.print(common.text(f"{one.name} on {one.device}: {len(one.wrong) - _MOST} findings more", "red"))
    env.show_machine(console, installed)
    console.print(common.text("ficoco env lists models and methods.", "dim"))


def _table(device: str, operators: list[doctor.Operator]) -> common.Table:
    names = ("float32", "float16", "bfloat16")
    made = common.table(f"operator on {device}", *(f">{name}" for name in names), "verdict")

    def said(one: doctor.Precision | None) -> str:
        if one is None:
            return "exact"
        if one.error is None:
            return "not finite"
        sign = "<" if one.error <= one.allowed else ">"
        return f"{one.error:.0e} {sign} {one.allowed:.0e}".replace("e-0", "e-").replace("e+00", "")

    for one in operators:
        found = {precision.dtype: precision for precision in one.precisions}
        verdict = common.text("WRONG", "red") if one.wrong else common.text("right", "green")
        made.add_row(one.name, *(said(found.get(name)) for name in names), verdict)
    return made
