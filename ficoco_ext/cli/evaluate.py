"""``ficoco eval``: accuracy with and without reduction, side by side with cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..io import files
from . import common, completion, evaluate_tables, options, values
from . import evaluate_settings as chosen

if TYPE_CHECKING:
    from ..evaluation import Results, Setting

_SCHEDULES = ("even", "geometric")
_JUDGES = ("exact", "contained")
_BAD_ROWS = ("fail", "count")
_SPLITS = ("dev", "test")

_Methods = Annotated[
    str | None,
    options.option(
        panel=options.REMOVE,
        metavar="A,B,..",
        help="Names, several for one model joined by +, or LABEL=NAME to compare one twice; all methods if not given.",
        autocompletion=completion.several_of(completion.methods),
    ),
]
_Baselines = Annotated[
    bool,
    options.option(
        "--baselines",
        panel=options.REMOVE,
        help="Also random dropping after the projector with three seeds, every k-th token and a smaller picture, at "
        "the same amounts.",
    ),
]
_Protocol = Annotated[
    bool,
    options.option(
        "--protocol",
        panel=options.REMOVE,
        help="The fair comparison: --baselines --equal average,flops --first-token 1,8, at a third, 22 % and a ninth "
        "of the tokens; name any of these to change it.",
    ),
]
_Equal = Annotated[
    str | None,
    options.option(
        panel=options.REMOVE,
        metavar="A[,..]",
        help="What methods have in common at an amount, a table each: final, tokens left in the end; average, tokens "
        "in the mean over the language model's layers; flops, all FLOPs of a prefill.",
        show_default="final",
        autocompletion=completion.several_of(chosen.EQUAL),
    ),
]
_FirstToken = Annotated[
    str | None,
    options.option(
        panel=options.MACHINE,
        metavar="1,8",
        help="Also time to the first token at these batch sizes, and what of it the selection takes.",
    ),
]
_FirstTokenSeconds = Annotated[
    float, options.option(panel=options.MACHINE, help="For each batch size of --first-token; 5 runs at least.")
]
_KeepRatios = Annotated[
    str | None,
    options.option(panel=options.REMOVE, help="Visual tokens kept at the end / all.", show_default=chosen.RATIOS),
]
_Tokens = Annotated[
    str | None, options.option(panel=options.REMOVE, metavar="72,36,..", help="Visual tokens kept at the end.")
]
_Layers = Annotated[
    list[str] | None,
    options.option(
        panel=options.REMOVE,
        metavar="[METHOD=]2-4",
        help="Layers that reduce, of all methods or of one; repeatable.",
    ),
]
_Schedule = Annotated[
    str,
    options.option(
        panel=options.REMOVE,
        values=_SCHEDULES,
        help="even removes the same number in each layer, geometric the same share (tower, needs --layers).",
    ),
]
_Set = Annotated[
    list[str] | None,
    options.option(
        "--set",
        panel=options.REMOVE,
        metavar="METHOD.KEY=VALUE",
        help="A hyperparameter: a Python literal, true, false or text; repeatable.",
    ),
]
_Seeds = Annotated[
    str,
    options.option(
        panel=options.QUESTIONS, help="Random seeds, of the scenes and of random methods; each draws other scenes."
    ),
]
_Scenes = Annotated[
    int | None, options.option(panel=options.QUESTIONS, help="Grid scenes for each seed.", show_default="170")
]
_PerScene = Annotated[
    int | None, options.option(panel=options.QUESTIONS, help="Questions about each.", show_default="12")
]
_Split = Annotated[
    str | None,
    options.option(
        panel=options.QUESTIONS, values=_SPLITS, help="dev to choose settings, test to report.", show_default="test"
    ),
]
_Kinds = Annotated[
    str | None,
    options.option(
        panel=options.QUESTIONS,
        metavar="KIND[,..]",
        help=f"Kinds of grid questions: {', '.join(completion.KINDS)}.",
        autocompletion=completion.several_of(completion.KINDS),
    ),
]
_Data = Annotated[
    Path | None,
    options.option(
        panel=options.QUESTIONS,
        metavar="FILE",
        help="Your own questions: JSON or JSON lines with image, question and answer, or LLaVA's format.",
    ),
]
_BadRows = Annotated[
    str,
    options.option(
        panel=options.QUESTIONS,
        values=_BAD_ROWS,
        help="What to do with bad rows of --data: fail, or count: leave them out and say how many.",
    ),
]
_MeanOf = Annotated[
    str | None,
    options.option(
        panel=options.QUESTIONS, help="Kinds that the mean is over; if not given all, for grid scenes all but count."
    ),
]
_Judge = Annotated[
    str | None,
    options.option(
        panel=options.QUESTIONS,
        values=_JUDGES,
        help="See docs/how_answers_are_judged.md; exact for models of grid scenes if not given.",
    ),
]
_MaxNewTokens = Annotated[
    int | None, options.option(panel=options.PICTURE, help="Longest answer; 1 for models of grid scenes, else 48.")
]
_Batch = Annotated[int, options.option(panel=options.MACHINE, help="Questions answered in one batch.")]
_Threads = Annotated[
    int | None, options.option(panel=options.MACHINE, help="CPU threads; torch's own choice if not given.")
]
_Results = Annotated[
    Path | None,
    options.option(
        "--results",
        panel=options.OUTPUT,
        metavar="FILE",
        help="Results, written after each step; the same command continues a run that was stopped.",
    ),
]
_Plot = Annotated[Path | None, options.option(panel=options.OUTPUT, metavar="FILE", help="Draw accuracy over FLOPs.")]
_Markdown = Annotated[
    Path | None, options.option(panel=options.OUTPUT, metavar="FILE", help="Write the tables as markdown.")
]
_From = Annotated[
    Path | None,
    options.option("--from", panel=options.OUTPUT, metavar="FILE", help="Show what --results wrote; nothing is run."),
]


def command(
    model: options.Model = None,
    max_new_tokens: _MaxNewTokens = None,
    methods: _Methods = None,
    protocol: _Protocol = False,
    baselines: _Baselines = False,
    equal: _Equal = None,
    keep_ratios: _KeepRatios = None,
    tokens: _Tokens = None,
    layers: _Layers = None,
    schedule: _Schedule = "even",
    set_: _Set = None,
    seeds: _Seeds = "0",
    scenes: _Scenes = None,
    per_scene: _PerScene = None,
    split: _Split = None,
    kinds: _Kinds = None,
    data: _Data = None,
    bad_rows: _BadRows = "fail",
    mean_of: _MeanOf = None,
    judge: _Judge = None,
    batch: _Batch = 32,
    first_token: _FirstToken = None,
    first_token_seconds: _FirstTokenSeconds = 10.0,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    threads: _Threads = None,
    results_file: _Results = None,
    plot: _Plot = None,
    markdown: _Markdown = None,
    from_: _From = None,
    json_: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Answer many questions with and without reduction: accuracy with its uncertainty, and what each answer costs."""
    with common.reported(debug):
        kinds_of_mean = () if mean_of is None else values.names(mean_of)
        _require_outputs(plot, {"--results": results_file, "--markdown": markdown})
        pages = {"--plot": plot, "--markdown": markdown}
        if from_ is not None:
            if model is not None or methods is not None or data is not None or results_file is not None:
                raise ValueError("--from shows a finished run; give no --model, --methods, --data or --results with it")
            files.require_apart([from_], **pages)
            results = _load_results(from_)
        else:
            settings = chosen.settings(
                methods,
                keep_ratios,
                tokens,
                layers,
                schedule,
                set_,
                baselines=baselines,
                protocol=protocol,
                equal=equal,
            )
            dataset = _dataset(data, bad_rows, split=split, scenes=scenes, per_scene=per_scene, kinds=kinds)
            files.require_apart([data, *_pictures(dataset)], **{"--results": results_file, **pages})
            with common.cpu_threads(threads):
                results = _evaluated(
                    (model, dtype, device),
                    dataset,
                    settings,
                    pages,
                    seeds=values.integers("--seeds", seeds),
                    judge=judge,
                    max_new_tokens=max_new_tokens,
                    batch=batch,
                    bad_rows=bad_rows,
                    mean_of=kinds_of_mean,
                    first_token=chosen.batches(first_token, protocol),
                    first_token_seconds=first_token_seconds,
                    results=results_file,
                )
        evaluate_tables.show(results, kinds_of_mean, plot, markdown, json_=json_)


def _require_outputs(plot: Path | None, others: dict[str, Path | None]) -> None:
    """Raise early what writing would raise late."""
    if plot is not None:
        from .. import viz

        viz.require(plot)
    for option, file in others.items():
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"{option}: no folder {file.absolute().parent} for {file.name}")


def _load_results(file: Path) -> Results:
    from ..evaluation import Results

    return Results.load(file)


def _evaluated(
    of: tuple[str | None, str | None, str],
    dataset: Any,
    settings: list[Setting],
    pages: dict[str, Path | None],
    **how: Any,
) -> Results:
    """The results of the model ``of`` a path or name, dtype and device; ``pages`` are written after the run."""
    from .. import evaluation
    from ..apps import checkpoint

    model, dtype, device = of
    files.require_apart(checkpoint.files_of(model), **pages)  # --results must be results
    where = checkpoint.parse_device(device)
    with common.progress() as progress:
        progress("loading the model")
        return evaluation.evaluate(
            checkpoint.load(model, checkpoint.parse_dtype(dtype, where), where),
            dataset,
            settings,
            progress=lambda done, total, text: progress(text, done, total),
            notice=common.notice,
            **how,
        )


def _dataset(data: Path | None, bad_rows: str, **grid: Any) -> Any:
    given = {name: value for name, value in grid.items() if value is not None}
    if data is not None:
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{names} shape grid scenes; they do not go with --data")
        from ..evaluation import questions_of_file

        return questions_of_file(data, bad_rows=bad_rows)
    if "kinds" in given:
        given["kinds"] = values.names(given["kinds"])
    from ..gridvqa import GridVQA

    return GridVQA(given.pop("split", "test"), **{"scenes": 170, **given})


def _pictures(dataset: Any) -> list[Path]:
    """The files of pictures that are asked about."""
    return [one for one in getattr(dataset, "pictures", ()) if isinstance(one, Path)]
