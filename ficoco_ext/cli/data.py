"""``ficoco data``: the grid scenes that ``ficoco eval`` asks about, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from . import common, completion, options, values

if TYPE_CHECKING:
    from ..gridvqa.sheet import Balance

_MOST = 5  # answers of a kind that the table names


_SPLITS = ("train", "dev", "test")
_Split = Annotated[
    str,
    options.option(panel=options.QUESTIONS, values=_SPLITS, help="Which part of the data: the parts share no scene."),
]
_Seed = Annotated[int, options.option(panel=options.QUESTIONS, help="Seed of the random draw.")]
_Scenes = Annotated[int, options.option(panel=options.QUESTIONS, help="Number of pictures.")]
_PerScene = Annotated[int, options.option(panel=options.QUESTIONS, help="Questions about each.")]
_Kinds = Annotated[
    str | None,
    options.option(
        panel=options.QUESTIONS,
        metavar="KIND[,..]",
        help=f"{', '.join(completion.KINDS)}; all if not given.",
        autocompletion=completion.several_of(completion.KINDS),
    ),
]
_Output = Annotated[
    Path | None,
    options.option(
        "--output", "-o", panel=options.OUTPUT, metavar="FILE", help="Draw the first scenes and their questions."
    ),
]
_Shown = Annotated[int, options.option(panel=options.OUTPUT, help="Scenes that are drawn.")]


def command(
    split: _Split = "test",
    seed: _Seed = 0,
    scenes: _Scenes = 170,
    per_scene: _PerScene = 12,
    kinds: _Kinds = None,
    output: _Output = None,
    shown: _Shown = 8,
    json_: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw grid scenes with their questions, and count kinds and answers."""
    with common.reported(debug):
        if shown < 1:
            raise ValueError(f"--shown must be at least 1, got {shown}")
        with common.progress() as progress:
            from .. import viz
            from ..gridvqa import KINDS, GridVQA
            from ..gridvqa.sheet import balance, sheet

            if output is not None:
                viz.require(output)
            chosen = KINDS if kinds is None else values.names(kinds)
            dataset = GridVQA(split, scenes=scenes, per_scene=per_scene, seed=seed, kinds=chosen)
            rows = []
            for row in dataset:
                progress("drawing scenes", row.scene, scenes)
                rows.append(row)
            if output is not None:
                progress("drawing the sheet")
                viz.save(sheet(dataset, [row for row in rows if row.scene < shown]), output)
            found = balance(rows)
        of = {"split": split, "seed": seed, "scenes": scenes, "per_scene": per_scene, "questions": len(rows)}
        if json_:
            counted = {
                one.kind: {"questions": one.questions, "guess": one.guess, "answers": dict(one.answers)}
                for one in found
            }
            common.print_json({**of, "kinds": counted, "picture": None if output is None else str(output)})
        else:
            _show(of, found, output)


def _show(of: dict[str, Any], found: Sequence[Balance], output: Path | None) -> None:
    console = common.console()
    made = common.table("kind", ">questions", ">answers", ">commonest right", "commonest answers")
    for one in found:
        named = ", ".join(f"{answer}: {count}" for answer, count in one.answers[:_MOST])
        more = " ..." if len(one.answers) > _MOST else ""
        made.add_row(one.kind, str(one.questions), str(len(one.answers)), f"{one.guess:.1%}", named + more)
    console.print(f"split {of['split']}, seed {of['seed']}: {of['questions']} questions about {of['scenes']} scenes")
    common.show(console, made)
    if output is not None:
        console.print(f"picture {output}", soft_wrap=True)
