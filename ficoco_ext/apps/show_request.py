"""What ``ficoco show`` is asked for, and which of it does not go together; no model is needed to say so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..amounts import require_numbers
from ..methods import METHODS, get_method, hyperparameters, is_name
from ..viz import page
from .attention_maps import parse

PANELS = 8  # most layers to draw of a method in a picture, where no other number is given
_RATIO, _PAGE_RATIOS = 0.25, (0.5, 0.25, 0.1)


@dataclass(frozen=True)
class Request:
    """What is to be shown.

    Attributes:
        image: path of a picture or name of an embedded scene.
        question: in the prompt, which methods of the language model go by; None asks what is known of an embedded
            scene first, or something general.
        model: directory or hub name of a LLaVA-1.5 or LLaVA-NeXT checkpoint; None is the embedded tiny one.
        family: ``"llava-1.5"`` or ``"llava-next"``; None is that of ``model``. The embedded model has the weights of a
            LLaVA-1.5 and can be dressed as a LLaVA-NeXT, see :mod:`ficoco_ext.apps.next_dress`.
        methods: names, all different; one row of the picture each.
        keep_ratio: for all methods, as :func:`ficoco_ext.attach` takes it; None is a quarter. Not for a page.
        keep_ratios: of a page, each for all methods and all their layers; None is a half, a quarter and a tenth.
        layers: for each method the layers that reduce; under ``""`` those of all methods that are not named
            and act in layers. Others have their own.
        hyperparameters: each goes to those of the methods that have it.
        trace: a patch to follow, its position on the grid as one number or as row and column; None follows none. On a
            page any patch can be followed; this one is selected first. The grid of a picture of several crops is its
            sheet: the thumbnail, an empty column, and the crops side by side.
        attention: attention maps: ``"class"`` or ``"class:LAYER"`` for the class token in the vision tower,
            ``"word:TOKEN"`` or ``"word:TOKEN:LAYER"`` for a word of the question in the language model; another
            word alone is meant as ``"word:..."``. See :func:`run` for the layer. Not for a page.
        panels: most layers to draw of a method; None is 8. Not for a page, which has all of them.
        output: where to write the picture or, with the ending .html or .htm, the page; None writes none.
        max_new_tokens: of an answer; None is 1 for the embedded model, whose answers are one word, and 48 otherwise.
        dtype, device: by name; dtype None is float32 on the CPU, bfloat16 elsewhere.
    """

    image: str
    question: str | None = None
    model: str | None = None
    family: str | None = None
    methods: tuple[str, ...] = ("ficoco-v", "topk", "tome")
    keep_ratio: float | tuple[float, ...] | None = None
    keep_ratios: tuple[float, ...] | None = None
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    trace: int | tuple[int, int] | None = None
    attention: tuple[str, ...] = ()
    panels: int | None = None
    output: Path | None = None
    max_new_tokens: int | None = None
    dtype: str | None = None
    device: str = "cpu"


def for_page(request: Request) -> bool:
    """Whether the output is a page and not a picture."""
    return request.output is not None and page.is_page(request.output)


@dataclass(frozen=True)
class Task:
    """A request that was checked.

    Attributes:
        ratios: to run, those of a page from most to least kept.
        options: for each method what :func:`ficoco_ext.attach` is given besides the ratio.
        attention: of each map the word, None for the class token, and the layer or None.
    """

    ratios: tuple[float | tuple[float, ...], ...]
    options: dict[str, dict[str, Any]]
    attention: tuple[tuple[str | None, int | None], ...]


def checked(request: Request) -> Task:
    """What is to be run, as far as that can be said without a model.

    Raises:
        ValueError, TypeError: what is wrong, or does not go with the output.
    """
    return Task(_ratios(request), _options(request), tuple(parse(text) for text in request.attention))


def _ratios(request: Request) -> tuple[float | tuple[float, ...], ...]:
    for name in ("panels", "max_new_tokens"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not for_page(request):
        if request.keep_ratios is not None:
            raise ValueError(
                "keep_ratios are for a page, whose name ends in .html or .htm; for a picture give one keep_ratio"
            )
        return (_RATIO if request.keep_ratio is None else request.keep_ratio,)
    if request.keep_ratio is not None:
        raise ValueError("keep_ratio is for a picture; for a page give keep_ratios, one or several")
    if request.attention:
        raise ValueError("attention is for a picture; a page has no attention maps, leave it out")
    if request.panels is not None:
        raise ValueError("panels is for a picture; a page has every layer, leave it out")
    given = _PAGE_RATIOS if request.keep_ratios is None else request.keep_ratios
    if not given:
        raise ValueError("keep_ratios is empty; give some numbers in (0, 1)")
    for ratio in given:
        if not 0 < ratio < 1:
            raise ValueError(f"keep_ratios must be in (0, 1), got {ratio}; the page has the answer with all tokens")
    if len(set(given)) != len(given):
        raise ValueError(f"keep_ratios must all be different, got {', '.join(map(str, given))}")
    return tuple(sorted(given, reverse=True))


def _options(request: Request) -> dict[str, dict[str, Any]]:
    names = request.methods
    if not names:
        raise ValueError(f"methods is empty; name some of {', '.join(METHODS)}")
    for name in names:
        if not is_name(name):
            raise ValueError(f"methods must be some of {', '.join(METHODS)}, or several joined by '+', got {name!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"methods must all be different, got {', '.join(names)}")
    for name in request.layers:
        if name and name not in names:
            raise ValueError(f"layers are given for {name!r}, which is not one of the methods {', '.join(names)}")
    known = {name: hyperparameters(name) for name in names}
    for key in request.hyperparameters:
        if not any(key in own for own in known.values()):
            raise TypeError(f"none of the methods {', '.join(names)} has a hyperparameter {key!r}")
    for name in names:
        given = {key: value for key, value in request.hyperparameters.items() if key in known[name]}
        try:
            method = get_method(name, **given)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name}: {error}") from error
        require_numbers("what leaves in each layer", method, ("language_model",))
    return {
        name: {
            "layers": request.layers.get(name, request.layers.get("") if _in_layers(name) else None),
            **{key: value for key, value in request.hyperparameters.items() if key in known[name]},
        }
        for name in names
    }


def _in_layers(name: str) -> bool:
    """Whether a method acts in layers, and not after the projector alone."""
    method = get_method(name)
    return method.tower is not None or method.language_model is not None


def patch_of(asked: int | tuple[int, int], grid: tuple[int, int], cells: Collection[int] = ()) -> int:
    """The position of the patch to trace, as one number. ``cells``: of the grid in which there are patches; (): all."""
    height, width = grid
    row, column = divmod(asked, width) if isinstance(asked, int) else asked
    if not (0 <= row < height and 0 <= column < width):
        got = asked if isinstance(asked, int) else f"{row},{column}"
        raise ValueError(
            f"trace must be a patch of the grid of {height} x {width}: ROW,COLUMN up to {height - 1},{width - 1}, or "
            f"one number up to {height * width - 1}, got {got}"
        )
    if cells and row * width + column not in cells:
        raise ValueError(f"trace must be a patch of the picture, got {row},{column}, where its sheet has none")
    return row * width + column
