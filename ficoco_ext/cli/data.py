"""``ficoco data``: the grid scenes that ``ficoco eval`` asks about, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import viz
from ..gridvqa import KINDS, GridVQA
from ..gridvqa.sheet import balance, sheet
from . import common

_MOST = 5  # answers of a kind that the table names


def command(
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    scenes: Annotated[int, typer.Option(help="Pictures.")] = 170,
    per_scene: Annotated[int, typer.Option(help="Questions about each.")] = 12,
    kinds: Annotated[str | None, typer.Option(help=f"Of {','.join(KINDS)}; all if not given.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Draw the first scenes and their questions.")
    ] = None,
    shown: Annotated[int, typer.Option(help="Scenes that are drawn.")] = 8,
    json_: Annotated[bool, common.JsonOption] = False,
    debug: Annotated[bool, common.DebugOption] = False,
) -> None:
    """Draw grid scenes with their questions, and count kinds and answers."""
    with common.reported(debug):
        if output is not None:
            viz.require(output)
        if shown < 1:
            raise ValueError(f"--shown must be at least 1, got {shown}")
        chosen = KINDS if kinds is None else tuple(part.strip() for part in kinds.split(",") if part.strip())
        dataset = GridVQA(split, scenes=scenes, per_scene=per_scene, seed=seed, kinds=chosen)
        rows = list(dataset)
        if output is not None:
            viz.save(sheet(dataset, [row for row in rows if row.scene < shown]), output)
        found = balance(rows)
        if json_:
            counted = {
                one.kind: {"questions": one.questions, "guess": one.guess, "answers": dict(one.answers)}
                for one in found
            }
            of = {"split": split, "seed": seed, "scenes": scenes, "per_scene": per_scene, "questions": len(rows)}
            common.print_json({**of, "kinds": counted, "picture": None if output is None else str(output)})
            return
        console = common.console()
        made = common.table("kind", ">questions", ">answers", ">commonest right", "commonest answers")
        for one in found:
            named = ", ".join(f"{answer}: {count}" for answer, count in one.answers[:_MOST])
            more = " ..." if len(one.answers) > _MOST else ""
            made.add_row(one.kind, str(one.questions), str(len(one.answers)), f"{one.guess:.1%}", named + more)
        console.print(f"split {split}, seed {seed}: {len(rows)} questions about {scenes} scenes")
        common.show(console, made)
        if output is not None:
            console.print(f"picture {output}", soft_wrap=True)
