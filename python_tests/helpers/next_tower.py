"""LLaVA-NeXT with a reduced tower by hand: one crop at a time, padding first, then laid out by the model's own packing.

Everything is float64 and lists of places. What left the tower is NaN in a whole grid, and the model's own packing says
where each token is that stayed.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import ficoco_ext
from ficoco_ext import QueryKey, Reduction, get_method
from ficoco_ext.stages import Crops
from ficoco_ext.stages.needs import WHOLE_GRID
from helpers import tiny_configs as configs
from helpers.models import tower_by_hand
from helpers.tiny_families import BY_NAME
from helpers.tiny_processors import Picture
from helpers.tiny_prompts import prompt, words

DEPTH, PATCHES, SIDE = 6, configs.PATCHES, 4
LAYERS = (0, 2, 3, 4)  # that reduce
DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False, "max_new_tokens": 3}
# In pixels: no padding; at both sides; none; at both sides of one line; above and below; thin; unequal padding
PICTURES = (
    Picture(56, 112),
    Picture(100, 60),
    Picture(112, 100),
    Picture(40, 44),
    Picture(20, 110),
    Picture(112, 30),
    Picture(60, 112),
)
CLIP = dataclasses.replace(BY_NAME["llava-next"], build=functools.partial(configs.llava_next, DEPTH), pictures=PICTURES)
SIGLIP = dataclasses.replace(CLIP, build=functools.partial(configs.llava_next, DEPTH, False))


def crops_of(picture: Picture) -> Crops:
    """Where the patches of a picture are."""
    return Crops.of(tuple(picture), configs.PINPOINTS, SIDE, configs.SIDE)


def padding_places(part: tuple[int, int, int, int]) -> list[int]:
    """The patches of a crop that are padding, of a valid part (top, bottom, left, right)."""
    top, bottom, left, right = part
    return [at for at in range(PATCHES) if not (top <= at // SIDE < bottom and left <= at % SIDE < right)]


class HandCrop:
    """One crop on its way through the tower.

    Args:
        padding: its patches that leave first, ascending. steps: layer -> (method, r). class_token: there is one.
    """

    def __init__(self, padding: list[int], steps: dict[int, tuple[Any, int]], class_token: bool) -> None:
        self.padding, self.steps, self.first = padding, steps, int(class_token)
        self.kept = list(range(PATCHES))
        self.size = [1.0] * (PATCHES + self.first)
        self.attention: tuple[Tensor, Tensor] | None = None
        self.proportional = False
        self.did: list[tuple[list[int], Reduction | None]] = []  # padding that left first, and what the method did

    def see(self, layer: int, query: Tensor, key: Tensor) -> None:
        """Remember the attention of a layer."""
        self.attention = query, key

    def bias(self, layer: int) -> Tensor:
        """(1, N): of proportional attention."""
        sizes = self.size if self.proportional else [1.0] * len(self.size)
        return torch.tensor([sizes], dtype=torch.float64).log()

    def after_attention(self, layer: int, hidden: Tensor) -> Tensor:
        """Drop padding, then let the method of the layer remove the rest."""
        if layer not in self.steps:
            return hidden
        method, r = self.steps[layer]
        self.proportional = method.proportional_attention
        left = [place for place in self.kept if place in self.padding]
        gone = [] if WHOLE_GRID in method.needs else left[:r]
        stays = [at for at, place in enumerate(self.kept) if place not in gone]
        tokens = [0] * self.first + [at + self.first for at in stays]
        self.kept = [self.kept[at] for at in stays]
        self.size = [self.size[at] for at in tokens]
        hidden = hidden[:, tokens]
        if r == len(gone):
            self.did.append((gone, None))
            return hidden
        query, key = (one[:, :, tokens] for one in self.attention)
        done = ficoco_ext.reduce(
            hidden,
            QueryKey(query, key),
            r - len(gone),
            method=method,
            class_token=bool(self.first),
            previous=self._record(),
            return_reduction=True,
        )
        self.kept, self.size = done.patch_ids[0].tolist(), done.size.flatten().tolist()
        self.did.append((gone, done))
        return done.tokens

    def _record(self) -> Reduction:
        """What has left so far, told to a method that goes on from there."""
        kept = torch.tensor([[0] * self.first + [place + self.first for place in self.kept]])
        none = torch.empty(1, 0, dtype=torch.int64)
        held = torch.full((1, PATCHES + self.first), -1).scatter(1, kept, torch.arange(len(kept[0]))[None])
        return Reduction(
            None,
            torch.tensor(self.size, dtype=torch.float64).view(1, -1, 1),
            kept,
            none,
            held,
            none[..., None],
            torch.empty(1, 0, 1, dtype=torch.float64),
            bool(self.first),
            (SIDE, SIDE),
        )


@torch.no_grad()
def tower(
    model: Any, pixels: Tensor, crops: Crops, steps: dict[int, tuple[Any, int]], first: bool = True
) -> list[tuple[HandCrop, Tensor]]:
    """For the thumbnail and each crop of one picture: what became of it, and its projected patches (M, D) in float64.

    Args:
        model: without reduction. pixels: (1 + n, 3, H, W). steps: layer -> (method, r). first: padding leaves first.
    """
    exact = copy.deepcopy(model).double()
    class_token = model.config.vision_feature_select_strategy == "default"
    found = []
    for one, part in zip(pixels.double(), ((0, SIDE, 0, SIDE), *crops.parts), strict=True):
        hand = HandCrop(padding_places(part) if first else [], steps, class_token)
        made = tower_by_hand(exact, one[None], hand.after_attention, key_bias=hand.bias, see=hand.see)[0]
        found.append((hand, made[int(class_token) :]))
    return found


def packed(model: Any, picture: Picture, crops: list[tuple[HandCrop, Tensor]]) -> Tensor:
    """(before, D) float32: the model's own packing of all places, NaN where a patch left."""
    full = torch.full((len(crops), PATCHES, crops[0][1].shape[1]), float("nan"))
    for row, (hand, made) in zip(full, crops, strict=True):
        row[hand.kept] = made.float()
    own = type(model.model).pack_image_features
    features, _ = own(
        model.model,
        [full],
        [tuple(picture)],
        model.config.vision_feature_select_strategy,
        image_newline=model.model.image_newline.detach(),
    )
    return features[0]


class StandIn:
    """In place of ``get_image_features`` of a model without reduction: features of whole pictures, NaN where they left.

    Args:
        model: the model. full: the prompt. pictures: in it. steps: layer -> (method, r). first: padding leaves first.
    """

    def __init__(
        self, model: Any, full: Any, pictures: list[Picture], steps: dict[int, tuple[Any, int]], first: bool = True
    ) -> None:
        made = [one.tensors["pixel_values"] for row in full.encoded for one in row if "pixel_values" in one.tensors]
        self.crops = [tower(model, one, crops_of(size), steps, first) for one, size in zip(made, pictures, strict=True)]
        self.features = [packed(model, size, one) for one, size in zip(self.crops, pictures, strict=True)]
        self.kept = [(~one.isnan().any(1)).nonzero()[:, 0] for one in self.features]

    def __call__(self, *args: Any, **named: Any) -> Any:
        return SimpleNamespace(pooler_output=[one.nan_to_num(nan=100.0) for one in self.features])


def rows(*pictures, seed=1):
    """A row for each picture but the last two, which share one, then a row of text; and the pictures."""
    *first, one, two = pictures
    made = [[*words(2 + index), picture, *words(3, 5 + index)] for index, picture in enumerate(first)]
    made += [[*words(1), one, *words(2, 7), two, *words(3, 11)], words(6, 30)]
    return prompt(CLIP, made, seed), list(pictures)


def steps_of(plan):
    """Layer -> (method, r) of the layers of a plan that remove something."""
    return {step.layer: (one, step.r) for step, one in zip(plan.schedule.steps, plan.methods, strict=True) if step.r}


def amount(name, r=3):
    """Layers and amount of a method: four layers, or its own one."""
    own = get_method(name).tower.layers
    return {"tokens": 6} if own is not None else {"r": r, "layers": LAYERS}
