"""What a module makes public, for mkdocstrings to document."""

from __future__ import annotations

import importlib
import inspect


def public_names(module: str) -> str:
    """One entry for each function and class in ``__all__`` of ``module``."""
    found = importlib.import_module(module)
    names = sorted(found.__all__, key=lambda name: (name[0] == "_", name.lower()))
    shown = [name for name in names if inspect.isclass(getattr(found, name)) or inspect.isroutine(getattr(found, name))]
    return "\n\n".join(f"::: {module}.{name}" for name in shown)
