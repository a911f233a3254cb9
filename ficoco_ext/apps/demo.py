"""The demonstration: questions about a picture with and without reduction, their cost, and where tokens went.

Computation only: :func:`run` returns a :class:`Result` of plain values, which the command line prints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .. import viz
from ..amounts import require_numbers
from ..cost import flop_counter
from ..io import files
from ..io.ratios import times
from ..methods import get_method
from ..models import Handle, attach
from ..stages import Crops
from . import timing
from .checkpoint import Checkpoint, files_of, find_image, open_image, parse_device, parse_dtype, seen_by_model, sheet_of
from .layer_tokens import LayerTokens, Staircase, TextLayerTokens
from .machine import Platform, platform_of
from .next_dress import load_family
from .patches import watched_on_sheet
from .questions import Answer, Samples, ask, ask_all_samples, choose
from .timing import MeasuredPrefill

# A scene whose six questions are all answered right with a quarter of the patches; --all-samples shows the others.
DEFAULT_SCENE = "scene_6.png"

Say = Callable[[str], None]
Progress = Callable[..., None]  # (words), or (words, steps done, all steps)


@dataclass(frozen=True)
class Request:
    """What is to be shown.

    Attributes:
        image: path of a picture or name of an embedded scene; None is the default scene.
        question: None asks what is known of an embedded scene, or something general.
        model: directory or hub name of a LLaVA-1.5 or LLaVA-NeXT checkpoint; None is the embedded tiny one.
        family: ``"llava-1.5"`` or ``"llava-next"``; None is that of ``model``. The embedded model has the weights of a
            LLaVA-1.5 and can be dressed as a LLaVA-NeXT, see :mod:`ficoco_ext.apps.next_dress`.
        method, hyperparameters, amount, layers: as :func:`ficoco_ext.attach` takes them; ``amount`` holds one of
            ``r``, ``keep_ratio`` and ``tokens``, or ``vision``, ``projector`` and ``decoder``. None is the method's own
            amount, or a quarter kept if it has none.
        output: where to write the picture, None writes none.
        dtype, device: by name; dtype None is float32 on the CPU, bfloat16 elsewhere.
        max_new_tokens: None is 1 for the embedded model, whose answers are one word, and 48 otherwise.
        repeats: timed runs with and without.
        all_samples: also answer all questions of all embedded scenes.
        geometry: time this geometry with random weights instead; then there is no image, question or picture.
        vision_layers, text_layers, text_tokens: of the geometry; None is as many layers as it really has.
    """

    image: str | None = None
    question: str | None = None
    model: str | None = None
    family: str | None = None
    method: str = "ficoco-v"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    amount: dict[str, Any] | None = None
    layers: tuple[int, ...] | None = None
    output: Path | None = None
    dtype: str | None = None
    device: str = "cpu"
    max_new_tokens: int | None = None
    repeats: int = 5
    all_samples: bool = False
    geometry: str | None = None
    vision_layers: int | None = None
    text_layers: int | None = None
    text_tokens: int = 60


@dataclass(frozen=True)
class Result:
    """All that a demonstration found out.

    Attributes:
        crops: how the picture was cut; None where it is one crop.
        patches: of one picture; of several crops those of thumbnail and canvas, without padding.
        kept: of them those that reach the language model.
        projected: visual tokens that the projector gives; None if none of them leaves before the language model.
        left: visual tokens left in the last layer of the language model.
        layers, text_layers: the staircases of the vision tower, of each crop where there are several, and of the
            language model, which also counts line ends.
        speedup: ratio of the median prefill times, without / with.
    """

    model: str
    random_weights: bool
    image: str | None
    method: str
    hyperparameters: dict[str, Any]
    amount: dict[str, Any]
    crops: Crops | None
    patches: int
    kept: int
    projected: int | None
    left: int
    layers: tuple[LayerTokens, ...]
    text_layers: tuple[TextLayerTokens, ...]
    answers: tuple[Answer, ...]
    samples: Samples | None
    all_tokens: MeasuredPrefill
    reduced: MeasuredPrefill
    speedup: float
    verdict: str
    flops_counted: str
    platform: Platform
    picture: str | None
    notices: tuple[str, ...]

    @property
    def summary(self) -> str:
        """What is left of the picture, and where."""
        ends = "" if self.crops is None else f" and {self.crops.lines} line ends"
        reach = f"{self.kept} of {self.patches} patches{ends} reach the language model"
        if any(layer.removed for layer in self.text_layers):
            return f"{reach}, {self.left} visual tokens are left in its last layer"
        return f"{reach} and its last layer"


def _verdict(costs: tuple[MeasuredPrefill, MeasuredPrefill], platform: Platform, tiny: bool) -> str:
    """One honest sentence about time, and what else it takes to read it."""
    full, reduced = costs
    pairs = list(zip(full.runs, reduced.runs, strict=True))
    wins = sum(b < a for a, b in pairs)
    how = f"medians of {len(pairs)} alternating runs of each, faster in {wins} of {len(pairs)} pairs"
    ratio = times(full.seconds, reduced.seconds, "faster", "slower")
    if timing.judged(full, reduced) == "faster":
        text = f"Prefill is {ratio} with reduction here ({how})."
    elif full.seconds / reduced.seconds >= timing.FASTER:
        text = (
            f"Prefill seems {ratio} with reduction, but runs that scatter like this "
            f"do not prove it ({how}); more --repeats may."
        )
    else:
        text = f"Reduction is not faster here: the time of the prefill with it is {ratio} ({how})."
    if tiny:
        text += " A model this small spends much of its time on calls: --geometry llava-1.5-7b times real shapes."
    if platform.operators == "reference":
        text += " The reduction ran the plain PyTorch reference, not the kernels."
    return text


def default_amount(method: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """What a method of this name removes if no amount is given: its own amount, or all but a quarter.

    Example:
        >>> from ficoco_ext.apps.demo import default_amount
        >>> default_amount("ficoco-l", {}), default_amount("fastv", {})
        ({'keep_ratio': 0.25}, {'keep_ratio': 0.5})
    """
    return dict(get_method(method, **hyperparameters).amount) or {"keep_ratio": 0.25}


def _drops(request: Request) -> bool:
    """The method drops tokens of the language model, and merges none."""
    one = get_method(request.method, **request.hyperparameters)
    return one.tower is None and one.language_model is not None and one.language_model.drops


def _attacher(request: Request, model: Any) -> Callable[[], Handle]:
    assert request.amount is not None
    options = request.amount | request.hyperparameters
    return lambda: attach(model, request.method, layers=request.layers, **options)


def _draw(
    request: Request,
    checkpoint: Checkpoint,
    attached: Callable[[], Handle],
    image: Any,
    stairs: Staircase,
    result: Result,
) -> None:
    """Write the picture of what the parts of the model did with ``image``."""
    inputs = checkpoint.inputs(image, result.answers[0].question)
    sheet = sheet_of(result.crops)
    reductions = watched_on_sheet(checkpoint.model, attached, inputs, result.crops)
    several = len({side for side, _ in stairs.steps}) > 1
    labels = [side if side == "projector" else f"{side} {layer}" if several else layer for side, layer in stairs.steps]
    answers = [(a.question, a.truth or "", a.all_tokens, a.reduced) for a in result.answers]
    wrong = {(i, 2) for i, a in enumerate(result.answers) if a.all_tokens_right is False}
    wrong |= {(i, 3) for i, a in enumerate(result.answers) if a.reduced_right is False}
    figure = viz.overview(
        seen_by_model(checkpoint, image),
        reductions,
        layers=labels,
        title=f"{checkpoint.name}, {request.method}: {result.summary}",
        answers=answers,
        wrong=wrong,
        stages=bool(stairs.text_removes),
        sheet=sheet,
    )
    assert request.output is not None
    viz.save(figure, request.output)


def run(request: Request, *, notice: Say = lambda text: None, progress: Progress = lambda *words: None) -> Result:
    """Run the demonstration.

    Args:
        request: what is to be shown.
        notice: is called with each remark for the user, one sentence each.
        progress: gets a few words whenever a new part begins, and where a part has steps those done and all.

    Raises:
        ValueError, TypeError, OSError, ImportError, NotImplementedError, MemoryError: what cannot be done, and why.

    Example:
        >>> from ficoco_ext.apps import demo
        >>> [answer.reduced for answer in demo.run(demo.Request(repeats=1)).answers]
        ['yes', 'green', 'bottom_right', '1', 'taxi', '7']
    """
    notices: list[str] = []

    def note(text: str) -> None:
        notices.append(text)
        notice(text)

    device = parse_device(request.device)
    dtype = parse_dtype(request.dtype, device)
    for name in ("repeats", "max_new_tokens"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    chosen = get_method(request.method, **request.hyperparameters)
    require_numbers("what leaves in each layer", chosen, ("language_model",))
    if request.amount is None:
        request = replace(request, amount=default_amount(request.method, request.hyperparameters))
    show = _with_checkpoint if request.geometry is None else _with_geometry
    return replace(show(request, dtype, device, note, progress), notices=tuple(notices))


def _with_checkpoint(
    request: Request, dtype: torch.dtype, device: torch.device, note: Say, progress: Progress
) -> Result:
    path = find_image(DEFAULT_SCENE if request.image is None else request.image)
    image = open_image(path, note)
    if request.output is not None:
        viz.require(request.output)
        files.require_apart([path, *files_of(request.model)], output=request.output)
    progress("loading the model")
    checkpoint = load_family(request.model, request.family, dtype, device)
    for text in checkpoint.remarks:
        note(text)
    attached = _attacher(request, checkpoint.model)
    questions, crops = choose(request.question, checkpoint, path, note), checkpoint.crops_of(image)
    inputs = checkpoint.inputs(image, questions[0].question)
    with attached() as handle:  # arguments that do not fit are found before work begins
        stairs = Staircase.of_picture(checkpoint.model, handle, crops, inputs)
    length = request.max_new_tokens or (1 if checkpoint.embedded else 48)
    asked = [(image, one) for one in questions]
    answers = ask(checkpoint, attached, asked, length, functools.partial(progress, "answering"))
    samples = None
    if request.all_samples:
        samples = ask_all_samples(checkpoint, attached, length, functools.partial(progress, "answering all samples"))
        if checkpoint.embedded and min(stairs.text_removes, default=0) > 0 and _drops(request):
            note(
                "the embedded model has read most of the picture when its first two text layers are through: how many "
                "answers are right says little about a method that drops tokens after them"
            )
    costs = _measured(checkpoint.model, inputs, attached, request.repeats, progress)
    result = _result(
        request,
        checkpoint.model,
        stairs,
        costs,
        name=checkpoint.name,
        image=path,
        crops=crops,
        answers=answers,
        samples=samples,
    )
    if request.output is not None and not stairs.steps:
        note("nothing is removed, so there is no picture of it")
        result = replace(result, picture=None)
    elif request.output is not None:
        progress("drawing")
        _draw(request, checkpoint, attached, image, stairs, result)
    return result


def _with_geometry(request: Request, dtype: torch.dtype, device: torch.device, note: Say, progress: Progress) -> Result:
    for name in ("image", "question", "model", "family", "output"):
        if getattr(request, name) is not None:
            raise ValueError(f"{name} does not go with geometry: random weights look at noise and say nothing")
    if request.all_samples:
        raise ValueError("all_samples does not go with geometry: random weights answer nothing")
    assert request.geometry is not None
    true = (timing.VISION_LAYERS, timing.require_geometry(request.geometry).layers)
    built = (
        true[0] if request.vision_layers is None else request.vision_layers,
        true[1] if request.text_layers is None else request.text_layers,
    )
    model = timing.shapes(request.geometry, *built, dtype)
    timing.require_room(model, request.text_tokens)
    attached = _attacher(request, model)
    with attached() as handle:
        stairs = Staircase.of(model, handle)
    progress("building random weights")
    timing.materialize(model, device)
    note(
        f"{request.geometry} has random weights here: time, memory and FLOPs are those of its shapes; its answers mean "
        "nothing"
    )
    if built != true:
        note(
            f"built with {built[0]} of {true[0]} vision and {built[1]} of {true[1]} text layers: the figures are of "
            "this part, not of the whole model"
        )
    inputs = timing.random_inputs(model, request.text_tokens)
    costs = _measured(model, inputs, attached, request.repeats, progress)
    return _result(request, model, stairs, costs, name=request.geometry)


def _measured(
    model: Any, inputs: dict[str, Any], attached: Callable[[], Handle], repeats: int, progress: Progress
) -> tuple[MeasuredPrefill, MeasuredPrefill]:
    def step(done: int, total: int) -> None:
        progress("timing prefill", done, total) if total else progress("counting prefill")

    return timing.measure(model, inputs, attached, repeats, step)


def _result(
    request: Request,
    model: Any,
    stairs: Staircase,
    costs: tuple[MeasuredPrefill, MeasuredPrefill],
    *,
    name: str,
    image: Path | None = None,
    crops: Crops | None = None,
    answers: Sequence[Answer] = (),
    samples: Samples | None = None,
) -> Result:
    assert request.amount is not None
    text_layers = stairs.text_tokens(*(cost.kv_bytes_of_layer for cost in costs))
    platform, speedup = platform_of(model), costs[0].seconds / costs[1].seconds
    tiny = model.config.text_config.hidden_size < 1024
    return Result(
        model=name,
        random_weights=request.geometry is not None,
        image=None if image is None else str(image),
        method=request.method,
        hyperparameters=request.hyperparameters,
        amount=request.amount,
        crops=crops,
        patches=stairs.patches,
        kept=stairs.kept,
        projected=stairs.projected,
        left=text_layers[-1].mlp,
        layers=stairs.vision,
        text_layers=text_layers,
        answers=tuple(answers),
        samples=samples,
        all_tokens=costs[0],
        reduced=costs[1],
        speedup=speedup,
        verdict=_verdict(costs, platform, tiny),
        flops_counted=flop_counter.HOW,
        platform=platform,
        picture=None if request.output is None else str(request.output),
        notices=(),
    )
