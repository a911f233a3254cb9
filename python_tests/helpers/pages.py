"""Runs for a page as a model would give them, and what a written page knows."""

from __future__ import annotations

import functools
import json
import re

from ficoco_ext.viz import page
from helpers.pictures import chain, picture

SIDES = {"vision": 4, "text": 3}
LAYERS = (("vision", 1), ("vision", 3), ("text", 0))
GRID = (6, 8)
RATIOS = (0.5, 0.2)
METHODS = {  # a chain of reductions each: several targets, parts that are dropped, only dropping
    "ficoco-v": (("ficoco-v",) * 3, {"ficoco_v": {"targets": 3}}),
    "mixed": (("topk", "tome", "ficoco-v"), {"ficoco_v": {"targets": 2}}),
    "topk": (("topk",) * 3, {}),
}
ASKED = page.Asked("how many shapes ?", page.Answer("3", True), "3")


@functools.cache
def _chain(names, grid, ratio, method_options):
    options = {name: dict(values) for name, values in method_options}
    return tuple(chain(names, grid, ratio=ratio, batch=1, **options))


def runs(grid=GRID, ratios=RATIOS, methods=METHODS, layers=LAYERS, asked=True):
    """One run for each method and ratio; every one has an answer of its own."""
    made = []
    for name, (names, options) in methods.items():
        for ratio in ratios:
            chained = _chain(names, grid, ratio, tuple((key, tuple(value.items())) for key, value in options.items()))
            answer = page.Answer(f"{name} at {ratio}", ratio > 0.3) if asked else None
            made.append(page.Run(name, ratio, chained, layers[: len(chained)], answer))
    return made


def document(given, grid=GRID, **options):
    """The page of some runs."""
    options = {"sides": SIDES, "about": "a model, a picture", "asked": ASKED} | options
    return page.document(picture(grid), given, **options)


def known(text):
    """What a page's data block holds."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)
