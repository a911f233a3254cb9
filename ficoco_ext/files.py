"""Writing files: whole or not at all, and never over what was read."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[IO[bytes]]:
    """A file to write: it gets its name when it is whole, and an older one stays until then, or if writing fails.

    It is written beside its place under a name that nothing has. A symbolic link stays one and what it points to is
    replaced; a device or a pipe is written as it is.

    Raises:
        OSError: it cannot be written; names ``path``.

    Example:
        >>> import pathlib, tempfile
        >>> from ficoco_ext.files import replacing
        >>> place = pathlib.Path(tempfile.mkdtemp()) / "out.txt"
        >>> with replacing(place) as file:
        ...     _ = file.write(b"whole")
        >>> place.read_text(), len(list(place.parent.iterdir()))
        ('whole', 1)
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    there = target.stat() if target.exists() else None
    if there is not None and not stat.S_ISREG(there.st_mode):
        with target.open("wb") as file:
            yield file
        return
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(part, flags, 0o666 if there is None else stat.S_IMODE(there.st_mode))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` in UTF-8, as :func:`replacing` does; what is no text, as a file's name may be, as escapes."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def require_apart(inputs: Iterable[Path | str | None], **outputs: Path | str | None) -> None:
    """Raise before work begins if an output would replace an input, or another output.

    Args:
        inputs: files that are read; None is none.
        outputs: each by the name of its option or argument; None is none.

    Raises:
        ValueError: names both. Links, other spellings and other names of the same file count as it.

    Example:
        >>> from ficoco_ext.files import require_apart
        >>> require_apart(["in.png"], output="in.png")
        Traceback (most recent call last):
        ...
        ValueError: output must not be what is read, in.png: it would be overwritten; give another name
    """
    read = [Path(one) for one in inputs if one is not None]
    met: dict[str, Path] = {}
    for name, given in outputs.items():
        if given is None:
            continue
        path = Path(given)
        for one in read:
            if _same(path, one):
                raise ValueError(f"{name} must not be what is read, {one}: it would be overwritten; give another name")
        for other, there in met.items():
            if _same(path, there):
                raise ValueError(f"{name} must not be the file of {other}, {there}: give another name")
        met[name] = path


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:  # one is not there
        return a.resolve() == b.resolve()
