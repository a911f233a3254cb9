"""The stages as values: a Filter, a Correlate, a Compress, and what can stand in for each. Methods are made of them."""

from . import needs
from .anchors import AnchorSelect
from .base import CompressStage, CorrelateStage, FilterStage, Links, Selection, Stage
from .class_attention import Fuse, Neighbours, SingleHeadFilter, outlier_count, single_head_attention
from .compress import Compress
from .contextual import CentrePlusMean, ContextualSelect, ToCentres
from .correlate import Correlate, adaptive_targets
from .cover import CoverSelect
from .crops import Crops
from .decoder import DecoderCorrelate, DecoderFilter, LastTokenFilter, Layout
from .decoder_pivots import PivotFilter
from .density import density_peaks
from .dual_attention import DualFilter
from .features import SelectStage, VisualCorrelateStage, VisualFeatures
from .filter import Filter
from .global_select import GlobalSelect
from .greedy import GreedyFilter
from .match import Match
from .outliers import Outliers
from .pivots import PivotSelect
from .positional import Cells, RandomFilter
from .raters import TextRaters
from .recycle import Recycle, RecycledMean
from .relevance import RelevanceSelect
from .scene_trees import IntoTrees, SceneTrees
from .select import GreedySelect, RandomSelect, SaliencySelect, StrideSelect
from .shape import Priced, Shape
from .strongest_head import StrongestHeadFilter
from .thin import BipartiteThin
from .windows import WindowFilter, windows_above

__all__ = [
    "AnchorSelect",
    "BipartiteThin",
    "Cells",
    "CentrePlusMean",
    "Compress",
    "CompressStage",
    "ContextualSelect",
    "Correlate",
    "CorrelateStage",
    "CoverSelect",
    "Crops",
    "DecoderCorrelate",
    "DecoderFilter",
    "DualFilter",
    "Filter",
    "FilterStage",
    "Fuse",
    "GlobalSelect",
    "GreedyFilter",
    "GreedySelect",
    "IntoTrees",
    "LastTokenFilter",
    "Layout",
    "Links",
    "Match",
    "Neighbours",
    "Outliers",
    "PivotFilter",
    "PivotSelect",
    "Priced",
    "RandomFilter",
    "RandomSelect",
    "Recycle",
    "RecycledMean",
    "RelevanceSelect",
    "SaliencySelect",
    "SceneTrees",
    "SelectStage",
    "Selection",
    "Shape",
    "SingleHeadFilter",
    "Stage",
    "StrideSelect",
    "StrongestHeadFilter",
    "TextRaters",
    "ToCentres",
    "VisualCorrelateStage",
    "VisualFeatures",
    "WindowFilter",
    "adaptive_targets",
    "density_peaks",
    "needs",
    "outlier_count",
    "single_head_attention",
    "windows_above",
]
