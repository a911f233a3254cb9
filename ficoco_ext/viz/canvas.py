"""What every picture is drawn with: its colours, the canvas under its patches, and writing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..io.files import replacing
from ..io.images import rgb
from ..io.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
INK, FAINT, DROPPED, WRONG, LEAVING = "#1b1f24", "#6a737d", "#20242a", "#b42318", "#e8590c"


def require(path: Path | str | None = None) -> None:
    """Raise early what drawing, and writing to ``path``, would raise late.

    Raises:
        ImportError: matplotlib is missing. ValueError: a kind of file it cannot write. FileNotFoundError: no folder.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f'pictures need matplotlib ({error}); pip install "ficoco_ext[viz]"') from error
    if path is None:
        return
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"picture must end in one of {', '.join(FORMATS)}, got {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {path.absolute().parent} for the picture {path.name}")


def canvas(axes: Axes, image: Any, grid: tuple[int, int], title: str, dim: float = 0.0, size: float = 10.5) -> None:
    """The picture, one unit a patch, faded by ``dim`` towards white, with thin lines between patches."""
    import numpy as np

    image = rgb(image)
    pixels = np.asarray(image, dtype=float) / 255
    height, width = grid
    axes.imshow(pixels * (1 - dim) + dim, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    axes.set_box_aspect(image.height / image.width)
    lines = {"color": "white", "alpha": 0.35, "linewidth": min(0.4, patch_points(axes, width) / 30)}
    axes.hlines(range(1, height), 0, width, **lines)  # type: ignore[arg-type]
    axes.vlines(range(1, width), 0, height, **lines)  # type: ignore[arg-type]
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, fontsize=size, color=INK, loc="left", pad=7 * size / 10.5)


def patch_points(axes: Axes, width: int) -> float:
    """Points that one of ``width`` patches is wide, so that lines and dots fit it."""
    figure = axes.get_figure()
    assert figure is not None
    return float(axes.bbox.width / figure.dpi * 72 / width)


def patch(axes: Axes, position: int, width: int, **style: Any) -> None:
    """One patch covered or framed; many at once are :func:`ficoco_ext.viz.steps.tint` and ``frames``."""
    from matplotlib.patches import Rectangle

    inset = style.pop("inset", 0.0)
    corner = (position % width + inset, position // width + inset)
    axes.add_patch(Rectangle(corner, 1 - 2 * inset, 1 - 2 * inset, **style))


def save(figure: Figure, path: Path | str, dpi: int = 120) -> None:
    """Write ``figure``; the ending of ``path`` says in which format. An older file stays until the new one is whole.

    Raises:
        ValueError: an ending that is not known. FileNotFoundError: no such folder.
    """
    from matplotlib.text import Text

    require(path)
    for text in figure.findobj(Text):  # dollars in a question are no formula, and control characters no glyphs
        text.set_parse_math(False)
        text.set_text(printable(text.get_text(), keep="\n"))
    with replacing(path) as file:
        figure.savefig(file, dpi=dpi, format=Path(path).suffix[1:].lower())
