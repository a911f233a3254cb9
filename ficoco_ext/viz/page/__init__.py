"""One HTML file about several methods and keep ratios on one picture, which a person explores without a network.

:func:`document` makes it from :class:`ficoco_ext.Reduction` records and a picture; no model is needed. ``data.py``
prepares its data, ``writer.py`` joins them with ``page.html``, ``page.css`` and the scripts: ``model.js`` computes,
``picture.js`` and ``panels.js`` draw, ``main.js`` listens.
"""

from .data import Answer, Asked, Run
from .writer import LARGEST, SUFFIXES, document, is_page, require, save

__all__ = ["LARGEST", "SUFFIXES", "Answer", "Asked", "Run", "document", "is_page", "require", "save"]
