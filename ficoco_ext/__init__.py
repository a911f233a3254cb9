"""Training-free reduction of visual tokens: Filter, Correlate, Compress (FiCoCo, arXiv 2411.17686).

Importing it loads torch and registers the operators, but in the console script, where the first use of a public name
does: so ``ficoco --help`` and a shell's completion answer at once.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import cost, methods, ops, stages
    from .api import reduce
    from .features import merge, select
    from .methods import METHODS, Method, describe, get_method
    from .methods.globalcom2 import globalcom2_keep
    from .models.attach import attach
    from .models.prompt_words import template_ids
    from .ops import QueryKey
    from .ops.backend import build_info
    from .reduction import Reduction
    from .schedule import Plan, Schedule

_ROOMS = ("ops", "stages", "methods", "cost")  # as they build on one another
_HOMES = {  # of the other public names
    "METHODS": "methods",
    "Method": "methods",
    "Plan": "schedule",
    "QueryKey": "ops",
    "Reduction": "reduction",
    "Schedule": "schedule",
    "attach": "models",
    "build_info": "ops.backend",
    "describe": "methods",
    "get_method": "methods",
    "globalcom2_keep": "methods.globalcom2",
    "merge": "features",
    "reduce": "api",
    "select": "features",
    "template_ids": "models",
}


def _load(name: str) -> Any:
    """One public name, and no other: a plug-in may ask while the package is being imported."""
    home = importlib.import_module(f".{_HOMES.get(name, name)}", __name__)
    globals()[name] = found = home if name in _ROOMS else getattr(home, name)
    return found


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _load(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "METHODS",
    "Method",
    "Plan",
    "QueryKey",
    "Reduction",
    "Schedule",
    "__version__",
    "attach",
    "build_info",
    "cost",
    "describe",
    "get_method",
    "globalcom2_keep",
    "merge",
    "methods",
    "ops",
    "reduce",
    "select",
    "stages",
    "template_ids",
]

if Path(*getattr(sys, "argv", [])[:1]).stem != "ficoco":
    for _name in (*_ROOMS, *_HOMES):
        _load(_name)
    del _name
