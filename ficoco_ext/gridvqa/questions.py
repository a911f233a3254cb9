"""Questions about a scene, each with the one right answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from .drawing import SIDE, Rng
from .scene import Scene, Thing
from .vocabulary import COLORS, KINDS, LETTERS, PLURALS, QUADRANTS, SHAPES, WORDS

Asked = tuple[str, str] | None  # question and answer; None if this scene does not allow the question drawn
_T = TypeVar("_T")
_CLEAR = 8  # pixels off the middle lines before "top" or "left" is said
_APART = 12  # pixels between two digits before one is "the left digit"


class _View:
    """The things of a scene, sorted for asking."""

    def __init__(self, scene: Scene) -> None:
        self.shapes = [thing for thing in scene.things if thing.kind == "shape"]
        self.digits = [thing for thing in scene.things if thing.kind == "digit"]
        self.words = [thing for thing in scene.things if thing.kind == "word"]
        shapes, colors = [t.shape for t in self.shapes], [t.color for t in self.shapes]
        self.only_shape = [t for t in self.shapes if shapes.count(t.shape) == 1]
        self.only_color = [t for t in self.shapes if colors.count(t.color) == 1]


def _pick(rng: Rng, items: Sequence[_T]) -> _T:
    return items[int(rng.integers(len(items)))]


def _exist(rng: Rng, view: _View) -> Asked:
    """As often yes as no. Half of the absent pairs are made of a colour and a shape that are both there (POPE)."""
    yes, about = rng.random() < 0.5, rng.random()
    answer = "yes" if yes else "no"
    if about < 0.6:
        there = {(t.color, t.shape) for t in view.shapes}
        near = {(a.color, b.shape) for a in view.shapes for b in view.shapes} - there
        every = {(color, shape) for color in COLORS for shape in SHAPES} - there
        pairs = sorted(there if yes else (near if rng.random() < 0.5 and near else every))
        if not pairs:
            return None
        color, shape = _pick(rng, pairs)
        return f"is there a {color} {shape} ?", answer
    if about < 0.8:
        shown = {t.digit for t in view.digits}
        digits = [d for d in range(10) if (d in shown) == yes]
        return (f"is there a digit {_pick(rng, digits)} ?", answer) if digits else None
    written = {t.word for t in view.words}
    if not written:
        return None  # a "yes" is not possible, and "no" alone would give the answer away
    words = [w for w in WORDS if (w in written) == yes]
    return (f"is the word {_pick(rng, words)} shown ?", answer) if words else None


def _attr(rng: Rng, view: _View) -> Asked:
    if rng.random() < 0.5:
        if not view.only_shape:
            return None
        thing = _pick(rng, view.only_shape)
        return f"what color is the {thing.shape} ?", str(thing.color)
    if not view.only_color:
        return None
    thing = _pick(rng, view.only_color)
    return f"what shape is the {thing.color} object ?", str(thing.shape)


def _position(rng: Rng, view: _View) -> Asked:
    asked = [(f"where is the {t.shape} ?", t) for t in view.only_shape]
    asked += [("where is the word ?", t) for t in view.words if len(view.words) == 1]
    asked += [("where is the digit ?", t) for t in view.digits if len(view.digits) == 1]
    asked = [(q, t) for q, t in asked if min(abs(c - SIDE / 2) for c in t.center) > _CLEAR]
    if not asked:
        return None
    question, thing = _pick(rng, asked)
    x, y = thing.center
    return question, QUADRANTS[2 * (y > SIDE / 2) + (x > SIDE / 2)]


def _count(rng: Rng, view: _View) -> Asked:
    about, present = rng.random(), rng.random() < 0.8
    if about < 0.4:
        color = _pick(rng, view.shapes).color if view.shapes and present else _pick(rng, list(COLORS))
        return f"how many {color} objects ?", str(sum(t.color == color for t in view.shapes))
    if about < 0.8:
        shape = str(_pick(rng, view.shapes).shape) if view.shapes and present else _pick(rng, SHAPES)
        return f"how many {PLURALS[shape]} ?", str(sum(t.shape == shape for t in view.shapes))
    return "how many shapes ?", str(len(view.shapes))


def _text(rng: Rng, view: _View) -> Asked:
    return ("what word is written ?", str(view.words[0].word)) if len(view.words) == 1 else None


def _digit(rng: Rng, view: _View) -> Asked:
    if len(view.digits) == 1:
        return "what digit is shown ?", str(view.digits[0].digit)
    if len(view.digits) != 2:
        return None
    left, right = sorted(view.digits, key=lambda thing: thing.center[0])
    if right.center[0] - left.center[0] <= _APART:
        return None
    side: tuple[str, Thing] = _pick(rng, (("left", left), ("right", right)))
    return f"what is the {side[0]} digit ?", str(side[1].digit)


def _choice(rng: Rng, view: _View) -> Asked:
    if rng.random() < 0.6:
        if not view.only_shape:
            return None
        thing = _pick(rng, view.only_shape)
        truth, others, question = str(thing.color), list(COLORS), f"which color is the {thing.shape} ?"
    else:
        if len(view.words) != 1:
            return None
        truth, others, question = str(view.words[0].word), list(WORDS), "which word is shown ?"
    others.remove(truth)
    options = [truth, *(others[i] for i in rng.permutation(len(others))[:2])]
    order = [int(i) for i in rng.permutation(3)]
    listed = " ".join(f"{letter} : {options[i]}" for letter, i in zip(LETTERS, order, strict=True))
    return f"{question} {listed}", LETTERS[order.index(0)]


_ASK: dict[str, Callable[[Rng, _View], Asked]] = {
    "exist": _exist,
    "attr": _attr,
    "position": _position,
    "count": _count,
    "text": _text,
    "digit": _digit,
    "choice": _choice,
}


def questions(rng: Rng, scene: Scene, number: int, kinds: Sequence[str] = KINDS) -> list[tuple[str, str, str]]:
    """Up to ``number`` different (kind, question, answer) of a scene: the kinds in turn, then kinds at random."""
    for kind in kinds:
        if kind not in _ASK:
            raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {kind!r}")
    view, found = _View(scene), dict[tuple[str, str], str]()
    turns = [kinds[int(i)] for i in rng.permutation(len(kinds))]
    for turn in range(6 * number):
        if len(found) == number:
            break
        kind = turns[turn] if turn < len(turns) else _pick(rng, kinds)
        asked = _ASK[kind](rng, view)
        if asked is not None:
            found.setdefault((kind, asked[0]), asked[1])
    return [(kind, question, answer) for (kind, question), answer in found.items()]
