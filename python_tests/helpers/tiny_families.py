"""Tiny random models of every family whose visual tokens can be reduced between projector and language model.

A family is one entry of :data:`TINY`: how to build its model (:mod:`helpers.tiny_configs`), and what its processor
makes of a picture or a video (:mod:`helpers.tiny_processors`).
:mod:`helpers.tiny_prompts` puts prompts together, :mod:`helpers.tiny_oracle` cuts them by hand.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helpers import tiny_configs as configs
from helpers import tiny_processors as processors
from helpers.models import sharpened
from helpers.tiny_configs import END, IMAGE, LINE, START, VIDEO
from helpers.tiny_processors import Encoded, Picture, Video


@dataclass(frozen=True)
class TinyFamily:
    """A family of models.

    Attributes:
        name: as the tests print it.
        build: its model, weights as transformers draws them.
        encode: what its processor makes of a :class:`Picture` or :class:`Video`, with a generator for the pixels.
        join: the model's arguments for the pictures and videos of all rows, from :class:`Encoded` ones for each row.
        pictures: pictures that it takes, of several sizes where it takes several.
        sides: heights and widths that it takes, for random pictures.
        videos: videos that it takes; empty if none.
        types: tensors of the prompt, besides ids and mask, by name: what a column of text, of a picture and of a video
            holds.
        mrope: whether positions have three rows.
        planes: features of other levels that go along with those of the projector (DeepStack).
        bidirectional: which columns see each other: "picture" for each picture's own, "prompt" for the whole prompt.
        mixes: whether one call takes pictures and videos.
        pictures_first: whether its processor puts a row's pictures before its words.
        text_model: where the language model is, from ``model.model``.
        encode_beside: as ``encode``, for a picture beside others of its row, where that differs.
    """

    name: str
    build: Callable[[], Any]
    encode: Callable[[Picture | Video, torch.Generator], Encoded]
    join: Callable[[list[list[Encoded]]], dict[str, Tensor]]
    pictures: Sequence[Picture]
    videos: Sequence[Video] = ()
    types: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    mrope: bool = False
    planes: int = 0
    bidirectional: str | None = None
    mixes: bool = True
    pictures_first: bool = False
    text_model: str = "language_model"
    encode_beside: Callable[[Picture | Video, torch.Generator], Encoded] | None = None
    sides: range = range(1, 2)

    def model(self, attention: str = "sdpa", seed: int = 0) -> Any:
        """A model of its own, with weights that make attention sharp, and logits of about 1."""
        model = sharpened(lambda: self._built(attention), seed)
        with torch.no_grad():
            model.lm_head.weight /= 8
        model.generation_config.suppress_tokens = [IMAGE, VIDEO]  # no encoder made features for those
        return model

    def _built(self, attention: str) -> Any:
        model = self.build()
        model.set_attn_implementation(attention)
        return model

    def language_model(self, model: Any) -> Any:
        """The part of ``model`` that reads embeddings."""
        return getattr(model.model, self.text_model)

    def random_pictures(self, count: int, seed: int = 0) -> list[Picture]:
        """Pictures of ``count`` random sizes, each size once: one picture if the family has only one size."""
        draw = random.Random(seed)
        return list(dict.fromkeys(Picture(draw.choice(self.sides), draw.choice(self.sides)) for _ in range(count)))

    def __repr__(self) -> str:
        return self.name


_ONE = (Picture(1, 1),)
_SIZES = (Picture(4, 8), Picture(6, 4), Picture(8, 8), Picture(2, 6))  # in patches: 8, 6, 16 and 3 tokens
_CROPS = (Picture(56, 112), Picture(100, 60), Picture(112, 100), Picture(40, 44))  # in pixels
_TILES = (Picture(1, 2), Picture(1, 1), Picture(2, 2))
_UNITS = (Picture(2, 3), Picture(3, 1), Picture(1, 4), Picture(4, 4))
_VIDEOS = (Video(2, 4, 4), Video(3, 2, 4))
_CLIPS = (Video(3, 1, 1), Video(3, 1, 1))  # of one call: as many frames
_ANY_SIZE, _ANY_CROP, _ANY_TILES, _ANY_UNITS = range(2, 14, 2), range(20, 160), range(1, 4), range(1, 5)
_MM = (("mm_token_type_ids", (0, 1, 2)),)


def _qwen(name: str, build: Callable[[], Any], video=processors.timed_video, **more: Any) -> TinyFamily:
    encode = processors.packed(processors.between_marks, video)
    return TinyFamily(
        name, build, encode, processors.concatenated, _SIZES, _VIDEOS, types=_MM, mrope=True, sides=_ANY_SIZE, **more
    )


TINY = (
    TinyFamily("llava-clip", configs.llava_clip, processors.fixed(16), processors.concatenated, _ONE),
    TinyFamily("llava-siglip", configs.llava_siglip, processors.fixed(16), processors.concatenated, _ONE),
    TinyFamily(
        "llava-pixtral",
        configs.llava_pixtral,
        processors.llava_pixtral,
        processors.padded_pixels,
        _UNITS,
        sides=_ANY_UNITS,
    ),
    TinyFamily("llava-next", configs.llava_next, processors.anyres, processors.anyres_joined, _CROPS, sides=_ANY_CROP),
    TinyFamily(
        "llava-onevision",
        configs.llava_onevision,
        processors.onevision,
        processors.onevision_joined,
        _CROPS,
        _CLIPS,
        encode_beside=processors.onevision_beside,
        sides=_ANY_CROP,
    ),
    TinyFamily("video-llava", configs.video_llava, processors.video_llava, processors.concatenated, _ONE, _CLIPS),
    _qwen("qwen2-vl", configs.qwen2_vl, processors.whole_video),
    _qwen("qwen2.5-vl", configs.qwen2_5_vl, processors.whole_video),
    _qwen("qwen3-vl", configs.qwen3_vl, planes=2),
    _qwen("qwen3-vl-moe", configs.qwen3_vl_moe, planes=2),
    _qwen("qwen3.5", configs.qwen3_5),
    _qwen("qwen3.5-moe", configs.qwen3_5_moe),
    TinyFamily("internvl", configs.internvl, processors.internvl, processors.concatenated, _TILES, sides=_ANY_TILES),
    TinyFamily(
        "gemma3",
        configs.gemma3,
        processors.fixed(4, ((LINE, START), (END, LINE))),
        processors.concatenated,
        _ONE,
        types=(("token_type_ids", (0, 1, 0)),),
        bidirectional="picture",
    ),
    TinyFamily(
        "smolvlm",
        configs.smolvlm,
        processors.idefics,
        processors.padded_rows,
        _TILES,
        text_model="text_model",
        sides=_ANY_TILES,
    ),
    TinyFamily(
        "idefics3",
        configs.idefics3,
        processors.idefics,
        processors.padded_rows,
        _TILES,
        text_model="text_model",
        sides=_ANY_TILES,
    ),
    TinyFamily("mistral3", configs.mistral3, processors.pixtral, processors.padded_pixels, _UNITS, sides=range(2, 5)),
    _qwen("glm4v", configs.glm4v, processors.glm_video, mixes=False),
    _qwen("glm46v", configs.glm46v, processors.glm_video, mixes=False),
    _qwen("glm4v-moe", configs.glm4v_moe, processors.glm_video, mixes=False),
    TinyFamily(
        "paligemma",
        configs.paligemma,
        processors.fixed(16),
        processors.concatenated,
        _ONE,
        types=(("token_type_ids", (0, 0, 0)),),
        bidirectional="prompt",
        pictures_first=True,
    ),
)
# Those that a picture of one token can be made for. Mistral 3 fails on one alone: it squeezes its features.
ONE_TOKEN = tuple((family, Picture(2, 2)) for family in TINY if family.mrope)
BY_NAME = {family.name: family for family in TINY}
WITH_VIDEO = tuple(family for family in TINY if family.videos)


@functools.cache
def shared_model(name: str) -> Any:
    """One model of a family for all tests that leave it as it was."""
    return BY_NAME[name].model()


@functools.cache
def untouched_model(name: str) -> Any:
    """Its twin that nothing is ever attached to, for oracles."""
    return BY_NAME[name].model()
