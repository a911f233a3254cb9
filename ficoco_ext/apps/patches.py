"""What a method does to the patches of a picture, on the grid on which the picture is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..models import Handle
from ..models.crop_records import watched_crops
from ..models.pictures import watched
from ..reduction import Reduction
from ..stages import Crops
from .checkpoint import sheet_of


def watched_on_sheet(
    model: Any, attached: Callable[[], Handle], inputs: Mapping[str, Any], crops: Crops | None
) -> list[Reduction]:
    """Run a prompt with one picture; the reductions in indices of its patches, of several crops in cells of the sheet.

    Args:
        model, attached, inputs: as :func:`ficoco_ext.models.pictures.watched` takes them.
        crops: of the picture; None where it is one.
    """
    sheet = sheet_of(crops)
    if crops is None or sheet is None:
        return watched(model, attached, inputs)
    return [sheet.laid(one) for one in watched_crops(model, attached, inputs, crops)]
