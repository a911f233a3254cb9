"""Draws of methods after the projector: a number to a family, a method, an amount, a batch and a use, and its check.

The models are those of :mod:`helpers.tiny_families`; what must come out is the hand cut of :mod:`helpers.tiny_oracle`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from helpers.decoder import generated, watch
from helpers.tiny_configs import WORD
from helpers.tiny_families import BY_NAME, TINY, shared_model, untouched_model
from helpers.tiny_oracle import cut, kept_of, worst
from helpers.tiny_prompts import prompt, words

import ficoco_ext
from ficoco_ext import METHODS, get_method
from ficoco_ext.methods import Combined, hyperparameters, part_after_projector
from ficoco_ext.stages import needs

STEPS = 3
WITH_LANGUAGE = ("llava-clip", "llava-siglip", "llava-next", "qwen2-vl", "qwen2.5-vl")  # of which two parts are served
# Values to draw for hyperparameters of these names; others keep their defaults.
VALUES: dict[str, tuple[Any, ...]] = {
    "merge": (True,),
    "theta": (0.5, 0.9),
    "alpha": (0.0, 1.0),
    "budget": ("floor",),
    "cells": ("crops",),
    "contextual": (0.0, 0.5),
    "merging": ("mean",),
    "saliency": ("column", "keys"),
    "text_pivots": (0, 2),
    "image_pivots": (1, 3),
    "before_projector": (False,),
    "share": (0.0, 0.8),
    "seed": (1, 7),
}


@dataclass(frozen=True)
class Draw:
    """A case; its ``repr`` is Python that makes it again.

    Attributes:
        number: the draw, which seeds the pictures. family: its name. method, given: and its hyperparameters.
        amount: the other arguments of attach; with an amount for the decoder, of which none leaves, FastV is there
            too. rows: of words and pictures. use: "forward", "generate" or "beams".
    """

    number: int
    family: str
    method: str
    given: dict[str, Any] = field(default_factory=dict)
    amount: dict[str, Any] = field(default_factory=dict)
    rows: tuple[tuple[Any, ...], ...] = ()
    use: str = "forward"


def methods(family: str) -> tuple[str, ...]:
    """The package's own methods that act after the projector, but those that resize pictures instead.

    Those that act on the crops of a picture are for families that have them, and a class token.
    """
    own = [name for name, factory in METHODS.items() if factory.__module__.startswith("ficoco_ext.")]
    found = []
    for name in own:
        acts = get_method(name, **part_after_projector(name)).projector
        if acts is not None and not acts.resizes and (needs.CROPS not in acts.needs or family == "llava-next"):
            found.append(name)
    return tuple(found)


def drawn(number: int) -> Draw:
    """The draw of that number."""
    chance = Random(f"ficoco_ext projected {number}")
    family = chance.choice(TINY)
    method = chance.choice(methods(family.name))
    given: dict[str, Any] = part_after_projector(method)
    known = [key for key in hyperparameters(method) if key in VALUES]
    if known and chance.random() < 0.5:
        key = chance.choice(known)
        given[key] = chance.choice(VALUES[key])
    own = chance.choice(({"keep_ratio": round(chance.uniform(0.1, 1.0), 2)}, {"tokens": chance.randint(1, 12)}))
    amount = dict(own)
    if chance.random() < 0.2 and family.name in WITH_LANGUAGE:
        amount = {"projector": own, "decoder": {"tokens": 10**6}}
    if chance.random() < 0.4:
        amount["positions"] = "original" if family.mrope else chance.choice(("original", "contiguous"))
    rows = tuple(drawn_row(chance, family) for _ in range(chance.choice((1, 2, 2, 3))))
    use = chance.choice(("forward", "forward", "generate", "beams"))
    return Draw(number, family.name, method, given, amount, rows, use)


def drawn_row(chance: Random, family) -> tuple[Any, ...]:
    """Words with one to two pictures or a video among them, where the family takes it."""
    row = words(chance.randint(0, 5), chance.randint(0, 39))
    for _ in range(chance.choice((1, 1, 2))):
        kinds = [*family.pictures, *(family.videos if family.mixes and family.mrope else ())]
        row += [chance.choice(kinds), *words(chance.randint(1, 6), chance.randint(0, 39))]
    return tuple(row)


@torch.no_grad()
def check(draw: Draw) -> None:
    """Attach, use, detach, and compare. None of the draws may be refused.

    Raises:
        AssertionError: something does not hold. Anything else that is raised is a failure, too.
    """
    family, model = BY_NAME[draw.family], shared_model(draw.family)
    full = prompt(family, draw.rows, seed=draw.number)
    plain = model(**full.inputs).logits
    method = get_method(draw.method, **draw.given).projector
    words_too = {"words": lambda ids: ids >= WORD} if needs.TEXT in method.needs else {}
    chosen = Combined.of(method, get_method("fastv", layer=1)) if "decoder" in draw.amount else method
    with ficoco_ext.attach(model, chosen, **draw.amount, **words_too) as handle:
        checked(draw, full, model, handle, method, plain)
    assert torch.equal(model(**full.inputs).logits, plain), "the detached model differs from what it was"


def checked(draw: Draw, full, model, handle, method, plain) -> None:
    """Everything that holds while it is attached; ``plain``: the logits without it."""
    untouched, before = untouched_model(draw.family), {name: one.clone() for name, one in full.inputs.items()}
    seen, out = watch(model, lambda: model(**full.inputs))
    projections = handle.projections
    if not projections:
        assert draw.amount.get("projector", draw.amount).get("keep_ratio") == 1, "nothing was reduced"
        assert torch.equal(out.logits, plain), "nothing left, and something changed"
        return
    kept = kept_of(full, projections)
    for one in projections:
        assert 1 <= len(one.kept) <= one.before and bool((one.kept.diff() > 0).all())
    hand = cut(untouched, full, kept, draw.amount.get("positions", "original"))
    real = hand.mask.bool()
    if method.drops:
        assert torch.equal(seen.embeds[real], hand.embeds[real]), "what is left is not what it was"
    else:
        text = real & ~hand.visual
        assert torch.equal(seen.embeds[text], hand.embeds[text]), "text was changed"
        planes = () if seen.planes is None else tuple(one[hand.visual] for one in seen.planes)
        hand = replace(hand, embeds=seen.embeds, planes=planes)
    assert worst(hand, hand.logits(untouched), out.logits) < 5e-5
    assert torch.equal(model(**full.inputs).logits, out.logits), "the same call gave something else"
    if draw.use == "generate":
        said = generated(model, full.inputs, STEPS)
        wanted = hand.logits(untouched, said.sequences[:, -STEPS:-1])[:, -STEPS:]
        assert float((torch.stack(said.logits, 1) - wanted).abs().max()) < 5e-5
    if draw.use == "beams":
        said = model.generate(**full.inputs, max_new_tokens=STEPS, num_beams=2, do_sample=False)
        again = model.generate(**full.inputs, max_new_tokens=STEPS, num_beams=2, do_sample=False)
        assert torch.equal(said, again)
    assert all(torch.equal(full.inputs[name], one) for name, one in before.items()), "an input was written"
    if len(draw.rows) > 1:
        first = prompt(BY_NAME[draw.family], draw.rows[:1], seed=draw.number)
        model(**first.inputs)
        alone = kept_of(first, handle.projections)
        own = [stay for stay, one in zip(kept, full.visuals, strict=True) if one.row == 0]
        assert len(alone) == len(own) and all(map(torch.equal, alone, own)), "a row keeps others alone"
