"""The stages as values: a Filter, a Correlate, a Compress, and what can stand in for each. Methods are made of them."""

from .class_attention import Fuse, Neighbours, SingleHeadFilter, outlier_count, single_head_attention
from .core import (
    Compress,
    CompressStage,
    Correlate,
    CorrelateStage,
    Filter,
    FilterStage,
    Links,
    Match,
    Selection,
    adaptive_targets,
    reduce_at_once,
    runs_at_once,
)
from .decoder import DecoderCorrelate, DecoderFilter, LastTokenFilter, Layout
from .positional import Cells, RandomFilter

__all__ = [
    "Cells",
    "Compress",
    "CompressStage",
    "Correlate",
    "CorrelateStage",
    "DecoderCorrelate",
    "DecoderFilter",
    "Filter",
    "FilterStage",
    "Fuse",
    "LastTokenFilter",
    "Layout",
    "Links",
    "Match",
    "Neighbours",
    "RandomFilter",
    "Selection",
    "SingleHeadFilter",
    "adaptive_targets",
    "outlier_count",
    "reduce_at_once",
    "runs_at_once",
    "single_head_attention",
]
