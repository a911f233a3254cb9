"""What reduction does to one picture, for several methods side by side, and what the model looks at.

Computation only: :func:`run` returns a :class:`Result` of plain values; the picture is drawn by
:mod:`ficoco_ext.viz`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import viz
from ..io import files
from ..methods import METHODS, hyperparameters
from ..models import Handle, attach
from ..models.attention import class_attention, sharpest, word_attention
from ..models.llava import Geometry
from ..models.llava import geometry as geometry_of
from ..models.pictures import watched
from ..reduction import Reduction
from ..viz.traces import Trace, groups, holders, trace
from .checkpoint import Checkpoint, files_of, find_image, load, open_image, parse_device, parse_dtype, seen_by_model
from .layer_tokens import Staircase
from .questions import choose
from .word_spans import Columns, columns

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is to be shown.

    Attributes:
        image: path of a picture or name of an embedded scene.
        question: in the prompt, which methods of the language model go by; None asks what is known of an embedded
            scene first, or something general.
        model: directory or hub name of a LLaVA-1.5 checkpoint; None is the embedded tiny one.
        methods: names, all different; one row of the picture each.
        keep_ratio: for all methods, as :func:`ficoco_ext.attach` takes it.
        layers: for each method the layers that reduce; under ``""`` those of all methods that are not named. Others
            have their own.
        hyperparameters: each goes to those of the methods that have it.
        trace: a patch to follow, its place on the grid as one number or as row and column; None follows none.
        attention: attention maps: ``"class"`` or ``"class:LAYER"`` for the class token in the vision tower,
            ``"word:TOKEN"`` or ``"word:TOKEN:LAYER"`` for a word of the question in the language model; another
            word alone is meant as ``"word:..."``. See :func:`run` for the layer.
        panels: most layers to draw of a method.
        output: where to write the picture, None writes none.
        dtype, device: by name; dtype None is float32 on the CPU, bfloat16 elsewhere.
    """

    image: str
    question: str | None = None
    model: str | None = None
    methods: tuple[str, ...] = ("ficoco-v", "topk", "tome")
    keep_ratio: float | tuple[float, ...] = 0.25
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    trace: int | tuple[int, int] | None = None
    attention: tuple[str, ...] = ()
    panels: int = 8
    output: Path | None = None
    dtype: str | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Layer:
    """Patches that one layer merged away, dropped, and left; ``side`` is ``"vision"`` or ``"text"``."""

    side: str
    layer: int
    merged: int
    dropped: int
    left: int

    @property
    def name(self) -> str:
        """As in the picture."""
        return f"{self.side} layer {self.layer}"


@dataclass(frozen=True)
class MethodResult:
    """What one method did with the picture.

    Attributes:
        layers: that removed something, in order; those of the tower before those of the language model.
        left, merged, dropped: patches that are there in the end, are held by another one, or by nobody.
        kept: places of those that are left. holders: for each patch the one that holds it, -1 for nobody.
        trace: of the patch that was asked for.
    """

    method: str
    hyperparameters: dict[str, Any]
    layers: tuple[Layer, ...]
    left: int
    merged: int
    dropped: int
    kept: tuple[int, ...]
    holders: tuple[int, ...]
    trace: Trace | None


@dataclass(frozen=True)
class AttentionMap:
    """Attention on each patch: probabilities, heads averaged, of the model without reduction.

    Attributes:
        of: ``"class token"`` or the word.
        side, layer: ``"vision"`` or ``"text"``, and which of its layers.
        on_patches: sum over the patches; the rest is on the class token or on text.
        patches: one value for each patch.
    """

    of: str
    side: str
    layer: int
    on_patches: float
    patches: tuple[float, ...]

    @property
    def name(self) -> str:
        """As in the picture."""
        what = "Class token" if self.side == "vision" else f"Word {self.of!r}"
        return f"{what}, {self.side} layer {self.layer}"


@dataclass(frozen=True)
class Result:
    """All that was found out. ``grid`` is (height, width) in patches of the picture as the model sees it."""

    model: str
    image: str
    question: str
    keep_ratio: float | tuple[float, ...]
    grid: tuple[int, int]
    methods: tuple[MethodResult, ...]
    attention: tuple[AttentionMap, ...]
    picture: str | None
    notices: tuple[str, ...]


def run(request: Request, *, notice: Say = lambda text: None, progress: Say = lambda text: None) -> Result:
    """Run every method once on the picture, and the model without reduction for attention maps; draw.

    Attention of the class token is that of the last layer of the tower in which a method reduces; if none does, of the
    last layer whose output is used. Attention of a word is that of the layer that looks most sharply, see
    :func:`ficoco_ext.models.attention.sharpest`.

    Args:
        request: what is to be shown.
        notice: gets one sentence for everything that the user should know beside the result.
        progress: gets a few words whenever a new part begins.

    Raises:
        ValueError, TypeError, OSError, ImportError, NotImplementedError: what cannot be done, and why. Then no picture
            is written, and an older one is left as it was.

    Example:
        >>> from ficoco_ext.apps import show
        >>> found = show.run(show.Request("scene_4", methods=("topk", "ficoco-l"), trace=(0, 0)))
        >>> [(one.method, one.left, one.dropped) for one in found.methods]
        [('topk', 36, 108), ('ficoco-l', 36, 0)]
    """
    notices: list[str] = []

    def note(text: str) -> None:
        notices.append(text)
        notice(text)

    device = parse_device(request.device)
    dtype = parse_dtype(request.dtype, device)
    options = _options(request)
    if request.panels < 1:
        raise ValueError(f"panels must be at least 1, got {request.panels}")
    asked = [_parsed(text) for text in request.attention]
    path = find_image(request.image)
    image = open_image(path, note)
    if request.output is not None:
        viz.require(request.output)
        files.require_apart([path, *files_of(request.model)], output=request.output)
    progress("loading the model")
    checkpoint = load(request.model, dtype, device)
    for text in checkpoint.remarks:
        note(text)
    shape = geometry_of(checkpoint.model)
    patch = None if request.trace is None else _patch(request.trace, shape.grid)
    stairs = {name: _staircase(checkpoint.model, name, given, request) for name, given in options.items()}
    question = choose(request.question, checkpoint, path, note)[0].question
    inputs = checkpoint.inputs(image, question)
    maps = [_attention(checkpoint, inputs, question, shape, stairs, *one, progress) for one in asked]
    told: dict[str, list[Reduction]] = {}
    for name, given in options.items():
        progress(f"running {name}")
        told[name] = watched(checkpoint.model, _attacher(checkpoint.model, name, given), inputs)
    found = [_result(name, options[name], stairs[name], told[name], patch) for name in options]
    if request.output is not None:
        progress("drawing")
        ratio = request.keep_ratio if isinstance(request.keep_ratio, (int, float)) else list(request.keep_ratio)
        figure = viz.comparison(
            seen_by_model(checkpoint, image),
            [viz.Story(one.method, told[one.method], [layer.name for layer in one.layers], one.trace) for one in found],
            heats=[viz.Heat(one.name, one.patches) for one in maps],
            title=f'{checkpoint.name}, {path.name}, keep ratio {ratio}: "{question}"',
            panels=request.panels,
        )
        viz.save(figure, request.output)
    return Result(
        model=checkpoint.name,
        image=str(path),
        question=question,
        keep_ratio=request.keep_ratio,
        grid=shape.grid,
        methods=tuple(found),
        attention=tuple(maps),
        picture=None if request.output is None else str(request.output),
        notices=tuple(notices),
    )


def _options(request: Request) -> dict[str, dict[str, Any]]:
    """For each method what attach is given, as far as that can be said without a model."""
    names = request.methods
    if not names:
        raise ValueError(f"methods is empty; name some of {', '.join(METHODS)}")
    for name in names:
        if name not in METHODS:
            raise ValueError(f"methods must be some of {', '.join(METHODS)}, got {name!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"methods must all be different, got {', '.join(names)}")
    for name in request.layers:
        if name and name not in names:
            raise ValueError(f"layers are given for {name!r}, which is not one of the methods {', '.join(names)}")
    known = {name: hyperparameters(name) for name in names}
    for key in request.hyperparameters:
        if not any(key in own for own in known.values()):
            raise TypeError(f"none of the methods {', '.join(names)} has a hyperparameter {key!r}")
    return {
        name: {
            "keep_ratio": request.keep_ratio,
            "layers": request.layers.get(name, request.layers.get("")),
            **{key: value for key, value in request.hyperparameters.items() if key in known[name]},
        }
        for name in names
    }


def _attacher(model: Any, name: str, options: dict[str, Any]) -> Callable[[], Handle]:
    return lambda: attach(model, name, **options)


def _staircase(model: Any, name: str, options: dict[str, Any], request: Request) -> Staircase:
    """What every layer does; attaching for it also finds arguments that do not fit, before work begins."""
    try:
        with attach(model, name, **options) as handle:
            stairs = Staircase.of(model, handle)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise type(error)(f"{name}: {error}") from error
    if not (stairs.vision_removes or stairs.text_removes):
        raise ValueError(f"keep_ratio {request.keep_ratio} removes nothing with {name}: there is nothing to show")
    return stairs


def _patch(asked: int | tuple[int, int], grid: tuple[int, int]) -> int:
    """The place of the patch to trace, as one number."""
    height, width = grid
    row, column = divmod(asked, width) if isinstance(asked, int) else asked
    if not (0 <= row < height and 0 <= column < width):
        got = asked if isinstance(asked, int) else f"{row},{column}"
        raise ValueError(
            f"trace must be a patch of the grid of {height} x {width}: ROW,COLUMN up to {height - 1},{width - 1}, or "
            f"one number up to {height * width - 1}, got {got}"
        )
    return row * width + column


def _parsed(text: str) -> tuple[str | None, int | None]:
    """Of ``class[:LAYER]`` or ``[word:]TOKEN[:LAYER]`` the word, None for the class token, and the layer."""
    kind, colon, rest = text.strip().partition(":")
    if kind not in ("class", "word"):
        kind, rest = "word", text.strip()
    word, last, layer = rest.rpartition(":") if kind == "word" else ("", colon, rest)
    if kind == "word" and (not word or not layer.isdecimal()):  # a colon of the word itself, or none
        word, last, layer = rest, "", ""
    if (kind == "word" and not word.strip()) or (last and not layer.isdecimal()):
        raise ValueError(f"attention must be class, class:LAYER, word:TOKEN or word:TOKEN:LAYER, got {text!r}")
    return (word.strip() if kind == "word" else None), (int(layer) if last else None)


def _attention(
    checkpoint: Checkpoint,
    inputs: Mapping[str, Any],
    question: str,
    shape: Geometry,
    stairs: Mapping[str, Staircase],
    word: str | None,
    layer: int | None,
    progress: Say,
) -> AttentionMap:
    """One map, of the class token or of a word of the question."""
    model = checkpoint.model
    if word is None:
        progress("attention of the class token")
        if layer is None:
            layer = max((step for one in stairs.values() for step in one.vision_removes), default=shape.last)
        values = class_attention(model, inputs["pixel_values"], layer)
        return _map("class token", "vision", layer, values.tolist())
    progress(f"attention of {word!r}")
    found = columns(checkpoint, inputs, question)
    text = _word(word, found)
    layers = range(model.config.text_config.num_hidden_layers) if layer is None else (layer,)
    maps = word_attention(model, inputs, found.visual[shape.extra :], text, layers)
    chosen = sharpest(maps)
    return _map(word, "text", chosen, maps[chosen].tolist())


def _word(word: str, found: Columns) -> tuple[int, ...]:
    if word.lower() not in found.words:
        raise ValueError(f"attention: the question has no word {word!r}; it has {', '.join(found.words)}")
    return found.words[word.lower()]


def _map(of: str, side: str, layer: int, values: list[float]) -> AttentionMap:
    return AttentionMap(of, side, layer, sum(values), tuple(values))


def _result(
    name: str, options: dict[str, Any], stairs: Staircase, told: list[Reduction], patch: int | None
) -> MethodResult:
    places = [("vision", layer) for layer in stairs.vision_removes]
    places += [("text", layer) for layer in stairs.text_removes]
    layers = []
    for (side, layer), reduction in zip(places, told, strict=True):
        held, gone = holders(reduction), reduction.sources[0].tolist()
        dropped = sum(held[source] < 0 for source in gone)
        layers.append(Layer(side, layer, len(gone) - dropped, dropped, reduction.kept.shape[1]))
    last = told[-1]
    held, members = holders(last), groups(last)
    return MethodResult(
        method=name,
        hyperparameters={key: value for key, value in options.items() if key not in ("keep_ratio", "layers")},
        layers=tuple(layers),
        left=last.kept.shape[1],
        merged=sum(map(len, members.values())) - len(members),
        dropped=held.count(-1),
        kept=tuple(last.kept[0].tolist()),
        holders=tuple(held),
        trace=None if patch is None else trace(told, patch, layers=[layer.name for layer in layers]),
    )
