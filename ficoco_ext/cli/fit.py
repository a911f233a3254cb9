"""``ficoco fit``: a recipe of FitPrune for a model, from a few prompts of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..io import files
from . import common, options

if TYPE_CHECKING:
    from ..apps.checkpoint import Checkpoint
    from ..apps.fitting import Recipe

_Ratio = Annotated[
    float, options.option(panel=options.REMOVE, help="Share of the language model's FLOPs to save, such as 0.6.")
]
_Data = Annotated[
    Path | None,
    options.option(
        panel=options.QUESTIONS,
        metavar="FILE",
        help="Questions to fit to, in the formats of ficoco eval --data; grid scenes if not given.",
    ),
]
_Samples = Annotated[int, options.option(panel=options.QUESTIONS, help="How many of the questions are read.")]
_Output = Annotated[
    Path | None,
    options.option("--output", "-o", panel=options.OUTPUT, metavar="FILE", help="Write the recipe as JSON."),
]


def command(
    model: options.Model = None,
    ratio: _Ratio = 0.4,
    data: _Data = None,
    samples: _Samples = 32,
    output: _Output = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    json_: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Fit how many visual tokens leave in each layer by FitPrune, from a few prompts and without training."""
    with common.reported(debug):
        if samples < 1:
            raise ValueError(f"--samples must be at least 1, got {samples}")
        if output is not None and not output.absolute().parent.is_dir():
            raise FileNotFoundError(f"--output: no folder {output.absolute().parent} for {output.name}")
        with common.cpu_threads(threads), common.progress() as progress:
            progress("loading the model")
            from ..apps import checkpoint, fitting

            files.require_apart([data, *checkpoint.files_of(model)], **{"--output": output})
            where = checkpoint.parse_device(device)
            of = checkpoint.load(model, checkpoint.parse_dtype(dtype, where), where)
            recipe = fitting.fit(of.model, _prompts(of, data, samples), ratio, progress=progress)
        if output is not None:
            files.write_text(output, json.dumps(recipe.document(), indent=1) + "\n")
        call = f'ficoco_ext.attach(model, "fitprune", r={list(recipe.r)}, layers={_layers(recipe)})'
        if json_:
            common.print_json({"schema": "ficoco-fit/1", **recipe.document(), "attach": call})
        else:
            _show(recipe, call)


def _prompts(of: Checkpoint, data: Path | None, samples: int) -> Iterator[dict[str, Any]]:
    """What the processor makes of the first questions: each scene once, or the rows of a file in order."""
    from ..evaluation import questions, questions_of_file
    from ..gridvqa import GridVQA

    rows = questions(GridVQA("train", scenes=samples, per_scene=1)) if data is None else questions_of_file(data)
    for item in itertools.islice(rows.items, samples):
        yield of.inputs(rows.open(item.picture), of.spelled(item.question))


def _layers(recipe: Recipe) -> str:
    return f"range({recipe.layers[0]}, {recipe.layers[-1] + 1})"


def _show(recipe: Recipe, call: str) -> None:
    console = common.console()
    made = common.table("layer", "visual tokens", "leave", "left")
    left = recipe.visual_tokens
    for layer, r in zip(recipe.layers, recipe.r, strict=True):
        made.add_row(str(layer), str(left), str(r), str(left - r))
        left -= r
    common.show(console, made)
    said = f"{recipe.saved:.1%} of the language model's FLOPs saved, alpha {recipe.alpha:.3g}"
    console.print(f"{said}; fitted to {recipe.samples} prompts of {recipe.visual_tokens} visual tokens and "
                  f"{recipe.text_tokens} others on average")  # fmt: skip
    console.print(call, soft_wrap=True)
