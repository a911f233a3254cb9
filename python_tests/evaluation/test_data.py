"""Rows and files: what is wrong is named by row and field, and never scored."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from ficoco_ext.evaluation import questions, questions_of_file
from ficoco_ext.evaluation.data import BadRow, questions_for
from ficoco_ext.gridvqa import GridVQA, Row


def _picture(shade=0):
    return Image.new("RGB", (12, 10), (shade, 0, 0))


def _row(**change):
    return {"image": _picture(), "question": "is there a star ?", "answer": "no"} | change


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name, shade in (("a", 10), ("b", 20)):
        _picture(shade).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "pictures" / "cut.png").write_bytes((tmp_path / "pictures" / "a.png").read_bytes()[:45])
    return tmp_path


def _file(folder, rows, name="data.jsonl"):
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    (folder / name).write_text(text)
    return folder / name


def _asked(**change):
    return {"image": "pictures/a.png", "question": "how many ?", "answer": "2"} | change


def test_rows_share_pictures_and_scenes():
    one, other = _picture(1), _picture(2)
    found = questions(
        [
            _row(image=one, question="a", kind="text"),
            _row(image=other, question="a", kind="mine"),
            _row(image=one, question="b", kind="exist"),
            Row(other, "c", "yes", "exist", 7),
            Row(other, "d", "yes", "exist", 0),  # a number of its own, not the picture of that index
        ]
    )
    assert len(found.pictures) == 2
    assert [item.picture for item in found.items] == [0, 1, 0, 1, 1]
    assert [item.scene for item in found.items] == [0, 1, 0, 2, 3]
    assert found.kinds == ("exist", "text", "mine")
    assert found.open(1).getpixel((0, 0)) == (2, 0, 0)
    assert questions([_row()]).kinds == ("all",)


def test_digest_tells_everything_apart():
    same = [questions([_row()]).digest, questions([_row()]).digest]
    others = [
        questions([_row(**change)]).digest
        for change in ({"question": "b"}, {"answer": "yes"}, {"kind": "exist"}, {"image": _picture(3)})
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 5
    turned = questions([_row(image=_picture().resize((10, 12)))])
    assert turned.digest != same[0]  # the same bytes in another shape
    one, other = ([_row(scene=1), _row(scene=scene)] for scene in (1, 2))
    assert questions(one).digest != questions(other).digest


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_file(folder, name):
    rows = [_asked(), _asked(image="pictures/b.png"), _asked(question="why ?", kind="text", scene="s")]
    found = questions_of_file(_file(folder, rows, name))
    assert [item.question for item in found.items] == ["how many ?", "how many ?", "why ?"]
    assert len(found.pictures) == 2
    assert len({item.scene for item in found.items}) == 3
    assert found.open(1).getpixel((0, 0)) == (20, 0, 0)


BROKEN = [
    ({"answer": None}, "answer"),
    ({"answer": "  "}, "answer"),
    ({"answer": 2}, "answer"),
    ({"answer": "?"}, "answer"),
    ({"answer": "+"}, "answer"),
    ({"question": ""}, "question"),
    ({"question": "first"}, "question"),
    ({"kind": 3}, "kind"),
    ({"scene": 1.5}, "scene"),
    ({"scene": True}, "scene"),
    ({"image": None}, "image"),
    ({"image": "pictures/cut.png"}, "image"),
    ({"image": "pictures/none.png"}, "image"),
    ({"image": 3}, "image"),
]


@pytest.mark.parametrize(("change", "field"), BROKEN)
def test_a_bad_row_is_named_or_counted(folder, change, field):
    rows = [_asked(question="first"), _asked(**change), _asked(question="last")]
    path = _file(folder, rows)
    with pytest.raises(ValueError, match=rf"data.jsonl: row 2, field '{field}': .*must.*--bad-rows count"):
        questions_of_file(path)
    found = questions_of_file(path, bad_rows="count")
    assert [item.question for item in found.items] == ["first", "last"]
    assert [(one.row, one.field) for one in found.bad] == [(2, field)]


def test_bad_rows_of_a_program():
    image = _picture()
    for row, field in (
        (_row(image="a.png"), "image"),
        (_row(image=image, answer=None), "answer"),
        (_row(image=image), "question"),
        (3, "question"),
    ):
        found = questions([_row(image=image), row], bad_rows="count")
        assert [(one.row, one.field) for one in found.bad] == [(2, field)]
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "png")
    cut = Image.open(io.BytesIO(buffer.getvalue()[:900]))
    with pytest.raises(ValueError, match=r"row 1, field .image.: .*truncated"):
        questions([_row(image=cut)])


def test_pictures_of_bad_rows_are_not_kept(folder):
    one, other = _picture(1), _picture(2)
    good = [_row(image=one), _row(image=one, question="b")]
    bad = [_row(image=other, scene=1.5), _row(image=one, question="b")]
    found = questions([good[0], bad[0], good[1], bad[1]], bad_rows="count")
    assert len(found.pictures) == 1 and [one.row for one in found.bad] == [2, 4]
    assert found.digest == questions(good).digest
    later = questions([good[0], bad[0], _row(image=other)], bad_rows="count")
    assert [item.picture for item in later.items] == [0, 1] and later.pictures == (one, other)
    rows = [_asked(), _asked(image="pictures/b.png", scene=1.5), _asked(question="why ?")]
    assert len(questions_of_file(_file(folder, rows), bad_rows="count").pictures) == 1


def test_lines_that_are_no_json(folder):
    path = _file(folder, [_asked()])
    path.write_text(path.read_text() + "\n\n{oops\n[1]\n")
    with pytest.raises(ValueError, match="row 3, field 'row': must be one JSON object a line"):
        questions_of_file(path)
    assert [one.row for one in questions_of_file(path, bad_rows="count").bad] == [3, 4]
    path.write_text(json.dumps(_asked(answer="a\u2028b"), ensure_ascii=False) + "\r\n")
    assert questions_of_file(path).items[0].answer == "a\u2028b"


def test_files_that_cannot_be_read(folder):
    with pytest.raises(FileNotFoundError, match="data file not found"):
        questions_of_file(folder / "none.jsonl")
    (folder / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="must be JSON"):
        questions_of_file(folder / "bad.json")
    (folder / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold one list of objects, got dict"):
        questions_of_file(folder / "bad.json")
    (folder / "bad.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="must be text in UTF-8"):
        questions_of_file(folder / "bad.json")
    (folder / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match="at least one row"):
        questions_of_file(folder / "bad.json")


def test_bad_rows_is_one_of_two():
    with pytest.raises(ValueError, match="bad_rows must be one of fail, count, got 'skip'"):
        questions([_row()], bad_rows="skip")
    assert str(BadRow(2, "answer", "why")) == "row 2, field 'answer': why"


def test_seeds_draw_grid_scenes_and_leave_rows_alone(folder):
    grid = GridVQA("test", scenes=2, per_scene=3, kinds=("exist", "attr"))
    zero, one = (questions_for(grid, seed) for seed in (0, 1))
    assert zero.digest == questions(grid).digest != one.digest
    assert len(one.pictures) == 2 and set(one.kinds) <= {"exist", "attr"}
    rows = [_row()]
    assert questions_for(rows, 0).digest == questions_for(rows, 1).digest
    path = _file(folder, [_asked()])
    assert questions_for(path, 1).digest == questions_for(str(path), 0).digest
    held = questions(rows)
    assert questions_for(held, 1) is held


def _said(*pairs):
    return [{"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair, strict=True)]


FORMATS = [
    {"question": "<image>\nhow many ?", "answer": "2"},
    {"question": "how many ?\n<image>", "answer": "2"},
    {"question": "how <image> many ?", "answer": "2"},
    {"conversations": _said(("<image>\nhow many ?", "2")), "id": 7},
    {"conversations": [{"from": "system", "value": "be short"}, *_said(("how many ?", "2"))], "id": "000007"},
    {"messages": [{"role": "user", "content": "<image>how many ?"}, {"role": "assistant", "content": "2"}], "id": 1.5},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many ?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
        ]
    },
    {"text": "how many ?", "label": "2", "question_id": 3},
    {"question": "how many ?", "answer": "2", "image": ["pictures/a.png"], "id": None},
    {"question": "how many ?", "answer": "2", "image": None, "images": ["pictures/a.png"]},
    {"question": "how many ?", "answer": "2", "image": "pictures\\a.png"},
]


@pytest.mark.parametrize("row", FORMATS)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_formats_of_llava(folder, row, name):
    plain = questions_of_file(_file(folder, [_asked()], name))
    found = questions_of_file(_file(folder, [{"image": "pictures/a.png"} | row], name))
    assert [(item.question, item.answer) for item in found.items] == [("how many ?", "2")]
    assert found.digest == plain.digest


def test_every_turn_of_a_conversation_is_a_question(folder):
    turns = _said(("<image>\nhow many ?", "2"), ("what word is it ?", "taxi"))
    rows = [{"image": "pictures/a.png", "conversations": turns}, _asked(image="pictures/b.png")]
    found = questions_of_file(_file(folder, rows))
    assert [item.question for item in found.items] == ["how many ?", "what word is it ?", "how many ?"]
    assert [item.picture for item in found.items] == [0, 0, 1]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"question": "<image>\n"}, "question"),
        ({"question": "<image> and <image> ?"}, "question"),
        ({"question": "<video> what ?"}, "question"),
        ({"image": ["pictures/a.png", "pictures/b.png"]}, "image"),
        ({"image": []}, "image"),
        ({"conversations": "how many ?"}, "conversations"),
        ({"conversations": []}, "conversations"),
        ({"conversations": _said(("how ?", "2"))[:1]}, "conversations"),
        ({"conversations": [{"from": ["human"], "value": "how ?"}, {"from": {}, "value": "2"}]}, "conversations"),
        ({"conversations": _said(("how ?", "2"))[::-1]}, "conversations"),
        ({"conversations": _said(("how ?", "2"), ("how ?", "2"))}, "question"),
        ({"conversations": _said(("how ?", "2"), ("who ?", "?"))}, "answer"),
    ],
)
def test_what_is_wrong_in_a_format_is_named(folder, change, field):
    found = questions_of_file(_file(folder, [_asked(), _asked(question="first") | change]), bad_rows="count")
    assert len(found.items) == 1 and [(one.row, one.field) for one in found.bad] == [(2, field)]


def test_byte_order_marks(folder):
    for name in ("data.jsonl", "data.json"):
        path = _file(folder, [_asked(), _asked(question="why ?")], name)
        path.write_text(path.read_text(), encoding="utf-8-sig")
        assert len(questions_of_file(path).items) == 2
    both = "\n".join("\ufeff" + json.dumps(row) for row in (_asked(), _asked(question="why ?")))
    (folder / "joined.jsonl").write_text(both, encoding="utf-8")
    assert len(questions_of_file(folder / "joined.jsonl").items) == 2


def test_lists_and_lines_are_known_by_what_they_are(folder):
    rows = [_asked(), _asked(question="why ?")]
    (folder / "list.jsonl").write_text(json.dumps(rows, indent=1))
    (folder / "lines.json").write_text("\n".join(map(json.dumps, rows)))
    assert [len(questions_of_file(folder / name).items) for name in ("list.jsonl", "lines.json")] == [2, 2]


def test_pictures_in_every_holding(folder):
    path = folder / "pictures" / "a.png"
    with Image.open(path) as opened:
        array = np.asarray(opened)
    holdings = [str(path), path, path.read_bytes(), {"bytes": path.read_bytes(), "path": None}, array]
    digests = {questions([_row(image=one)]).digest for one in holdings}
    assert digests == {questions([_row(image=Image.open(path))]).digest}
    same = questions([_row(image=path.read_bytes()), _row(image=path.read_bytes(), question="b")])
    assert len(same.pictures) == 1


def test_later_frames_are_said(folder):
    frames = [_picture(10), _picture(200)]
    frames[0].save(folder / "pictures" / "moving.gif", save_all=True, append_images=frames[1:])
    found = questions_of_file(_file(folder, [_asked(image="pictures/moving.gif")]))
    (remark,) = found.remarks
    assert "moving.gif has 2 frames or pages: only the first" in remark


LONG, DEEP = "9" * 5000, "[" * 10**5 + "]" * 10**5
GOOD = '{"image": "pictures/a.png", "question": "how many ?", "answer": "2"}'


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (GOOD.replace('"2"', LONG), "answer"),
        (GOOD.replace('"2"', f"-{LONG}"), "answer"),
        (GOOD.replace('"2"', f'"no", "scene": {LONG}'), "scene"),
        (GOOD.replace('"2"', f'"no", "kind": {LONG}'), "kind"),
        (GOOD.replace('"2"', f'"no", "id": {DEEP}'), "row"),
        (GOOD.replace('"2"', "[" * 800 + "]" * 800), "answer"),
        (GOOD.replace("pictures/a.png", "x" * 10**4), "image"),
        (GOOD.replace("pictures/a.png", "x\\\\" * 10**4), "image"),
        (GOOD.replace("pictures/a.png", "x\\\\\\u0000"), "image"),
        (GOOD.replace('"2"', '"no", "conversations": [{"from": ["x"], "value": "y"}]'), "conversations"),
    ],
    ids=lambda one: one[-30:],
)
def test_what_python_does_not_read_is_a_bad_row(folder, row, field):
    row = row.replace("how many ?", "what else ?")
    for name, text in (("a.jsonl", f"{GOOD}\n{row}\n"), ("b.json", f"{GOOD}\n{row}\n"), ("c.json", f"[{GOOD}, {row}]")):
        (folder / name).write_text(text)
        if field == "row" and name == "c.json":  # nobody can say where in it
            with pytest.raises(ValueError, match=r"c\.json must be JSON, one list of objects: .* too deep"):
                questions_of_file(folder / name, bad_rows="count")
            continue
        found = questions_of_file(folder / name, bad_rows="count")
        assert len(found.items) == 1 and [(one.row, one.field) for one in found.bad] == [(2, field)]
        with pytest.raises(ValueError, match=f"{name}: row 2, field '{field}'"):
            questions_of_file(folder / name)
    (folder / "first.json").write_text(f"{row}\n{GOOD}\n")
    assert [one.row for one in questions_of_file(folder / "first.json", bad_rows="count").bad] == [1]


def test_a_long_integer_that_nobody_reads_is_no_matter(folder):
    (folder / "a.jsonl").write_text(GOOD.replace('"2"', f'"2", "id": {LONG}'))
    assert len(questions_of_file(folder / "a.jsonl").items) == 1


def test_a_long_integer_of_a_program_is_a_bad_row():
    (bad,) = questions([_row(), _row(answer=10**5000)], bad_rows="count").bad
    assert (bad.row, bad.field) == (2, "answer") and "int that is too long to be shown" in bad.reason


def test_kinds_have_an_end():
    picture = _picture()
    rows = [_row(image=picture, question=f"number {one} ?", kind=f"kind {one}") for one in range(1001)]
    assert len(questions(rows[:1000]).kinds) == 1000
    with pytest.raises(ValueError, match="the data: kind must have at most 1,000 different values, got 1,001"):
        questions(rows)


def test_a_backslash_may_be_part_of_a_name(folder):
    _picture(30).save(folder / "pictures" / "a\\b.png")
    found = questions_of_file(_file(folder, [_asked(image="pictures/a\\b.png")]))
    assert found.open(0).getpixel((0, 0)) == (30, 0, 0)
