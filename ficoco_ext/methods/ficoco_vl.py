"""FiCoCo-VL: FiCoCo-V in the tower and FiCoCo-L in the language model (arXiv 2411.17686)."""

from __future__ import annotations

import inspect
from typing import Any

from .combined import Combined
from .ficoco_l import ficoco_l
from .ficoco_v import ficoco_v
from .registry import register


@register("ficoco-vl", rank=30, passes_to=(ficoco_v, ficoco_l))
def ficoco_vl(**hyperparameters: Any) -> Combined:
    """FiCoCo-V in the tower and FiCoCo-L in the language model.

    Args:
        **hyperparameters: of :func:`ficoco_v` and of :func:`ficoco_l`; one that both have goes to both, each with its
            own default of ``variant``. For different values build the two yourself:
            ``Combined.of(ficoco_v(...), ficoco_l(...))``.

    Raises:
        TypeError: a hyperparameter that neither has. ValueError: as those two.
    """
    known = [inspect.signature(side).parameters for side in (ficoco_v, ficoco_l)]
    tower, language = ({name: value for name, value in hyperparameters.items() if name in names} for names in known)
    if unknown := set(hyperparameters) - set(tower) - set(language):
        raise TypeError(f"ficoco-vl: neither part has a hyperparameter {sorted(unknown)[0]!r}")
    return Combined(tower_method=ficoco_v(**tower), language_method=ficoco_l(**language))
