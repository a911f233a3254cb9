"""``ficoco eval``: accuracy with and without reduction, side by side with cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import viz
from ..apps.checkpoint import files_of, load, parse_device, parse_dtype
from ..evaluation import Results, Setting, evaluate, questions_of_file, settings_of
from ..evaluation.markdown import budgets, headings, legend, page, refused, row, spreads
from ..evaluation.plot import draw
from ..evaluation.results import Summary
from ..gridvqa import KINDS, GridVQA
from ..io import files
from ..methods import METHODS, distinct
from . import common

_RATIOS = "0.5,0.25,0.15,0.1"


def command(
    model: Annotated[
        str | None, typer.Option(metavar="PATH_OR_ID", help="A LLaVA-1.5 checkpoint; the embedded one if not given.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B,..", help="Names, or LABEL=NAME to compare one twice; all methods if not given."),
    ] = None,
    keep_ratios: Annotated[
        str | None, typer.Option(help="Visual tokens kept at the end / all.", show_default=_RATIOS)
    ] = None,
    tokens: Annotated[str | None, typer.Option(metavar="72,36,..", help="Visual tokens kept at the end.")] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="[METHOD=]2-4", help="Layers that reduce, of all methods or of one; repeatable."),
    ] = None,
    schedule: Annotated[
        str, typer.Option(help="even, or geometric: each layer of the tower keeps the same share; needs --layers.")
    ] = "even",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="METHOD.KEY=VALUE", help="A hyperparameter; repeatable.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Each draws other scenes, and seeds methods that draw.")] = "0",
    scenes: Annotated[int | None, typer.Option(help="Grid scenes for each seed.", show_default="170")] = None,
    per_scene: Annotated[int | None, typer.Option(help="Questions about each.", show_default="12")] = None,
    split: Annotated[str | None, typer.Option(help="dev to choose by, test to judge by.", show_default="test")] = None,
    kinds: Annotated[str | None, typer.Option(help=f"Of grid questions: {','.join(KINDS)}.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Own questions instead: JSON or JSON lines of image, question, answer, or LLaVA's format.",
        ),
    ] = None,
    bad_rows: Annotated[str, typer.Option(help="fail, or count: leave them out and say how many.")] = "fail",
    mean_of: Annotated[
        str | None, typer.Option(help="Kinds in the mean; all, of grid scenes without count, if not given.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="exact or contained, see docs/how_answers_are_judged.md; exact for models of grid scenes if not given."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer; 1 for models of grid scenes, else 48.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Questions that are answered together.")] = 32,
    results_file: Annotated[
        Path | None, typer.Option("--results", metavar="FILE", help="Written as it goes; a run goes on from there.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw accuracy over FLOPs.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables as markdown.")] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Show what --results wrote; nothing is run.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's own choice if not given.")] = None,
    json_: Annotated[bool, common.JsonOption] = False,
    debug: Annotated[bool, common.DebugOption] = False,
) -> None:
    """Answer many questions with and without reduction: accuracy with its uncertainty, and what each answer costs."""
    with common.reported(debug):
        chosen = () if mean_of is None else tuple(_names(mean_of))
        if plot is not None:
            viz.require(plot)
        for option, file in (("--results", results_file), ("--markdown", markdown)):
            if file is not None and not file.absolute().parent.is_dir():
                raise FileNotFoundError(f"{option}: no folder {file.absolute().parent} for {file.name}")
        if from_ is not None:
            if model is not None or methods is not None or data is not None or results_file is not None:
                raise ValueError("--from shows a finished run; give no --model, --methods, --data or --results with it")
            files.require_apart([from_], **{"--plot": plot, "--markdown": markdown})
            results = Results.load(from_)
        else:
            settings = _settings(methods, keep_ratios, tokens, layers, schedule, set_)
            dataset = _dataset(data, bad_rows, split=split, scenes=scenes, per_scene=per_scene, kinds=kinds)
            asked = [data, *_pictures(dataset)]
            files.require_apart(asked, **{"--results": results_file, "--plot": plot, "--markdown": markdown})
            files.require_apart(
                files_of(model), **{"--plot": plot, "--markdown": markdown}
            )  # --results must be results
            where = parse_device(device)
            with common.cpu_threads(threads), common.progress() as progress:
                results = evaluate(
                    load(model, parse_dtype(dtype, where), where),
                    dataset,
                    settings,
                    seeds=common.integers("--seeds", seeds),
                    judge=judge,
                    max_new_tokens=max_new_tokens,
                    batch=batch,
                    bad_rows=bad_rows,
                    mean_of=chosen,
                    results=results_file,
                    progress=lambda done, total, text: progress(text, done, total),
                    notice=common.notice,
                )
        show(results, chosen, plot, markdown, json_=json_)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _settings(
    methods: str | None,
    keep_ratios: str | None,
    tokens: str | None,
    layers: list[str] | None,
    schedule: str,
    set_: list[str] | None,
) -> list[Setting]:
    chosen = list(distinct()) if methods is None else _names(methods)
    labels = [text.partition("=")[0].strip() for text in chosen]
    presets = set(chosen).isdisjoint(distinct()) and set(chosen) <= set(METHODS)  # they have amounts of their own
    if keep_ratios is None and tokens is None and not presets:
        keep_ratios = _RATIOS
    return settings_of(
        chosen,
        keep_ratios=() if keep_ratios is None else common.ratios("--keep-ratios", keep_ratios),
        tokens=() if tokens is None else common.integers("--tokens", tokens),
        hyperparameters=_hyperparameters(set_),
        layers=_layers(layers, labels),
        schedule=schedule,
    )


def _hyperparameters(given: list[str] | None) -> dict[str, dict[str, Any]]:
    """``["topk.variant=paper"]`` by label."""
    found: dict[str, dict[str, Any]] = {}
    for text in given or []:
        label, dot, rest = text.partition(".")
        if not dot or "=" in label:
            raise ValueError(f"--set must be METHOD.KEY=VALUE, got {text!r}")
        for key, value in common.assignments([rest]).items():
            if key in found.setdefault(label.strip(), {}):
                raise ValueError(f"--set {label}.{key} is given twice")
            found[label.strip()][key] = value
    return found


def _layers(given: list[str] | None, labels: list[str]) -> dict[str, tuple[int, ...]]:
    """``["2-4", "tome=1-4"]`` by label; what names none is for all others."""
    found: dict[str, tuple[int, ...]] = {}
    for text in sorted(given or [], key=lambda one: "=" in one):
        label, equals, numbers = text.rpartition("=")
        one = common.integers("--layers", numbers)
        found |= {label.strip(): one} if equals else dict.fromkeys(labels, one)
    return found


def _dataset(data: Path | None, bad_rows: str, **grid: Any) -> Any:
    given = {name: value for name, value in grid.items() if value is not None}
    if data is not None:
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{names} shape grid scenes; they do not go with --data")
        return questions_of_file(data, bad_rows=bad_rows)
    if "kinds" in given:
        given["kinds"] = tuple(_names(given["kinds"]))
    return GridVQA(given.pop("split", "test"), **{"scenes": 170, **given})


def _pictures(dataset: Any) -> list[Path]:
    """The files of pictures that are asked about."""
    return [one for one in getattr(dataset, "pictures", ()) if isinstance(one, Path)]


def show(
    results: Results, mean_of: tuple[str, ...], plot: Path | None, markdown: Path | None, *, json_: bool = False
) -> None:
    """Tables for people or one document, a picture and a page."""
    summary = results.summary(mean_of)
    if json_:
        written = dict(_write(results, summary, plot, markdown))
        held = {name: results.document[name] for name in ("model", "run", "platform")}
        common.print_json(held | summary.to_dict() | {what: str(file) for what, file in written.items()})
        return
    console, head = common.console(), headings(summary)
    for budget, lines in budgets(summary).items():
        there = [row(summary, line) for line in lines if line.mean is not None]
        if there:
            made = common.table(head[0], *(f">{name}" for name in head[1:]), title=budget)
            for cells in there:
                made.add_row(*cells)
            common.show(console, made)
    for text in spreads(summary):
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    for text in refused(summary):
        console.print(common.text(text, style="yellow"), soft_wrap=True)
    for text in legend(results, summary):
        console.print(common.text(text, style="dim"), soft_wrap=True)
    for what, file in _write(results, summary, plot, markdown):
        console.print(f"{what} {file}", soft_wrap=True)


def _write(results: Results, summary: Summary, plot: Path | None, markdown: Path | None) -> Iterator[tuple[str, Path]]:
    """Write a page and draw a picture where asked to; what was written."""
    if markdown is not None:
        files.write_text(markdown, page(results, summary))
        yield "markdown", markdown
    if plot is not None:
        viz.save(draw(results, summary), plot)
        yield "picture", plot
