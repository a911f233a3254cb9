"""What the processors of the families of :mod:`helpers.tiny_families` make of pictures and videos.

An encoder gives the ids and the tensors of one; a joiner puts the tensors of all rows together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from helpers import tiny_configs as configs
from helpers.tiny_configs import END, IMAGE, IMAGE_END, LINE, START, TIME, VIDEO, VIDEO_END, VIDEO_START


class Picture(NamedTuple):
    """A picture of a prompt, in the units of its family: pixels, patches, tiles."""

    height: int
    width: int


class Video(NamedTuple):
    """A video of a prompt: ``frames`` are what the language model sees, after pairs of frames were joined."""

    frames: int
    height: int
    width: int


class Encoded(NamedTuple):
    """What a processor makes of one picture or video.

    Attributes:
        ids: its placeholders, with what stands around and between them.
        tensors: the arguments of the model that belong to it.
        parts: tokens of every tensor that the encoder returns for it: one, or as many as there are tiles or frames.
        line_ends: which of its tokens are newlines, no part of the picture.
    """

    ids: list[int]
    tensors: dict[str, Tensor]
    parts: tuple[int, ...]
    line_ends: tuple[int, ...] = ()


def _pixels(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


# Families whose pictures have one size: as many placeholders for each.


def fixed(tokens: int, around: tuple[Sequence[int], Sequence[int]] = ((), ())) -> Callable[..., Encoded]:
    """One picture of ``SIDE`` pixels, ``tokens`` placeholders between what stands ``around`` them."""

    def encode(picture: Picture, generator: torch.Generator) -> Encoded:
        pixels = _pixels(generator, 1, 3, configs.SIDE, configs.SIDE)
        return Encoded([*around[0], *[IMAGE] * tokens, *around[1]], {"pixel_values": pixels}, (tokens,))

    return encode


def video_llava(visual: Picture | Video, generator: torch.Generator) -> Encoded:
    """16 tokens for a picture, and 17 for each frame of a video: its class token stays."""
    if isinstance(visual, Picture):
        encoded = fixed(configs.PATCHES)(visual, generator)
        return encoded._replace(tensors={_video_llava_pixels(): encoded.tensors["pixel_values"]})
    pixels = _pixels(generator, 1, visual.frames, 3, configs.SIDE, configs.SIDE)
    frame = configs.PATCHES + 1
    return Encoded([VIDEO] * (visual.frames * frame), {"pixel_values_videos": pixels}, tuple([frame] * visual.frames))


def _video_llava_pixels() -> str:
    """The argument that takes pictures: transformers 5.23 renamed it."""
    from transformers import VideoLlavaForConditionalGeneration

    names = inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters
    return "pixel_values" if "pixel_values" in names else "pixel_values_images"


def internvl(picture: Picture, generator: torch.Generator) -> Encoded:
    """``height`` x ``width`` tiles and, if they are several, a thumbnail: placeholders without anything between."""
    tiles = picture.height * picture.width
    tiles += tiles > 1
    pixels = _pixels(generator, tiles, 3, configs.SIDE, configs.SIDE)
    return Encoded([START, *[IMAGE] * (4 * tiles), END], {"pixel_values": pixels}, (4,) * tiles)


def concatenated(rows: list[list[Encoded]]) -> dict[str, Tensor]:
    """Tensors of all pictures one after the other, whatever their row."""
    encoded = [one for row in rows for one in row]
    names = dict.fromkeys(name for one in encoded for name in one.tensors)
    return {name: torch.cat([one.tensors[name] for one in encoded if name in one.tensors]) for name in names}


# Idefics3 and SmolVLM: tiles with separators between them, pixels padded to the row with most tiles.


def idefics(picture: Picture, generator: torch.Generator) -> Encoded:
    """``height`` x ``width`` tiles, each after its marker, and the whole picture after another."""
    tiles = picture.height * picture.width
    ids = []
    for tile in range(tiles if tiles > 1 else 0):
        ids += [START, TIME + tile, *[IMAGE] * 4]
        if (tile + 1) % picture.width == 0:
            ids += [LINE]
    ids += [START, TIME + 9, *[IMAGE] * 4, START]
    tiles += tiles > 1
    pixels = _pixels(generator, tiles, 3, configs.SIDE, configs.SIDE)
    return Encoded(ids, {"pixel_values": pixels}, (4,) * tiles)


def padded_rows(rows: list[list[Encoded]]) -> dict[str, Tensor]:
    """(B, most tiles of a row, 3, H, W), zeros where a row has fewer, and which pixels are there."""
    own = [[tile for one in row for tile in one.tensors["pixel_values"]] for row in rows]
    shape = (len(own), max(map(len, own)), 3, configs.SIDE, configs.SIDE)
    pixels, there = torch.zeros(shape), torch.zeros(*shape[:2], *shape[3:], dtype=torch.long)
    for row, tiles in enumerate(own):
        for index, tile in enumerate(tiles):
            pixels[row, index], there[row, index] = tile, 1
    return {"pixel_values": pixels, "pixel_attention_mask": there}


# LLaVA-NeXT and LLaVA-OneVision: crops laid out on a grid, cut to the picture, a column of newlines at the right.


def anyres(picture: Picture, generator: torch.Generator) -> Encoded:
    """The whole picture, then its crops line by line, each line with a newline at its end."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    down, across = get_anyres_image_grid_shape(tuple(picture), configs.PINPOINTS, configs.SIDE)
    rows, columns = _unpadded(picture, down * 4, across * 4)
    tokens = configs.PATCHES + rows * (columns + 1)
    tensors = {
        "pixel_values": _pixels(generator, 1 + down * across, 3, configs.SIDE, configs.SIDE),
        "image_sizes": torch.tensor([tuple(picture)]),
    }
    line_ends = range(configs.PATCHES + columns, tokens, columns + 1)
    return Encoded([IMAGE] * tokens, tensors, (tokens,), tuple(line_ends))


def _unpadded(picture: Picture, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a grid without those that only padding of the picture had filled."""
    if picture.width / picture.height > columns / rows:
        rows -= 2 * ((rows - int(round(picture.height * (columns / picture.width), 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(picture.width * (rows / picture.height), 7))) // 2)
    return rows, columns


def anyres_joined(rows: list[list[Encoded]]) -> dict[str, Tensor]:
    """(pictures, most crops, 3, H, W), zeros where a picture has fewer."""
    encoded = [one for row in rows for one in row if "pixel_values" in one.tensors]
    if not encoded:
        return {}
    most = max(len(one.tensors["pixel_values"]) for one in encoded)
    pixels = torch.zeros(len(encoded), most, 3, configs.SIDE, configs.SIDE)
    for index, one in enumerate(encoded):
        pixels[index, : len(one.tensors["pixel_values"])] = one.tensors["pixel_values"]
    return {"pixel_values": pixels, "image_sizes": torch.cat([one.tensors["image_sizes"] for one in encoded])}


def onevision(visual: Picture | Video, generator: torch.Generator) -> Encoded:
    """A picture as LLaVA-NeXT has it; a video pooled to 4 tokens a frame, with one newline at its end."""
    if isinstance(visual, Picture):
        return anyres(visual, generator)
    pixels = _pixels(generator, 1, visual.frames, 3, configs.SIDE, configs.SIDE)
    tokens = visual.frames * configs.PATCHES // 4 + 1
    return Encoded([VIDEO] * tokens, {"pixel_values_videos": pixels}, (tokens,), (tokens - 1,))


def onevision_beside(visual: Picture | Video, generator: torch.Generator) -> Encoded:
    """A picture beside others is one crop, with one newline."""
    if isinstance(visual, Video):
        return onevision(visual, generator)
    tokens = configs.PATCHES + 1
    tensors = {
        "pixel_values": _pixels(generator, 1, 3, configs.SIDE, configs.SIDE),
        "image_sizes": torch.tensor([tuple(visual)]),
    }
    return Encoded([IMAGE] * tokens, tensors, (tokens,), (tokens - 1,))


def onevision_joined(rows: list[list[Encoded]]) -> dict[str, Tensor]:
    """As LLaVA-NeXT, with how many pictures each row has: where they are several, each is one crop."""
    own = [[one for one in row if "pixel_values" in one.tensors] for row in rows]
    videos = [one for row in rows for one in row if "pixel_values_videos" in one.tensors]
    joined = anyres_joined(own)
    if joined:
        joined["batch_num_images"] = torch.tensor([len(row) for row in own if row])
    if videos:
        joined["pixel_values_videos"] = torch.cat([one.tensors["pixel_values_videos"] for one in videos])
    return joined


# Families of patches in a packed sequence, 2 x 2 of them merged into one token.


def packed(frame: Callable[[int, int], list[int]], video: Callable[[list[list[int]]], list[int]] | None = None):
    """Pictures and videos in patches. ``frame(tokens, kind)``: how one is spelt; ``video``: how frames are joined."""

    def encode(visual: Picture | Video, generator: torch.Generator) -> Encoded:
        frames, height, width = visual if isinstance(visual, Video) else (1, *visual)
        patches = _pixels(generator, frames * height * width, 3 * 2 * 14 * 14)
        grid = torch.tensor([(frames, height, width)])
        tokens = height * width // 4
        if isinstance(visual, Picture):
            return Encoded(frame(tokens, IMAGE), {"pixel_values": patches, "image_grid_thw": grid}, (tokens,))
        assert video is not None
        ids = video([frame(tokens, VIDEO) for _ in range(frames)])
        return Encoded(ids, {"pixel_values_videos": patches, "video_grid_thw": grid}, (frames * tokens,))

    return encode


def between_marks(tokens: int, kind: int) -> list[int]:
    return [START, *[kind] * tokens, END]


def whole_video(frames: list[list[int]]) -> list[int]:
    """Placeholders of all frames between one start and one end (Qwen2-VL)."""
    return [START, *[VIDEO] * sum(len(one) - 2 for one in frames), END]


def timed_video(frames: list[list[int]]) -> list[int]:
    """Each frame after its time (Qwen3-VL)."""
    return [one for index, frame in enumerate(frames) for one in (TIME + index, TIME, *frame)]


def glm_video(frames: list[list[int]]) -> list[int]:
    """Each frame before its time, and placeholders those of pictures (GLM-4.1V)."""
    timed = [one for index, frame in enumerate(frames) for one in (*frame, TIME + index)]
    return [VIDEO_START, *[IMAGE if one == VIDEO else one for one in timed], VIDEO_END]


def pixtral(picture: Picture, generator: torch.Generator) -> Encoded:
    """Lines of tokens, each with a break at its end; sizes in units of 28 pixels for 2 x 2 patches."""
    line = [*[IMAGE] * picture.width, LINE]
    pixels = _pixels(generator, 1, 3, picture.height * 28, picture.width * 28)
    sizes = torch.tensor([(picture.height * 28, picture.width * 28)])
    tokens = picture.height * picture.width
    tensors = {"pixel_values": pixels, "image_sizes": sizes}
    return Encoded([*(line * picture.height)[:-1], IMAGE_END], tensors, (tokens,))


def llava_pixtral(picture: Picture, generator: torch.Generator) -> Encoded:
    """As Mistral 3, but every patch of 14 pixels is a token."""
    lines = [*[IMAGE] * (2 * picture.width), LINE] * (2 * picture.height)
    tokens = 4 * picture.height * picture.width
    return pixtral(picture, generator)._replace(ids=[*lines[:-1], IMAGE_END], parts=(tokens,))


def padded_pixels(rows: list[list[Encoded]]) -> dict[str, Tensor]:
    """(pictures, 3, greatest height, greatest width), zeros where a picture is smaller."""
    encoded = [one.tensors for row in rows for one in row]
    sizes = torch.cat([one["image_sizes"] for one in encoded])
    height, width = sizes.amax(0).tolist()
    pixels = torch.zeros(len(encoded), 3, height, width)
    for index, one in enumerate(encoded):
        pixels[index, :, : sizes[index, 0], : sizes[index, 1]] = one["pixel_values"]
    return {"pixel_values": pixels, "image_sizes": sizes}
