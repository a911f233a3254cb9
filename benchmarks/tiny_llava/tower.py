"""Stage 1: the vision tower alone learns what each patch shows, where it is, and what the picture holds."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ficoco_ext.gridvqa.scene import Scene, draw, generator
from ficoco_ext.gridvqa.vocabulary import COLORS, SHAPES, WORDS

from .model import GRID, PATCHES, WIDTH, features, pixels

BATCH = 16
CROWDED = 0.6
_KINDS = ("nothing", "shape", "digit", "word")
_PARTS = {"kind": len(_KINDS), "color": len(COLORS), "shape": len(SHAPES), "digit": 10, "word": len(WORDS)}
_GLOBAL = len(COLORS) * len(SHAPES) + 10 + len(WORDS)
_UNASKED = -100


class Heads(nn.Module):
    """Read-outs that only training needs: of every patch, of its position, and of the whole picture."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, sum(_PARTS.values())))
        self.place = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * GRID))
        self.picture = nn.Linear(WIDTH, _GLOBAL)


def labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Of each patch (P, 5) its kind, colour, shape, digit, word; of the picture (66,) what is there."""
    patch = np.full((len(scene.things) + 1, len(_PARTS)), _UNASKED, np.int64)
    patch[-1, 0] = 0  # the last row is the background, which scene.patches() calls -1
    picture = np.zeros(_GLOBAL, np.float32)
    colors, pairs = list(COLORS), len(COLORS) * len(SHAPES)
    for index, thing in enumerate(scene.things):
        patch[index, 0] = _KINDS.index(thing.kind)
        if thing.kind == "shape":
            color, shape = colors.index(str(thing.color)), SHAPES.index(str(thing.shape))
            patch[index, 1:3] = color, shape
            picture[color * len(SHAPES) + shape] = 1
        elif thing.digit is not None:
            patch[index, 3] = thing.digit
            picture[pairs + thing.digit] = 1
        else:
            patch[index, 4] = WORDS.index(str(thing.word))
            picture[pairs + 10 + WORDS.index(str(thing.word))] = 1
    return patch[scene.patches()], picture


def batch(seed: int, step: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, patch labels and picture labels of one step's scenes."""
    scenes = []
    for index in range(BATCH):
        rng = generator(seed, "train", step * BATCH + index)
        scenes.append(draw(rng, "train", crowded=bool(rng.random() < CROWDED)))
    pairs = [labels(scene) for scene in scenes]
    arrays = ([scene.pixels for scene in scenes], [patch for patch, _ in pairs], [picture for _, picture in pairs])
    pictures, patch, picture = (torch.from_numpy(np.stack(one)).to(device) for one in arrays)
    return pixels(pictures), patch, picture


def loss(model: nn.Module, heads: Heads, values: Tensor, patch: Tensor, picture: Tensor) -> tuple[Tensor, dict]:
    """The sum of all read-outs' losses, and their accuracies."""
    seen, pooled = features(model, values)
    total, accuracy, start = torch.zeros((), device=values.device), {}, 0
    logits = heads.patch(seen)
    for column, (name, width) in enumerate(_PARTS.items()):
        part, truth = logits[..., start : start + width], patch[..., column]
        start += width
        asked = truth != _UNASKED
        total = total + F.cross_entropy(part[asked], truth[asked])
        accuracy[name] = (part[asked].argmax(-1) == truth[asked]).float().mean().item()
    patches = torch.arange(PATCHES, device=values.device)
    rows, columns = patches // GRID, patches % GRID
    where = heads.place(seen)
    for part, truth in ((where[..., :GRID], rows), (where[..., GRID:], columns)):
        total = total + F.cross_entropy(part.flatten(0, 1), truth.repeat(len(seen)))
    accuracy["place"] = (where[..., :GRID].argmax(-1) == rows).float().mean().item()
    guess = heads.picture(pooled)
    total = total + 8 * F.binary_cross_entropy_with_logits(guess, picture)
    hit, said = ((guess > 0) * picture).sum(), (guess > 0).sum() + picture.sum()
    accuracy["picture"] = (2 * hit / said).item()
    return total, accuracy
