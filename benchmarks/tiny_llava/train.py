"""Train the tiny LLaVA that the package ships: first the tower, then projector and language model.

    python -m benchmarks.tiny_llava.train RUN --seed 0

RUN holds ``log.jsonl``, the state to go on from, and in the end ``model/``, as ``from_pretrained`` takes it. The same
command goes on where a run was cut off. All chance follows from the seed and the number of the step, and rates from the
number of the step, so that a run that was cut off ends like one that was not. Needs ``pip install ".[eval]"``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from . import language, tower
from .model import build, save
from .optim import Optimizers

_STATE, _EVERY, _TELL = "state.pt", 100, 50
_STAGES = ("tower", "language", "polish")


class Run:
    """One folder: what is known so far, and the log."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _STATE
        held = torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None
        self.state: dict[str, Any] = {"recipe": recipe} if held is None else held
        if self.state["recipe"] != recipe:
            raise typer.BadParameter(f"{folder} holds a run of {self.state['recipe']}, not {recipe}; name a new folder")
        self.seconds: float = self.state.get("seconds", 0.0)
        self._began = time.monotonic()

    def elapsed(self) -> float:
        """Seconds that this run has taken, those before an interruption included."""
        return self.seconds + time.monotonic() - self._began

    def say(self, **facts: Any) -> None:
        """One line, in the log and on the screen."""
        line = json.dumps({**facts, "seconds": round(self.elapsed())})
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(line + "\n")
        print(line, flush=True)

    def put(self, **state: Any) -> None:
        """Save the state, atomically."""
        self.state |= {**state, "seconds": self.elapsed()}
        torch.save(self.state, self.folder / "state.new")
        os.replace(self.folder / "state.new", self.folder / _STATE)

    def train(
        self,
        stage: str,
        module: nn.Module,
        optimizers: Optimizers,
        loss: Callable[[int], tuple[torch.Tensor, dict[str, Any]]],
        check: Callable[[int], dict[str, Any] | None] = lambda step: None,
    ) -> None:
        """Steps of one stage, from where it was left. ``loss`` takes the number of the step."""
        first, held = 0, self.state.get("stage", stage)
        if _STAGES.index(held) > _STAGES.index(stage):
            return
        if "module" in self.state and held == stage:
            first = self.state["step"]
            module.load_state_dict(self.state["module"])
            optimizers.restore(self.state["optimizers"])
        for step in range(first, optimizers.steps):
            value, facts = loss(step)
            optimizers.step(value, step)
            done = step + 1
            if done % _TELL == 0:
                short = {k: round(v, 3) if isinstance(v, float) else v for k, v in facts.items()}
                self.say(stage=stage, step=done, loss=round(value.item(), 3), **short)
            if done % 500 == 0 and (checked := check(done)):
                self.say(stage=stage, step=done, **checked)
            if done % _EVERY == 0 or done == optimizers.steps:
                self.put(stage=stage, step=done, module=module.state_dict(), optimizers=optimizers.state())


def main(
    folder: Annotated[Path, typer.Argument(help="where the run is kept")],
    seed: Annotated[int, typer.Option(help="of the weights and of all scenes", min=0)] = 0,
    tower_steps: Annotated[int, typer.Option(help="steps of the first stage", min=1)] = 2400,
    language_steps: Annotated[int, typer.Option(help="steps of the second stage", min=1)] = 3000,
    polish_steps: Annotated[int, typer.Option(help="its further steps, at falling rates", min=1)] = 1500,
    scenes: Annotated[int, typer.Option(help="scenes of the second stage", min=20)] = language.CACHED,
    exam: Annotated[int, typer.Option(help="held-out scenes of the examination in the end", min=2)] = 400,
    threads: Annotated[int, typer.Option(help="of the CPU", min=1)] = os.cpu_count() or 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one")] = None,
) -> None:
    """Train, save, examine."""
    torch.set_num_threads(threads)
    recipe = {"seed": seed, "tower_steps": tower_steps, "language_steps": language_steps, "scenes": scenes}
    recipe["polish_steps"] = polish_steps
    run = Run(folder, recipe)
    model = build(seed).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    _tower(run, model, seed, tower_steps)
    _language(run, model, seed, (language_steps, polish_steps), scenes)
    save(model, folder / "model")
    held_out = language.cache(model, seed, "test", exam)
    right = {name: round(value, 4) for name, value in language.examine(model, held_out, seed).items()}
    blind = {name: round(value, 4) for name, value in language.examine(model, held_out, seed, True).items()}
    run.say(recipe=recipe, accuracy=right, wrong_picture=blind)


def _tower(run: Run, model: Any, seed: int, steps: int) -> None:
    if "tower" in run.state:
        model.model.vision_tower.load_state_dict(run.state["tower"])
        return
    torch.manual_seed(seed)
    heads = tower.Heads().to(model.device)
    module = nn.ModuleDict({"tower": model.model.vision_tower, "heads": heads})
    optimizers = Optimizers(module, adam=2e-3, muon=4e-3, steps=steps, warmup=60, decay_from=0.4)
    run.train(
        "tower", module, optimizers, lambda step: tower.loss(model, heads, *tower.batch(seed, step, model.device))
    )
    run.put(tower=model.model.vision_tower.state_dict())


def _language(run: Run, model: Any, seed: int, steps: tuple[int, int], scenes: int) -> None:
    """First the answers; then more steps at falling rates, where the end of an answer counts as much as the answer."""
    model.model.vision_tower.requires_grad_(False)
    seen = language.cache(model, seed, "train", scenes)
    held_out = language.cache(model, seed, "dev", min(100, scenes))
    parts = {
        "projector": model.model.multi_modal_projector,
        "language_model": model.model.language_model,
        "lm_head": model.lm_head,
    }
    module = nn.ModuleDict(parts)
    sums: dict[str, tuple[int, int]] = {}

    def running(step: int, right: dict[str, tuple[int, int]]) -> dict[str, Any]:
        for name, (hit, number) in right.items():
            before = sums.get(name, (0, 0)) if step % _TELL else (0, 0)
            sums[name] = before[0] + hit, before[1] + number
        return {name: hit / max(number, 1) for name, (hit, number) in sums.items()}

    def check(step: int) -> dict[str, Any]:
        return {"dev": {name: round(value, 3) for name, value in language.examine(model, held_out, seed).items()}}

    def stage(name: str, steps: int, first: int, ending: float, **rates: Any) -> None:
        def loss(step: int) -> tuple[torch.Tensor, dict[str, Any]]:
            value, right = language.loss(model, seen, seed, first + step, ending)
            return value, running(step, right)

        run.train(name, module, Optimizers(module, steps=steps, **rates), loss, check)

    stage("language", steps[0], 0, 0.1, adam=1.5e-3, muon=3e-3, warmup=50, decay_from=0.6)
    stage("polish", steps[1], steps[0], 1.0, adam=1e-3, muon=2e-3, warmup=20, decay_from=0.0)


if __name__ == "__main__":
    typer.run(main)
