"""Writing files: whole or not at all, and never over what was read."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

_MOST_LINKS = 40  # more no system follows


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[IO[bytes]]:
    """A file to write: it gets its name when it is whole, and an older one stays until then, or if writing fails.

    It is written beside the target under an unused name, with the permissions of the older one. A symbolic link
    stays one and what it points to is replaced; a device, a pipe or a file that a process has open, as /dev/stdout and
    /dev/fd/3 name it, is written as it is.

    Raises:
        OSError: it cannot be written, or is read-only; names ``path``. ValueError: links in a circle.

    Example:
        >>> import pathlib, tempfile
        >>> from ficoco_ext.io.files import replacing
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "out.txt"
        >>> with replacing(path) as file:
        ...     _ = file.write(b"whole")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('whole', 1)
    """
    if _written_as_it_is(path):
        with _opened(path) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    there = target.stat() if target.exists() else None
    if there is not None and not (there.st_mode & 0o222 and os.access(target, os.W_OK)):  # root has access to all
        raise PermissionError(errno.EACCES, "the file is read-only; make it writable or give another name", str(path))
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(part, flags, 0o666)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            if there is not None and hasattr(os, "fchmod"):
                os.fchmod(descriptor, stat.S_IMODE(there.st_mode))  # the umask reduces the mode passed to os.open
            yield file
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _written_as_it_is(path: Path | str) -> bool:
    """Whether ``path`` is something that cannot be replaced by renaming: a pipe, a device, what a process has open.

    Links are followed by the system: of /dev/stdout into a pipe, none of Python's ways finds the end.

    Raises:
        ValueError: links in a circle. OSError: a folder, or a path that cannot be read.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path} is a link that leads back to itself; give another name") from None
        raise
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    return not stat.S_ISREG(found.st_mode) or _of_a_process(path) is not None


def _opened(path: Path | str) -> IO[bytes]:
    """What is at ``path``; of what this process has open, at its current position, after what was printed."""
    ours = re.fullmatch(rf"/(?:dev|proc/(?:self|{os.getpid()}))/fd/(\d+)", _of_a_process(path) or "")
    if ours is None:
        return open(path, "wb")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # as it is without a console
            stream.flush()
    return os.fdopen(os.dup(int(ours[1])), "wb")


def _of_a_process(path: Path | str) -> str | None:
    """The name in /dev or /proc that ``path`` leads to, of /dev/stdout that of its descriptor; None: to none there."""
    at, found = os.path.abspath(path), None
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(at)
        at = os.path.join(os.path.realpath(folder), name)
        if at.startswith(("/dev/", "/proc/")) and not at.startswith("/dev/shm/"):
            found = at
            if os.path.basename(folder) == "fd":  # what it leads to may have no name
                break
        if not os.path.islink(at):
            break
        at = os.path.normpath(os.path.join(os.path.dirname(at), os.readlink(at)))
    return found


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
        >>> from ficoco_ext.io.files import require_apart
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
        return os.path.realpath(a) == os.path.realpath(b)
