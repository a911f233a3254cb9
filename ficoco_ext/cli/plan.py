"""``ficoco plan``: the schedule that comes closest to a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..cost import architecture, hardware, planner
from ..cost.compare import compare
from ..cost.precision import Precision
from ..methods import get_method
from ..schedule import Schedule
from . import common, cost


def command(
    model: Annotated[str, cost.ModelArgument],
    method: Annotated[str, cost.MethodOption] = "ficoco-v",
    tflops: Annotated[float | None, typer.Option(help="Budget: operations of the prefill / 1e12.")] = None,
    kv_mb: Annotated[float | None, typer.Option(help="Budget: KV cache after the prompt / 1e6 bytes.")] = None,
    average_tokens: Annotated[
        float | None, typer.Option(help="Budget: visual tokens, mean over the language model's layers.")
    ] = None,
    ttft_ms: Annotated[
        float | None, typer.Option(help="Budget: milliseconds to the first token by the roofline of --gpu.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="12,13,..", help="Layers that reduce; 12-22 is a range.")
    ] = None,
    floor: Annotated[int, typer.Option(help="Visual tokens that stay at least.")] = 1,
    set_: Annotated[list[str] | None, common.SetOption] = None,
    gpu: Annotated[str, cost.GpuOption] = "a100-80g",
    text_tokens: Annotated[int, cost.TextOption] = 60,
    images: Annotated[int, cost.ImagesOption] = 1,
    new_tokens: Annotated[int, cost.NewOption] = 100,
    precision: Annotated[str, cost.PrecisionOption] = "fp16",
    convention: Annotated[str, cost.ConventionOption] = "llmviewer",
    plot: Annotated[Path | None, cost.PlotOption] = None,
    explain: Annotated[bool, cost.ExplainOption] = False,
    json_: Annotated[bool, common.JsonOption] = False,
    debug: Annotated[bool, common.DebugOption] = False,
) -> None:
    """Find the integer schedule whose cost comes closest to a budget, and say what it costs."""
    with common.reported(debug):
        budgets = {"--tflops": tflops, "--kv-mb": kv_mb, "--average-tokens": average_tokens, "--ttft-ms": ttft_ms}
        if sum(value is not None for value in budgets.values()) != 1:
            asked = ", ".join(name for name, value in budgets.items() if value is not None)
            raise ValueError(f"give exactly one of {', '.join(budgets)}, got {asked or 'none'}")
        cost.require_plot(plot, model)
        shape, device, bits = architecture(model), hardware(gpu), Precision.parse(precision)
        hyperparameters = common.assignments(set_)
        chosen = get_method(method, **hyperparameters)
        given: dict[str, Any] = {"text_tokens": text_tokens, "images": images, "precision": bits, "hardware": device}
        plan = planner.plan(
            shape,
            chosen,
            tflops=tflops,
            kv_mb=kv_mb,
            average_tokens=average_tokens,
            ttft_ms=ttft_ms,
            layers=None if layers is None else common.integers("--layers", layers),
            floor=floor,
            convention=convention,
            **given,
        )
        found = compare(
            shape, chosen, (plan.vision, plan.decoder), new_tokens=new_tokens, convention=convention, **given
        )
        calls = attach_call(method, hyperparameters, plan.vision, plan.decoder)
        heading = (
            f"wanted {plan.wanted:g} {planner.QUANTITIES[plan.quantity]}, found {plan.reached:.4g}",
            f"within reach: {plan.least:.4g} to {plan.most:.4g}",
            calls,
        )
        budget = {
            "quantity": plan.quantity,
            "wanted": plan.wanted,
            "reached": plan.reached,
            "reachable": [plan.least, plan.most],
        }
        more = {"budget": budget, "attach": calls}
        cost.report(found, explain=explain, plot=plot, json_=json_, heading=heading, more=more)


def attach_call(method: str, hyperparameters: dict[str, Any], vision: Schedule | None, decoder: Schedule | None) -> str:
    """The line of Python that applies the schedules to a loaded model."""
    if vision is not None and decoder is not None:
        given = f"vision={_amount(vision)}, decoder={_amount(decoder)}"
    else:
        found = vision or decoder
        assert found is not None
        given = f"r={_short(found.r)}, layers={_short(found.layers)}"
    more = "".join(f", {name}={value!r}" for name, value in hyperparameters.items())
    return f'ficoco_ext.attach(model, "{method}", {given}{more})'


def _amount(schedule: Schedule) -> str:
    return f'{{"r": {_short(schedule.r)}, "layers": {_short(schedule.layers)}}}'


def _short(numbers: tuple[int, ...]) -> str:
    """A list of integers as Python, short where it can be."""
    if len(numbers) > 2 and numbers == tuple(range(numbers[0], numbers[-1] + 1)):
        return f"range({numbers[0]}, {numbers[-1] + 1})"
    return str(list(numbers))
