"""``ficoco show``: a picture or a page of what several methods do to one image, and of what the model looks at."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from . import common, completion, crops, options, values

if TYPE_CHECKING:
    from ..apps import show
    from ..stages import Crops

_MOST = 5  # survivors of a traced patch that a table names

_Question = Annotated[
    str | None,
    options.option(panel=options.PICTURE, help="What to ask; methods in the language model choose tokens by it."),
]
_Methods = Annotated[
    str,
    options.option(
        panel=options.REMOVE,
        metavar="NAME[,..]",
        help="One row of the picture each; see ficoco methods.",
        autocompletion=completion.several_of(completion.methods),
    ),
]
_KeepRatio = Annotated[
    str | None,
    options.option(
        panel=options.REMOVE,
        metavar="RATIO[,..]",
        help="For a picture: visual tokens kept / all, one or one a layer. [0.25]",
    ),
]
_KeepRatios = Annotated[
    str | None,
    options.option(
        panel=options.REMOVE, metavar="RATIO[,..]", help="For a page: keep ratios of its slider. [0.5,0.25,0.1]"
    ),
]
_Layers = Annotated[
    list[str] | None,
    options.option(
        panel=options.REMOVE,
        metavar="[METHOD=]12,13,..",
        help="Layers that reduce, of one method or of all others; 12-22 is a range. Repeatable.",
    ),
]
_Set = Annotated[
    list[str] | None,
    options.option(
        "--set",
        panel=options.REMOVE,
        metavar="KEY=VALUE",
        help="A hyperparameter, for all methods that have it: a Python literal, true, false or text; repeatable.",
    ),
]
_Trace = Annotated[
    str | None,
    options.option(
        panel=options.OUTPUT, metavar="ROW,COLUMN", help="Follow this patch, or patch ROW * width + COLUMN."
    ),
]
_Attention = Annotated[
    list[str] | None,
    options.option(
        panel=options.OUTPUT,
        metavar="class[:LAYER]|[word:]TOKEN[:LAYER]",
        help="Attention of the class token, or of a word of the question, without reduction. Repeatable.",
    ),
]
_Panels = Annotated[
    int | None, options.option(panel=options.OUTPUT, help="For a picture: draw at most so many layers of a method. [8]")
]
_Output = Annotated[
    Path,
    options.option(
        "--output",
        "-o",
        panel=options.OUTPUT,
        metavar="FILE",
        help="Where the picture goes, or with .html one page to explore.",
    ),
]


def command(
    image: Annotated[str, options.picture()],
    model: options.ModelOfFamily = None,
    family: options.Family = None,
    question: _Question = None,
    max_new_tokens: options.MaxNewTokens = None,
    methods: _Methods = "ficoco-v,topk,tome",
    keep_ratio: _KeepRatio = None,
    keep_ratios: _KeepRatios = None,
    layers: _Layers = None,
    set_: _Set = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    trace: _Trace = None,
    attention: _Attention = None,
    panels: _Panels = None,
    output: _Output = Path("ficoco_show.png"),
    json_: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw which patches each method keeps and where the others go, and print what the model answers with each.

    With -o page.html it is one interactive page that needs no network: layers, keep ratios, methods and every patch.
    """
    with common.reported(debug):
        _run(
            threads,
            json_,
            image=image,
            question=question,
            model=model,
            family=family,
            methods=values.names(methods),
            keep_ratio=values.removal(keep_ratio, None, None).get("keep_ratio"),
            keep_ratios=None if keep_ratios is None else values.ratios("--keep-ratios", keep_ratios),
            layers=_layers(layers),
            hyperparameters=values.assignments(set_),
            trace=None if trace is None else _trace(trace),
            attention=tuple(attention or ()),
            panels=panels,
            output=output,
            max_new_tokens=max_new_tokens,
            dtype=dtype,
            device=device,
        )


def _run(threads: int | None, json_: bool, **asked: Any) -> None:
    """Run and print what a :class:`ficoco_ext.apps.show.Request` of ``asked`` finds."""
    with common.progress() as progress:
        progress("loading torch")
        from ..apps import show

        request = show.Request(**asked)
        if threads is None and request.model is None:
            threads = 1  # its layers are so small that more threads only wait for each other
        with common.cpu_threads(threads):
            result = show.run(request, notice=common.notice, progress=progress)
    if json_:
        common.print_json(asdict(result))
    else:
        print_(result)


def _layers(given: list[str] | None) -> dict[str, tuple[int, ...]]:
    """``["3,4", "fastv=1"]`` as ``{"": (3, 4), "fastv": (1,)}``."""
    found: dict[str, tuple[int, ...]] = {}
    for text in given or []:
        name, _, value = text.rpartition("=")
        if name.strip() in found:
            raise ValueError(f"--layers {f'of {name.strip()} ' if name.strip() else ''}is given twice")
        found[name.strip()] = values.integers("--layers", value)
    return found


def _trace(text: str) -> int | tuple[int, int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    raise ValueError(f"--trace must be ROW,COLUMN or the number of a patch, got {text!r}")


def print_(result: show.Result) -> None:
    """Tables for people."""
    console, (height, width) = common.console(), result.grid
    size = f"{height} x {width} patches" if result.crops is None else f"sheet of {height} x {width} cells"
    console.print(f"{result.model}, image {result.image}, {size}", soft_wrap=True, highlight=False)
    if result.crops is not None:
        console.print(crops.said(result.crops), soft_wrap=True, highlight=False)
    console.print(common.text(f"question: {result.question}"))
    if result.truth is not None:
        console.print(common.text(f"known answer: {result.truth}"))
    several = len({one.keep_ratio for one in result.methods}) > 1
    ratio = ["keep"] if several else []
    made = common.table("method", *ratio, "reduces in", ">left", ">merged", ">dropped", "answer")
    everything = str(height * width if result.crops is None else result.crops.before - result.crops.lines)
    made.add_row("all tokens", *["" for _ in ratio], "", everything, "0", "0", _answer(result.answer, result.right))
    for one in result.methods:
        sides = dict.fromkeys(layer.side for layer in one.layers)
        where = "; ".join(_where(one, side) for side in sides)
        counts = [str(count) for count in (one.left, one.merged, one.dropped)]
        given = [str(one.keep_ratio) for _ in ratio]
        made.add_row(one.method, *given, where, *counts, _answer(one.answer, one.right))
    for refused in result.refused:
        made.add_row(refused.method, str(refused.keep_ratio), "cannot be run", "", "", "", "")
    common.show(console, made)
    if result.crops is not None:
        common.show(console, _crops(result, result.crops))
    if any(one.trace is not None for one in result.methods):
        common.show(console, _traces(result))
    if result.attention:
        made = common.table("attention of", "in", ">on the patches", ">most", "at row,column")
        for shown in result.attention:
            most = max(shown.patches)
            at = _place(result, shown.patches.index(most))
            where = f"{shown.side} layer {shown.layer}"
            made.add_row(common.text(shown.of), where, f"{shown.on_patches:.1%}", f"{most:.3g}", at)
        common.show(console, made)
    kind, path = ("picture", result.picture) if result.page is None else ("page", result.page)
    console.print(f"{kind} {path}", soft_wrap=True)


def _crops(result: show.Result, cut: Crops) -> common.Table:
    """How many patches are left of each crop, over how many it has without padding."""
    made = common.table("method", ">thumbnail", *(f">crop {row},{column}" for row, column in _places(cut)))
    made.add_row("all tokens", *map(str, (cut.patches, *cut.valid)))
    for one in result.methods:
        made.add_row(one.method, *map(str, one.per_crop))
    return made


def _places(cut: Crops) -> list[tuple[int, int]]:
    return [(row, column) for row in range(cut.grid[0]) for column in range(cut.grid[1])]


def _place(result: show.Result, patch: int) -> str:
    """Row and column, of several crops those in the thumbnail or on the canvas."""
    from ..apps.checkpoint import sheet_of

    sheet, (row, column) = sheet_of(result.crops), divmod(patch, result.grid[1])
    return f"{row},{column}" if sheet is None else sheet.place(patch)


def _where(one: show.MethodResult, side: str) -> str:
    """A part of the model, with the layers that reduce if it has some."""
    if side == "projector":
        return "after the projector"
    return f"{side} {_ranges([at.layer for at in one.layers if at.side == side])}"


def _answer(text: str, right: bool | None) -> common.Text:
    """With a verdict where there is one."""
    return common.text((text or "(nothing)") + {True: " (right)", False: " (wrong)", None: ""}[right])


def _ranges(layers: list[int]) -> str:
    """As ``--layers`` takes them.

    Example:
        >>> _ranges([1, 4, 5, 6, 8, 9])
        '1, 4-6, 8-9'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _traces(result: show.Result) -> common.Table:
    """Who holds the traced patch after each layer in which a part of it moved."""

    def said(shares: dict[int, float], dropped: float) -> str:
        parts = [f"{share:.1%} in {_place(result, patch)}" for patch, share in list(shares.items())[:_MOST]]
        rest = list(shares.values())[_MOST:]
        parts += [f"{sum(rest):.1%} in {len(rest)} more"] if rest else []
        return ", ".join(parts + ([f"{dropped:.1%} dropped"] if dropped else []))

    traced = next(one.trace.patch for one in result.methods if one.trace is not None)
    several = len({one.keep_ratio for one in result.methods}) > 1
    made = common.table("method", "after", f"patch {_place(result, traced)} is")
    for one in result.methods:
        assert one.trace is not None
        name = f"{one.method} at {one.keep_ratio}" if several else one.method
        dropped = 0.0
        for step in one.trace.steps:
            dropped += step.dropped
            if step.moves or step.dropped or step is one.trace.steps[-1]:
                made.add_row(name, str(step.layer), said(step.shares, dropped))
    return made
