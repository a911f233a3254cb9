"""What reduction does to one picture, for several methods side by side, what the model answers, and what it looks at.

Computation only: :func:`run` returns a :class:`Result` of plain values; :mod:`ficoco_ext.viz` draws the picture, or
makes the page.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import viz
from ..io import files
from ..models import Handle, attach
from ..models.facts import tower_facts
from ..reduction import Reduction
from ..stages import Crops
from ..viz import page
from ..viz.traces import Trace, groups, holders, trace
from .attention_maps import AttentionMap, attention_map
from .checkpoint import Checkpoint, files_of, find_image, open_image, parse_device, parse_dtype, seen_by_model, sheet_of
from .global_scores import ScoreMap, score_map
from .layer_tokens import Staircase, step_name
from .next_dress import load_family
from .patches import watched_on_sheet
from .questions import Question, choose, right
from .show_request import PANELS, Request, Task, checked, for_page, patch_of

Say = Callable[[str], None]
Progress = Callable[..., None]  # (words), or (words, steps done, all steps)
_AMOUNT = ("keep_ratio", "layers")  # of what attach is given; the rest are hyperparameters


@dataclass(frozen=True)
class Layer:
    """Patches that one layer merged away, dropped, and left.

    ``side`` is ``"vision"``, ``"text"``, or ``"projector"``, whose one layer is what happens after it.
    """

    side: str
    layer: int
    merged: int
    dropped: int
    left: int

    @property
    def name(self) -> str:
        """As in the picture."""
        return step_name(self.side, self.layer)


@dataclass(frozen=True)
class MethodResult:
    """What one method did with the picture at one keep ratio.

    Attributes:
        answer: to the question, and whether it is right; None where that is not known.
        layers: that removed something, in order: those of the tower, after the projector, those of the language model.
        left, merged, dropped: patches that are there in the end, are held by another one, or by none.
        kept: positions of those that are left. holders: for each patch the one that holds it, -1 for none. Of a picture
            of several crops positions are cells of its sheet, and -2 is the holder of a cell without a patch.
        per_crop: of a picture of several crops how many are left in the thumbnail and in each crop, line by line.
        trace: of the patch that was asked for.
    """

    method: str
    keep_ratio: float | tuple[float, ...]
    hyperparameters: dict[str, Any]
    answer: str
    right: bool | None
    layers: tuple[Layer, ...]
    left: int
    merged: int
    dropped: int
    kept: tuple[int, ...]
    holders: tuple[int, ...]
    per_crop: tuple[int, ...]
    trace: Trace | None


@dataclass(frozen=True)
class Refused:
    """A method that cannot be run at a keep ratio of a page, and why."""

    method: str
    keep_ratio: float
    reason: str


@dataclass(frozen=True)
class Result:
    """All that was found out.

    Attributes:
        truth: the known answer, or None. answer: with all tokens; right: whether it is, None where that is not known.
        grid: (height, width) in patches of the picture as the model sees it; of several crops, in cells of their sheet.
        crops: how the picture was cut; None where it is one crop.
        scores: of the methods that choose among the patches of several crops by scores that can be shown.
        picture, page: what was written.
    """

    model: str
    image: str
    question: str
    truth: str | None
    answer: str
    right: bool | None
    grid: tuple[int, int]
    crops: Crops | None
    methods: tuple[MethodResult, ...]
    refused: tuple[Refused, ...]
    attention: tuple[AttentionMap, ...]
    scores: tuple[ScoreMap, ...]
    picture: str | None
    page: str | None
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Case:
    """One method at one keep ratio: what :func:`ficoco_ext.attach` is given, and what every layer then does."""

    method: str
    keep_ratio: float | tuple[float, ...]
    options: dict[str, Any]
    stairs: Staircase


def run(request: Request, *, notice: Say = lambda text: None, progress: Progress = lambda *words: None) -> Result:
    """Run every method on the picture, at one keep ratio or for a page at several, and the model without reduction.

    On a page, a method may be impossible at some of the keep ratios: the page then says why, and so does a notice.
    Attention of the class token is that of the last layer of the tower in which a method reduces; if none does, of the
    last layer whose output is used. Attention of a word is that of the layer that looks most sharply, see
    :func:`ficoco_ext.models.attention_rows.sharpest`.

    Args:
        request: what is to be shown.
        notice: is called with each remark for the user, one sentence each.
        progress: gets a few words whenever a new part begins, and where a part has steps those done and all.

    Raises:
        ValueError, TypeError, OSError, ImportError, NotImplementedError: what cannot be done, and why. Then no picture
            is written, and an older one is left unchanged.

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
    task = checked(request)
    path = find_image(request.image)
    image = open_image(path, note)
    if request.output is not None:
        (page.require if for_page(request) else viz.require)(request.output)
        files.require_apart([path, *files_of(request.model)], output=request.output)
    progress("loading the model")
    checkpoint = load_family(request.model, request.family, dtype, device)
    for text in checkpoint.remarks:
        note(text)
    question = choose(request.question, checkpoint, path, note)[0]
    result, records = _examined(request, task, checkpoint, path, image, question, note, progress)
    result = replace(result, notices=tuple(notices))
    if request.output is None:
        return result
    progress("drawing")
    return _written(result, request, records, checkpoint, seen_by_model(checkpoint, image))


def _examined(
    request: Request,
    task: Task,
    checkpoint: Checkpoint,
    path: Path,
    image: Any,
    question: Question,
    note: Say,
    progress: Progress,
) -> tuple[Result, list[list[Reduction]]]:
    """Everything about the picture, and the reductions of every method at every ratio that can be run."""
    shape, crops = tower_facts(checkpoint.model), checkpoint.crops_of(image)
    sheet = sheet_of(crops)
    if sheet is not None and for_page(request):
        raise ValueError("a page shows pictures of one crop, not those of LLaVA-NeXT; give an output that ends in .png")
    grid = shape.grid if sheet is None else (sheet.cells_down, sheet.cells_across)
    patch = None if request.trace is None else patch_of(request.trace, grid, () if sheet is None else sheet.cells)
    inputs = checkpoint.inputs(image, question.question)
    cases, refused = _cases(checkpoint.model, task, crops, inputs, several=for_page(request))
    for one in refused:
        note(f"{one.method} cannot be run at keep ratio {one.keep_ratio}, which the page says: {one.reason}")
    reducing = [layer for case in cases for layer in case.stairs.vision_removes]
    maps = [
        attention_map(checkpoint, inputs, question.question, shape, reducing, word, layer, progress, crops)
        for word, layer in task.attention
    ]
    given = [(one.method, {key: value for key, value in one.options.items() if key not in _AMOUNT}) for one in cases]
    scores = [score_map(checkpoint, inputs, shape, crops, *one) for one in given]
    length = request.max_new_tokens or (1 if checkpoint.embedded else 48)

    def answered(attached: Callable[[], Any]) -> page.Answer:
        with attached():
            text = checkpoint.answer(image, question.question, length)
        return page.Answer(text, right(text, question.truth, checkpoint.embedded))

    progress("answering with all tokens", 0, 1 + len(cases))
    full = answered(contextlib.nullcontext)
    records, methods = [], []
    for index, case in enumerate(cases):
        at = f" at keep ratio {case.keep_ratio}" if len(task.ratios) > 1 else ""
        progress(f"running {case.method}{at}", 1 + index, 1 + len(cases))
        attached = _attacher(checkpoint.model, case)
        records.append(watched_on_sheet(checkpoint.model, attached, inputs, crops))
        methods.append(_result(case, records[-1], patch, answered(attached), sheet))
    result = Result(
        model=checkpoint.name,
        image=str(path),
        question=question.question,
        truth=question.truth,
        answer=full.text,
        right=full.right,
        grid=grid,
        crops=crops,
        methods=tuple(methods),
        refused=tuple(refused),
        attention=tuple(maps),
        scores=tuple(one for one in scores if one is not None),
        picture=None,
        page=None,
        notices=(),
    )
    return result, records


def _cases(
    model: Any, task: Task, crops: Crops | None, inputs: dict[str, Any], *, several: bool
) -> tuple[list[_Case], list[Refused]]:
    """Every method at every ratio; with ``several`` a method may be refused at some of the ratios, but not at all."""
    cases: list[_Case] = []
    refused: list[Refused] = []
    for name, given in task.options.items():
        errors: list[Exception] = []
        for ratio in task.ratios:
            try:
                cases.append(_case(model, name, ratio, given, crops, inputs))
            except ValueError as error:
                errors.append(error)
                refused.append(Refused(name, ratio, str(error).removeprefix(f"{name}: ")))  # type: ignore[arg-type]  # a page has numbers
                if not several or len(errors) == len(task.ratios):
                    raise
    return cases, refused


def _case(
    model: Any,
    name: str,
    ratio: float | tuple[float, ...],
    given: dict[str, Any],
    crops: Crops | None,
    inputs: dict[str, Any],
) -> _Case:
    """Attaching for the layers also finds arguments that do not fit, before work begins."""
    options = {"keep_ratio": ratio, **given}
    try:
        with attach(model, name, **options) as handle:
            case = _Case(name, ratio, options, Staircase.of_picture(model, handle, crops, inputs))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise type(error)(f"{name}: {error}") from error
    if not case.stairs.steps:
        raise ValueError(f"keep_ratio {ratio} removes nothing with {name}: there is nothing to show")
    return case


def _attacher(model: Any, case: _Case) -> Callable[[], Handle]:
    return lambda: attach(model, case.method, **case.options)


def _result(
    case: _Case, records: list[Reduction], patch: int | None, answer: page.Answer, sheet: viz.Sheet | None = None
) -> MethodResult:
    layers = []
    for (side, layer), reduction in zip(case.stairs.steps, records, strict=True):
        held, gone = holders(reduction), reduction.sources[0].tolist()
        dropped = sum(held[source] < 0 for source in gone)
        layers.append(Layer(side, layer, len(gone) - dropped, dropped, reduction.kept.shape[1]))
    last = records[-1]
    held, members = holders(last), groups(last)
    return MethodResult(
        method=case.method,
        keep_ratio=case.keep_ratio,
        hyperparameters={key: value for key, value in case.options.items() if key not in _AMOUNT},
        answer=answer.text,
        right=answer.right,
        layers=tuple(layers),
        left=last.kept.shape[1],
        merged=sum(map(len, members.values())) - len(members),
        dropped=held.count(-1),
        kept=tuple(last.kept[0].tolist()),
        holders=tuple(held),
        per_crop=() if sheet is None else tuple(sheet.per_crop(last.kept[0].tolist())),
        trace=None if patch is None else trace(records, patch, layers=[layer.name for layer in layers]),
    )


def _written(
    result: Result,
    request: Request,
    records: Sequence[list[Reduction]],
    checkpoint: Checkpoint,
    seen: Any,
) -> Result:
    """The result with the picture, or the page, that was made of it."""
    assert request.output is not None
    if not for_page(request):
        viz.save(_figure(result, records, seen, PANELS if request.panels is None else request.panels), request.output)
        return replace(result, picture=str(request.output))
    layers = checkpoint.model.config.text_config.num_hidden_layers
    sides = {"vision": tower_facts(checkpoint.model).used, "projector": 1, "text": layers}
    if not any(layer.side == "projector" for one in result.methods for layer in one.layers):
        del sides["projector"]
    page.save(_document(result, records, seen, sides), request.output)
    return replace(result, page=str(request.output))


def _figure(result: Result, records: Sequence[list[Reduction]], seen: Any, panels: int) -> Any:
    """The picture of all methods at the one keep ratio."""
    ratio = result.methods[0].keep_ratio
    return viz.comparison(
        seen,
        [
            viz.Story(one.method, record, [layer.name for layer in one.layers], one.trace)
            for one, record in zip(result.methods, records, strict=True)
        ],
        heats=[
            *(viz.Heat(one.name, one.patches) for one in result.attention),
            *(viz.Heat(one.name, one.patches, shares=False) for one in result.scores),
        ],
        title=f"{result.model}, {Path(result.image).name}, keep ratio "
        f'{ratio if isinstance(ratio, (int, float)) else list(ratio)}: "{result.question}"',
        panels=panels,
        sheet=sheet_of(result.crops),
    )


def _document(result: Result, records: Sequence[list[Reduction]], seen: Any, sides: Mapping[str, int]) -> str:
    """The page of all methods at all keep ratios."""
    runs = [
        page.Run(
            one.method,
            one.keep_ratio,  # type: ignore[arg-type]  # a page has numbers
            record,
            [(layer.side, layer.layer) for layer in one.layers],
            page.Answer(one.answer, one.right),
        )
        for one, record in zip(result.methods, records, strict=True)
    ]
    order = list(dict.fromkeys(one.method for one in result.methods))
    runs += [page.Run(one.method, one.keep_ratio, refused=one.reason) for one in result.refused]
    runs.sort(key=lambda run: order.index(run.method))
    (height, width), traced = result.grid, result.methods[0].trace
    return page.document(
        seen,
        runs,
        sides=sides,
        about=f"{result.model}, {Path(result.image).name}, {height} x {width} patches",
        asked=page.Asked(result.question, page.Answer(result.answer, result.right), result.truth),
        selected=None if traced is None else traced.patch,
    )
