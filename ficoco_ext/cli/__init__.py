"""The command ``ficoco``. Only :func:`main` needs typer and rich."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script."""
    try:
        from .app import app
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        sys.exit(f'ficoco: the command line needs typer and rich ({error}); pip install "ficoco_ext[hf]"')
    app(prog_name="ficoco")
