"""What a scene is painted with: shapes, printed words, handwritten digits and crops of photographs.

All of it comes from packages: the digits and the two photographs (CC BY 2.0, see the model card) from scikit-learn, the
fonts from matplotlib. Training and test share none of the digits, fonts and columns of the photographs.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .vocabulary import SHAPES

SIDE, PATCH = 168, 14
FONT_PIXELS = 17
_FONTS = {
    "train": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-BoldOblique",
        "DejaVuSansMono",
        "DejaVuSansMono-Oblique",
        "DejaVuSerif",
        "DejaVuSerif-Bold",
        "DejaVuSerif-Italic",
    ),
    "test": ("DejaVuSans-Oblique", "DejaVuSansMono-Bold", "DejaVuSerif-BoldItalic"),
}
_FIRST_TEST_DIGIT = 1400  # of 1797, in the order of the collection
_TRAIN_COLUMNS = 0.72  # share of each photograph's columns that training may see

Mask = NDArray[np.float32]
Rng = np.random.Generator


def _needs(package: str, error: ImportError) -> ImportError:
    return ImportError(f'grid scenes need {package} ({error}); pip install "ficoco_ext[eval]"')


@functools.cache
def shape_mask(name: str, side: int) -> Mask:
    """(side, side) in [0, 1], drawn at four times the size and brought down."""
    from PIL import Image, ImageDraw

    if name not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {name!r}")
    big = 4 * side
    image = Image.new("L", (big, big), 0)
    draw, edge = ImageDraw.Draw(image), 2
    if name == "square":
        draw.rectangle([big * 0.08, big * 0.08, big * 0.92, big * 0.92], fill=255)
    elif name == "triangle":
        draw.polygon([(big / 2, edge), (big - edge, big * 0.93), (edge, big * 0.93)], fill=255)
    elif name == "star":
        radii = [big / 2 - edge, big * 0.2] * 5
        angles = [np.pi * (k / 5 - 0.5) for k in range(10)]
        points = [(big / 2 + r * np.cos(a), big / 2 + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]
        draw.polygon(points, fill=255)
    elif name == "cross":
        arm = big * 0.17
        draw.rectangle([big / 2 - arm, edge, big / 2 + arm, big - edge], fill=255)
        draw.rectangle([edge, big / 2 - arm, big - edge, big / 2 + arm], fill=255)
    else:
        draw.ellipse([edge, edge, big - edge, big - edge], fill=255)
        if name == "ring":
            draw.ellipse([big * 0.27, big * 0.27, big * 0.73, big * 0.73], fill=0)
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS), np.float32) / np.float32(255)


@functools.cache
def _font(name: str) -> Any:
    from PIL import ImageFont

    try:
        import matplotlib
    except ImportError as error:
        raise _needs("matplotlib", error) from error
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf", FONT_PIXELS)


@functools.cache
def _word(word: str, font: str) -> Mask:
    from PIL import Image, ImageDraw

    drawn = _font(font)
    left, top, right, bottom = drawn.getbbox(word)
    image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2), 0)
    ImageDraw.Draw(image).text((1 - left, 1 - top), word, fill=255, font=drawn)
    return np.asarray(image, np.float32) / np.float32(255)


def word_mask(rng: Rng, word: str, split: str) -> Mask:
    """A word in one of the split's fonts."""
    fonts = _FONTS[split]
    return _word(word, fonts[int(rng.integers(len(fonts)))])


@functools.cache
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _needs("scikit-learn", error) from error
    data = load_digits()
    return (data.images * (255 / 16)).round().astype(np.uint8), data.target


def digit_mask(rng: Rng, split: str, side: int = 2 * PATCH) -> tuple[Mask, int]:
    """A handwritten digit and which it is; in training turned, slanted and scaled a little."""
    from PIL import Image

    images, labels = _digits()
    low, high = (0, _FIRST_TEST_DIGIT) if split == "train" else (_FIRST_TEST_DIGIT, len(images))
    index = int(rng.integers(low, high))
    image = Image.fromarray(images[index])
    if split == "train":
        turn, slant, (across, down) = rng.normal(0, 0.09), rng.normal(0, 0.1), rng.uniform(0.86, 1.1, 2)
        matrix = np.array([[across, slant - turn], [turn, down]])
        # the affine map goes from drawn pixels to the 8 x 8 original; its middle stays, up to a small shift
        scale = 8 / side
        middle = np.array([4.0, 4.0]) + rng.uniform(-0.4, 0.4, 2) - matrix @ np.array([4.0, 4.0])
        (a, b), (c, d) = matrix * scale
        data = (a, b, middle[0], c, d, middle[1])
        image = image.transform((side, side), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
    else:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image, np.float32) * (1.15 / 255), 0, 1), int(labels[index])


@functools.cache
def _photographs() -> tuple[NDArray[np.uint8], ...]:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise _needs("scikit-learn", error) from error
    return tuple(np.asarray(photograph) for photograph in load_sample_images().images)


def background(rng: Rng, split: str) -> NDArray[np.float32]:
    """(SIDE, SIDE, 3) in 0 ... 255: a crop of a photograph, paled towards a random colour, with noise."""
    from PIL import Image

    photograph = _photographs()[int(rng.integers(2))]
    height, width = photograph.shape[:2]
    border = int(width * _TRAIN_COLUMNS)
    low, high = (0, border) if split == "train" else (border, width)
    side = int(rng.integers(70, min(high - low, height, 320 if split == "train" else 190)))
    y, x = int(rng.integers(0, height - side + 1)), int(rng.integers(low, high - side + 1))
    crop = photograph[y : y + side, x : x + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    pixels = np.asarray(Image.fromarray(crop).resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
    strength = np.float32(rng.uniform(0.25, 0.8))
    color = rng.uniform(60, 200, 3).astype(np.float32)
    noise = rng.standard_normal((SIDE, SIDE, 3), np.float32) * np.float32(4)
    return pixels * strength + color * (1 - strength) + noise
