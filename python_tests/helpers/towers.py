"""Vision towers of tiny models: what their eager attention gives, averaged by hand into projected tokens."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ficoco_ext.models.model_changes import ModelChanges
from ficoco_ext.models.tower_readings import TowerReadings
from ficoco_ext.stages import needs
from helpers.tiny_configs import PATCHES, SIDE
from helpers.tiny_families import BY_NAME, TINY, TinyFamily
from helpers.tiny_processors import Picture
from helpers.tiny_processors import Video as TinyVideo

NAMES = {  # as the tests' families are called, and as the package calls them
    "llava-clip": "LLaVA-1.5",
    "llava-siglip": "LLaVA-1.5",
    "llava-pixtral": "LLaVA-1.5",
    "llava-next": "LLaVA-NeXT",
    "llava-onevision": "LLaVA-OneVision",
    "video-llava": "Video-LLaVA",
    "qwen2-vl": "Qwen2-VL",
    "qwen2.5-vl": "Qwen2.5-VL",
    "qwen3-vl": "Qwen3-VL",
    "qwen3-vl-moe": "Qwen3-VL-MoE",
    "qwen3.5": "Qwen3.5",
    "qwen3.5-moe": "Qwen3.5-MoE",
    "internvl": "InternVL3",
    "gemma3": "Gemma 3",
    "smolvlm": "SmolVLM",
    "idefics3": "Idefics3",
    "mistral3": "Mistral3",
    "glm4v": "GLM-4V",
    "glm46v": "GLM-4.6V",
    "glm4v-moe": "GLM-4V-MoE",
    "paligemma": "PaliGemma",
}
PACKED = (
    "qwen2-vl",
    "qwen2.5-vl",
    "qwen3-vl",
    "qwen3-vl-moe",
    "qwen3.5",
    "qwen3.5-moe",
    "glm4v",
    "glm46v",
    "glm4v-moe",
)
CLASS_TOKENS = ("llava-clip", "llava-next", "video-llava", "internvl")
LAYER = {
    "llava-clip": 1,
    "llava-next": 1,
    "video-llava": 1,
    "qwen3-vl": 2,
    "qwen3-vl-moe": 2,
    "qwen3.5": 2,
    "qwen3.5-moe": 2,
}  # else 1


@dataclass(frozen=True)
class Case:
    """A call that encodes pictures or videos of a family."""

    family: TinyFamily
    video: bool = False

    def __str__(self) -> str:
        return f"{self.family.name}{'-video' * self.video}"

    @property
    def visuals(self) -> list[Picture | TinyVideo]:
        """Two of different sizes where the family has several; three pictures if they differ."""
        if self.video:
            return list(self.family.videos)
        if self.family.name in PACKED:  # 2 x 6 tokens: three windows side by side
            return [*self.family.pictures[:3], Picture(4, 12)]
        found = self.family.pictures[:3]
        return list(found) if len(found) > 1 else list(found) * 2

    def tensors(self, visuals: list[Any] | None = None, seed: int = 3) -> dict[str, Tensor]:
        """What the processor makes of them, a row of the prompt for each."""
        generator = torch.Generator().manual_seed(seed)
        chosen = self.visuals if visuals is None else visuals
        return self.family.join([[self.family.encode(one, generator)] for one in chosen])

    def encode(self, model: Any, tensors: dict[str, Tensor]) -> list[Tensor]:
        """The projected features of each entry (n_i, D)."""
        core = model.model
        if self.video and self.family.name == "llava-onevision":  # its argument has two names
            return list(core.get_video_features(tensors["pixel_values_videos"]).pooler_output)
        call = core.get_video_features if self.video else core.get_image_features
        return list(call(**tensors).pooler_output)

    def tower(self, model: Any) -> torch.nn.Module:
        """The vision tower that the call runs."""
        core, name = model.model, self.family.name
        if name == "video-llava":
            return core.video_tower if self.video else core.image_tower
        return core.visual if name in PACKED else getattr(core, "vision_model", None) or core.vision_tower

    def layers(self, model: Any) -> torch.nn.ModuleList:
        """The layers of the tower."""
        tower = self.tower(model)
        if self.family.name in PACKED:
            return tower.blocks
        if self.family.name == "internvl":
            return tower.encoder.layer
        return (tower.transformer if self.family.name in ("mistral3", "llava-pixtral") else tower.encoder).layers

    def attention(self, model: Any, layer: int | None = None) -> torch.nn.Module:
        """The attention of the layer whose output is selected, or of the last that sees whole pictures."""
        found = self.layers(model)[LAYER.get(self.family.name, 1) if layer is None else layer]
        return next(getattr(found, name) for name in ("attn", "attention", "self_attn") if hasattr(found, name))


CASES = [Case(family, video) for family in TINY for video in (False, True) if family.videos or not video]


def case(name: str, video: bool = False) -> Case:
    return Case(BY_NAME[name], video)


class EagerCalls:
    """The calls of one attention module's eager kernel: probabilities and keys, each (B, H, N, N) and (B, H, N, d)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: torch.nn.Module) -> None:
        self.weights: list[Tensor] = []
        self.keys: list[Tensor] = []
        source = sys.modules[type(module).__module__]
        eager = source.eager_attention_forward

        def recorded(caller: torch.nn.Module, query: Tensor, key: Tensor, *others: Any, **options: Any) -> Any:
            output, weights = eager(caller, query, key, *others, **options)
            if caller is module:
                self.weights.append(weights)
                self.keys.append(key)
            return output, weights

        monkeypatch.setattr(source, "eager_attention_forward", recorded)


def of_patches(kind: str, calls: EagerCalls, case: Case) -> list[Tensor]:
    """The numbers of patches, one tensor (n,) for each picture, tile or frame, from the maps themselves."""
    first = int(case.family.name in CLASS_TOKENS)
    found = []
    for weights, keys in zip(calls.weights, calls.keys, strict=True):
        for row, key in zip(weights.double().mean(1), keys.double().mean(1), strict=True):
            if kind == "class":
                found.append(row[0, 1:])
                continue
            for begin, end in _spans(case, row.shape[0], first):
                if kind == "column":
                    found.append(row[begin:end, begin:end].mean(0))
                else:
                    part = key[begin:end]
                    found.append(1 - torch.cosine_similarity(part.mean(0, keepdim=True), part))
    return found


def keys_of_patches(calls: EagerCalls, case: Case) -> list[Tensor]:
    """The keys of patches, heads averaged, one tensor (n, d) for each picture, tile or frame."""
    first = int(case.family.name in CLASS_TOKENS)
    rows = [row for keys in calls.keys for row in keys.double().mean(1)]
    return [row[begin:end] for row in rows for begin, end in _spans(case, row.shape[0], first)]


def vectors(case: Case, patches: list[Tensor], counts: list[int]) -> list[Tensor]:
    """As :func:`expected`, of vectors (n, W): one channel after the other."""
    channels = [expected(case, list(one), counts) for one in zip(*(each.unbind(1) for each in patches), strict=True)]
    return [torch.stack(entry, 1) for entry in zip(*channels, strict=True)]


def _spans(case: Case, length: int, first: int) -> list[tuple[int, int]]:
    """Where the pictures of a sequence lie: Pixtral's tower puts all into one."""
    if case.family.name not in ("mistral3", "llava-pixtral"):
        return [(first, length)]
    lengths = [4 * height * width for height, width in case.visuals]
    ends = [sum(lengths[: count + 1]) for count in range(len(lengths))]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def squares(values: Tensor, rows: int, columns: int, size: int = 2) -> Tensor:
    """Means of squares of a grid, in raster order."""
    grid = values.view(rows, columns)
    means = []
    for row in range(0, rows, size):
        for column in range(0, columns, size):
            means.append(grid[row : row + size, column : column + size].mean())
    return torch.stack(means)


def expected(case: Case, patches: list[Tensor], counts: list[int]) -> list[Tensor]:
    """The numbers of the projected tokens of each entry, from those of the patches; ``counts``: of its features."""
    name, side = case.family.name, SIDE // 14
    if name in PACKED:
        sizes = [one if case.video else (1, *one) for one in case.visuals]
        return _merged(patches, sizes, windows=name == "qwen2.5-vl")
    if name in ("internvl", "gemma3", "smolvlm", "idefics3"):
        return [squares(one, side, side) for one in patches]
    if name == "mistral3":
        return [squares(one, 2 * h, 2 * w) for one, (h, w) in zip(patches, case.visuals, strict=True)]
    if name == "video-llava" and case.video:
        return [torch.cat([one.new_zeros(1), one]) for one in patches]  # the class token stays among the features
    if name == "llava-onevision" and case.video:
        frames = [squares(one, side, side) for one in patches]  # half the size, bilinear: means of squares
        length = case.visuals[0].frames
        videos = [torch.cat(frames[at : at + length]) for at in range(0, len(frames), length)]
        ends = {count - len(one) for one, count in zip(videos, counts, strict=True)}
        assert ends in ({0}, {1})  # older releases add the line end later
        end = videos[0].new_zeros(ends.pop())
        return [torch.cat([one, end]) for one in videos]
    if name in ("llava-next", "llava-onevision"):
        return _tiles(case, patches)
    return patches


def _merged(patches: list[Tensor], sizes: list[Any], windows: bool) -> list[Tensor]:
    """Four neighbours in the sequence are a token; ``windows``: 2 x 2 tokens, or what is left of them at the edges."""
    found, frames = [], iter(patches)
    for count, height, width in sizes:
        of_all = []
        for _ in range(count):
            units = next(frames).view(-1, 4).mean(1)
            if windows:
                rows, columns = height // 2, width // 2
                order = [
                    row * columns + column
                    for top in range(0, rows, 2)
                    for left in range(0, columns, 2)
                    for row in range(top, min(top + 2, rows))
                    for column in range(left, min(left + 2, columns))
                ]
                units = torch.stack([units[order.index(token)] for token in range(len(order))])
            of_all.append(units)
        found.append(torch.cat(of_all))
    return found


def _tiles(case: Case, patches: list[Tensor]) -> list[Tensor]:
    """The whole picture, then lines of the crops without what padding had filled, each with a 0 at its end."""
    layouts = {  # rows and columns of crops, rows and columns of patches that stay
        Picture(56, 112): (1, 2, range(4), range(8)),
        Picture(100, 60): (2, 2, range(8), range(2, 6)),  # 60 x 8 / 100 = 4.8 patches wide
        Picture(112, 100): (2, 2, range(8), range(8)),  # 7.14 patches wide: less than one is too many at each side
    }
    found, tiles = [], iter(patches)
    for picture in case.visuals:
        down, across, rows, columns = layouts[picture]
        whole = next(tiles)
        crops = [next(tiles).view(4, 4) for _ in range(down * across)]
        values = [*whole]
        for row in rows:
            for column in columns:
                values.append(crops[row // 4 * across + column // 4][row % 4, column % 4])
            values.append(whole.new_zeros(()))
        found.append(torch.stack(values))
    assert all(len(one) > PATCHES for one in found)
    return found


class Installed:
    """A model whose tower is measured, as a context."""

    def __init__(self, model, family, kind="auto", wanted=(needs.SALIENCY,), **options):
        self.readings = TowerReadings(model, NAMES[family.name], wanted, saliency=kind, **options)
        self.changes = ModelChanges()

    def __enter__(self):
        self.readings.install(self.changes)
        return self.readings

    def __exit__(self, *error):
        self.changes.undo()


def measured(one, model, tensors, kind="auto"):
    """The saliency of each entry, and its features."""
    found, features = read(one, model, tensors, (needs.SALIENCY,), kind)
    return found["saliency"], features


def read(one, model, tensors, wanted, kind="auto", **options):
    """What is wanted of each entry, and its features."""
    with Installed(model, one.family, kind, wanted, **options) as readings:
        features = one.encode(model, tensors)
        return readings.take([len(entry) for entry in features]), features


def entries(one, features, short):
    """Features before and after of each picture that is reduced; SmolVLM's entry is a row of tiles, 4 tokens each."""
    if one.family.name in ("smolvlm", "idefics3"):
        return torch.cat(features).split(4), torch.cat(short).split(2)
    return features, short


def free_of_line_ends(entry, model):
    """Indices of the tokens that are not the vector that a line ends with."""
    newline = getattr(model.model, "image_newline", None)
    ends = [newline is not None and torch.equal(row, newline) for row in entry]
    return torch.tensor([index for index, end in enumerate(ends) if not end])
