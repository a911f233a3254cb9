"""Training-free reduction of visual tokens: Filter, Correlate, Compress (FiCoCo, arXiv 2411.17686)."""

from . import decoder_ops  # noqa: F401  (defines its operators)
from ._backend import build_info
from .api import reduce
from .decoder_stages import DecoderCorrelate, DecoderFilter, LastTokenFilter
from .methods import METHODS, DecoderMethod, Method, VisionAndDecoder, get_method
from .models import attach
from .ops import QueryKey
from .reduction import Reduction
from .schedule import Plan, Schedule
from .stages import Compress, Correlate, Filter, Match
from .version import __version__

__all__ = [
    "METHODS",
    "Compress",
    "Correlate",
    "DecoderCorrelate",
    "DecoderFilter",
    "DecoderMethod",
    "Filter",
    "LastTokenFilter",
    "Match",
    "Method",
    "Plan",
    "QueryKey",
    "Reduction",
    "Schedule",
    "VisionAndDecoder",
    "__version__",
    "attach",
    "build_info",
    "get_method",
    "reduce",
]
