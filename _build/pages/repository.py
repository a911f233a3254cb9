"""Links from pages to files of the repository that are not in ``docs/``.

On GitHub they are relative to the page's file. The site has no such files, so each one that a page links to is copied
into it, below ``repository/``. A link to nothing is left as it is, and mkdocs reports it.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#\s])")
_FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.DOTALL | re.MULTILINE)
_AT_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def uri(path: Path) -> str:
    """Where the file ``path`` of the repository is in the site."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    pages = {file: page for page, file in _AT_ROOT.items()} | {"README.md": "index.md"}
    return pages.get(name) or f"repository/{name}"


def _source(page: str) -> Path:
    """The file that the page at ``page`` in the site is made from."""
    if page in _AT_ROOT:
        return ROOT / _AT_ROOT[page]
    inside = PurePosixPath(page)
    return ROOT / inside.relative_to("repository") if inside.parts[0] == "repository" else DOCS / inside


def _target(link: str, page: str) -> Path | None:
    """The file of the repository that ``link`` on the page ``page`` means; None: none, or one outside."""
    if "://" in link or link.startswith(("/", "mailto:")):
        return None
    path = Path(os.path.normpath(_source(page).parent / link))
    return path if path.is_relative_to(ROOT) and path.is_file() else None


def _prose(markdown: str) -> Iterator[tuple[bool, str]]:
    """The text in pieces: (whether it is code, the piece)."""
    end = 0
    for fence in _FENCE.finditer(markdown):
        yield False, markdown[end : fence.start()]
        yield True, fence[0]
        end = fence.end()
    yield False, markdown[end:]


def relinked(markdown: str, page: str) -> str:
    """``markdown`` with links that lead to where the site has their files."""

    def moved(link: re.Match[str]) -> str:
        path = _target(link[1], page)
        return link[1] if path is None else os.path.relpath(uri(path), PurePosixPath(page).parent)

    return "".join(piece if code else _LINK.sub(moved, piece) for code, piece in _prose(markdown))


def linked_from(files: Iterable[Any]) -> set[Path]:
    """The files outside ``docs/`` that pages link to, and those that these link to."""
    found: set[Path] = set()
    known = {file.src_uri for file in files}
    todo = [(file.src_uri, file.content_string) for file in files if file.is_documentation_page()]
    while todo:
        page, text = todo.pop()
        links = [link for code, piece in _prose(text) if not code for link in _LINK.findall(piece)]
        for path in filter(None, (_target(link, page) for link in links)):
            if uri(path) not in known:
                known.add(uri(path))
                found.add(path)
                if path.suffix == ".md":
                    todo.append((uri(path), path.read_text(encoding="utf-8")))
    return found
