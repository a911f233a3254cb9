"""The demonstration: questions about a picture with and without reduction, their cost, and where tokens went.

Computation only: :func:`run` returns a :class:`Result` of plain values, which the command line prints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import flops, geometry, visualize
from ._backend import build_info
from .checkpoint import SCENES, Checkpoint, find_image, load, open_image, parse_device, parse_dtype, seen_by_model
from .geometry import Prefill
from .models import Handle, attach

# A scene whose six questions are all answered right with a quarter of the patches; --all-samples shows the others.
DEFAULT_SCENE = "scene_4.png"
_FASTER = 1.05  # below this ratio of medians nobody should be told that it is faster

Say = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """One question, of what kind it is, and its answer if that is known."""

    question: str
    kind: str = "free"
    truth: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the model said to one question with all tokens and with few. ``right``: None where no truth is known."""

    question: str
    kind: str
    truth: str | None
    all_tokens: str
    reduced: str
    all_tokens_right: bool | None
    reduced_right: bool | None


@dataclass(frozen=True)
class Samples:
    """How many of all embedded sample questions were answered right."""

    asked: int
    all_tokens_right: int
    reduced_right: int


@dataclass(frozen=True)
class LayerTokens:
    """Patches that enter one layer of the vision tower, leave in it, and are left; the class token is not counted."""

    layer: int
    entering: int
    removed: int
    left: int


@dataclass(frozen=True)
class Platform:
    """Where it ran. ``operators``: ``"kernels"`` or ``"reference"``, and why not kernels."""

    device: str
    dtype: str
    threads: int
    torch: str
    operators: str
    reason: str | None


@dataclass(frozen=True)
class Request:
    """What is to be shown.

    Attributes:
        image: path of a picture or name of an embedded scene; None is the default scene.
        question: None asks what is known of an embedded scene, or something general.
        model: directory or hub name of a LLaVA-1.5 checkpoint; None is the embedded tiny one.
        method, hyperparameters, amount, layers: as :func:`ficoco_ext.attach` takes them; ``amount`` holds one of
            ``r``, ``keep_ratio`` and ``tokens``.
        output: where to write the picture, None writes none.
        dtype, device: by name; dtype None is float32 on the CPU, bfloat16 elsewhere.
        max_new_tokens: None is 4 for the embedded model, whose answers are one word, and 48 otherwise.
        repeats: timed runs with and without.
        all_samples: also answer all questions of all embedded scenes.
        geometry: time this geometry with random weights instead; then there is no image, question or picture.
        vision_layers, text_layers, text_tokens: of the geometry; None is as many layers as it really has.
    """

    image: str | None = None
    question: str | None = None
    model: str | None = None
    method: str = "ficoco-v"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    amount: dict[str, Any] = field(default_factory=lambda: {"keep_ratio": 0.25})
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
    """All that a demonstration found out. ``speedup`` is the ratio of the median prefill times, without / with."""

    model: str
    random_weights: bool
    image: str | None
    method: str
    hyperparameters: dict[str, Any]
    patches: int
    kept: int
    layers: tuple[LayerTokens, ...]
    answers: tuple[Answer, ...]
    samples: Samples | None
    all_tokens: Prefill
    reduced: Prefill
    speedup: float
    verdict: str
    flops_counted: str
    platform: Platform
    picture: str | None
    notices: tuple[str, ...]


def sample_questions() -> dict[str, list[Question]]:
    """Questions with known answers about each embedded scene, by file name."""
    found: dict[str, list[Question]] = {}
    for entry in json.loads((SCENES / "questions.json").read_text()):
        question = Question(entry["question"], entry["kind"], entry["answer"])
        found.setdefault(entry["image"], []).append(question)
    return found


def _questions(request: Request, checkpoint: Checkpoint, path: Path, notice: Say) -> list[Question]:
    """What to ask about the picture at ``path``."""
    ours = path.resolve().parent == SCENES.resolve()
    known = sample_questions().get(path.name, []) if ours else []
    if request.question is None and known:
        return known
    if checkpoint.embedded and not ours:
        notice(
            "the embedded model has only ever seen synthetic scenes of coloured shapes, digits and words: on this "
            "picture its answers mean little, the tokens and the cost are real; --model takes a LLaVA-1.5 checkpoint"
        )
    general = "how many shapes ?" if checkpoint.embedded else "Describe this picture in one sentence."
    asked = checkpoint.spelled(general if request.question is None else request.question)
    if not asked.strip():
        raise ValueError("question is empty")
    if words := checkpoint.unknown(asked):
        notice(f"the model's tokenizer does not know {', '.join(map(repr, words))}: it reads <unk> there")
    return next(([one] for one in known if one.question == asked), [Question(asked)])


def _right(answer: str, truth: str | None, exact: bool) -> bool | None:
    """Whether ``answer`` is, or in a sentence contains, ``truth``; a yes or no must come first."""
    if truth is None or exact:
        return None if truth is None else answer == truth
    said, wanted = (re.findall(r"[a-z0-9]+", text.lower()) for text in (answer, truth))
    if truth in ("yes", "no"):
        return said[:1] == wanted
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said)))


def _ask(
    checkpoint: Checkpoint, attached: Callable[[], Handle], asked: Sequence[tuple[Any, Question]], length: int
) -> list[Answer]:
    """Every question about its image with all tokens and with few."""
    full = [checkpoint.answer(image, one.question, length) for image, one in asked]
    with attached():
        few = [checkpoint.answer(image, one.question, length) for image, one in asked]
    exact = checkpoint.embedded
    return [
        Answer(one.question, one.kind, one.truth, a, b, _right(a, one.truth, exact), _right(b, one.truth, exact))
        for (_, one), a, b in zip(asked, full, few, strict=True)
    ]


def _platform(model: Any) -> Platform:
    info, device = build_info(), model.device
    operators = info["cuda"] if device.type == "cuda" else info["cpu"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    reason = info["reasons"].get(device.type) if operators == "reference" else None
    dtype = str(model.dtype).removeprefix("torch.")
    return Platform(name, dtype, torch.get_num_threads(), torch.__version__, operators, reason)


def _verdict(costs: tuple[Prefill, Prefill], platform: Platform, tiny: bool) -> str:
    """One honest sentence about time, and what else it takes to read it."""
    full, reduced = costs
    pairs = list(zip(full.runs, reduced.runs, strict=True))
    wins = sum(b < a for a, b in pairs)
    how = f"medians of {len(pairs)} alternating runs of each, faster in {wins} of {len(pairs)} pairs"
    speedup = full.seconds / reduced.seconds
    sure = wins - len(pairs) / 2 >= len(pairs) ** 0.5  # two standard deviations off a fair coin's wins
    if speedup >= _FASTER and sure:
        text = f"Prefill is {speedup:.2f} times as fast with reduction here ({how})."
    elif speedup >= _FASTER:
        text = (
            f"Prefill seems {speedup:.2f} times as fast with reduction, but runs that scatter like this "
            f"do not prove it ({how}); more --repeats may."
        )
    else:
        text = f"Reduction is not faster here: prefill is {speedup:.2f} times as fast ({how})."
    if tiny:
        text += " A model this small spends much of its time on calls: --geometry llava-1.5-7b times real shapes."
    if platform.operators == "reference":
        text += " The reduction ran the plain PyTorch reference, not the kernels."
    return text


def _staircase(attached: Callable[[], Handle], model: Any) -> tuple[LayerTokens, ...]:
    """What every layer of the tower does; attaching for it also finds arguments that do not fit, before work begins."""
    layers = model.config.vision_config.num_hidden_layers
    with attached() as handle:
        assert handle.schedule is not None
        removed = {step.layer: step.r for step in handle.schedule.steps}
        entering = handle.schedule.tokens_entering(layers)
    gone = [removed.get(layer, 0) for layer in range(layers)]
    return tuple(LayerTokens(layer, n, r, n - r) for layer, (n, r) in enumerate(zip(entering, gone, strict=True)))


def _attacher(request: Request, model: Any) -> Callable[[], Handle]:
    return lambda: attach(model, request.method, layers=request.layers, **request.amount, **request.hyperparameters)


def _all_samples(checkpoint: Checkpoint, attached: Callable[[], Handle], length: int) -> Samples:
    images = {name: open_image(SCENES / name) for name in sample_questions()}
    asked = [(images[name], one) for name, questions in sample_questions().items() for one in questions]
    answers = _ask(checkpoint, attached, asked, length)
    return Samples(
        len(answers), sum(a.all_tokens_right is True for a in answers), sum(a.reduced_right is True for a in answers)
    )


def _draw(request: Request, checkpoint: Checkpoint, attached: Callable[[], Handle], image: Any, result: Result) -> None:
    """Write the picture of what the tower did with ``image``."""
    inputs = checkpoint.inputs(image, result.answers[0].question)
    with attached() as handle, torch.inference_mode():
        checkpoint.model(**inputs, logits_to_keep=1)
        reductions = handle.reductions
    removing = [layer.layer for layer in result.layers if layer.removed]
    rows = [(a.question, a.truth or "", a.all_tokens, a.reduced) for a in result.answers]
    wrong = {(i, 2) for i, a in enumerate(result.answers) if a.all_tokens_right is False}
    wrong |= {(i, 3) for i, a in enumerate(result.answers) if a.reduced_right is False}
    title = f"{checkpoint.name}, {request.method}: {result.kept} of {result.patches} patches reach the language model"
    seen = seen_by_model(checkpoint, image)
    figure = visualize.overview(seen, reductions, layers=removing, title=title, answers=rows, wrong=wrong)
    assert request.output is not None
    visualize.save(figure, request.output)


def run(request: Request, *, notice: Say = lambda text: None, progress: Say = lambda text: None) -> Result:
    """Run the demonstration.

    Args:
        request: what is to be shown.
        notice: gets one sentence for everything that the user should know beside the result.
        progress: gets a few words whenever a new part begins.

    Raises:
        ValueError, TypeError, OSError, ImportError, NotImplementedError, MemoryError: what cannot be done, and why.

    Example:
        >>> from ficoco_ext import demo
        >>> [answer.reduced for answer in demo.run(demo.Request(repeats=1)).answers]
        ['no', 'red', 'top_left', '0', 'tea', '6']
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
    show = _with_checkpoint if request.geometry is None else _with_geometry
    return replace(show(request, dtype, device, note, progress), notices=tuple(notices))


def _with_checkpoint(request: Request, dtype: torch.dtype, device: torch.device, note: Say, progress: Say) -> Result:
    path = find_image(DEFAULT_SCENE if request.image is None else request.image)
    image = open_image(path)
    if request.output is not None:
        visualize.require(request.output)
    progress("loading the model")
    checkpoint = load(request.model, dtype, device)
    attached = _attacher(request, checkpoint.model)
    layers = _staircase(attached, checkpoint.model)
    questions = _questions(request, checkpoint, path, note)
    length = request.max_new_tokens or (4 if checkpoint.embedded else 48)
    progress("answering")
    answers = _ask(checkpoint, attached, [(image, one) for one in questions], length)
    samples = None
    if request.all_samples:
        progress("answering all sample questions")
        samples = _all_samples(checkpoint, attached, length)
    progress("timing prefill")
    inputs = checkpoint.inputs(image, questions[0].question)
    costs = geometry.measure(checkpoint.model, inputs, attached, request.repeats)
    result = _result(
        request, checkpoint.model, layers, costs, name=checkpoint.name, image=path, answers=answers, samples=samples
    )
    if request.output is not None and result.kept == result.patches:
        note("nothing is removed, so there is no picture of it")
        result = replace(result, picture=None)
    elif request.output is not None:
        progress("drawing")
        _draw(request, checkpoint, attached, image, result)
    return result


def _with_geometry(request: Request, dtype: torch.dtype, device: torch.device, note: Say, progress: Say) -> Result:
    for name in ("image", "question", "model", "output"):
        if getattr(request, name) is not None:
            raise ValueError(f"{name} does not go with geometry: random weights look at noise and say nothing")
    if request.all_samples:
        raise ValueError("all_samples does not go with geometry: random weights answer nothing")
    assert request.geometry is not None
    if request.geometry not in geometry.GEOMETRIES:
        raise ValueError(f"geometry must be one of {', '.join(geometry.GEOMETRIES)}, got {request.geometry!r}")
    true = (geometry.VISION_LAYERS, geometry.GEOMETRIES[request.geometry].layers)
    built = (
        true[0] if request.vision_layers is None else request.vision_layers,
        true[1] if request.text_layers is None else request.text_layers,
    )
    model = geometry.shapes(request.geometry, *built, dtype)
    attached = _attacher(request, model)
    layers = _staircase(attached, model)
    progress("building random weights")
    geometry.materialize(model, device)
    note(
        f"{request.geometry} has random weights here: time, memory and FLOPs are those of its shapes, it knows nothing"
    )
    if built != true:
        note(
            f"built with {built[0]} of {true[0]} vision and {built[1]} of {true[1]} text layers: the figures are of "
            "this part, not of the whole model"
        )
    progress("counting and timing prefill")
    costs = geometry.measure(model, geometry.random_inputs(model, request.text_tokens), attached, request.repeats)
    return _result(request, model, layers, costs, name=request.geometry)


def _result(
    request: Request,
    model: Any,
    layers: tuple[LayerTokens, ...],
    costs: tuple[Prefill, Prefill],
    *,
    name: str,
    image: Path | None = None,
    answers: Sequence[Answer] = (),
    samples: Samples | None = None,
) -> Result:
    platform, speedup = _platform(model), costs[0].seconds / costs[1].seconds
    tiny = model.config.text_config.hidden_size < 1024
    return Result(
        model=name,
        random_weights=request.geometry is not None,
        image=None if image is None else str(image),
        method=request.method,
        hyperparameters=request.hyperparameters,
        patches=layers[0].entering,
        kept=layers[-1].left,
        layers=layers,
        answers=tuple(answers),
        samples=samples,
        all_tokens=costs[0],
        reduced=costs[1],
        speedup=speedup,
        verdict=_verdict(costs, platform, tiny),
        flops_counted=flops.HOW,
        platform=platform,
        picture=None if request.output is None else str(request.output),
        notices=(),
    )
