"""``attach``: reduce tokens inside a Hugging Face model, and the handle that shows what happened and undoes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from .. import checks
from ..methods import Method, get_method
from ..reduction import Reduction
from ..schedule import Schedule
from .clip import Chain
from .patches import Patches

_OLDEST, _BELOW = (5, 17), (6, 0)


class Handle:
    """What :func:`attach` did to one model.

    Attributes:
        schedule: the :class:`Schedule`; ``print(handle.schedule)`` shows the staircase.
        methods: one :class:`Method` for each layer of the schedule.
    """

    def __init__(self, model: Any, schedule: Schedule, methods: tuple[Method, ...]) -> None:
        self.schedule, self.methods = schedule, methods
        self._model = model
        self._patches = Patches()
        self._chain: Chain | None = None

    @property
    def reductions(self) -> tuple[Reduction, ...]:
        """What the last pass through the tower did, told in original tokens, without the tokens themselves.

        One for each layer of the schedule that removes something, so ``reductions[-1]`` tells the whole story; the
        batch dimension counts images. Empty before the first image and after a pass that an exception cut off.
        """
        return () if self._chain is None else self._chain.finished()

    @property
    def attached(self) -> bool:
        """False after :meth:`detach`."""
        return self._model is not None

    def detach(self) -> None:
        """Restore the model to the state before ``attach``, exactly. Calling it again does nothing.

        Raises:
            RuntimeError: something that attach had set was replaced since; the model is left as it is.
        """
        if self._model is not None:
            self._patches.undo()
            self._model = None

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(method.name for method in self.methods))
        state = "attached" if self.attached else "detached"
        return f"<Handle {state}: {names}, {self.schedule.patches} -> {self.schedule.final} patches>"


def attach(
    model: Any,
    method: str | Method | Sequence[str | Method] = "ficoco-v",
    *,
    r: int | Sequence[int] | None = None,
    layers: Iterable[int] | None = None,
    keep_ratio: float | None = None,
    tokens: int | None = None,
    **hyperparameters: Any,
) -> Handle:
    """Reduce visual tokens inside the vision tower of a LLaVA-1.5 from transformers. No weights, no training.

    A method with proportional attention (``"tome"``, unless ``proportional_attention=False``) also adds log(size) to
    the logits of each key in the layers behind its reductions, up to the next method's; flash attention has no room for
    that and is refused.

    ``model.generate(**processor(...))`` stays as it is: prompts are shortened inside, and what comes back begins with
    the caller's prompt. So do direct calls ``model(**inputs)``; their logits have the shorter length, and ``labels``
    are shortened likewise. A conversation goes on from a returned cache as ever; a decoding loop of one's own counts
    from the cache's length. SDPA and eager attention keep running
    (tested); flash attention is served by the same tap and was never run.

    Args:
        model: a ``LlavaForConditionalGeneration`` with a CLIP tower; single instance, changed in place until
            ``handle.detach()``. Not thread-safe. A deep copy is attached too, through its own ``copy.ficoco_handle``.
        method: a name (``ficoco_ext.METHODS``), a :class:`Method`, or a sequence with one for each layer.
        r, keep_ratio, tokens: exactly one, as in :meth:`Schedule.build`: tokens removed in each layer; patches kept at
            the end as a ratio; or as a number.
        layers: layers of the tower that reduce, ascending; None is the second half of it up to the layer whose output
            the language model gets, 12 to 22 in LLaVA-1.5.
        **hyperparameters: of methods given by name.

    Returns:
        A :class:`Handle`, which is also a context manager that detaches at exit.

    Raises:
        ImportError: transformers is missing or not in 5.17 ... 5.x. NotImplementedError: a model that is not supported.
        ValueError, TypeError: a value that does not fit, or a model that is attached already. The model is untouched.

    Cost: the method's own, once for each reducing layer (see :func:`ficoco_ext.reduce`), and two small device reads
    for each prompt. Every layer behind sees fewer tokens. With nothing to remove (r = 0) the model is left alone.
    Source: FiCoCo, arXiv 2411.17686.

    Example:
        >>> import ficoco_ext
        >>> with ficoco_ext.attach(model, "ficoco-v", tokens=144) as handle:  # doctest: +SKIP
        ...     output = model.generate(**processor(images=image, text=prompt, return_tensors="pt"))
        ...     places = handle.reductions[-1].patch_ids
    """
    _require_transformers()
    from . import clip, llava

    if hasattr(model, "ficoco_handle"):
        checks.fail("attach", "model", "one without reduction", f"{model.ficoco_handle}", "call its detach() first")
    llava.check_model(model)
    geometry = llava.geometry(model)
    schedule = Schedule.build(
        geometry.patches, layers=_layers(layers, geometry), r=r, keep_ratio=keep_ratio, tokens=tokens
    )
    handle = Handle(model, schedule, _methods(method, hyperparameters, schedule))
    patches = handle._patches
    try:
        patches.set(model, "ficoco_handle", handle)
        if sum(schedule.r):
            tower = model.model.vision_tower
            handle._chain = clip.install(tower, schedule, handle.methods, geometry.grid, patches)
            llava.Prompts(model, geometry, sum(schedule.r)).install(patches)
    except BaseException:
        handle.detach()
        raise
    return handle


def _layers(layers: Iterable[int] | None, geometry: Any) -> tuple[int, ...]:
    """The layers that reduce: given ones within the part of the tower that is used, or the second half of it."""
    last = geometry.last
    if layers is None:
        chosen = tuple(range(geometry.layers // 2, last + 1))
        if not chosen:
            wanted = "given, for the second half of the tower is not used"
            checks.fail("attach", "layers", wanted, f"vision layers up to {last}", f"pass layers of 0 ... {last}")
        return chosen
    if not isinstance(layers, Iterable):
        checks.fail("attach", "layers", "a sequence of layer indices", layers, "pass layers=(12, 13)", TypeError)
    chosen = tuple(layers)
    for layer in chosen:
        if isinstance(layer, bool) or not isinstance(layer, int):
            checks.fail("attach", "layers", "made of integers", layer, "pass layer indices", TypeError)
        if not 0 <= layer <= last:
            remedy = f"of {geometry.layers} layers, the output of layer {last} is the last that is used"
            checks.fail("attach", "layers", f"in 0 ... {last}", str(layer), remedy)
    return chosen


def _methods(
    method: str | Method | Sequence[str | Method], hyperparameters: dict[str, Any], schedule: Schedule
) -> tuple[Method, ...]:
    """One method for each layer, each able to do what the schedule asks of it."""
    given = [method] * len(schedule.layers) if isinstance(method, (str, Method)) else method
    if not isinstance(given, Sequence):
        wanted = "a name, a Method, or a sequence of these"
        checks.fail("attach", "method", wanted, method, "pass 'ficoco-v'", TypeError)
    if len(given) != len(schedule.layers):
        wanted = f"one, or one for each of the {len(schedule.layers)} layers"
        checks.fail("attach", "method", wanted, f"{len(given)}", "name as many methods as layers")
    chosen = tuple(get_method(one, **hyperparameters) for one in given)
    for one, step in zip(chosen, schedule.steps, strict=True):
        largest = getattr(one.filter, "largest", None)
        if step.r and largest is not None and step.r > largest(1 + step.before, class_token=True):
            most = largest(1 + step.before, class_token=True)
            wanted = f"at most {most} in layer {step.layer}, half of the {step.before} patches that enter it"
            checks.fail("attach", "r", wanted, str(step.r), "remove less, or in more layers")
        count = getattr(one.correlate, "count", None)  # a stage of one's own need not say
        if step.r and count is not None and count(step.after) > step.after:
            wanted = f"at most {step.after}, the patches that layer {step.layer} leaves"
            checks.fail("attach", "targets", wanted, str(count(step.after)), "lower targets, or remove less")
    return chosen


def _require_transformers() -> None:
    wanted = f"transformers >= {_OLDEST[0]}.{_OLDEST[1]}, < {_BELOW[0]}"
    try:
        from transformers import __version__ as version
    except ImportError as error:
        message = f'ficoco::attach: needs {wanted}, which is not installed; pip install "ficoco_ext[hf]"'
        raise ImportError(message) from error
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or not _OLDEST <= tuple(map(int, found.groups())) < _BELOW:
        raise ImportError(f'ficoco::attach: needs {wanted}, got {version}; pip install "ficoco_ext[hf]"')
