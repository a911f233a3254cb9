"""One decoder: whatever holds a picture, the same upright and opaque pixels, or an error that names it."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ficoco_ext.io import images
from ficoco_ext.io.images import rgb

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)


def _saved(image, kind, **more):
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def _pixels(source, **more):
    found = rgb(source, **more)
    assert found.mode == "RGB"
    return np.asarray(found)


def _grey(found):
    assert (found == found[..., :1]).all()
    return found[..., 0]


DEEP = {
    "16 bit png": _saved(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
    "16 bit tiff": _saved(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
    "16 bit tiff, big endian": _saved(Image.fromarray((GREY.astype(np.uint16) * 257).astype(">u2")), "TIFF"),
    "unit float tiff": _saved(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
    "byte float tiff": _saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
    "wide float tiff": _saved(Image.fromarray(GREY.astype(np.float32) * 40 - 900), "TIFF"),
    "16 bit array": GREY.astype(np.uint16) * 257,
    "32 bit array": GREY.astype(np.int32) * 257,
    "small 64 bit array": GREY.astype(np.int64),
    "float array": GREY / 255,
    "half tensor": torch.from_numpy(GREY.astype(np.float32) / 255).half(),
    "16 bit PIL": Image.fromarray(GREY.astype(np.uint16) * 257),
    "float PIL": Image.fromarray(GREY.astype(np.float32) / 255),
    "integer PIL": Image.fromarray(GREY).convert("I"),
    "8 bit": GREY,
    "one channel": GREY[..., None],
}


@pytest.mark.parametrize("source", DEEP.values(), ids=DEEP)
def test_levels_are_scaled_and_not_clipped(source):
    assert (_grey(_pixels(source)) == GREY).all()


def test_booleans_and_flat_pictures():
    assert set(np.unique(_pixels(GREY > 100))) == {0, 255}
    assert (_pixels(np.full((2, 2), 300.0)) == 0).all()
    assert (_pixels(Image.fromarray(GREY > 100)) == _pixels(GREY > 100)).all()


def test_every_holding_gives_the_same_pixels(tmp_path):
    path = tmp_path / "a b.png"
    Image.fromarray(COLOUR).save(path)
    tensor = torch.from_numpy(COLOUR.copy()).permute(2, 0, 1)
    for source in (
        path,
        str(path),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        io.BytesIO(path.read_bytes()),
        {"bytes": path.read_bytes(), "path": "gone.png"},
        {"bytes": None, "path": str(path)},
        Image.open(path),
        Image.fromarray(COLOUR),
        COLOUR,
        tensor,
        tensor.float() / 255,
    ):
        assert (_pixels(source) == COLOUR).all()
    plain = Image.fromarray(COLOUR)
    assert rgb(plain) is plain


def _transparent(mode):
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[1:3, 1:3, 3] = 255  # a black square on transparent black
    return Image.fromarray(clear).convert(mode)


def _palette():
    made = Image.new("P", (4, 4), 0)
    made.putpalette([0, 0, 0, 0, 0, 0])
    made.paste(1, (1, 1, 3, 3))
    return made


def _wide_key():
    levels = np.full((4, 4), 7, np.uint16)
    levels[1:3, 1:3] = 0
    made = Image.fromarray(levels)
    made.info["transparency"] = 7
    return made


CLEAR = {
    "RGBA": _transparent("RGBA"),
    "LA": _transparent("LA"),
    "RGBa": _transparent("RGBa"),
    "La": _transparent("LA").convert("La"),
    "RGBA png": _saved(_transparent("RGBA"), "PNG"),
    "LA png": _saved(_transparent("LA"), "PNG"),
    "webp": _saved(_transparent("RGBA"), "WEBP", lossless=True, exact=True),
    "palette with a transparent colour": _saved(_palette(), "PNG", transparency=0),
    "palette with alphas": _saved(_palette(), "PNG", transparency=bytes([0, 255])),
    "gif": _saved(_palette(), "GIF", transparency=0),
    "array": np.asarray(_transparent("RGBA")),
    "grey array": np.asarray(_transparent("LA")),
    "float array": np.asarray(_transparent("RGBA")) / 255,
    "16 bit with a transparent level": _wide_key(),
}


@pytest.mark.parametrize("source", CLEAR.values(), ids=CLEAR)
def test_transparent_is_white(source):
    wanted = np.full((4, 4), 255)
    wanted[1:3, 1:3] = 0
    assert (_grey(_pixels(source)) == wanted).all()


def test_a_transparent_colour_of_an_rgb_file():
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[0] = (9, 8, 7)
    found = _pixels(_saved(Image.fromarray(picture), "PNG", transparency=(9, 8, 7)))
    assert (found[0] == 255).all() and (found[1:] == 0).all()


def test_half_transparent_is_mixed_with_white():
    assert _pixels(np.full((1, 1, 4), (0, 0, 0, 128), np.uint8)).tolist() == [[[127, 127, 127]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_orientation(orientation, mode):
    levels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    plain = {
        "RGB": lambda: Image.fromarray(levels).convert("RGB"),
        "L": lambda: Image.fromarray(levels),
        "RGBA": lambda: Image.fromarray(levels).convert("RGBA"),
        "I;16": lambda: Image.fromarray(levels.astype(np.uint16) * 257),
    }[mode]()
    exif = Image.Exif()
    exif[0x0112] = orientation
    wanted = {
        1: levels,
        2: levels[:, ::-1],
        3: levels[::-1, ::-1],
        4: levels[::-1],
        5: levels.T,
        6: levels[::-1].T,
        7: levels[::-1, ::-1].T,
        8: levels.T[::-1],
    }[orientation]
    data = _saved(plain, "PNG", exif=exif)
    assert (_grey(_pixels(data)) == wanted).all()
    assert (_grey(_pixels(Image.open(io.BytesIO(data)))) == wanted).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "png by xmp", "png by raw profile"])
def test_an_upright_picture_is_not_turned_again(kind, orientation):
    picture = Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12) * 2).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind.startswith("png by"):
        known, raw = PngInfo(), exif.tobytes()
        if kind == "png by xmp":
            known.add_itxt("XML:com.adobe.xmp", f'<x:xmpmeta tiff:Orientation="{orientation}"/>')
        else:
            known.add_text("Raw profile type exif", f"\nexif\n{len(raw):8}\n{raw.hex()}\n")
        data = _saved(picture, "PNG", pnginfo=known)
    else:
        data = _saved(picture, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    opened = Image.open(io.BytesIO(data))
    before = dict(opened.info)
    once = rgb(opened)
    assert once.size == ((8, 12) if orientation > 4 else (12, 8))
    assert (_pixels(once) == np.asarray(once)).all() and rgb(once) is once
    assert (_pixels(rgb(data)) == np.asarray(once)).all()
    assert dict(opened.info).keys() >= before.keys() and (_pixels(opened) == np.asarray(once)).all()


@pytest.mark.parametrize("top", [1.7e308, 1e300, 1e-310, 5e-324])
def test_levels_at_the_ends_of_double_precision(top):
    levels = np.array([[-top, 0.0], [top, top]])
    for source in (levels, torch.from_numpy(levels)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert _grey(_pixels(source)).tolist() == [[0, 128], [255, 255]]


def test_a_damaged_orientation_is_left_aside():
    broken = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x02\x00\x04\x00\x00\x00abc\x00\x00\x00\x00\x00"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _pixels(_saved(Image.fromarray(COLOUR), "JPEG", exif=broken)).shape == (16, 16, 3)


def test_cmyk_and_other_modes():
    picture = Image.new("RGB", (8, 8), (200, 30, 60))
    for mode, kind in (("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("P", "PNG"), ("HSV", None)):
        changed = picture.quantize() if mode == "P" else picture.convert(mode)
        source = changed if kind is None else _saved(changed, kind)
        assert abs(_pixels(source).astype(int) - (200, 30, 60)).max() <= 6, mode


def test_of_several_frames_the_first():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        said = []
        data = _saved(frames[0], kind, save_all=True, append_images=frames[1:])
        found = _pixels(data, say=said.append, name="clip")
        assert found[0, 0, 0] > 240 > 20 > found[0, 0, 2]
        assert said == ["image clip has 2 frames or pages: only the first is looked at"], kind
    still = []
    _pixels(_saved(frames[0], "PNG"), say=still.append)
    assert still == []
    second = Image.open(io.BytesIO(_saved(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    second.seek(1)
    assert _pixels(second, say=still.append)[0, 0, 2] > 240 and "only number 2" in still[0]


def _noise(kind):
    return _saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), kind)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path, kind, part):
    data = _noise(kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ValueError, match=rf"cannot read image .*cut\.{kind.lower()}: "):
        rgb(path)


def test_absurdly_large_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGEST", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as other libraries leave it
    path = tmp_path / "large.png"
    Image.new("L", (11, 10)).save(path)
    for source, name in ((path, "large.png"), (Image.new("L", (11, 10)), "PIL"), (np.zeros((11, 10)), "ndarray")):
        with pytest.raises(ValueError, match=rf"cannot read image .*{name}.*it must have 1 to 100 pixels, got 1"):
            rgb(source)
    Image.new("L", (10, 10)).save(path)
    rgb(path)


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "page.jpg").write_bytes(b"<html>404</html>")
    for source, message in (
        (tmp_path / "page.jpg", "page.jpg"),
        (tmp_path / "none.png", "none.png"),
        (tmp_path, str(tmp_path)),
        (b"", "of 0 bytes"),
        (None, "NoneType"),
        (3, "int"),
        ([1, 2], "list"),
        (np.zeros(3), r"got \(3,\)"),
        (np.zeros((5, 5, 5)), r"got \(5, 5, 5\)"),
        (np.zeros((0, 2)), r"got \(0, 2\)"),
        (np.array([[np.nan]]), "must be finite"),
        (np.array([["a"]]), "must be numbers"),
    ):
        with pytest.raises(ValueError, match=rf"cannot read image .*{message}"):
            rgb(source)


def test_the_model_and_the_figures_see_the_same_pixels():
    pytest.importorskip("transformers")
    from ficoco_ext.apps import checkpoint
    from ficoco_ext.viz.colours import patch_means

    loaded = checkpoint.load(None, torch.float32, torch.device("cpu"))
    clear = Image.new("RGBA", (168, 168), (0, 0, 0, 0))
    white = Image.new("RGB", (168, 168), "white")
    for source in (clear, np.asarray(clear), _saved(clear, "PNG")):
        found, wanted = (loaded.inputs(one, "how many squares ?")["pixel_values"] for one in (source, white))
        assert torch.equal(found, wanted)
        assert checkpoint.seen_by_model(loaded, source).getpixel((5, 5)) == (255, 255, 255)
    assert (patch_means(clear, (2, 2)) == 1).all()
    marked = loaded.inputs(white, "<image>\nhow many squares ?")["input_ids"]
    assert torch.equal(marked, loaded.inputs(white, "how many squares ?")["input_ids"])


def test_channels_are_last_where_both_could_be():
    picture = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)  # three rows
    assert (_pixels(picture) == picture).all()
    first = np.arange(3 * 5 * 5, dtype=np.uint8).reshape(3, 5, 5)
    assert (_pixels(first) == first.transpose(1, 2, 0)).all()


@pytest.mark.parametrize(("top", "shown"), [(255, 255), (256, 1), (2**16 - 1, 255)])
def test_integers_above_a_byte_are_of_16_bits(top, shown):
    assert _pixels(np.array([[0, top]], np.int32))[0, 1].tolist() == [shown] * 3


def test_what_a_camera_adds_to_its_photograph_is_no_frame():
    said, pictures = [], [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    found = _pixels(_saved(pictures[0], "MPO", save_all=True, append_images=pictures[1:]), say=said.append)
    assert found[0, 0, 0] > 240 and said == []


def test_integers_of_other_files_are_taken_as_they_are():
    """Only of a PNG integers of 32 bits are meant as 16; a TIFF may mean all of them."""
    levels = np.array([[0, 100]], np.int32)
    assert _pixels(_saved(Image.fromarray(levels), "TIFF"))[0, 1].tolist() == [100] * 3
    assert _pixels(_saved(Image.fromarray(levels.astype(np.uint16)), "PNG"))[0, 1].tolist() == [0] * 3
