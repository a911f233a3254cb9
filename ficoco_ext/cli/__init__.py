"""The command ``ficoco``. Only :func:`main` needs typer and rich."""

from __future__ import annotations

import os
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
    try:
        app(prog_name="ficoco")
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # who reads our output has seen enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
