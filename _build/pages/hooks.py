"""What mkdocs calls while it builds the site: pages and tables that are generated, and links out of ``docs/``.

Three kinds of pages are not files in ``docs/``: one for each method, the notebook as it runs today, and CONTRIBUTING.md
and CHANGELOG.md, which GitHub wants at the root. A line ``<!-- generated: NAME -->`` in a page is replaced by a table
that is made from the package. Nothing that is generated is checked in, so nothing can drift.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import api_lists
import command_pages
import method_pages
import model_table
import notebook_page
import repository
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

TABLES = {
    "api": api_lists.public_names,
    "commands": command_pages.commands,
    "methods": method_pages.table,
    "models": model_table.table,
    "language models": model_table.language_models,
}
_MARK = re.compile(r"^<!-- generated: ([a-z ]+?)(?:, ([\w.]+))? -->$", re.MULTILINE)
_LOADED = re.compile(
    r"""<(?:(?:script|img|iframe|source|video)\b[^>]*\ssrc|link\b[^>]*\shref)=["']?(?:https?:)?//[^>]*>"""
)
_INCLUDED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_config(config: Any) -> Any:
    """Put the methods' pages below their index."""
    section = next(entry["Methods"] for entry in config.nav if "Methods" in entry)
    section += [{name: method_pages.uri(name)} for name in method_pages.names()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no files in ``docs/``, and the files of the repository that pages link to."""
    for name in method_pages.names():
        files.append(File.generated(config, method_pages.uri(name), content=method_pages.page(name)))
    for uri, content in notebook_page.rendered(Path(config.docs_dir) / "quickstart.ipynb").items():
        files.append(File.generated(config, uri, content=content))
    for uri, name in _INCLUDED.items():
        files.append(File.generated(config, uri, content=(repository.ROOT / name).read_text(encoding="utf-8")))
    for path in sorted(repository.linked_from(files)):
        files.append(File.generated(config, repository.uri(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in the generated tables, and let links to files outside ``docs/`` lead to their copies in the site."""

    def filled(mark: re.Match[str]) -> str:
        if mark[1] not in TABLES:
            raise PluginError(f"{page.file.src_uri}: '{mark[0]}' must name one of {', '.join(TABLES)}")
        return TABLES[mark[1]](*filter(None, [mark[2]]))

    return repository.relinked(_MARK.sub(filled, markdown), page.file.src_uri)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Readers' browsers fetch nothing from elsewhere: no font, no script, no picture."""
    if found := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri}: a page loads only what is in the site, got {found[0]}")
    return output
