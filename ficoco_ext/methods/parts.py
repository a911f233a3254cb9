"""What methods share that can act after the projector, and those that can act in the tower too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..stages import Compress, Correlate
from ..stages.frozen import require_one_of
from .base import AnyMethod
from .method import Method
from .projector_method import ProjectorMethod

INTO_THE_NEAREST = Correlate(by="key", targets=1)


def after_projector(
    name: str, select: Callable[..., Any], *, merge: bool, source: str, saliency: str = "auto"
) -> ProjectorMethod:
    """A method that keeps by ``select`` after the projector.

    What leaves is dropped, or with ``merge`` goes into the most similar token that stays, in means weighted by size.

    Raises:
        ValueError: a ``merge`` that is neither True nor False.
    """
    require_one_of(name, "merge", merge, (True, False))
    if merge:
        compress = Compress(size_weighted=True)
        return ProjectorMethod(name, select, INTO_THE_NEAREST, compress, source=source, saliency=saliency)
    return ProjectorMethod(name, select, source=source, saliency=saliency)


def in_part(
    name: str,
    part: str,
    *,
    select: Callable[..., Any],
    filter: Callable[..., Any],
    merge: bool,
    source: str,
    saliency: str = "auto",
) -> AnyMethod:
    """A method that keeps by ``select`` after the projector, or by ``filter`` in the tower.

    With ``merge`` as :func:`after_projector`, in the tower with proportional attention.

    Raises:
        ValueError: another part, or a ``merge`` that is neither True nor False.
    """
    require_one_of(name, "part", part, ("projector", "tower"))
    if part == "projector":
        return after_projector(name, select, merge=merge, source=source, saliency=saliency)
    require_one_of(name, "merge", merge, (True, False))
    return Method(
        name=name,
        filter=filter,
        correlate=INTO_THE_NEAREST if merge else Correlate(targets=0),
        compress=Compress(size_weighted=merge),
        source=source,
        proportional_attention=merge,
    )
