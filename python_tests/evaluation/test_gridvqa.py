"""Grid scenes: the same by seed, true answers, nothing of training in dev and test, no kind given away by guessing."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from helpers.paths import PACKAGE

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from ficoco_ext.gridvqa import KINDS, GridVQA, drawing, scene, vocabulary
from ficoco_ext.gridvqa.questions import questions
from ficoco_ext.gridvqa.sheet import balance, sheet

SCENES, PER_SCENE = 80, 14


@pytest.fixture(scope="module")
def held():
    """(scene, its questions) of the three splits."""
    made = {split: GridVQA(split, scenes=SCENES, per_scene=PER_SCENE) for split in scene.SPLITS}
    numbers = {"train": 15, "dev": 15, "test": SCENES}
    return {split: [made[split].scene(i) for i in range(numbers[split])] for split in made}


def _same(a, b):
    return np.array_equal(a[0].pixels, b[0].pixels) and a[0].things == b[0].things and a[1] == b[1]


def test_a_scene_depends_on_seed_split_and_its_number_alone(held):
    few = GridVQA("test", scenes=3, per_scene=PER_SCENE)
    assert _same(few.scene(2), held["test"][2])
    assert _same(GridVQA("test", scenes=900, per_scene=PER_SCENE).scene(2), few.scene(2))
    assert not _same(GridVQA("test", scenes=3, per_scene=PER_SCENE, seed=1).scene(2), few.scene(2))
    assert not _same(held["dev"][2], held["test"][2])
    pictures = {held[split][i][0].pixels.tobytes() for split in held for i in range(15)}
    assert len(pictures) == 45


def test_rows_are_scene_by_scene_and_share_their_picture(held):
    dataset = GridVQA("test", scenes=3, per_scene=PER_SCENE)
    rows = list(dataset)
    asked = [pair for number in range(3) for pair in held["test"][number][1]]
    assert [(row.kind, row.question, row.answer) for row in rows] == asked
    assert len(dataset) == len(rows) == len(dataset[:])
    assert len({id(row.image) for row in rows}) == 3
    assert sorted({row.scene for row in rows}) == [0, 1, 2]
    assert dataset[-1].question == rows[-1].question and dataset[0].image is dataset[1].image
    assert np.array_equal(np.asarray(rows[0].image), held["test"][0][0].pixels)
    assert "seed=0" in repr(dataset)


class Recorder:
    """A generator that remembers what whole numbers it gave."""

    def __init__(self, seed):
        self.rng, self.drawn = np.random.default_rng(seed), []

    def __getattr__(self, name):
        return getattr(self.rng, name)

    def integers(self, *args, **kwargs):
        self.drawn.append(self.rng.integers(*args, **kwargs))
        return self.drawn[-1]


def test_training_shares_no_digit_font_or_column_with_the_other_splits():
    seen = {"train": set(), "test": set()}
    columns = {"train": [set(), set()], "test": [set(), set()]}
    for split in seen:
        for seed in range(150):
            rng = Recorder(seed)
            drawing.digit_mask(rng, split)
            seen[split].add(int(rng.drawn[0]))
        for seed in range(40):
            rng = Recorder(seed)
            drawing.background(rng, split)
            photograph, side, _, left = map(int, rng.drawn)
            columns[split][photograph].update(range(left, left + side))
    assert len(seen["train"]) > 100 and max(seen["train"]) < min(seen["test"])
    images, _ = drawing._digits()
    drawn = [images[i].tobytes() for i in range(len(images))]
    assert not set(drawn[: drawing._FIRST_TEST_DIGIT]) & set(drawn[drawing._FIRST_TEST_DIGIT :])
    assert not set(drawing._FONTS["train"]) & set(drawing._FONTS["test"])
    for photograph in (0, 1):
        assert max(columns["train"][photograph]) < min(columns["test"][photograph])


@pytest.mark.parametrize(("split", "source"), [("train", "train"), ("dev", "test"), ("test", "test")])
def test_each_split_paints_with_its_material(monkeypatch, split, source):
    asked = []
    for name in ("background", "digit_mask"):
        real = getattr(drawing, name)
        monkeypatch.setattr(scene, name, lambda rng, given, real=real: asked.append(given) or real(rng, given))
    word = drawing.word_mask
    monkeypatch.setattr(scene, "word_mask", lambda rng, text, given: asked.append(given) or word(rng, text, given))
    for index in range(3):
        scene.draw(scene.generator(0, split, index), split)
    assert set(asked) == {source} and len(asked) > 6


def _shown(things, **wanted):
    return [t for t in things if all(getattr(t, name) == value for name, value in wanted.items())]


def _one(found):
    assert len(found) == 1, "the question does not say which is meant"
    return found[0]


def _place(thing):
    x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
    assert min(abs(x - 84), abs(y - 84)) > 4, "no quadrant to speak of"
    return f"{'top' if y < 84 else 'bottom'}_{'left' if x < 84 else 'right'}"


def _count(things, word):
    singular = {"shapes": None, **{plural: name for name, plural in vocabulary.PLURALS.items()}}[word]
    shapes = _shown(things, kind="shape")
    return str(len(shapes if singular is None else _shown(shapes, shape=singular)))


def _chosen(things, question, a, b, c):
    if question == "which word is shown ?":
        truth = _one(_shown(things, kind="word")).word
    else:
        truth = _one(_shown(things, shape=re.fullmatch(r"which color is the (\w+) \?", question)[1])).color
    assert len({a, b, c}) == 3
    return "ABC"[[a, b, c].index(truth)]


def _side(things, side):
    first, second = sorted(_shown(things, kind="digit"), key=lambda t: t.box[0] + t.box[2])
    return str((first if side == "left" else second).digit)


def _thing(things, name):
    return _one(_shown(things, kind=name)) if name in ("word", "digit") else _one(_shown(things, shape=name))


# How a person would answer each question from the list of things, written without looking at how they are asked.
RULES = {
    r"is there a digit (\d) \?": lambda t, digit: "yes" if _shown(t, digit=int(digit)) else "no",
    r"is there a ([a-z]+) ([a-z]+) \?": lambda t, color, shape: "yes" if _shown(t, color=color, shape=shape) else "no",
    r"is the word (\w+) shown \?": lambda t, word: "yes" if _shown(t, word=word) else "no",
    r"what color is the (\w+) \?": lambda t, shape: _one(_shown(t, shape=shape)).color,
    r"what shape is the (\w+) object \?": lambda t, color: _one(_shown(t, color=color)).shape,
    r"where is the (\w+) \?": lambda t, name: _place(_thing(t, name)),
    r"how many (\w+) objects \?": lambda t, color: str(len(_shown(t, color=color))),
    r"how many (\w+) \?": _count,
    r"what word is written \?": lambda t: _one(_shown(t, kind="word")).word,
    r"what digit is shown \?": lambda t: str(_one(_shown(t, kind="digit")).digit),
    r"what is the (left|right) digit \?": _side,
    r"(which .* \?) A : (\w+) B : (\w+) C : (\w+)": _chosen,
}


@pytest.mark.parametrize("split", scene.SPLITS)
def test_every_answer_is_true(held, split):
    used = set()
    for drawn, asked in held[split]:
        for kind, question, answer in asked:
            rule, match = next((r, m) for r in RULES if (m := re.fullmatch(r, question)))
            used.add(rule)
            assert RULES[rule](drawn.things, *match.groups()) == answer, (kind, question, answer, drawn.things)
    if split == "test":
        assert used == set(RULES)


def test_no_question_is_asked_twice_and_no_more_than_asked_for(held):
    for _, asked in held["test"]:
        assert len({question for _, question, _ in asked}) == len(asked) <= PER_SCENE


def test_guessing_gets_nobody_far(held):
    asked = [row for _, rows in held["test"] for row in rows]
    yes = Counter(answer for kind, _, answer in asked if kind == "exist")
    assert abs(yes["yes"] / yes.total() - 0.5) < 0.12
    for start in ("is there a digit", "is the word", "is there a"):
        part = Counter(answer for _, question, answer in asked if question.startswith(start))
        assert 0.25 < part["yes"] / part.total() < 0.75, start
    letters = Counter(answer for kind, _, answer in asked if kind == "choice")
    assert set(letters) == set("ABC") and max(letters.values()) / letters.total() < 0.45
    places = Counter(answer for kind, _, answer in asked if kind == "position")
    assert set(places) == set(vocabulary.QUADRANTS) and max(places.values()) / places.total() < 0.45
    assert {kind for kind, _, _ in asked} == set(KINDS)


def test_all_words_are_in_the_vocabulary(held):
    known = set(vocabulary.vocabulary())
    assert len(vocabulary.vocabulary()) == len(known) <= 128
    for split in scene.SPLITS:
        for _, asked in held[split]:
            for _, question, answer in asked:
                assert set(question.split()) <= known and answer in known


def test_things_are_where_the_picture_shows_them(held):
    for drawn, _ in held["test"][:20]:
        boxes = [thing.box for thing in drawn.things]
        for index, thing in enumerate(drawn.things):
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= drawing.SIDE and 0 <= top < bottom <= drawing.SIDE
            assert all(right <= a or c <= left or bottom <= b or d <= top for a, b, c, d in boxes[:index])
            mine = drawn.owner == index
            assert mine.any() and not mine[:top].any() and not mine[:, :left].any()
            if thing.kind == "shape":
                colour = np.median(drawn.pixels[mine].astype(float), axis=0)
                near = {name: np.abs(colour - value).max() for name, value in vocabulary.COLORS.items()}
                assert min(near, key=near.get) == thing.color
        assert drawn.patches().shape == (144,) and drawn.patches().max() < len(drawn.things)


def test_some_kinds_alone_and_balance():
    rows = list(GridVQA("dev", scenes=4, per_scene=6, kinds=("count", "digit")))
    assert {row.kind for row in rows} == {"count", "digit"}
    found = balance(rows)
    assert [one.kind for one in found] == ["count", "digit"]
    for one in found:
        counts = Counter(row.answer for row in rows if row.kind == one.kind)
        assert dict(one.answers) == counts
        assert one.questions == counts.total()
        assert one.guess == max(counts.values()) / counts.total()


def test_sheet_shows_each_scene_once():
    dataset = GridVQA("test", scenes=5, per_scene=2)
    figure = sheet(dataset, list(dataset))
    assert len(figure.axes) == 5
    texts = [text.get_text() for text in figure.texts]
    assert all(row.question in texts and row.answer in texts for row in dataset)
    with pytest.raises(ValueError, match="rows"):
        sheet(dataset, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "val"}, "split must be one of train, dev, test, got 'val'"),
        ({"scenes": 0}, "scenes must be an integer >= 1, got 0"),
        ({"scenes": True}, "scenes must be an integer >= 1, got True"),
        ({"per_scene": 1.5}, "per_scene must be an integer >= 1"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"kinds": ("colour",)}, "kinds must be among exist.*got colour"),
        ({"kinds": ()}, "kinds must be among"),
    ],
)
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message):
        GridVQA(**change)


def test_errors_of_the_parts():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="split"):
        scene.generator(0, "val", 0)
    with pytest.raises(ValueError, match="kinds"):
        questions(rng, scene.Scene(np.zeros((1, 1, 3), np.uint8), (), np.zeros((1, 1), np.int8)), 1, ("colour",))
    with pytest.raises(ValueError, match="shape"):
        drawing.shape_mask("cube", 28)


def test_shapes_look_like_what_they_are_called():
    side = 40
    masks = {name: drawing.shape_mask(name, side) for name in vocabulary.SHAPES}
    middle = {name: float(mask[18:22, 18:22].mean()) for name, mask in masks.items()}
    corner = {name: float(mask[3:7, 3:7].mean()) for name, mask in masks.items()}
    assert {name for name, value in middle.items() if value < 0.5} == {"ring"}
    assert {name for name, value in corner.items() if value > 0.5} == {"square"}
    rows = {name: (mask > 0.5).sum(1) for name, mask in masks.items()}
    assert rows["triangle"][6] < rows["triangle"][20] < rows["triangle"][34]  # narrow above, wide below
    assert rows["cross"][6] == rows["cross"][34] < rows["cross"][20] == rows["cross"].max() >= 38
    areas = {name: float(mask.mean()) for name, mask in masks.items()}
    assert areas["star"] < areas["cross"] < areas["circle"] and areas["ring"] < areas["circle"]
    assert areas["circle"] == pytest.approx(np.pi / 4, abs=0.04)  # a little inside of its square


def test_patches_name_the_thing_that_covers_them():
    owner = np.full((drawing.SIDE, drawing.SIDE), -1, np.int8)
    owner[0:14, 14:28] = 0  # the second patch of the first row
    owner[14:28, 0:10] = 1  # most of the first patch of the second row
    owner[28:29, 28:42] = 1  # a line of a patch: 7 %
    things = (scene.Thing("digit", (14, 0, 28, 14)), scene.Thing("digit", (0, 14, 10, 28)))
    found = scene.Scene(np.zeros((drawing.SIDE, drawing.SIDE, 3), np.uint8), things, owner).patches()
    assert found.shape == (144,) and {int(at): int(found[at]) for at in np.flatnonzero(found >= 0)} == {1: 0, 12: 1}


def test_things_stand_apart(held):
    for drawn, _ in held["test"]:
        boxes = [thing.box for thing in drawn.things]
        for index, (left, top, right, bottom) in enumerate(boxes):
            for a, b, c, d in boxes[:index]:
                assert max(a - right, left - c, b - bottom, top - d) > 2


def test_the_embedded_tokenizer_has_these_words_in_this_order():
    held = json.loads((PACKAGE / "data" / "tiny_llava" / "tokenizer.json").read_text())["model"]["vocab"]
    assert tuple(sorted(held, key=held.get)) == vocabulary.vocabulary()
    assert sorted(held.values()) == list(range(len(held)))


def test_sides_are_asked_of_what_stands_side_by_side():
    def asked(apart):
        boxes = ((20 + apart, 20, 48 + apart, 48), (20, 100, 48, 128))
        things = tuple(scene.Thing("digit", box, digit=number) for number, box in enumerate(boxes))
        blank = np.zeros((1, 1, 3), np.uint8), things, np.zeros((1, 1), np.int8)
        return {
            pair
            for seed in range(20)
            for pair in questions(np.random.default_rng(seed), scene.Scene(*blank), 1, ("digit",))
        }

    assert asked(12) == set()
    assert asked(13) == {("digit", "what is the left digit ?", "1"), ("digit", "what is the right digit ?", "0")}
