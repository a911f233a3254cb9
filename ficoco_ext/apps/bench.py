"""Methods side by side in time: whole prefills on this machine, with all tokens and with each method.

Computation only: :func:`run` returns a :class:`Result` of plain values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..cost import flop_counter
from ..io.ratios import times
from ..methods import get_method
from ..models import attach
from . import selection_time, timing
from .checkpoint import SCENES, load, open_image, parse_device, parse_dtype
from .demo import default_amount
from .machine import Platform, platform_of
from .timing import MeasuredPrefill

LEAST_TURNS, MOST_TURNS = 5, 100  # 5 are the fewest that can prove anything, see timing.judged
_SCENE, _QUESTION = "scene_6.png", "how many shapes ?"
_MOST_BATCH = 1024

Say = Callable[[str], None]
Progress = Callable[..., None]  # (words), or (words, steps done, all steps)


@dataclass(frozen=True)
class Request:
    """What is to be timed.

    Attributes:
        model: directory or hub name of a LLaVA-1.5 checkpoint, or the name of a geometry; None is the embedded model.
        geometry: time LLaVA-1.5 in these true shapes with random weights instead of a model.
        vision_layers, text_layers, text_tokens: of the geometry; None is as many layers as it really has.
        methods: names, each once.
        amount: one of ``r``, ``keep_ratio`` and ``tokens``, for every method; empty is each method's own amount, or a
            quarter kept if it has none.
        batches: pictures and prompts that are read at once.
        dtype, device: by name; dtype None is float32 on the CPU, bfloat16 elsewhere.
        seconds: that the timed runs of one batch size are to take; at least 5 runs of each are made, however long.
    """

    model: str | None = None
    geometry: str | None = None
    vision_layers: int | None = None
    text_layers: int | None = None
    text_tokens: int = 60
    methods: tuple[str, ...] = ("ficoco-v", "ficoco-l", "fastv")
    amount: dict[str, Any] = field(default_factory=dict)
    batches: tuple[int, ...] = (1, 8)
    dtype: str | None = None
    device: str = "cpu"
    seconds: float = 10.0


@dataclass(frozen=True)
class Timed:
    """One method at one batch size, beside all tokens.

    Attributes:
        name: the method, or ``"all tokens"``.
        amount: how much it removes; empty for all tokens.
        prefill: what was measured; its tokens are those of one prompt.
        speedup: ratio of the median times, all tokens / this one.
        flops_ratio: the same of FLOPs.
        reached: ``speedup / flops_ratio``: the share of what the FLOPs promise.
        judged: ``"faster"``, ``"slower"`` or ``"noise"``, see :func:`ficoco_ext.apps.timing.judged`.
        selection: seconds within the method, of ``prefill.seconds``; None of all tokens. See
            :mod:`ficoco_ext.apps.selection_time`.
    """

    name: str
    amount: dict[str, Any]
    prefill: MeasuredPrefill
    speedup: float
    flops_ratio: float
    reached: float
    judged: str
    selection: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        amount: dict[str, Any],
        full: MeasuredPrefill,
        prefill: MeasuredPrefill,
        selection: float | None = None,
    ) -> Timed:
        """Beside ``full``, of all tokens."""
        speedup, flops = full.seconds / prefill.seconds, full.flops.total / prefill.flops.total
        judged = "noise" if full is prefill else timing.judged(full, prefill)
        return cls(name, amount, prefill, speedup, flops, speedup / flops, judged, selection)


@dataclass(frozen=True)
class Batch:
    """All that was timed at one batch size; the first of ``timed`` is all tokens."""

    batch: int
    timed: tuple[Timed, ...]


@dataclass(frozen=True)
class Result:
    """All that was found out."""

    model: str
    random_weights: bool
    verdict: str
    batches: tuple[Batch, ...]
    flops_counted: str
    platform: Platform
    notices: tuple[str, ...]


def run(request: Request, *, notice: Say = lambda text: None, progress: Progress = lambda *words: None) -> Result:
    """Time all tokens and every method in turns, for each batch size.

    Args:
        notice: is called with each remark for the user, one sentence each.
        progress: gets a few words whenever a new part begins, and where a part has steps those done and all.

    Raises:
        ValueError, TypeError, OSError, ImportError, NotImplementedError, MemoryError: what cannot be done, and why.

    Example:
        >>> from ficoco_ext.apps import bench
        >>> found = bench.run(bench.Request(methods=("topk",), batches=(1,), seconds=0))
        >>> [one.name for one in found.batches[0].timed], [one.prefill.tokens for one in found.batches[0].timed]
        (['all tokens', 'topk'], [153, 45])
    """
    _require(request)
    notices: list[str] = []

    def note(text: str) -> None:
        notices.append(text)
        notice(text)

    device = parse_device(request.device)
    dtype = parse_dtype(request.dtype, device)
    geometry = _geometry(request)
    amounts = {name: request.amount or default_amount(name, {}) for name in request.methods}
    if geometry is None:
        model, inputs, name = _checkpoint(request, dtype, device, progress)
    else:
        model, inputs, name = _random(request, geometry, dtype, device, amounts, note, progress)
    batches = tuple(_batch(model, inputs, count, amounts, request.seconds, progress) for count in request.batches)
    tiny, platform = model.config.text_config.hidden_size < 1024, platform_of(model)
    verdict = _verdict(batches, platform, tiny)
    return Result(name, geometry is not None, verdict, batches, flop_counter.HOW, platform, tuple(notices))


def _require(request: Request) -> None:
    """Raise for what is wrong before anything is loaded."""
    if not request.methods:
        raise ValueError("methods must name at least one method, got none")
    twice = [name for name in request.methods if request.methods.count(name) > 1]
    if twice:
        raise ValueError(f"methods must name each method once, got {twice[0]!r} twice")
    if not request.batches or not all(1 <= count <= _MOST_BATCH for count in request.batches):
        raise ValueError(f"batch must be in 1 ... {_MOST_BATCH}, got {', '.join(map(str, request.batches)) or 'none'}")
    if not 0 <= request.seconds < float("inf"):
        raise ValueError(f"seconds must be a number that is not negative, got {request.seconds}")
    if request.model is not None and request.geometry is not None:
        raise ValueError("give a model or a geometry, not both")


def _geometry(request: Request) -> str | None:
    """The geometry that is asked for, by either way."""
    chosen = request.model if request.model in timing.GEOMETRIES else request.geometry
    if chosen is not None:
        timing.require_geometry(chosen)
    elif (request.vision_layers, request.text_layers, request.text_tokens) != (None, None, 60):
        raise ValueError("vision_layers, text_layers and text_tokens shape a geometry; give one, as llava-1.5-7b")
    return chosen


def _checkpoint(
    request: Request, dtype: torch.dtype, device: torch.device, progress: Progress
) -> tuple[Any, dict[str, Any], str]:
    progress("loading the model")
    checkpoint = load(request.model, dtype, device)
    return checkpoint.model, checkpoint.inputs(open_image(SCENES / _SCENE), _QUESTION), checkpoint.name


def _random(
    request: Request,
    geometry: str,
    dtype: torch.dtype,
    device: torch.device,
    amounts: dict[str, dict[str, Any]],
    note: Say,
    progress: Progress,
) -> tuple[Any, dict[str, Any], str]:
    true = (timing.VISION_LAYERS, timing.require_geometry(geometry).layers)
    built = (
        true[0] if request.vision_layers is None else request.vision_layers,
        true[1] if request.text_layers is None else request.text_layers,
    )
    model = timing.shapes(geometry, *built, dtype)
    timing.require_room(model, request.text_tokens)
    for name, amount in amounts.items():  # arguments that do not fit are found before gigabytes are filled
        attach(model, name, **amount).detach()
    progress("building random weights")
    timing.materialize(model, device)
    note(
        f"{geometry} has random weights here: time, memory and FLOPs are those of its shapes; its answers mean nothing"
    )
    if built != true:
        note(
            f"built with {built[0]} of {true[0]} vision and {built[1]} of {true[1]} text layers: the figures are of "
            "this part, not of the whole model"
        )
    return model, timing.random_inputs(model, request.text_tokens), geometry


def _batch(
    model: Any,
    inputs: dict[str, Any],
    count: int,
    amounts: dict[str, dict[str, Any]],
    seconds: float,
    progress: Progress,
) -> Batch:
    """All tokens and every method at one batch size: the one prompt, ``count`` times."""
    repeated = {name: tensor.repeat_interleave(count, 0) for name, tensor in inputs.items()}

    def step(done: int, total: int) -> None:
        progress(f"timing batch {count}", done, total) if total else progress(f"counting batch {count}")

    ways: list[Callable[[], Any]] = [contextlib.nullcontext]
    ways += [_attached(model, name, amount) for name, amount in amounts.items()]
    full, *reduced = timing.compare(
        model, repeated, ways, least=LEAST_TURNS, most=MOST_TURNS, seconds=seconds, step=step
    )
    chosen = [
        selection_time.measure(model, repeated, _clocked(model, name, amount), LEAST_TURNS)
        for name, amount in amounts.items()
    ]
    rest = zip(amounts.items(), reduced, chosen, strict=True)
    return Batch(
        count,
        (
            Timed.of("all tokens", {}, full, full),
            *(Timed.of(name, amount, full, prefill, selection) for (name, amount), prefill, selection in rest),
        ),
    )


def _attached(model: Any, name: str, amount: dict[str, Any]) -> Callable[[], Any]:
    return lambda: attach(model, name, **amount)


def _clocked(model: Any, name: str, amount: dict[str, Any]) -> Callable[[Callable[[Any], Any]], Any]:
    return lambda wrap: attach(model, wrap(get_method(name)), **amount)


def _verdict(batches: tuple[Batch, ...], platform: Platform, tiny: bool) -> str:
    """What the times prove, a sentence for each batch size, after what keeps them from proving anything."""
    said = []
    if platform.operators == "reference":
        said.append(
            "These are NOT the times of ficoco_ext: the selection ran as plain PyTorch, not as kernels "
            f"({platform.reason})."
        )
    if tiny:
        said.append(
            "The model is too small to prove anything: it spends its time on calls, not on arithmetic; "
            "--geometry llava-1.5-7b times true shapes."
        )
    for one in batches:
        full, *methods = one.timed
        best = min(methods, key=lambda timed: timed.prefill.seconds)
        ratio = times(full.prefill.seconds, best.prefill.seconds, "faster", "slower")
        what = {
            "faster": f"{best.name} is the fastest, {ratio} than all tokens to the first token",
            "slower": f"no method is faster than all tokens; the best, {best.name}, is {ratio}",
            "noise": f"no method is proven faster than all tokens; the best, {best.name}, is within the noise",
        }[best.judged]
        equal = [
            other.name
            for other in methods
            if other is not best and timing.judged(other.prefill, best.prefill) == "noise"
        ]
        also = f"; {', '.join(equal)} not proven slower than it" if equal and best.judged == "faster" else ""
        said.append(f"Batch {one.batch}: {what}{also}.")
    return " ".join(said)
