"""What a results file must hold before anything is computed from it; a fault is named by its path."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection
from typing import Any

MOST_KINDS = 1000  # of questions: the accuracy of each is computed for every setting, and printed
_VERDICTS = frozenset("01?")
_MOST_CELLS = 10**8  # of the table of scenes and kinds that is resampled


def check(document: Any, where: str) -> None:
    """Refuse a document that :class:`ficoco_ext.evaluation.Results` could not summarise, or that contradicts itself.

    Args:
        document: as JSON has it.
        where: what to call it in an error.

    Raises:
        ValueError: names the entry, what it must be, and what it is.

    Cost: one look at every entry.

    Example:
        >>> from ficoco_ext.evaluation.document import check
        >>> check({"model": 7}, "out.json")
        Traceback (most recent call last):
        ...
        ValueError: out.json: model must be a string, got 7
    """
    at = _At(document, "", where)
    at.text("model")
    run, platform = at.part("run"), at.part("platform")
    run.integers("seeds", least=0)
    run.part("asking").text("judge")
    data = run.part("data")
    if "gridvqa" in data.value:
        data.part("gridvqa").text("split")
    for name in ("dtype", "device", "torch"):
        platform.text(name)
    for name in ("processor", "commit", "note"):
        platform.text(name, optional=True)
    words = at.list_("words")
    for index, word in enumerate(words):
        if not isinstance(word, str):
            raise at.fault(f"words[{index}]", "a string", word)
    settings = at.parts("settings")
    if not settings:
        raise at.fault("settings", "at least the unreduced model's", [])
    tables, cells = at.parts("tables"), at.parts("cells")
    for setting in settings:
        _setting(setting)
    for table in tables:
        _table(table, len(words))
    drawn = [table.value["seed"] for table in tables]
    if len(set(drawn)) != len(drawn):
        raise at.fault("tables", "of different seeds", drawn)
    scenes = sum(max(table.value["scene"]) + 1 for table in tables)
    kinds = len({kind for table in tables for kind in table.value["kinds"]})
    if kinds > MOST_KINDS:
        raise at.fault("tables", f"of at most {MOST_KINDS:,} different kinds", kinds)
    if scenes * kinds > _MOST_CELLS:
        raise at.fault("tables", f"of scenes times kinds of at most {_MOST_CELLS:,}", f"{scenes:,} times {kinds:,}")
    met: set[tuple[int, int]] = set()
    for entry in at.parts("first_token") if "first_token" in document else []:
        _times(entry, len(settings))
    for cell in cells:
        _cell(cell, settings, tables, len(words))
        key = cell.value["setting"], cell.value["seed"]
        if key in met:
            raise cell.fault("seed", "answered once by a setting", key[1])
        met.add(key)


class _At:
    """An entry with its path in the document."""

    def __init__(self, value: Any, path: str, where: str) -> None:
        self.value, self.path, self.where = value, path, where
        if not isinstance(value, dict):
            raise ValueError(f"{where}: {path or 'it'} must be an object, got {reprlib.repr(value)}")

    def fault(self, name: str, wanted: str, got: Any) -> ValueError:
        path = f"{self.path}.{name}" if self.path else name
        return ValueError(f"{self.where}: {path} must be {wanted}, got {reprlib.repr(got)}")

    def _get(self, name: str, wanted: str, fits: Callable[[Any], bool]) -> Any:
        if name not in self.value:
            path = f"{self.path}.{name}" if self.path else name
            raise ValueError(f"{self.where}: {path} is missing; it must be {wanted}")
        if not fits(self.value[name]):
            raise self.fault(name, wanted, self.value[name])
        return self.value[name]

    def text(self, name: str, optional: bool = False) -> None:
        if not optional or self.value.get(name) is not None:
            self._get(name, "a string", lambda value: isinstance(value, str))

    def number(self, name: str) -> float:
        def fits(value: Any) -> bool:
            return _is(value, (int, float)) and abs(value) < 1e300 and math.isfinite(value) and value >= 0

        return self._get(name, "a finite number >= 0", fits)

    def integer(self, name: str, least: int, most: int) -> int:
        return self._get(
            name, f"an integer in {least} ... {most}", lambda value: _is(value, int) and least <= value <= most
        )

    def list_(self, name: str) -> list[Any]:
        return self._get(name, "a list", lambda value: isinstance(value, list))

    def integers(self, name: str, least: int, most: int = 2**63, count: int | None = None) -> list[int]:
        found = self.list_(name)
        if len(found) != (max(1, len(found)) if count is None else count):
            raise self.fault(name, f"of {count or 'some'} integers", f"{len(found)}")
        for index, one in enumerate(found):
            if not (_is(one, int) and least <= one <= most):
                raise self.fault(f"{name}[{index}]", f"an integer in {least} ... {most}", one)
        return found

    def part(self, name: str) -> _At:
        path = f"{self.path}.{name}" if self.path else name
        return _At(self._get(name, "an object", lambda value: isinstance(value, dict)), path, self.where)

    def parts(self, name: str) -> list[_At]:
        return [_At(one, f"{name}[{index}]", self.where) for index, one in enumerate(self.list_(name))]


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _setting(at: _At) -> None:
    for name in ("name", "budget"):
        at.text(name)
    seeds = at.integers("seeds", least=0)
    if len(set(seeds)) != len(seeds):
        raise at.fault("seeds", "different", seeds)
    for name in ("remark", "impossible"):
        if name not in at.value:
            raise ValueError(f"{at.where}: {at.path}.{name} is missing; it must be a string or null")
        at.text(name, optional=True)
    at.text("group", optional=True)
    if at.value.get("goal") is not None:
        at.part("goal").text("equal")
    if at.value.get("cost") is None:
        at._get("cost", "an object or null", lambda value: value is None)
        return
    cost = at.part("cost")
    for name in ("flops_ratio", "kv_ratio"):
        cost.number(name)
    if "flops_parts" in cost.value:
        cost.number("flops")
        for name in ("tower", "language_model", "selection"):
            cost.part("flops_parts").number(name)
    tokens = cost.part("visual_tokens")
    for name in ("entering", "average", "final"):
        tokens.number(name)


def _times(at: _At, settings: int) -> None:
    at.integer("batch", 1, 2**31)
    at.integer("runs", 1, 2**31)
    platform = at.part("platform")
    for name in ("dtype", "device", "torch"):
        platform.text(name)
    platform.text("processor", optional=True)
    platform.integer("threads", 1, 2**31)
    for index, value in enumerate(at.list_("cells")):
        cell = _At(value, f"{at.path}.cells[{index}]", at.where)
        cell.integer("setting", 0, settings - 1)
        for name in ("seconds", "least", "most"):
            cell.number(name)
        cell.text("judged", optional=True)
        if cell.value.get("selection") is not None:
            cell.number("selection")


def _table(at: _At, words: int) -> None:
    at._get("seed", "an integer or null", lambda value: value is None or _is(value, int))
    at.text("questions")
    kinds = at.list_("kinds")
    if len(kinds) > MOST_KINDS:
        raise at.fault("kinds", f"at most {MOST_KINDS:,} names", len(kinds))
    if not kinds or not all(isinstance(kind, str) for kind in kinds) or len(set(kinds)) != len(kinds):
        raise at.fault("kinds", "different names, at least one", kinds)
    asked = len(at.integers("kind", least=0, most=len(kinds) - 1))
    at.integers("scene", least=0, most=asked - 1, count=asked)  # they are numbered as they are met
    at.integers("truth", least=0, most=words - 1, count=asked)
    for index, row in enumerate(at.list_("bad")):
        if not (
            isinstance(row, list) and len(row) == 3 and _is(row[0], int) and all(isinstance(x, str) for x in row[1:])
        ):
            raise at.fault(f"bad[{index}]", "a row's number, its field and a reason", row)


def _cell(at: _At, settings: Collection[_At], tables: Collection[_At], words: int) -> None:
    setting = list(settings)[at.integer("setting", 0, len(settings) - 1)].value
    seed = at._get(
        "seed",
        f"among the setting's, {reprlib.repr(setting['seeds'])}",
        lambda one: _is(one, int) and one in setting["seeds"],
    )
    table = next((one.value for one in tables if one.value["seed"] in (None, seed)), None)
    if table is None:
        raise at.fault("seed", "that of a table", seed)
    at.number("seconds")
    at.integer("threads", 1, 2**31)
    at.integers("answers", least=0, most=words - 1, count=len(table["kind"]))
    wanted = f"{len(table['kind'])} of the signs 0, 1 and ?"
    at._get(
        "right",
        wanted,
        lambda one: isinstance(one, str) and len(one) == len(table["kind"]) and _VERDICTS.issuperset(one),
    )
