"""Questions with known answers: checked row by row, each picture once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..gridvqa import KINDS, GridVQA
from ..io.images import rgb
from ..io.suggest import did_you_mean
from ..judging.text import nothing
from .document import MOST_KINDS

BAD_ROWS = ("fail", "count")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_ANY = "all"  # the kind of rows that name none
_MARK = "<image>"  # where the picture stands, in the format of LLaVA's data
_SPEAKERS = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer", "system": "system"}


@dataclass(frozen=True)
class Item:
    """One question: the index of its picture in :attr:`Questions.pictures`, and the number of its scene."""

    picture: int
    question: str
    answer: str
    kind: str
    scene: int


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be asked, counted from 1, the field at fault, and why."""

    row: int
    field: str
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}, field {self.field!r}: {self.reason}"


@dataclass(frozen=True)
class Questions:
    """What is asked.

    Attributes:
        items: the good rows in order.
        pictures: each picture once, as given, or the path of its file.
        bad: rows that cannot be asked; they are in no score.
        kinds: of the items, in the order of :data:`ficoco_ext.gridvqa.KINDS`, then others in order of appearance.
        digest: SHA-256 of pictures, questions, answers, kinds and scenes.
        remarks: what of the pictures is not looked at, such as later frames.
    """

    items: tuple[Item, ...]
    pictures: tuple[Any, ...]
    bad: tuple[BadRow, ...]
    kinds: tuple[str, ...]
    digest: str
    remarks: tuple[str, ...] = ()

    def open(self, picture: int) -> Any:
        """The PIL image, RGB."""
        return rgb(self.pictures[picture])


class _Bad(Exception):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field, self.reason = field, reason


def questions(rows: Iterable[Any], *, bad_rows: str = "fail") -> Questions:
    """Check rows.

    Args:
        rows: anything with ``image`` (what :func:`ficoco_ext.io.images.rgb` reads), ``question``, ``answer``, and
            perhaps ``kind`` and ``scene``, as attributes or as keys of a mapping, or with the keys of other formats,
            see :func:`questions_of_file`. Rows without a scene that share one image object are of one scene.
        bad_rows: ``"fail"`` raises at the first bad row; ``"count"`` continues and keeps them in ``bad``.

    Raises:
        ValueError: a bad row, no good row, or another ``bad_rows``; the message names row and field.

    Example:
        >>> from PIL import Image
        >>> from ficoco_ext.evaluation import questions
        >>> row = {"image": Image.new("RGB", (8, 8)), "question": "is there a star ?", "answer": "no"}
        >>> questions([row, {**row, "answer": ""}], bad_rows="count").bad
        (BadRow(row=2, field='answer', reason="must be a string that is not empty, got ''"),)
    """
    return _read(((number, row, None) for number, row in enumerate(rows, 1)), bad_rows, "the data")


def questions_of_file(path: Path | str, *, bad_rows: str = "fail") -> Questions:
    """Check the rows of a file that holds a JSON list of objects, or one object a line.

    An object is {"image": path relative to the file, "question", "answer", "kind"?, "scene"?}. Rows without a scene
    that show one picture are of one scene. The formats of LLaVA and its benchmarks are read too: "conversations" (or
    "messages") of human and gpt (user and assistant), each question with the answer that follows it a question of its
    own, asked without those before; "text" and "label" for question and answer, "category" for kind; an image, or
    "images", in a list of one; any "id". ``<image>`` in a question says where the picture stands, and is left to the
    prompt. A byte order mark is no matter.

    Raises:
        FileNotFoundError: no such file. ValueError: as :func:`questions`, or a file that is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data file not found: {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data file {path} must be text in UTF-8: {error}") from None
    return _read(_objects(text, path), bad_rows, str(path), path.parent)


def questions_for(dataset: Any, seed: int, *, bad_rows: str = "fail") -> Questions:
    """The questions of one seed: other scenes of a :class:`GridVQA`, the same rows of anything else."""
    if isinstance(dataset, Questions):
        return dataset
    if isinstance(dataset, (str, Path)):
        return questions_of_file(dataset, bad_rows=bad_rows)
    if isinstance(dataset, GridVQA):
        dataset = GridVQA(
            dataset.split, scenes=dataset.scenes, per_scene=dataset.per_scene, seed=seed, kinds=dataset.kinds
        )
    return questions(dataset, bad_rows=bad_rows)


def _objects(text: str, path: Path) -> Iterator[tuple[int, Any, str | None]]:
    """Each object with its number, of a line that of the line, or why there is none."""
    listed = text.lstrip().startswith("[")
    if listed or (path.suffix.lower() == ".json" and not _is_lines(text)):
        try:
            found = _parsed(text)
        except ValueError as error:
            raise ValueError(f"data file {path} must be JSON, one list of objects: {error}") from None
        if not isinstance(found, list):
            raise ValueError(f"data file {path} must hold one list of objects, got {type(found).__name__}")
        yield from ((number, row, None) for number, row in enumerate(found, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut at line ends inside of strings
        line = line.strip("\ufeff \t\r")  # joined files have byte order marks inside
        if not line:
            continue
        try:
            row, broken = _parsed(line), None
        except ValueError as error:
            row, broken = None, f"must be one JSON object a line: {error}"
        yield number, row, broken


def _is_lines(text: str) -> bool:
    """Several lines, each an object of its own."""
    first, _, rest = text.strip().partition("\n")
    try:
        return bool(rest) and isinstance(_parsed(first), dict)
    except _TooDeepError:
        return first.startswith("{")
    except ValueError:
        return False


class _TooDeepError(ValueError):
    pass


class _Long:
    """An integer that Python does not read, such as one of 5000 digits: a fault only of a field that is looked at."""

    def __init__(self, digits: str) -> None:
        self._shown = f"an integer of {len(digits.lstrip('-'))} digits"

    def __repr__(self) -> str:
        return self._shown


def _parsed(text: str) -> Any:
    """What JSON says; ValueError for none, and for lists inside of lists beyond what Python reads."""
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError:
        raise _TooDeepError("lists or objects are inside of each other too deep") from None


def _integer(digits: str) -> int | _Long:
    try:
        return int(digits)
    except ValueError:
        return _Long(digits)


def _read(
    rows: Iterable[tuple[int, Any, str | None]], bad_rows: str, source: str, folder: Path | None = None
) -> Questions:
    if bad_rows not in BAD_ROWS:
        near = did_you_mean(bad_rows, BAD_ROWS)
        raise ValueError(f"bad_rows must be one of {', '.join(BAD_ROWS)}, got {bad_rows!r}{near}")
    reader, bad = _Reader(folder), list[BadRow]()
    for number, row, broken in rows:
        try:
            if broken is not None:
                raise _Bad("row", broken)
            reader.add(row, number)
        except _Bad as error:
            bad.append(BadRow(number, error.field, error.reason))
            if bad_rows == "fail":
                remedy = "mend the row, or leave bad rows out with bad_rows='count' (--bad-rows count)"
                raise ValueError(f"{source}: {bad[-1]}; {remedy}") from None
    if not reader.items:
        raise ValueError(
            f"{source} must hold at least one row that can be asked, got {len(bad)} bad rows of {len(bad)}"
        )
    met = dict.fromkeys(item.kind for item in reader.items)
    if len(met) > MOST_KINDS:
        raise ValueError(f"{source}: kind must have at most {MOST_KINDS:,} different values, got {len(met):,}")
    kinds = (*(kind for kind in KINDS if kind in met), *(kind for kind in met if kind not in KINDS))
    items, pictures, remarks = map(tuple, (reader.items, reader.pictures, reader.remarks))
    return Questions(items, pictures, tuple(bad), kinds, reader.digest.hexdigest(), remarks)


class _Reader:
    """Good rows so far. ``folder``: images are paths from there; None: anything that can be read as a picture."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.items: list[Item] = []
        self.pictures: list[Any] = []
        self.remarks: list[str] = []
        self.digest = hashlib.sha256()
        self._indices: dict[Any, int] = {}
        self._scenes: dict[Any, int] = {}
        self._asked: dict[tuple[int, str], int] = {}

    def add(self, row: Any, number: int) -> None:
        pairs = [_checked(*pair) for pair in _pairs(row)]
        kind = _text(_first(row, "kind", "category"), "kind", _ANY)
        key, held, pixels = self._picture(_image(row))
        picture = self._indices.get(key, len(self.pictures))
        met: dict[str, int] = {}
        for question, _ in pairs:
            before = self._asked.get((picture, question), met.get(question))
            if before is not None:
                raise _Bad("question", f"must be asked once of a picture, got the one of row {before} again")
            met[question] = number
        scene = _field(row, "scene")
        if isinstance(scene, bool) or not (scene is None or isinstance(scene, (int, str))):
            raise _Bad("scene", f"must be an integer or a string, got {_shown(scene)}")
        if pixels is not None:  # kept only now, so that a bad row adds nothing
            self.digest.update(f"{pixels.size}".encode() + pixels.tobytes())
            self._indices[key] = picture
            self.pictures.append(held)
        of = ("picture", picture) if scene is None else ("scene", scene)
        for question, answer in pairs:
            self._asked[picture, question] = number
            self.items.append(Item(picture, question, answer, kind, self._scenes.setdefault(of, len(self._scenes))))
            self.digest.update(json.dumps([picture, question, answer, kind, self.items[-1].scene]).encode())

    def _picture(self, image: Any) -> tuple[Any, Any, Any]:
        """What a picture is known by, what is kept of it, and the pixels of a new one, opened to see that it can be."""
        held: Any = image
        if self.folder is not None:
            if not isinstance(image, str) or not image:
                raise _Bad("image", f"must be the path of a picture, got {_shown(image)}")
            held = self.folder / image
            if "\\" in image and not os.path.exists(held):  # written on Windows
                held = self.folder / image.replace("\\", "/")
        elif image is None:
            raise _Bad("image", "must be a picture, got None")
        elif isinstance(image, (str, Path)):
            held = Path(image)
        key = held if isinstance(held, (Path, bytes)) else id(image)  # it is kept, so its id is its own
        if key in self._indices:
            return key, held, None
        try:
            return key, held, rgb(held, say=self.remarks.append)
        except ValueError as error:
            raise _Bad("image", f"must be a picture that can be read: {error}") from None


def _pairs(row: Any) -> list[tuple[Any, Any]]:
    """Questions and answers of a row; in a conversation each turn of a person with the answer that follows."""
    turns = _first(row, "conversations", "messages")
    if turns is None:
        return [(_first(row, "question", "text"), _first(row, "answer", "label"))]
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in turns):
        raise _Bad("conversations", f"must be a list of objects, got {_shown(turns)}")
    said = [(_speaker(_first(turn, "from", "role")), _first(turn, "value", "content")) for turn in turns]
    said = [one for one in said if one[0] != "system"]
    if not said or [who for who, _ in said] != ["question", "answer"] * (len(said) // 2):
        raise _Bad("conversations", "must go from human to gpt (or user to assistant) and back, ending with an answer")
    return [(asked[1], answered[1]) for asked, answered in zip(said[::2], said[1::2], strict=True)]


def _speaker(name: Any) -> str | None:
    return _SPEAKERS.get(name) if isinstance(name, str) else None


def _checked(question: Any, answer: Any) -> tuple[str, str]:
    """A question without the mark of its picture, which the prompt has, and an answer that can be looked for."""
    asked, answered = _text(_joined(question), "question"), _text(_joined(answer), "answer")
    if asked.count(_MARK) > 1 or "<video>" in asked:
        raise _Bad("question", f"must be about one picture, got {_shown(asked)}")
    asked = re.sub(rf"[ \t]*{_MARK}[ \t]*", " ", asked).strip()
    if not asked:
        raise _Bad("question", f"must say something besides {_MARK}")
    if nothing(answered):
        raise _Bad("answer", f"must hold a letter or a digit to be compared, got {_shown(answered)}")
    return asked, answered


def _joined(content: Any) -> Any:
    """The text of content that is a list of parts, as chat templates have it; all else as it is."""
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        return content
    return "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")


def _image(row: Any) -> Any:
    """The one picture of a row, which some formats have in a list."""
    image = _first(row, "image", "images")
    if isinstance(image, (list, tuple)):
        if len(image) != 1:
            raise _Bad("image", f"must be one picture, got a list of {len(image)}")
        return image[0]
    return image


def _first(row: Any, *names: str) -> Any:
    """The first of several fields that a row has."""
    return next((found for found in (_field(row, name) for name in names) if found is not None), None)


def _field(row: Any, name: str) -> Any:
    return row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)


def _text(value: Any, name: str, default: str | None = None) -> str:
    value = default if value is None else value
    if not isinstance(value, str) or not value.strip():
        raise _Bad(name, f"must be a string that is not empty, got {_shown(value)}")
    return value.strip()


def _shown(value: Any) -> str:
    """At most a line or two of it, however long or deep it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"an {type(value).__name__} that is too long to be shown"
