"""Questions with known answers: checked row by row, each picture once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import open_image
from ..gridvqa import KINDS, GridVQA
from ..judging.text import nothing

BAD_ROWS = ("fail", "count")
_ANY = "all"  # the kind of rows that name none


@dataclass(frozen=True)
class Item:
    """One question: the place of its picture in :attr:`Questions.pictures`, and the number of its scene."""

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
        pictures: each picture once: PIL images, or paths of files.
        bad: rows that cannot be asked; they are in no score.
        kinds: of the items, in the order of :data:`ficoco_ext.gridvqa.KINDS`, others behind as they come.
        digest: SHA-256 of pictures, questions, answers, kinds and scenes.
    """

    items: tuple[Item, ...]
    pictures: tuple[Any, ...]
    bad: tuple[BadRow, ...]
    kinds: tuple[str, ...]
    digest: str

    def open(self, picture: int) -> Any:
        """The PIL image, RGB."""
        held = self.pictures[picture]
        return open_image(held) if isinstance(held, Path) else held.convert("RGB")


class _Bad(Exception):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field, self.reason = field, reason


def questions(rows: Iterable[Any], *, bad_rows: str = "fail") -> Questions:
    """Check rows.

    Args:
        rows: anything with ``image`` (PIL), ``question``, ``answer``, and perhaps ``kind`` and ``scene``, as attributes
            or as keys of a mapping. Rows without a scene that share one image object are of one scene.
        bad_rows: ``"fail"`` raises at the first bad row; ``"count"`` goes on and keeps them in ``bad``.

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
    """Check the rows of a JSON file (a list of objects) or of a JSON-lines file (one object a line).

    An object is {"image": path relative to the file, "question", "answer", "kind"?, "scene"?}. Rows without a scene
    that show one picture are of one scene.

    Raises:
        FileNotFoundError: no such file. ValueError: as :func:`questions`, or a file that is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data file not found: {path}")
    try:
        text = path.read_text(encoding="utf-8")
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
    if path.suffix.lower() == ".json":
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"data file {path} must be JSON, one list of objects: {error}") from None
        if not isinstance(found, list):
            raise ValueError(f"data file {path} must hold one list of objects, got {type(found).__name__}")
        yield from ((number, row, None) for number, row in enumerate(found, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut at line ends inside of strings
        if not line.strip():
            continue
        try:
            yield number, json.loads(line), None
        except json.JSONDecodeError as error:
            yield number, None, f"must be one JSON object a line: {error}"


def _read(
    rows: Iterable[tuple[int, Any, str | None]], bad_rows: str, source: str, folder: Path | None = None
) -> Questions:
    if bad_rows not in BAD_ROWS:
        raise ValueError(f"bad_rows must be one of {', '.join(BAD_ROWS)}, got {bad_rows!r}")
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
    kinds = (*(kind for kind in KINDS if kind in met), *(kind for kind in met if kind not in KINDS))
    return Questions(tuple(reader.items), tuple(reader.pictures), tuple(bad), kinds, reader.digest.hexdigest())


class _Reader:
    """Good rows so far. ``folder``: images are paths from there; None: images are PIL images."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.items: list[Item] = []
        self.pictures: list[Any] = []
        self.digest = hashlib.sha256()
        self._places: dict[Any, int] = {}
        self._scenes: dict[Any, int] = {}
        self._asked: dict[tuple[int, str], int] = {}

    def add(self, row: Any, number: int) -> None:
        question, answer = (_text(row, name) for name in ("question", "answer"))
        if nothing(answer):
            raise _Bad("answer", f"must hold a letter or a digit to be compared, got {answer!r}")
        kind = _text(row, "kind", _ANY)
        key, held, pixels = self._picture(_field(row, "image"))
        picture = self._places.get(key, len(self.pictures))
        before = self._asked.get((picture, question))
        if before is not None:
            raise _Bad("question", f"must be asked once of a picture, got the one of row {before} again")
        scene = _field(row, "scene")
        if isinstance(scene, bool) or not (scene is None or isinstance(scene, (int, str))):
            raise _Bad("scene", f"must be an integer or a string, got {scene!r}")
        if pixels is not None:  # kept only now, so that a bad row leaves nothing behind
            self.digest.update(f"{pixels.size}".encode() + pixels.tobytes())
            self._places[key] = picture
            self.pictures.append(held)
        of = ("picture", picture) if scene is None else ("scene", scene)
        self._asked[picture, question] = number
        self.items.append(Item(picture, question, answer, kind, self._scenes.setdefault(of, len(self._scenes))))
        self.digest.update(json.dumps([picture, question, answer, kind, self.items[-1].scene]).encode())

    def _picture(self, image: Any) -> tuple[Any, Any, Any]:
        """What a picture is known by, what is kept of it, and the pixels of a new one, opened to see that it can be."""
        from PIL import Image

        held: Any = image
        if self.folder is not None:
            if not isinstance(image, str) or not image:
                raise _Bad("image", f"must be the path of a picture, got {image!r}")
            held = self.folder / image
        elif not isinstance(image, Image.Image):
            raise _Bad("image", f"must be a PIL image, got {type(image).__name__}")
        key = held if self.folder is not None else id(image)  # it is kept, so its id is its own
        if key in self._places:
            return key, held, None
        try:
            return key, held, (open_image(held) if self.folder is not None else image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise _Bad("image", f"must be a picture that Pillow can read: {error}") from None


def _field(row: Any, name: str) -> Any:
    return row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)


def _text(row: Any, name: str, default: str | None = None) -> str:
    value = _field(row, name)
    value = default if value is None else value
    if not isinstance(value, str) or not value.strip():
        raise _Bad(name, f"must be a string that is not empty, got {value!r}")
    return value.strip()
