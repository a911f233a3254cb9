"""What one prefill and one decoding step of a model cost, with or without reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import resolve
from ..io.suggest import did_you_mean
from ..methods import get_method
from ..resolve import ProjectorPlan
from ..schedule import Plan, Schedule
from . import caches, projected, reduction, transformer
from .architecture import MOST_TOKENS, Architecture
from .bill import AfterProjector, Cost, LayerCost, Sum, Tokens
from .hardware import Hardware
from .hardware import hardware as find_hardware
from .lines import Line, Rules
from .precision import FP16, Precision
from .presets import architecture as find_architecture

CONVENTIONS = ("matmul", "llmviewer")


def prefill(
    architecture: Any,
    *,
    vision: Schedule | None = None,
    projector: ProjectorPlan | int | None = None,
    decoder: Schedule | Plan | None = None,
    text_tokens: int = 60,
    text_after: int | None = None,
    images: int = 1,
    visual_tokens: float | None = None,
    convention: str = "matmul",
    precision: Precision | str = FP16,
    hardware: Hardware | str | None = None,
    fused_attention: bool = True,
    causal: bool = False,
    cache: str | None = None,
    include_tower: bool = True,
    include_projector: bool = True,
    include_head: bool = True,
    include_reduction: bool | None = None,
    method: Any = None,
) -> Cost:
    """What it costs to read one prompt, from pixels to the logits of the first new token.

    Args:
        architecture: a preset's name, a config, a directory or an :class:`Architecture`; see :func:`architecture`.
        vision: what the tower removes from every crop; its ``patches`` are the tower's.
        projector: how many visual tokens of a picture stay after the projector, or the plan that says so.
        decoder: what the language model removes; its ``patches`` are all visual tokens that enter it.
        text_tokens: tokens of the prompt that are not visual.
        text_after: how many of them are after the last visual one, which FiCoCo-L asks; None: all.
        images: in the prompt.
        visual_tokens: that enter the language model, if it is not what tower and schedules say; such as one of a
            method that is not described by a schedule. May be a mean over layers, and no integer.
        convention: ``"matmul"``, 2 for a multiply-add of a matrix product and nothing else, or ``"llmviewer"``.
        precision: a :class:`Precision` or its name.
        hardware: a :class:`Hardware` or its name, for times.
        fused_attention: no map of attention is written to memory.
        causal: a fused kernel of the language model visits only the pairs that its mask leaves.
        cache: what layers keep once the prompt is read, ``"staircase"`` or ``"output-aware"``, see
            :func:`ficoco_ext.attach`; None: what ``method`` says. ``resident_gb`` has what they kept before that.
        include_tower, include_projector, include_head: False leaves that part out; the language model is always in.
        include_reduction: the reduction's own cost; None: if ``method`` is given.
        method: name or value, see :func:`ficoco_ext.get_method`; which operators run depends on it.

    Raises:
        ValueError: an unknown name, or schedules that do not fit the architecture; the message says what is possible.

    Example:
        >>> from ficoco_ext.cost import prefill
        >>> cost = prefill("llava-1.5-7b", convention="llmviewer", include_tower=False, include_projector=False)
        >>> round(cost.tflops, 3), round(cost.kv_mb, 1)
        (8.453, 333.4)
    """
    shape = find_architecture(architecture)
    rules = _rules(convention, precision, hardware, fused_attention, causal)
    _counts(text_tokens=(text_tokens, 0), images=(images, 1))
    after = text_tokens if text_after is None else text_after
    if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after <= text_tokens:
        raise ValueError(f"text_after must be in [0, {text_tokens}], the text tokens, got {text_after!r}")
    in_tower, after_it, in_decoder = _parts(method, vision, projector, decoder, include_reduction)
    lines: list[Line] = []
    layers: list[LayerCost] = []
    if vision is not None:
        _check_vision(shape, vision)
    entering = projected.entering(shape, vision, projector, images, visual_tokens)
    smaller = projected.resizes(projector, method)
    chooses = None if smaller else after_it
    chosen = projected.choose(rules, shape, vision, projector, chooses, images, text_tokens)
    if include_tower:
        measured = [line for line in chosen.lines if line.layer is not None]
        if decoder is not None and in_decoder is not None:
            measured += reduction.key_set(rules, in_decoder, shape, images * shape.crops, vision)
        patches = projected.encoded_patches(shape, projector) if smaller else shape.tower.patches
        _tower(rules, shape, vision, in_tower, images, patches, measured, lines, layers)
    if include_projector:
        given = entering
        if not smaller and (chosen.found is not None or shape.picture is not None):
            given = images * shape.projected_with(projected.left_of_crop(shape, vision))
        lines += transformer.projector(rules, shape.projector, given) * (1 + shape.deepstack)
    lines += [line for line in chosen.lines if line.layer is None]
    count = shape.language_model.layers
    n, q = _staircase(decoder, entering, count)
    keeps = cache or caches.chosen(None, None if method is None else get_method(method))
    kept = caches.held(_schedule(decoder, entering), n, q[-1], keeps)
    for index in range(count):
        tokens, in_mlp = text_tokens + n[index], text_tokens + q[index]
        own = transformer.decoder_layer(rules, shape.language_model, index, tokens, in_mlp)
        own += _reduction(rules, in_decoder, shape, decoder, entering, index, text_tokens, after)
        if in_decoder is not None:
            own += caches.cut(rules, shape.language_model, index, tokens, text_tokens + kept[index])
        lines += own
        layers.append(_layer("decoder", index, tokens, in_mlp, own, _kv(rules, shape, text_tokens + kept[index])))
    if include_head:
        lines += transformer.head(rules, shape.language_model)
    bases = Tokens(entering, sum(n) / count, q[-1])
    read = sum(_kv(rules, shape, text_tokens + each) for each in n)  # a cache is cut once all layers have read
    return _cost(rules, shape, "prefill", lines, layers, bases, text_tokens, read=read, after_projector=chosen.found)


def decode(
    architecture: Any,
    *,
    vision: Schedule | None = None,
    projector: ProjectorPlan | int | None = None,
    decoder: Schedule | Plan | None = None,
    text_tokens: int = 60,
    generated: int = 0,
    images: int = 1,
    visual_tokens: float | None = None,
    convention: str = "matmul",
    precision: Precision | str = FP16,
    hardware: Hardware | str | None = None,
    fused_attention: bool = True,
    cache: str = "staircase",
    include_head: bool = True,
) -> Cost:
    """What one new token costs, after a prefill that left a cache as the schedules say.

    Args: as of :func:`prefill`, with ``cache`` by name; ``generated`` new tokens are in the cache already. Tower,
    projector and reduction do not run. The token attends to itself too, except in the convention ``"llmviewer"``, which
    counts the cached alone.

    Example:
        >>> from ficoco_ext.cost import decode
        >>> round(decode("llava-1.5-7b", hardware="a100-80g").tpot_ms, 2)
        6.65
    """
    shape = find_architecture(architecture)
    rules = _rules(convention, precision, hardware, fused_attention, False)
    _counts(text_tokens=(text_tokens, 0), images=(images, 1), generated=(generated, 0))
    if vision is not None:
        _check_vision(shape, vision)
    entering = projected.entering(shape, vision, projector, images, visual_tokens)
    count = shape.language_model.layers
    n, q = _staircase(decoder, entering, count)
    kept = caches.held(_schedule(decoder, entering), n, q[-1], cache)
    lines: list[Line] = []
    layers: list[LayerCost] = []
    for index in range(count):
        cached = text_tokens + kept[index] + generated
        keys = cached if rules.quirks else cached + 1
        own = transformer.decoder_layer(rules, shape.language_model, index, 1, 1, keys)
        lines += own
        layers.append(_layer("decoder", index, 1, 1, own, _kv(rules, shape, keys)))
    if include_head:
        lines += transformer.head(rules, shape.language_model)
    asleep = _not_running(rules, shape)  # in memory all the same
    tokens = Tokens(entering, sum(n) / count, q[-1])
    return _cost(rules, shape, "decode", lines, layers, tokens, text_tokens + generated, asleep)


def _rules(
    convention: str, precision: Precision | str, hardware: Hardware | str | None, fused: bool, causal: bool
) -> Rules:
    if convention not in CONVENTIONS:
        near = did_you_mean(convention, CONVENTIONS)
        raise ValueError(f"convention must be one of {', '.join(map(repr, CONVENTIONS))}, got {convention!r}{near}")
    if causal and not fused:
        raise ValueError("causal must be False with unfused attention, which computes the whole map and masks it")
    device = None if hardware is None else find_hardware(hardware)
    return Rules(convention, Precision.parse(precision), device, fused, causal)


def _counts(**given: tuple[int, int]) -> None:
    for name, (value, least) in given.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if not least <= value <= MOST_TOKENS:
            raise ValueError(f"{name} must be in {least} ... {MOST_TOKENS}, got {value}")


def _check_vision(shape: Architecture, vision: Schedule) -> None:
    tower = shape.tower
    if tower.merge > 1:
        raise ValueError(f"vision must be None for {shape.name}: its tower joins blocks of {tower.merge} patches")
    if tower.joined > 1:
        raise ValueError(f"vision must be None for {shape.name}: {tower.joined} layers of its tower are read together")
    if vision.patches != tower.patches:
        raise ValueError(
            f"vision must start with the {tower.patches} patches of a crop of {shape.name}, got {vision.patches}"
        )
    if vision.before_attention:
        raise ValueError("vision must reduce between attention and MLP: no tower is served otherwise")
    beyond = [layer for layer in vision.layers if layer >= tower.used]
    if beyond:
        raise ValueError(
            f"vision must reduce in layers 0 ... {tower.used - 1} of {shape.name}'s tower: the output of layer "
            f"{tower.used - 1} is the last that is used, got layer {beyond[0]}"
        )


def _staircase(
    decoder: Schedule | Plan | None, entering: float, layers: int
) -> tuple[Sequence[float], Sequence[float]]:
    """Visual tokens that enter attention and MLP of every layer of the language model."""
    schedule = _schedule(decoder, entering)
    if schedule is None:
        return [entering] * layers, [entering] * layers
    if schedule.patches != entering:
        raise ValueError(
            f"decoder must start with the {entering:g} visual tokens that enter the language model, got "
            f"{schedule.patches}"
        )
    if schedule.layers and schedule.layers[-1] >= layers:
        raise ValueError(f"decoder must reduce in layers 0 ... {layers - 1}, got layer {schedule.layers[-1]}")
    return schedule.tokens_entering(layers), schedule.tokens_in_mlp(layers)


def _schedule(decoder: Schedule | Plan | None, entering: float) -> Schedule | None:
    return decoder.schedule(int(entering)) if isinstance(decoder, Plan) else decoder


def _parts(method: Any, vision: Any, projector: Any, decoder: Any, include: bool | None) -> tuple[Any, Any, Any]:
    """The methods of tower, projector and language model, each None if its cost is not to be counted."""
    if include is False:
        return None, None, None
    given = {"vision": vision, "projector": projector, "decoder": decoder}
    if method is None:
        if include and any(one is not None for one in given.values()):
            raise ValueError("method must be given to count the reduction's own cost; it says which operators run")
        return None, None, None
    method = get_method(method)
    parts = method.tower, method.projector, method.language_model
    for (name, removed), one in zip(given.items(), parts, strict=True):
        if removed is not None and one is None:
            raise ValueError(f"{name} must be None: {method.name} does not reduce there; pass another method")
    return parts


def _tower(
    rules: Rules,
    shape: Architecture,
    vision: Schedule | None,
    method: Any,
    images: int,
    patches: int,
    measured: list[Line],
    lines: list[Line],
    layers: list[LayerCost],
) -> None:
    """All of the tower.

    ``measured`` are the lines of what a method after the projector measures in it, ``patches`` those of a picture.
    """
    tower, batch = shape.tower, images * shape.crops
    lines += transformer.patch_embedding(rules, tower, batch, patches)
    full = (patches,) * tower.layers
    n = full if vision is None else vision.tokens_entering(tower.layers)
    q = full if vision is None else vision.tokens_in_mlp(tower.layers)
    removed = {} if vision is None else {step.layer: step for step in vision.steps if step.r}
    of_layer = {}
    if vision is not None and method is not None:
        of_layer = dict(zip(vision.layers, method.of_layers(len(vision.layers)), strict=True))
        if shape.pinpoints:
            resolve.require_single_patches("cost", shape.name, [of_layer[index] for index in removed])
    for index in range(tower.layers):
        tokens, in_mlp = n[index] + tower.class_token, q[index] + tower.class_token
        own = transformer.tower_layer(rules, tower, index, batch, tokens, in_mlp)
        if method is not None and index in removed:
            step = removed[index]
            own += reduction.vision_layer(rules, of_layer[index], shape, index, images, step.before, step.r)
        own += [line for line in measured if line.layer == index]
        lines += own
        layers.append(_layer("tower", index, batch * tokens, batch * in_mlp, own, 0))


def _reduction(
    rules: Rules,
    method: Any,
    shape: Architecture,
    decoder: Schedule | Plan | None,
    entering: float,
    layer: int,
    text_tokens: int,
    after: int,
) -> list[Line]:
    schedule = _schedule(decoder, entering)
    if method is None or schedule is None or layer not in schedule.layers or not any(schedule.r):
        return []
    if method.before_attention != schedule.before_attention:
        where = "before" if method.before_attention else "after"
        raise ValueError(f"decoder must reduce {where} attention, as {method.name} does; see Schedule.before_attention")
    step = schedule.steps[schedule.layers.index(layer)]
    return reduction.decoder_layer(
        rules, method, shape.language_model, layer, text_tokens + step.before, step.before, step.r, after
    )


def _layer(part: str, index: int, tokens: float, in_mlp: float, lines: list[Line], kv: float) -> LayerCost:
    return LayerCost(part, index, tokens, in_mlp, Sum.of(lines), kv)


def _kv(rules: Rules, shape: Architecture, tokens: float) -> float:
    return shape.language_model.kv_width * tokens * rules.precision.kv / 8


def _cost(
    rules: Rules,
    shape: Architecture,
    stage: str,
    lines: list[Line],
    layers: list[LayerCost],
    tokens: Tokens,
    text_tokens: float,
    asleep: float = 0.0,
    read: float | None = None,
    after_projector: AfterProjector | None = None,
) -> Cost:
    kv = sum(one.kv_bytes for one in layers)
    return Cost(
        shape,
        rules.convention,
        rules.precision,
        rules.hardware,
        stage,
        tuple(lines),
        tuple(layers),
        tokens,
        text_tokens,
        kv,
        _resident(rules, shape, lines, kv if read is None else read) + asleep,
        after_projector,
    )


def _not_running(rules: Rules, shape: Architecture) -> float:
    """Weights of tower and projector; LLM-Viewer has none."""
    if rules.quirks:
        return 0.0
    tower = shape.tower
    lines = transformer.patch_embedding(rules, tower, 1, tower.patches)
    lines += transformer.projector(rules, shape.projector, 1) * (1 + shape.deepstack)
    layer = transformer.tower_layer(rules, tower, 0, 1, 1, 1)
    return sum(line.weight_bytes for line in lines) + tower.layers * sum(line.weight_bytes for line in layer)


def _resident(rules: Rules, shape: Architecture, lines: list[Line], kv: float) -> float:
    """Weights, cache, and the most that one layer writes. LLM-Viewer holds the decoder's layers alone."""
    parts = ("decoder",) if rules.quirks else ("tower", "projector", "decoder", "head")
    weights = sum(line.weight_bytes for line in lines if line.part in parts)
    if not rules.quirks:
        weights += shape.language_model.vocabulary * shape.language_model.hidden * rules.precision.weights / 8
    written: dict[tuple[str, int | None], float] = {}
    for line in lines:
        if line.part in parts:
            layer = line.part, line.layer
            written[layer] = written.get(layer, 0.0) + line.stored_bytes
    return weights + kv + max(written.values())
