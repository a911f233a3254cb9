"""Records of pictures of several crops, held to loops over what the handle says of each crop and of the prompt."""

from __future__ import annotations

import pytest
import torch
from helpers.embedded import one_thread  # noqa: F401
from helpers.pictures import merge_matrix
from PIL import Image

import ficoco_ext
from ficoco_ext.apps import checkpoint, next_dress
from ficoco_ext.models.crop_records import crop_reductions, patch_ranks, watched_crops
from ficoco_ext.stages import Crops

pytest.importorskip("transformers")

QUESTION = "what word is written ?"
SIZES = [(168, 168), (150, 420), (500, 130), (336, 336)]  # (height, width); of the last no crop has padding


@pytest.fixture(scope="module")
def dressed():
    torch.set_num_threads(1)
    return next_dress.load_family(None, "llava-next", torch.float32, torch.device("cpu"))


def _picture(size):
    return Image.open(checkpoint.SCENES / "scene_2.png").convert("RGB").resize(size[::-1])


def _run(dressed, size, method, **options):
    """The records, the handle and the crops of one picture."""
    image = _picture(size)
    crops, handles = dressed.crops_of(image), []

    def attached():
        handles.append(ficoco_ext.attach(dressed.model, method, **options))
        return handles[-1]

    records = watched_crops(dressed.model, attached, dressed.inputs(image, QUESTION), crops)
    return records, handles[0], crops


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ficoco-v", {"keep_ratio": 0.25, "targets": 2}),
        ("tome", {"keep_ratio": 0.5}),
        ("topk", {"keep_ratio": 0.25, "padding": "after"}),
        ("pool", {"keep_ratio": 0.25}),
    ],
)
def test_each_crop_keeps_and_holds_what_its_row_of_the_tower_says(dressed, size, method, options):
    records, handle, crops = _run(dressed, size, method, **options)
    assert len(records) == len(handle.reductions)
    names = {origin: patch for patch, origin in enumerate(crops.origins)}  # of (crop, patch of the crop)
    for record, step in zip(records, handle.reductions, strict=True):
        kept, holders, gone = set(), {}, set()
        for crop in range(1 + crops.count):
            left = step.kept[crop].tolist()
            kept |= {names.get((crop, token - 1)) for token in left}
            for patch, position in enumerate(step.source_map[crop].tolist()[1:]):
                holders[crop, patch] = names.get((crop, left[position] - 1)) if position >= 0 else None
            gone |= {names.get((crop, token - 1)) for token in step.sources[crop].tolist()}
        assert record.kept[0].tolist() == sorted(kept - {None})  # the class token and padding have no name
        assert sorted(record.sources[0].tolist()) == sorted(gone - {None})
        mine = record.kept[0].tolist()
        held = [mine[position] if position >= 0 else None for position in record.source_map[0].tolist()]
        assert held == [holders[origin] for origin in crops.origins]
    matrix = merge_matrix(records)
    if method in ("ficoco-v", "tome"):  # no patch is lost to padding, and none gains by it
        assert torch.allclose(matrix.sum(0), torch.ones(len(matrix), dtype=torch.float64), atol=1e-5)
        assert torch.allclose(matrix.sum(1)[records[-1].kept[0]], records[-1].size[0, :, 0].double(), atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("method", "options"), [("divprune", {"merge": True}), ("globalcom2", {})])
def test_what_stays_after_the_projector_is_no_line_end(dressed, size, method, options):
    records, handle, crops = _run(dressed, size, method, keep_ratio=0.2, **options)
    (record,), (projection,) = records, handle.projections
    ends = set(crops.line_ends)
    patches = [token for token in range(crops.before) if token not in ends]
    wanted = [patches.index(token) for token in projection.kept.tolist() if token not in ends]
    assert record.kept[0].tolist() == wanted
    assert len(projection.kept) == len(wanted) + crops.lines
    assert (-1 in record.source_map[0].tolist()) == (method == "globalcom2")


@pytest.mark.parametrize("method", ["fastv", "ficoco-l", "ficoco-vl"])
def test_the_language_model_has_its_own_part(dressed, method):
    options = {"targets": 2} if method != "fastv" else {}
    records, handle, crops = _run(dressed, (168, 168), method, keep_ratio=0.5, **options)
    (decoder,) = handle.decoder_reductions
    assert len(records) == len(handle.reductions) + len(decoder)
    in_prompt = handle.projections[0].kept.tolist() if handle.projections else list(range(crops.before))
    ends = set(crops.line_ends)
    patches = [token for token in range(crops.before) if token not in ends]
    first = _first(dressed)
    positions = [position - first for position in decoder[-1].kept[0].tolist()]
    left = {in_prompt[position] for position in positions if 0 <= position < len(in_prompt)}
    assert records[-1].kept[0].tolist() == sorted(patches.index(token) for token in left - ends)
    assert 0 < len(left - ends) < len(in_prompt)


def _first(dressed):
    ids = dressed.inputs(_picture((168, 168)), QUESTION)["input_ids"][0].tolist()
    return ids.index(dressed.model.config.image_token_id)


def test_ranks_count_patches_alone():
    crops = Crops(2, (1, 2), (0, 2, 1, 3))  # 4 of the thumbnail, then two lines of two and their ends
    assert patch_ranks(crops).tolist() == [0, 1, 2, 3, 4, 5, -1, 6, 7, -1, -1]


def test_rows_of_another_picture_are_refused(dressed):
    _, handle, crops = _run(dressed, (168, 168), "topk", keep_ratio=0.5)
    with pytest.raises(ValueError, match=r"rows must be 3, the picture's thumbnail and crops, got 2; .*handle.crops"):
        crop_reductions(handle.reductions, (), 0, crops, rows=slice(1, 3))
