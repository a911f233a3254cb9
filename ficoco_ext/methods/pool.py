"""Average pooling of the grid: what every method has to beat."""

from __future__ import annotations

from ..stages import Cells, Compress
from .layers import last_layer
from .method import Method
from .registry import register


@register("pool", rank=100)
def pool() -> Method:
    """Average pooling: the grid is cut into M near-equal rectangles, and each becomes the mean of its patches.

    Any M will do; 144 patches to 36 are cells of 2 x 2. It needs the whole grid, so it reduces in one layer: by default
    in the last one of the tower whose output is used.

    Cost: 2 B r C FLOPs, tokens read and written once.
    """
    return Method(
        name="pool",
        filter=Cells(),
        correlate=None,
        compress=Compress(),
        source="a baseline: spatial average pooling",
        layers=last_layer,
    )
