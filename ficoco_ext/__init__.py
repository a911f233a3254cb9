"""Training-free reduction of visual tokens: Filter, Correlate, Compress (FiCoCo, arXiv 2411.17686)."""

from . import cost, methods, ops, stages
from .api import reduce
from .methods import METHODS, Method, describe, get_method
from .models import attach
from .ops import QueryKey
from .ops.backend import build_info
from .reduction import Reduction
from .schedule import Plan, Schedule
from .version import __version__

methods.load_plugins()

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
    "methods",
    "ops",
    "reduce",
    "stages",
]
