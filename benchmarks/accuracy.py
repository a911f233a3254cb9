"""Accuracy against cost on the embedded model: the studies that give every figure of docs/accuracy.md.

    python benchmarks/accuracy.py methods --seeds 3 --json benchmarks/results/accuracy_methods.json
    python benchmarks/accuracy.py late --seeds 3 --json benchmarks/results/accuracy_late.json
    python benchmarks/accuracy.py choosing --split dev --scenes 150 --json benchmarks/results/accuracy_choosing.json
    python benchmarks/accuracy.py ficoco-v --json benchmarks/results/accuracy_ficoco_v.json
    python benchmarks/accuracy.py ficoco-l --seeds 2 --json benchmarks/results/accuracy_ficoco_l.json
    python benchmarks/accuracy.py projector --split dev --scenes 60 --json benchmarks/results/accuracy_projector.json
    python benchmarks/accuracy.py methods-by-name --split dev --scenes 100 --page docs/accuracy.md \\
        --json benchmarks/results/accuracy_methods_by_name.json

A study is a list of settings; asking, judging, resampling and going on after an interruption are those of ``ficoco
eval``. Methods that reduce in several layers of the tower do so in the same ones here, by the same schedule, so that
they differ in what they remove and not in when. ``--model`` takes another training of the same recipe. Needs
``pip install ".[eval]"``. The picture of ``methods`` is shown on the page: copy it to ``docs/accuracy_methods.png``.
``methods-by-name`` takes every method that is registered, and writes its table into the page by itself.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accuracy_by_name import KINDS, methods_by_name, write_part
from rich.console import Console
from rich.progress import Progress

from ficoco_ext import viz
from ficoco_ext.apps import checkpoint
from ficoco_ext.evaluation import Setting, evaluate, markdown, plot, settings_of
from ficoco_ext.gridvqa import GridVQA
from ficoco_ext.schedule import geometric

BUDGETS = (0.5, 0.25, 0.15, 0.1)
HARD = (0.25, 0.1)
# Of 8, the output of layer 6 is the last that is used. Early reduction saves more and is harder to get right.
EARLY, LATE = (1, 2, 3, 4), (3, 4, 5, 6)


def tower(label: str, keep: float, method: Any, layers: tuple[int, ...] = EARLY, **given: Any) -> Setting:
    """A method of the tower in the common layers, each keeping the same share of what it gets."""
    return Setting(method, {"keep_ratio": geometric(keep, len(layers))}, given, layers, label)


def once(label: str, keep: float, method: Any, **given: Any) -> Setting:
    """A method that reduces once, where it wants to."""
    return Setting(method, {"keep_ratio": keep}, given, None, label)


def methods(budgets: tuple[float, ...] = BUDGETS) -> list[Setting]:
    """Everything that the package offers, at every budget."""
    found = []
    for keep in budgets:
        found += [
            tower("random", keep, "random"),
            tower("topk", keep, "topk"),
            tower("evit", keep, "evit"),
            tower("evit, mean", keep, "evit", fuse="mean"),
            tower("tome", keep, "tome"),
            tower("ficoco-v", keep, "ficoco-v"),
            tower("ficoco-v, paper", keep, "ficoco-v", variant="paper"),
            tower("ficoco-v, key", keep, "ficoco-v", correlation="key"),
            tower("prune-then-merge", keep, "prune-then-merge"),
            once("pool", keep, "pool"),
            once("prumerge", keep, "prumerge"),
            once("prumerge+", keep, "prumerge+"),
            once("ficoco-vl", keep, "ficoco-vl"),
            once("ficoco-l", keep, "ficoco-l"),
            once("ficoco-l, released", keep, "ficoco-l", variant="released"),
            once("ficoco-l, correlation by logits", keep, "ficoco-l", correlation_attention="logits"),
            once("fastv", keep, "fastv"),
            Setting("pyramiddrop", {"keep_ratio": geometric(keep, 3)}, {}, None, "pyramiddrop"),
        ]
    return found


def choosing(budgets: tuple[float, ...] = HARD) -> list[Setting]:
    """What was tried for a preset of our own; to be run on the split ``dev`` alone."""
    found = []
    for keep, (when, layers) in itertools.product(budgets, (("early", EARLY), ("late", LATE))):
        found += [tower(f"{when}: {name}", keep, name, layers) for name in ("topk", "tome", "ficoco-v")]
        given = {"variant": "paper", "normalize": True, "targets": 0}
        found.append(tower(f"{when}: ficoco filter", keep, "ficoco-v", layers, **given))
        for prune, merging, split in itertools.product(("topk", "ficoco"), (0.25, 0.5, 0.75), (0.0, 0.5)):
            given = {"prune": prune, "merge_layers": merging, "split": split}
            label = f"{when}: {prune}, merge {merging:g}, split {split:g}"
            found.append(tower(label, keep, "prune-then-merge", layers, **given))
        for weigh in (0.25, 0.5):
            given = {"prune": "topk", "merge_layers": 0.5, "split": 0.0, "weigh": weigh}
            found.append(tower(f"{when}: topk, merge 0.5, weigh {weigh:g}", keep, "prune-then-merge", layers, **given))
        given = {"prune": "topk", "merge_layers": 0.5, "split": 0.0, "proportional_attention": True}
        found.append(tower(f"{when}: topk, merge 0.5, proportional", keep, "prune-then-merge", layers, **given))
    return found


def late(budgets: tuple[float, ...] = HARD) -> list[Setting]:
    """The methods of the tower once more, in its last layers."""
    found = []
    for keep in budgets:
        for one in methods((keep,)):
            if one.layers == EARLY:
                found.append(dataclasses.replace(one, layers=LATE))
    return found


def _named(given: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in given.items()) or "default"


def ficoco_v(budgets: tuple[float, ...] = HARD) -> list[Setting]:
    """Every switch of FiCoCo-V that the paper tabulates, and where it acts, for both readings."""
    switches: list[dict[str, Any]] = [
        {},
        {"class_attention": False},
        {"local_redundancy": False},
        {"penalty": 1},
        {"penalty": 3},
        {"penalty": 4},
        {"targets": 0},
        {"targets": 1},
        {"targets": 2},
        {"alpha": "average", "targets": 2},
        {"correlation": "convergent"},
        {"correlation": "key"},
        {"eps": 0.996},
        {"eps": 0.994},
        {"eps": 0.992},
        {"eps": 0.95},
        {"redundancy": "column"},
        {"normalize": True},
        {"normalize": False},
        {"lam": 0.15},
        {"lam": 0.35},
        {"lam": 0.5},
        {"lam": 0.65},
        {"lam": 0.85},
    ]
    found = []
    for keep in budgets:
        for variant in ("released", "paper"):
            for given in switches:
                chosen = dict(given)
                if variant == "paper" and chosen.get("correlation") in ("key", "convergent"):
                    chosen["alpha"] = "softmax"  # a ratio needs probabilities to divide
                found.append(tower(f"{variant}: {_named(given)}", keep, "ficoco-v", variant=variant, **chosen))
        for layers in ((6,), (5, 6), (4, 5, 6), LATE, (2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6)):
            found.append(tower(f"released: layers {layers[0]} to 6", keep, "ficoco-v", layers))
            found.append(tower(f"topk: layers {layers[0]} to 6", keep, "topk", layers))
    return found


def ficoco_l(budgets: tuple[float, ...] = HARD) -> list[Setting]:
    """Every switch of FiCoCo-L that the paper tabulates, where nothing has been read yet and in its own layers."""
    switches: list[dict[str, Any]] = [
        {},
        {"visual_redundancy": False},
        {"text_relevance": False},
        {"direct": False},
        {"indirect": False},
        {"targets": 0},
        {"targets": 1},
        {"targets": 2},
        {"alpha": "average", "targets": 2},
        {"eps": 0.996},
        {"eps": 0.992},
        {"beta": 0.2},
        {"beta": 0.4},
        {"beta": 0.8},
        {"gamma": 0.2},
        {"gamma": 0.4},
        {"gamma": 0.8},
        {"before_attention": True},
    ]
    found = []

    def add(keep: float, label: str, layers: tuple[int, ...], **given: Any) -> None:
        found.append(Setting("ficoco-l", {"keep_ratio": keep}, given, layers, label))

    for keep, (variant, other) in itertools.product(budgets, (("paper", "logits"), ("released", "probs"))):
        for given in [*switches, {"correlation_attention": other}]:
            # Layer 0 has nothing before its attention that it could read.
            first = (1,) if "before_attention" in given else (0,)
            add(keep, f"layer {first[0]}, {variant}: {_named(given)}", first, variant=variant, **given)
            add(keep, f"layers 1 to 5, {variant}: {_named(given)}", (1, 2, 3, 4, 5), variant=variant, **given)
        for first in (2, 3):
            add(keep, f"layers {first} to 5, {variant}: default", tuple(range(first, 6)), variant=variant)
    for keep, layer in itertools.product(budgets, (1, 2, 3)):
        found.append(Setting("fastv", {"keep_ratio": keep}, {"layer": layer}, None, f"fastv: layer {layer}"))
    return found


def projector(budgets: tuple[float, ...] = (36, 18)) -> list[Setting]:
    """Methods after the projector, and all others at the same numbers of visual tokens."""
    after: dict[str, tuple[str, dict[str, Any]]] = {
        "divprune": ("divprune", {}),
        "divprune, merge": ("divprune", {"merge": True}),
        "scope, alpha 0": ("scope", {"alpha": 0.0}),
        "scope, class": ("scope", {"saliency": "class"}),
        "scope, column": ("scope", {"saliency": "column"}),
        "scope, keys": ("scope", {"saliency": "keys"}),
        "topk, projector": ("topk", {"part": "projector"}),
    }
    inside = ("random", "topk", "evit", "tome", "ficoco-v", "prune-then-merge", "prumerge", "prumerge+", "pool")
    found = settings_of([], tokens=[int(count) for count in budgets], baselines=True)
    found = [one for one in found if one.name != "downsample"]  # which this study, run before it was there, has not
    for count in map(int, budgets):
        amount = {"tokens": count}
        found += [Setting(name, amount, given, None, label) for label, (name, given) in after.items()]
        # ToMe removes at most half of what enters a layer: its default layers are too few for an eighth.
        able = [name for name in inside if name != "tome" or count >= 36]
        found += [Setting(name, amount, {}, None, f"{name}, tower") for name in able]
        found += [
            Setting("tome", amount, {}, tuple(range(7)), "tome, layers 0 to 6"),
            Setting("divprune", amount, {"part": "tower", "merge": True}, None, "divprune, merge, tower"),
            Setting("prune-then-merge+divprune", amount),
        ]
        found += [Setting(name, amount) for name in ("ficoco-l", "fastv", "pyramiddrop", "divprune+fastv", "ficoco-vl")]
    return found


STUDIES = {
    "methods": methods,
    "choosing": choosing,
    "late": late,
    "ficoco-v": ficoco_v,
    "ficoco-l": ficoco_l,
    "projector": projector,
    "methods-by-name": methods_by_name,
}


def main(
    study: Annotated[str, typer.Argument(help=", ".join(STUDIES))],
    json: Annotated[Path, typer.Option(help="results; an interrupted study goes on from here")],
    model: Annotated[Path | None, typer.Option(help="another training of the embedded model")] = None,
    split: Annotated[str, typer.Option(help="dev to choose, test to judge")] = "test",
    seeds: Annotated[int, typer.Option(help="draws of scenes", min=1)] = 1,
    scenes: Annotated[int, typer.Option(help="of each draw", min=1)] = 100,
    budgets: Annotated[str | None, typer.Option(help="keep ratios; default: the study's")] = None,
    threads: Annotated[int | None, typer.Option(help="of the CPU", min=1)] = None,
    page: Annotated[Path | None, typer.Option(help="methods-by-name: the page whose table to write")] = None,
) -> None:
    """Run one study; tables beside the results, and a picture."""
    if study not in STUDIES:
        raise typer.BadParameter(f"study must be one of {', '.join(STUDIES)}, got {study!r}")
    if page is not None and study != "methods-by-name":
        raise typer.BadParameter(f"page must not be given with the study {study!r}: its tables are written by hand")
    if threads is not None:
        torch.set_num_threads(threads)
    asked = {} if budgets is None else {"budgets": tuple(float(one) for one in budgets.split(","))}
    llava = checkpoint.load(None if model is None else str(model), torch.float32, torch.device("cpu"))
    if model is not None:
        llava = dataclasses.replace(llava, name=model.name)
    with Progress(console=Console(stderr=True)) as shown:
        bar = shown.add_task(study)
        results = evaluate(
            llava,
            GridVQA(split, scenes=scenes),
            STUDIES[study](**asked),
            seeds=range(seeds),
            mean_of=KINDS,
            results=json,
            progress=lambda done, total, text: shown.update(bar, completed=done, total=total, description=text),
        )
    summary = results.summary(KINDS)
    json.with_suffix(".md").write_text(markdown.page(results, summary))
    viz.save(plot.draw(results, summary), json.with_suffix(".png"))
    if page is not None:
        write_part(page, results)


if __name__ == "__main__":
    typer.run(main)
