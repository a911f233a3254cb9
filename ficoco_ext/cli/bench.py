"""``ficoco bench``: methods side by side in time on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import common, completion, options, values

if TYPE_CHECKING:
    from ..apps import bench

_Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A LLaVA-1.5 checkpoint, or llava-1.5-7b or -13b for true shapes with random weights; the embedded tiny "
        "one if not given.",
        autocompletion=completion.one_of(completion.GEOMETRIES),
    ),
]
_Methods = Annotated[
    str,
    options.option(
        panel=options.REMOVE,
        metavar="NAME[,..]",
        help="See ficoco methods.",
        autocompletion=completion.several_of(completion.methods),
    ),
]
_Batch = Annotated[
    str, options.option(panel=options.MACHINE, metavar="1,8", help="Batch sizes to time: prompts with a picture each.")
]
_Seconds = Annotated[
    float,
    options.option(panel=options.MACHINE, help="Time for each batch size; at least 5 runs of each method are made."),
]


def command(
    model: _Model = None,
    methods: _Methods = "balanced,ficoco-v,ficoco-l,fastv",
    keep_ratio: options.KeepRatio = None,
    r: options.R = None,
    tokens: options.Tokens = None,
    geometry: options.Geometry = None,
    vision_layers: options.VisionLayers = None,
    text_layers: options.TextLayers = None,
    text_tokens: options.TextTokens = 60,
    batch: _Batch = "1,8",
    seconds: _Seconds = 10.0,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    json_: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Time whole prefills, from pixels to the first answer token, with all tokens and with each method in turn.

    Choosing and merging tokens is part of the time. An amount counts for every method; without one each has its own.
    """
    with common.reported(debug):
        amount, batches = values.removal(keep_ratio, r, tokens), values.integers("--batch", batch)

        with common.progress() as progress:
            progress("loading torch")
            from ..apps import bench

            request = bench.Request(
                model=model,
                geometry=geometry,
                vision_layers=vision_layers,
                text_layers=text_layers,
                text_tokens=text_tokens,
                methods=values.names(methods),
                amount=amount,
                batches=batches,
                dtype=dtype,
                device=device,
                seconds=seconds,
            )
            if threads is None and model is None and geometry is None:
                threads = 1  # its layers are so small that more threads only wait for each other
            with common.cpu_threads(threads):
                result = bench.run(request, notice=common.notice, progress=progress)
        if json_:
            common.print_json(asdict(result))
        else:
            show(result)


def show(result: bench.Result) -> None:
    """The verdict and a table for each batch size."""
    console, at = common.console(), result.platform
    console.print(common.text(result.verdict, "bold"), soft_wrap=True)
    weights = "random weights" if result.random_weights else "trained"
    threads = f"{at.threads} thread{'s' * (at.threads > 1)}"
    console.print(f"{result.model} ({weights}), {at.dtype} on {at.device}, {threads}, torch {at.torch}")
    for one in result.batches:
        common.show(console, _table(one))
    console.print(
        common.text(
            "Time: median of interleaved runs from pixels to the logits of the first answer token, selection included, "
            "and its range. Tokens: of one prompt, text and picture, in the language model's first layer. Reached: the "
            "share of what the FLOPs promise, where a difference is proven. Selection: within the method, a part "
            "of Time, measured in runs of its own.",
            "dim",
        )
    )
    console.print(common.text(f"FLOPs: {result.flops_counted}.", "dim"))


def _table(batch: bench.Batch) -> common.Table:
    full = batch.timed[0].prefill
    head = ("method", ">time", ">that is", ">FLOPs", ">reached", ">tokens", ">range", ">selection", ">KV cache")
    made = common.table(*head, title=f"batch {batch.batch}, {len(full.runs)} runs of each")
    for one in batch.timed:
        found = one.prefill
        spread = f"{common.seconds(min(found.runs))} to {common.seconds(max(found.runs))}"
        cells = [_name(one), common.seconds(found.seconds)]
        if found is full:
            flops = common.amount(found.flops.total, "FLOP")
            cells += ["", flops, "", str(found.tokens), spread, "", common.amount(found.kv_bytes, "B")]
        else:
            ratio = common.times(full.seconds, found.seconds, "faster", "slower")
            noise = one.judged == "noise"
            said = f"{ratio}, noise" if noise and ratio != "the same" else ratio
            fewer = common.times(full.flops.total, found.flops.total)
            kept = common.times(full.kv_bytes, found.kv_bytes)
            cells += [said, fewer, "" if noise else f"{one.reached:.0%}", str(found.tokens), spread]
            cells += ["" if one.selection is None else common.seconds(one.selection), kept]
        made.add_row(*cells)
    return made


def _name(one: bench.Timed) -> str:
    """The method, with its amount."""
    if not one.amount:
        return one.name
    (name, value), *more = one.amount.items()
    if more or isinstance(value, (dict, tuple)):
        return one.name
    return f"{one.name} {_short(name, value)}"


def _short(name: str, value: Any) -> str:
    return f"{value:.0%}" if name == "keep_ratio" else f"{name} {value}"
