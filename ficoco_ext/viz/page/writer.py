"""The page itself: data, picture, style and scripts joined into one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ...io.files import write_text
from ...io.images import rgb
from ...io.printable import printable
from ..traces import checked, grid_of
from .data import Asked, Run, records

SUFFIXES = (".html", ".htm")
LARGEST = 16_000_000  # bytes of a page; beyond that browsers become slow
_SCRIPTS = ("model.js", "picture.js", "panels.js", "main.js")
_LONGEST = 1024  # pixels of the picture's longer side in the page
_PNG = 300_000  # bytes; a larger picture is written as JPEG
_QUALITY = 88


def is_page(path: Path | str) -> bool:
    """Whether ``path`` names a page and not a picture.

    Example:
        >>> from ficoco_ext.viz import page
        >>> page.is_page("out.html"), page.is_page("out.png")
        (True, False)
    """
    return Path(path).suffix.lower() in SUFFIXES


def require(path: Path | str) -> None:
    """Raise early what writing to ``path`` would raise late.

    Raises:
        ValueError: another kind of file. FileNotFoundError: no folder.
    """
    path = Path(path)
    if not is_page(path):
        raise ValueError(f"page must end in one of {', '.join(SUFFIXES)}, got {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {path.absolute().parent} for the page {path.name}")


def document(
    image: Any,
    runs: Sequence[Run],
    *,
    sides: Mapping[str, int],
    about: str = "",
    asked: Asked | None = None,
    selected: int | None = None,
    item: int = 0,
) -> str:
    """A page on which a person moves through layers and keep ratios, switches methods and follows patches.

    Args:
        image: the picture as the model sees it, anything that :func:`ficoco_ext.io.images.rgb` reads.
        runs: every method at every keep ratio, all on one grid; at least one of them not refused.
        sides: how many layers each side has, in order, as ``{"vision": 24, "text": 32}``.
        about: one line about model and picture.
        asked: a question with the answer with all tokens; then every run that is not refused has its own answer.
        selected: the patch that is selected when the page opens, None: no patch.
        item: which of the batch of every reduction.

    Returns:
        HTML. It allows itself to load nothing (``default-src 'none'``) and to run no script but its own, by hash.
        The same arguments give the same text.

    Raises:
        ValueError: no run, no reduction in one, other grids, a pair of method and ratio missing or twice, a layer that
            there is not, no such patch, an answer without question or the other way round, more than
            :data:`LARGEST` bytes.

    Size: a removed patch takes about 9 bytes with one target and 11 more for each further one, so the records of 576
    patches, three methods and four ratios take less than 100 kB with three targets a patch. The code takes 40 kB, and
    the picture what a PNG of at most 300 kB, or a JPEG of at most 1024 x 1024 pixels, takes in base 64.

    Example:
        >>> import torch, ficoco_ext
        >>> from PIL import Image
        >>> from ficoco_ext.viz import page
        >>> tokens, (q, k) = torch.randn(1, 10, 8), torch.randn(2, 1, 2, 10, 4)
        >>> r = ficoco_ext.reduce(tokens, ficoco_ext.QueryKey(q, k), 4, grid=(3, 3), return_reduction=True)
        >>> run = page.Run("ficoco-v", 0.5, [r], [("vision", 1)])
        >>> page.document(Image.new("RGB", (30, 30)), [run], sides={"vision": 2})[:15]
        '<!DOCTYPE html>'
    """
    grid = _common_grid(runs, item)
    for run in runs:
        if run.refused is None and (run.answer is None) != (asked is None):
            missing = "its answer" if asked else "the question"
            raise ValueError(f"page: answers must be given of all runs or none, {run.method} lacks {missing}")
    if selected is not None and not 0 <= selected < grid[0] * grid[1]:
        raise ValueError(f"page: selected must be in [0, {grid[0] * grid[1] - 1}], got {selected}")
    methods, ratios, found = records(runs, sides, grid, item)
    known = {
        "about": printable(about),
        "image": _picture(image),
        "grid": list(grid),
        "sides": [[side, count] for side, count in sides.items()],
        "question": "" if asked is None else asked.question,
        "truth": None if asked is None else asked.truth,
        "answer": None if asked is None else {"text": asked.answer.text, "right": asked.answer.right},
        "methods": methods,
        "ratios": ratios,
        "selected": selected,
        "runs": found,
    }
    made = _joined(known, f"{', '.join(methods)}: where the visual tokens go")
    if len(made) > LARGEST:
        raise ValueError(
            f"page: it must have at most {LARGEST} bytes, got {len(made)}; show fewer methods or keep ratios"
        )
    return made


def save(text: str, path: Path | str) -> None:
    """Write what :func:`document` made. An older file stays until the new one is whole.

    Raises:
        ValueError: an ending that is not known. FileNotFoundError: no such folder.
    """
    require(path)
    write_text(path, text)


def _common_grid(runs: Sequence[Run], item: int) -> tuple[int, int]:
    ran = [run for run in runs if run.refused is None]
    if not ran:
        raise ValueError("page: runs must hold at least one that is not refused")
    grids = {grid_of("page", checked("page", run.reductions, item)[-1]) for run in ran}
    if len(grids) > 1:
        raise ValueError(f"page: runs must be about one grid of patches, got {sorted(grids)}")
    return grids.pop()


def _picture(image: Any) -> dict[str, Any]:
    """The picture as a data URI, and its size in pixels."""
    from PIL import Image

    image = rgb(image)
    scale = _LONGEST / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    kind, written = "png", io.BytesIO()
    image.save(written, "PNG", optimize=True)
    if written.tell() > _PNG:
        kind, written = "jpeg", io.BytesIO()
        image.save(written, "JPEG", quality=_QUALITY, optimize=True)
    text = base64.b64encode(written.getvalue()).decode("ascii")
    return {"uri": f"data:image/{kind};base64,{text}", "width": image.width, "height": image.height}


def embedded(value: Any) -> str:
    r"""JSON that no text in it can end: ASCII, and without ``<``, ``>`` and ``&``, which HTML would read.

    Example:
        >>> from ficoco_ext.viz.page.writer import embedded
        >>> print(embedded("</script><!-- \u2028"))
        "\u003c/script\u003e\u003c!-- \u2028"
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _joined(known: Mapping[str, Any], title: str) -> str:
    def read(name: str) -> str:
        return resources.files(__package__).joinpath(name).read_text("utf-8")

    script = '"use strict";\n{\n' + "\n".join(map(read, _SCRIPTS)) + "}\n"
    style = read("page.css")
    # Styles of single elements are set by the script, which the policy leaves alone.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(printable(title)),
        "style": style,
        "data": embedded(known),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], read("page.html"))


def _hash(text: str) -> str:
    """As a content security policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
