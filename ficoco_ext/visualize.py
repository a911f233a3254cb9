"""Pictures of a reduction: which patches are left, where the others went, and in which layer.

Works on :class:`ficoco_ext.Reduction` records and a PIL image; no model is needed. matplotlib is imported when a
function is called, and figures are made as objects: no backend is chosen and no window opened. The parts are in
:mod:`ficoco_ext.trace`, which computes, and in ``ficoco_ext/pictures/``, which draws.
"""

from .pictures.canvas import require, save
from .pictures.comparison import Heat, Story, comparison
from .pictures.overview import overview, spread
from .pictures.panels import draw_holders, draw_input, draw_kept, draw_layers, draw_stage
from .trace import Trace, groups, holders, removal_layers, trace

__all__ = [
    "Heat",
    "Story",
    "Trace",
    "comparison",
    "draw_holders",
    "draw_input",
    "draw_kept",
    "draw_layers",
    "draw_stage",
    "groups",
    "holders",
    "overview",
    "removal_layers",
    "require",
    "save",
    "spread",
    "trace",
]
