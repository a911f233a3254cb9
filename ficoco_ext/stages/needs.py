"""What a stage or a method may need besides tokens and attention: a small fixed vocabulary, in the order of tables."""

from __future__ import annotations

from collections.abc import Iterable

CLASS_TOKEN = "class token"
CLASS_TOKEN_OR_KEYS = "class token, or keys in its place"
QUERY_AND_KEY = "query and key"
WHOLE_GRID = "whole grid"  # of which no patch has left before
GRID = "grid"
PLAIN_ATTENTION = "SDPA or eager attention"  # that takes a bias on its logits, in layers of a model
SALIENCY = "saliency of the vision tower"  # of each projected token
EARLY_SALIENCY = "saliency of an early layer of the vision tower"
TOWER_KEYS = "keys of the vision tower"
TOWER_FEATURES = "features before the projector"
TEXT = "words of the prompt"  # their embeddings
CROPS = "crops of a picture"  # a thumbnail and a grid of crops, and where their patches are
CLASS_LOGITS = "class logits of the vision tower"  # of the layer that reads what is selected for the projector
KEY_SET = "class attention of the vision tower"  # in a method of the language model

NEEDS = (
    CLASS_TOKEN,
    CLASS_TOKEN_OR_KEYS,
    QUERY_AND_KEY,
    WHOLE_GRID,
    GRID,
    PLAIN_ATTENTION,
    SALIENCY,
    EARLY_SALIENCY,
    TOWER_KEYS,
    TOWER_FEATURES,
    TEXT,
    CROPS,
    CLASS_LOGITS,
    KEY_SET,
)
_IMPLIED = {CLASS_TOKEN: CLASS_TOKEN_OR_KEYS, WHOLE_GRID: GRID}


def in_order(needs: Iterable[str]) -> tuple[str, ...]:
    """Each need once, in the order of :data:`NEEDS`, without those that another one implies.

    Raises:
        ValueError: a need that is not in :data:`NEEDS`.

    Example:
        >>> from ficoco_ext.stages import needs
        >>> needs.in_order((needs.GRID, needs.CLASS_TOKEN, needs.CLASS_TOKEN_OR_KEYS))
        ('class token', 'grid')
    """
    found = set(needs)
    if unknown := found - set(NEEDS):
        raise ValueError(f"needs must be among {', '.join(map(repr, NEEDS))}, got {sorted(unknown)[0]!r}")
    implied = {_IMPLIED[one] for one in found if one in _IMPLIED}
    return tuple(one for one in NEEDS if one in found - implied)
