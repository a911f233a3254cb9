"""The scores by which GlobalCom2 chooses among the patches of thumbnail and crops, for ``ficoco show``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..methods import get_method
from ..models.attention_rows import class_attention
from ..resolve import TowerFacts
from ..stages import Crops, VisualFeatures
from ..stages.needs import CLASS_LOGITS
from .checkpoint import Checkpoint, sheet_of


@dataclass(frozen=True)
class ScoreMap:
    """Ranks of one method's scores.

    Attributes:
        method: its name.
        patches: for each cell of the sheet the share of its crop's patches, in (0, 1], whose score is at most that of
            the patch there; 0 where there is none. Scores of different crops are not compared, so neither are ranks.
    """

    method: str
    patches: tuple[float, ...]

    @property
    def name(self) -> str:
        """As in the picture."""
        return f"{self.method}: rank of scores"


def score_map(
    checkpoint: Checkpoint,
    inputs: Mapping[str, Any],
    shape: TowerFacts,
    crops: Crops | None,
    method: str,
    hyperparameters: Mapping[str, Any],
) -> ScoreMap | None:
    """The map of a method; None for one without such scores, or for a picture that is one crop.

    Args:
        inputs: of one row with one picture. shape: of the model's tower. crops: of the picture.
        method, hyperparameters: as :func:`ficoco_ext.attach` takes them.
    """
    part, sheet = get_method(method, **hyperparameters).projector, sheet_of(crops)
    if crops is None or sheet is None or part is None or CLASS_LOGITS not in part.needs:
        return None
    reads = min(shape.used, shape.layers - 1)  # the layer that reads the selected features, if there is one
    logits = class_attention(checkpoint.model, inputs["pixel_values"].flatten(0, -4), reads, logits=True)
    crop, patch = torch.tensor(crops.origins).T
    packed = logits[crop, patch][None]
    found = part.scores(VisualFeatures(packed.unsqueeze(-1), crops=crops, class_logits=packed))
    if found is None:
        return None
    scores = found[0]
    same = crop.unsqueeze(1) == crop
    at_most = ((scores <= scores.unsqueeze(1)) & same).sum(1) / same.sum(1)
    return ScoreMap(method, tuple(sheet.spread(at_most.tolist())))
