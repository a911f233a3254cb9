"""Pictures of a reduction: which patches are left, where the others went, and in which layer.

Works on :class:`ficoco_ext.Reduction` records and a PIL image; no model is needed. matplotlib is imported when a
function is called, and figures are made as objects: no backend is chosen and no window opened.
:mod:`ficoco_ext.viz.traces` computes, the other modules draw; :mod:`ficoco_ext.viz.page` makes one interactive HTML
file and needs no matplotlib.
"""

from . import page
from .canvas import require, save
from .comparisons import Heat, Story, comparison
from .overviews import overview, spread
from .panels import draw_holders, draw_input, draw_kept, draw_layers, draw_stage
from .sheets import Sheet
from .traces import Trace, groups, holders, removal_layers, trace

__all__ = [
    "Heat",
    "Sheet",
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
    "page",
    "removal_layers",
    "require",
    "save",
    "spread",
    "trace",
]
