"""Results that survive whatever comes later: one JSON line for each fact, folded into one document.

A program appends lines and never rewrites them, so one that crashes, hangs or is killed loses nothing that it had
measured. The document is made from the lines at any time and is always whole JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Recorder:
    """Appends to a file of lines; without a path it only keeps them."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.lines: list[Line] = read(path) if path is not None and path.exists() else []

    def facts(self, **facts: Any) -> None:
        """What is true of the whole section."""
        self._append({"facts": facts})

    def add(self, table: str, row: dict[str, Any]) -> None:
        """A row of a table."""
        self._append({"table": table, "row": row})

    def begin(self, key: str) -> None:
        """A task starts. If its end is missing, it was lost."""
        self._append({"begin": key})

    def end(self, key: str) -> None:
        """The task is over; its rows say whether it succeeded."""
        self._append({"end": key})

    def begun(self) -> set[str]:
        """Tasks that started at any time."""
        return {line["begin"] for line in self.lines if "begin" in line}

    def _append(self, line: Line) -> None:
        self.lines.append(line)
        if self.path is None:
            return
        data = (json.dumps(line) + "\n").encode()
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, data)  # one call for a line: a reader never sees half of it after a kill between calls
        finally:
            os.close(handle)


def read(path: Path) -> list[Line]:
    """The whole lines of a file; one that is still being written is left out."""
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text().split("\n")[:-1] if text]


def fold(lines: Iterable[Line]) -> dict[str, Any]:
    """One section of the document: facts beside tables."""
    section: dict[str, Any] = {}
    for line in lines:
        if "facts" in line:
            section |= line["facts"]
        elif "table" in line:
            section.setdefault(line["table"], []).append(line["row"])
    return section


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Written atomically: a reader never finds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(document, indent=2) + "\n")
    os.replace(fresh, path)


def put(path: Path, **sections: Any) -> None:
    """Set sections of the document at ``path``; the others stay, also those that other programs write meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.parent, os.O_RDONLY)  # the folder is the lock, as other programs write its files too
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        document = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, {**document, **sections})
    finally:
        os.close(handle)
