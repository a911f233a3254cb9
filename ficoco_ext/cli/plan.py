"""``ficoco plan``: the schedule that comes closest to a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from . import common, cost, options, values

if TYPE_CHECKING:
    from ..cost.planner import Planned
    from ..cost.schedules import Schedules
    from ..schedule import Schedule

_BUDGET = "Budget, exactly one"
_Tflops = Annotated[float | None, options.option(panel=_BUDGET, help="Operations of the prefill / 1e12.")]
_KvMb = Annotated[float | None, options.option(panel=_BUDGET, help="KV cache after the prompt / 1e6 bytes.")]
_AverageTokens = Annotated[
    float | None, options.option(panel=_BUDGET, help="Visual tokens, mean over the language model's layers.")
]
_TtftMs = Annotated[
    float | None, options.option(panel=_BUDGET, help="Milliseconds to the first token by the roofline of --gpu.")
]
_Floor = Annotated[int, options.option(panel=options.REMOVE, help="Keep at least so many visual tokens.")]


def command(
    model: Annotated[str, cost.ModelArgument],
    tflops: _Tflops = None,
    kv_mb: _KvMb = None,
    average_tokens: _AverageTokens = None,
    ttft_ms: _TtftMs = None,
    method: options.Method = "ficoco-v",
    layers: options.Layers = None,
    floor: _Floor = 1,
    set_: options.Set = None,
    cache: cost.Cache = None,
    text_tokens: cost.TextTokens = 60,
    images: cost.Images = 1,
    picture: cost.Picture = None,
    new_tokens: cost.NewTokens = 100,
    precision: cost.Bits = "fp16",
    convention: cost.Convention = "llmviewer",
    gpu: cost.Gpu = "a100-80g",
    plot: cost.Plot = None,
    explain: cost.Explain = False,
    json_: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Find the integer schedule whose cost comes closest to a budget, and say what it costs."""
    with common.reported(debug):
        budgets: dict[str, Any] = {
            "tflops": tflops,
            "kv_mb": kv_mb,
            "average_tokens": average_tokens,
            "ttft_ms": ttft_ms,
        }
        _require_one(budgets)
        cost.require_plot(plot, model)

        with common.progress() as progress:
            progress("searching")
            from ..cost import hardware, planner
            from ..cost.compare import compare
            from ..cost.precision import Precision
            from ..methods import get_method

            hyperparameters = values.assignments(set_)
            shape, chosen = cost.shape_of(model, picture), get_method(method, **hyperparameters)
            given: dict[str, Any] = {"text_tokens": text_tokens, "images": images, "convention": convention}
            given |= {"precision": Precision.parse(precision), "hardware": hardware(gpu), "cache": cache}
            at = None if layers is None else values.integers("--layers", layers)
            plan = planner.plan(shape, chosen, **budgets, layers=at, floor=floor, **given)
            found = compare(shape, chosen, plan.schedules, new_tokens=new_tokens, **given)
        calls = attach_call(method, hyperparameters, plan.schedules, cache)
        heading, budget = _reached(plan)
        more = {"budget": budget, "attach": calls}
        cost.report(found, explain=explain, plot=plot, json_=json_, heading=(*heading, calls), more=more)


def _require_one(budgets: dict[str, float | None]) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in budgets.items() if value is not None]
    if len(given) != 1:
        known = ", ".join(f"--{name.replace('_', '-')}" for name in budgets)
        raise ValueError(f"give exactly one of {known}, got {', '.join(given) or 'none'}")


def _reached(plan: Planned) -> tuple[tuple[str, str], dict[str, Any]]:
    """What was wanted and found, in two lines and as plain values."""
    from ..cost import planner

    lines = (
        f"wanted {plan.wanted:g} {planner.QUANTITIES[plan.quantity]}, found {plan.reached:.4g}",
        f"within reach: {plan.least:.4g} to {plan.most:.4g}",
    )
    numbers = {"quantity": plan.quantity, "wanted": plan.wanted, "reached": plan.reached}
    return lines, {**numbers, "reachable": [plan.least, plan.most]}


def attach_call(method: str, hyperparameters: dict[str, Any], schedules: Schedules, cache: str | None = None) -> str:
    """The line of Python that applies the schedules to a loaded model."""
    there = {name: one for name, one in schedules._asdict().items() if one is not None}
    if len(there) > 1:
        given = ", ".join(f"{name}={_amount(one)}" for name, one in there.items())
    elif schedules.projector is not None:
        given = f"tokens={schedules.projector}"
    else:
        (found,) = there.values()
        given = f"r={_short(found.r)}, layers={_short(found.layers)}"
    given += "" if cache is None else f', cache="{cache}"'
    more = "".join(f", {name}={value!r}" for name, value in hyperparameters.items())
    return f'ficoco_ext.attach(model, "{method}", {given}{more})'


def _amount(schedule: Schedule | int) -> str:
    if isinstance(schedule, int):
        return f'{{"tokens": {schedule}}}'
    return f'{{"r": {_short(schedule.r)}, "layers": {_short(schedule.layers)}}}'


def _short(numbers: tuple[int, ...]) -> str:
    """A list of integers as Python, short where it can be."""
    if len(numbers) > 2 and numbers == tuple(range(numbers[0], numbers[-1] + 1)):
        return f"range({numbers[0]}, {numbers[-1] + 1})"
    return str(list(numbers))
