"""``ficoco demo``: one picture, its questions with and without reduction, what it cost and where the tokens went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from . import common, crops, options, values

if TYPE_CHECKING:
    from ..apps import demo

_ImageOption = Annotated[
    str | None, options.option("--image", panel=options.PICTURE, metavar="PATH", help="The same as IMAGE.")
]
_Question = Annotated[
    str | None,
    options.option(panel=options.PICTURE, help="What to ask; if not given, all questions known for an embedded scene."),
]
_AllSamples = Annotated[
    bool, options.option("--all-samples", panel=options.PICTURE, help="Answer all embedded sample questions too.")
]
_VisionKeepRatio = Annotated[
    float | None,
    options.option(panel=options.REMOVE, help="Share that the tower keeps, for methods that act in several parts."),
]
_ProjectorKeepRatio = Annotated[
    float | None,
    options.option(
        panel=options.REMOVE, help="Share of the projected tokens that stays, for methods that act in several parts."
    ),
]
_DecoderKeepRatio = Annotated[
    float | None,
    options.option(
        panel=options.REMOVE,
        help="Share that the language model keeps of what it gets, for methods that act in several parts.",
    ),
]
_Repeats = Annotated[int, options.option(panel=options.MACHINE, help="Timed runs with and without reduction.")]
_Output = Annotated[
    Path | None,
    options.option(
        "--output",
        "-o",
        panel=options.OUTPUT,
        metavar="FILE",
        help="Where the picture goes.",
        show_default="ficoco_demo.png",
    ),
]


def command(
    image: Annotated[str | None, options.picture()] = None,
    image_option: _ImageOption = None,
    question: _Question = None,
    model: options.ModelOfFamily = None,
    family: options.Family = None,
    max_new_tokens: options.MaxNewTokens = None,
    all_samples: _AllSamples = False,
    method: options.Method = "ficoco-v",
    keep_ratio: options.KeepRatio = None,
    r: options.R = None,
    tokens: options.Tokens = None,
    vision_keep_ratio: _VisionKeepRatio = None,
    projector_keep_ratio: _ProjectorKeepRatio = None,
    decoder_keep_ratio: _DecoderKeepRatio = None,
    layers: options.Layers = None,
    set_: options.Set = None,
    geometry: options.Geometry = None,
    vision_layers: options.VisionLayers = None,
    text_layers: options.TextLayers = None,
    text_tokens: options.TextTokens = 60,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    repeats: _Repeats = 5,
    output: _Output = None,
    json_: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Answer questions about a picture with and without reduction, count and time both, and draw where tokens went."""
    with common.reported(debug):
        amount = values.removal(keep_ratio, r, tokens)
        sides = {
            "vision": vision_keep_ratio,
            "projector": projector_keep_ratio,
            "decoder": decoder_keep_ratio,
        }
        amount |= {side: {"keep_ratio": ratio} for side, ratio in sides.items() if ratio is not None}
        _run(
            threads,
            json_,
            image=_image(image, image_option),
            question=question,
            model=model,
            family=family,
            method=method,
            hyperparameters=values.assignments(set_),
            amount=amount or None,
            layers=None if layers is None else values.integers("--layers", layers),
            output=Path("ficoco_demo.png") if output is None and geometry is None else output,
            dtype=dtype,
            device=device,
            max_new_tokens=max_new_tokens,
            repeats=repeats,
            all_samples=all_samples,
            geometry=geometry,
            vision_layers=vision_layers,
            text_layers=text_layers,
            text_tokens=text_tokens,
        )


def _image(image: str | None, option: str | None) -> str | None:
    if image is not None and option is not None:
        raise ValueError("give the image as IMAGE or as --image, not both")
    return option if image is None else image


def _run(threads: int | None, json_: bool, **asked: Any) -> None:
    """Run and print what a :class:`ficoco_ext.apps.demo.Request` of ``asked`` finds."""
    with common.progress() as progress:
        progress("loading torch")
        from ..apps import demo

        request = demo.Request(**asked)
        shaped = (request.vision_layers, request.text_layers, request.text_tokens) != (None, None, 60)
        if request.geometry is None and shaped:
            raise ValueError("--vision-layers, --text-layers and --text-tokens shape a --geometry; give one")
        if threads is None and request.model is None and request.geometry is None:
            threads = 1  # its layers are so small that more threads only wait for each other
        with common.cpu_threads(threads):
            result = demo.run(request, notice=common.notice, progress=progress)
    if json_:
        common.print_json(asdict(result))
    else:
        show(result)


def show(result: demo.Result) -> None:
    """Tables for people."""
    console, at = common.console(), result.platform
    weights = "random weights" if result.random_weights else "trained"
    threads = f"{at.threads} thread{'s' * (at.threads > 1)}"
    console.print(f"{result.model} ({weights}), {at.dtype} on {at.device}, {threads}, torch {at.torch}")
    why = f" ({at.reason})" if at.reason else ""
    console.print(f"{result.method}: {result.summary}; reduction by {at.operators}{why}")
    if result.image:
        console.print(f"image {result.image}", soft_wrap=True)
    if result.crops is not None:
        console.print(crops.said(result.crops), soft_wrap=True, highlight=False)
    if result.answers:
        common.show(console, _answers(result))
    if result.samples:
        s = result.samples
        undecided = s.all_tokens_undecided, s.reduced_undecided
        more = [f" ({count} undecided)" if count else "" for count in undecided]
        console.print(
            f"All {s.asked} embedded sample questions: {s.all_tokens_right} right with all tokens{more[0]}, "
            f"{s.reduced_right} right with reduction{more[1]}."
        )
    in_text = any(layer.removed for layer in result.text_layers)
    in_tower = any(layer.removed for layer in result.layers)
    if in_tower or not (in_text or result.projected):
        common.show(console, _layers(result))
    if result.projected is not None:
        console.print(f"After the projector: {result.kept} of {result.projected} visual tokens are left.")
    if in_text:
        common.show(console, _text_layers(result))
    common.show(console, _cost(result))
    console.print(common.text(result.verdict, style="bold"))
    console.print(f"FLOPs: {result.flops_counted}.", style="dim")
    if result.picture:
        console.print(f"picture {result.picture}", soft_wrap=True)


def _answers(result: demo.Result) -> common.Table:
    known = any(answer.truth is not None for answer in result.answers)
    made = common.table("question", *(["truth"] if known else []), "all tokens", "reduced")

    def said(text: str, right: bool | None, truth: str | None) -> common.Text:
        unknown = ("", "") if truth is None else ("  undecided", "yellow")
        mark, style = {True: ("  right", "green"), False: ("  WRONG", "red"), None: unknown}[right]
        return common.text((text or "(nothing)") + mark, style=style)

    for answer in result.answers:
        cells: list[str | common.Text] = [common.text(answer.question)]
        if known:
            cells.append(common.text(answer.truth or ""))
        cells.append(said(answer.all_tokens, answer.all_tokens_right, answer.truth))
        cells.append(said(answer.reduced, answer.reduced_right, answer.truth))
        made.add_row(*cells)
    return made


def _layers(result: demo.Result) -> common.Table:
    """One row a layer; neighbours that remove nothing share one."""
    where = "vision layer" if result.crops is None else "vision layer, each crop"
    made = common.table(where, ">patches entering", ">removed", ">left")
    pending: list[demo.LayerTokens] = []

    def flush() -> None:
        if pending:
            first, last = pending[0].layer, pending[-1].layer
            label = str(first) if first == last else f"{first} to {last}"
            made.add_row(label, str(pending[0].entering), "0", str(pending[-1].left))
            pending.clear()

    for layer in result.layers:
        if layer.removed:
            flush()
            made.add_row(str(layer.layer), str(layer.entering), str(layer.removed), str(layer.left))
        else:
            pending.append(layer)
    flush()
    return made


def _text_layers(result: demo.Result) -> common.Table:
    """The staircase of the language model; neighbours that are alike share a row, the last row adds up."""
    made = common.table("text layer", ">in attention", ">removed", ">in MLP", ">KV cache", ">of all tokens", ">that is")
    alike: list[list[demo.TextLayerTokens]] = []
    for layer in result.text_layers:
        last = alike[-1][-1] if alike else None
        same = last is not None and not layer.removed and replace(last, layer=layer.layer) == layer
        alike[-1].append(layer) if same else alike.append([layer])

    def cached(few: int, full: int) -> tuple[str, str, str]:
        return common.amount(few, "B"), common.amount(full, "B"), common.times(full, few)

    for group in alike:
        one, last = group[0], group[-1]
        label = str(one.layer) if one is last else f"{one.layer} to {last.layer}, each"
        counts = (one.attention, one.removed, one.mlp)
        made.add_row(label, *map(str, counts), *cached(one.kv_bytes, one.kv_bytes_all))
    made.add_section()
    made.add_row("all", "", "", "", *cached(result.reduced.kv_bytes, result.all_tokens.kv_bytes))
    return made


def _cost(result: demo.Result) -> common.Table:
    full, few = result.all_tokens, result.reduced
    made = common.table("prefill", ">all tokens", ">reduced", ">that is")

    def row(name: str, a: float, b: float, show: Callable[[float], str], *words: str) -> None:
        made.add_row(name, show(a), show(b), common.times(a, b, *words))

    def flop(value: float) -> str:
        return common.amount(value, "FLOP") if value else "-"

    row("tokens in the language model", full.tokens, few.tokens, str)
    row("KV cache", full.kv_bytes, few.kv_bytes, lambda n: common.amount(n, "B"))
    row("FLOPs", full.flops.total, few.flops.total, flop)
    for part in ("tower", "reduction", "projector", "decoder", "head"):
        row(f"  {part}", getattr(full.flops, part), getattr(few.flops, part), flop)
    row("time, median", full.seconds, few.seconds, common.seconds, "faster", "slower")
    spread = [f"{common.seconds(min(one.runs))} to {common.seconds(max(one.runs))}" for one in (full, few)]
    made.add_row("  range", *spread, "")
    return made
