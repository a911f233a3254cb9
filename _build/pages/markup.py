"""Markdown of tables, with text of others in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def cell(text: str) -> str:
    """Plain text inside a table: nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def code(text: str) -> str:
    """Code inside a table."""
    return f"`{text}`".replace("|", "\\|")


def table_of(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
