"""A picture of several crops in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..stages import Crops


def said(crops: Crops) -> str:
    """How a picture was cut: its crops, their padding, and line ends."""
    rows, columns = crops.grid
    canvas = crops.count * crops.patches
    padding = canvas - sum(crops.valid)
    words = f"thumbnail and {rows} x {columns} crops of {crops.side} x {crops.side} patches each"
    return f"{words}; {padding} of the canvas' {canvas} patches are padding; {crops.lines} line ends"
