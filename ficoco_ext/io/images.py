"""One way from every kind of picture to the upright, opaque RGB image that models, tables and figures work on."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LARGEST = 178_956_970  # pixels; also the number from which on Pillow takes a file for an attack
_ORIENTATION = 0x0112  # the EXIF tag
_TURNING = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # where Pillow looks for the orientation
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

Say = Callable[[str], None]


def rgb(source: Any, *, say: Say = lambda text: None, name: str | None = None) -> Any:
    """An RGB picture, upright as its camera meant it, on white where it is transparent.

    Levels: 16 bits are scaled to 8. Floats in [0, 1] are scaled by 255, those in [0, 255] are taken as they are, others
    from the smallest to the largest value; so are integers of more than 16 bits. All channels are scaled alike. Of
    several frames or pages the first is taken, of an open PIL image the one that it stands at.

    Args:
        source: a path, the bytes of a file, an open binary file, a PIL image, a mapping with ``bytes`` or ``path`` as
            data sets have it, or an array or tensor (H, W) or (H, W, C), of 1 to 4 channels, or (C, H, W) where that is
            the only way to read it.
        say: gets a sentence where something of the picture is not looked at.
        name: what messages call it; None: its path or kind.

    Returns:
        A ``PIL.Image.Image`` of mode RGB; ``source`` itself if it is one already, upright and opaque; so what is
        returned may be passed again. The source is not changed.

    Raises:
        ValueError: not a picture, a truncated or damaged one, one of more than :data:`LARGEST` pixels, or levels that
            are not finite; the message names it.

    Example:
        >>> import numpy as np
        >>> from ficoco_ext.io.images import rgb
        >>> rgb(np.full((2, 2), 65535, np.uint16)).getpixel((0, 0))
        (255, 255, 255)
        >>> rgb(np.zeros((2, 2, 4), np.uint8)).getpixel((0, 0))  # transparent black
        (255, 255, 255)
    """
    from PIL import Image

    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    name = _called(source) if name is None else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # LARGEST decides
            warnings.filterwarnings("ignore", "Corrupt EXIF", UserWarning)  # it says nothing about the pixels
            if isinstance(source, Image.Image):
                return _converted(source, say, name)
            if isinstance(source, (bytes, bytearray, memoryview)):
                source = io.BytesIO(source)
            if isinstance(source, (str, Path)) or hasattr(source, "read"):
                with Image.open(source) as image:
                    return _converted(image, say, name)
            return _of_array(source)
    except Exception as error:  # Pillow's readers raise errors of any kind on a damaged file
        text = str(error) or type(error).__name__
        raise ValueError(text if text.startswith("cannot read") else f"cannot read image {name}: {text}") from error


def _called(source: Any) -> str:
    from PIL import Image

    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or f"(PIL, {source.mode}, {source.width} x {source.height})")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"of {len(source)} bytes"
    return str(getattr(source, "name", "") or f"({type(source).__name__})")


def _fits(width: int, height: int) -> None:
    if width < 1 or height < 1 or width * height > LARGEST:
        raise ValueError(f"it must have 1 to {LARGEST} pixels, got {width} x {height}")


def _converted(image: Any, say: Say, name: str) -> Any:
    from PIL import Image

    _fits(*image.size)
    image.load()
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # what a camera adds to its photograph are no frames
        frame = image.tell()
        which = "the first" if not frame else f"number {frame + 1}"
        say(f"image {name} has {frames} frames or pages: only {which} is looked at")
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(_orientation(image))
    if image.mode[:1] in ("I", "F"):
        found = _deep(image)
    elif image.mode in _ALPHA or "transparency" in image.info or getattr(image.palette, "mode", "")[-1:] == "A":
        found = _on_white(image)
    else:
        found = image if image.mode == "RGB" and not hasattr(image, "fp") else image.convert("RGB")
    if turn is None:
        return found
    turned = found.transpose(turn)  # with an info of its own
    for key in _TURNING:  # it is upright now: who reads it again must not turn it again
        turned.info.pop(key, None)
    return turned


def _orientation(image: Any) -> Any:
    """The EXIF orientation; a damaged tag says nothing about the pixels."""
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # of many kinds, as the damage has it
        return None


def _on_white(image: Any) -> Any:
    from PIL import Image

    clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, (255, 255, 255, 255)), clear).convert("RGB")


def _deep(image: Any) -> Any:
    """Of an image with levels of more than 8 bits; Pillow itself would clip them."""
    import numpy as np
    from PIL import Image

    levels = np.asarray(image)
    sixteen = image.mode.startswith("I;16") or (image.format == "PNG" and levels.min() >= 0 and levels.max() < 2**16)
    found = _eight_bits(levels.astype(np.uint16) if sixteen else levels)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        found = np.where(levels == clear, np.uint8(255), found)
    return Image.fromarray(found).convert("RGB")


def _eight_bits(levels: Any) -> Any:
    """uint8 of an array of any kind of number."""
    import numpy as np

    if levels.dtype == np.uint8:
        return levels
    if levels.dtype == np.bool_:
        return levels * np.uint8(255)
    if levels.dtype.kind not in "iuf":
        raise ValueError(f"its levels must be numbers, got {levels.dtype}")
    low, high = float(levels.min()), float(levels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("its levels must be finite, got nan or infinity")
    if levels.dtype == np.uint16 or (levels.dtype.kind in "iu" and low >= 0 and 255 < high < 2**16):
        low, high = 0.0, 65535.0
    elif levels.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    levels = levels.astype(np.float64)
    if not np.isfinite(high - low):  # it is too large for a number
        levels, low, high = levels / 2, low / 2, high / 2
    scale = 255 / (high - low) if high > low else 0.0
    shares = (levels - low) * scale if np.isfinite(scale) else (levels - low) / (high - low) * 255
    return np.rint(shares).astype(np.uint8)


def _of_array(source: Any) -> Any:
    import numpy as np
    from PIL import Image

    if hasattr(source, "detach"):  # a tensor, wherever it is
        source = source.detach().cpu()
        source = source.double() if source.is_floating_point() else source
    if not hasattr(source, "__array__"):
        raise ValueError(f"it must be a path, bytes, a PIL image or an array, got {type(source).__name__}")
    levels = np.asarray(source)
    if levels.ndim == 3 and levels.shape[2] not in _CHANNELS and levels.shape[0] in _CHANNELS:
        levels = levels.transpose(1, 2, 0)
    if not levels.size or levels.ndim not in (2, 3) or (levels.ndim == 3 and levels.shape[2] not in _CHANNELS):
        raise ValueError(f"it must be an array (H, W) or (H, W, C) of 1 to 4 channels, got {levels.shape}")
    _fits(levels.shape[1], levels.shape[0])
    found = _eight_bits(levels)
    found = found[:, :, 0] if found.ndim == 3 and found.shape[2] == 1 else found
    return _converted(Image.fromarray(np.ascontiguousarray(found)), lambda text: None, "")
