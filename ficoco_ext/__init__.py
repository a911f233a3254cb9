"""Training-free reduction of visual tokens: Filter, Correlate, Compress (FiCoCo, arXiv 2411.17686)."""

from . import decoder_ops  # noqa: F401  (defines its operators)
from ._backend import build_info
from .api import reduce
from .decoder_stages import DecoderCorrelate, DecoderFilter, LastTokenFilter
from .fusing import Fuse, Neighbours, SingleHeadFilter, outlier_count, single_head_attention
from .methods import METHODS, DecoderMethod, Method, Split, Staged, VisionAndDecoder, describe, get_method
from .models import attach
from .ops import QueryKey
from .places import Cells, RandomFilter
from .reduction import Reduction
from .schedule import Plan, Schedule
from .stages import Compress, Correlate, Filter, Match
from .version import __version__

__all__ = [
    "METHODS",
    "Cells",
    "Compress",
    "Correlate",
    "DecoderCorrelate",
    "DecoderFilter",
    "DecoderMethod",
    "Filter",
    "Fuse",
    "LastTokenFilter",
    "Match",
    "Method",
    "Neighbours",
    "Plan",
    "QueryKey",
    "RandomFilter",
    "Reduction",
    "Schedule",
    "SingleHeadFilter",
    "Split",
    "Staged",
    "VisionAndDecoder",
    "__version__",
    "attach",
    "build_info",
    "describe",
    "get_method",
    "outlier_count",
    "reduce",
    "single_head_attention",
]
