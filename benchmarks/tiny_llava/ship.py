"""Put a trained model into the package, with pictures and questions to try it on.

    python -m benchmarks.tiny_llava.ship RUN

The samples are the first held-out scenes of their seed that allow one question of every kind asked for: nothing is
chosen by what the model answers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from ficoco_ext.apps.checkpoint import EMBEDDED, SCENES
from ficoco_ext.gridvqa import GridVQA

KINDS = ("exist", "attr", "position", "count", "text", "digit")
SEED, NUMBER = 2026, 8


def samples(folder: Path) -> None:
    """Pictures and ``questions.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = GridVQA("test", seed=SEED, per_scene=len(KINDS), kinds=KINDS)
    asked: list[dict[str, str]] = []
    for index in range(10 * NUMBER):
        scene, questions = scenes.scene(index)
        if len(asked) == NUMBER * len(KINDS):
            break
        if {kind for kind, _, _ in questions} != set(KINDS):
            continue
        name = f"scene_{len(asked) // len(KINDS)}.png"
        Image.fromarray(scene.pixels).save(folder / name, optimize=True)
        for kind, question, answer in sorted(questions, key=lambda one: KINDS.index(one[0])):
            asked.append({"image": name, "kind": kind, "question": question, "answer": answer})
    (folder / "questions.json").write_text(json.dumps(asked, indent=0) + "\n")


def main(run: Annotated[Path, typer.Argument(help="folder of a finished run")]) -> None:
    """Copy the model, draw the samples."""
    source = run / "model"
    if not (source / "model.safetensors").is_file():
        raise typer.BadParameter(f"{source} holds no model; let the training end")
    for path in source.iterdir():
        shutil.copyfile(path, EMBEDDED / path.name)
    samples(SCENES)


if __name__ == "__main__":
    typer.run(main)
