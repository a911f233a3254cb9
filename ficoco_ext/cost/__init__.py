"""The cost model: how every operation, byte and millisecond is counted. Plain arithmetic, nothing runs.

``prefill`` and ``decode`` take an architecture and the schedules of a reduction and return a :class:`Cost` made of
lines that each print their formula. Two conventions: ``"matmul"`` equals torch's FlopCounterMode, ``"llmviewer"``
reproduces what papers print.
"""

from .architecture import Architecture, LanguageModel, Projector, Tower
from .bill import Cost, LayerCost, Sum, Tokens
from .hardware import HARDWARE, Hardware, hardware, measure_cpu
from .lines import SYMBOLS, Line
from .model import CONVENTIONS, decode, prefill
from .planner import Planned, plan
from .precision import FP16, FP32, INT4, INT8, Precision
from .presets import PRESETS, architecture

__all__ = [
    "CONVENTIONS",
    "FP16",
    "FP32",
    "HARDWARE",
    "INT4",
    "INT8",
    "PRESETS",
    "SYMBOLS",
    "Architecture",
    "Cost",
    "Hardware",
    "LanguageModel",
    "LayerCost",
    "Line",
    "Planned",
    "Precision",
    "Projector",
    "Sum",
    "Tokens",
    "Tower",
    "architecture",
    "decode",
    "hardware",
    "measure_cpu",
    "plan",
    "prefill",
]
