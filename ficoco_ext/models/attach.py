"""``attach``: reduce tokens inside a Hugging Face model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..methods import AnyMethod, LanguageMethod, LayerMethod, get_method
from ..ops import checks
from ..schedule import Plan, Schedule
from . import transformers_api as api
from .decoder import Decoder
from .families import Family, family_of, unsupported
from .handle import Handle
from .sides import Amount, check_grid, decoder_plan, split, static_count, vision_methods, vision_schedule

_OLDEST, _BELOW = (5, 17), (6, 0)


def attach(
    model: Any,
    method: str | AnyMethod | Sequence[str | AnyMethod] = "ficoco-v",
    *,
    r: int | Sequence[int] | None = None,
    layers: Iterable[int] | None = None,
    keep_ratio: float | Sequence[float] | None = None,
    tokens: int | None = None,
    vision: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
    static_counts: bool | int = False,
    **hyperparameters: Any,
) -> Handle:
    """Reduce visual tokens inside a multimodal model from transformers. No weights, no training.

    A method for the vision encoder (``"ficoco-v"``, ``"tome"``, ``"prune-then-merge"``, ``"topk"``, ``"evit"``,
    ``"prumerge"``, ``"pool"`` and ``"random"``) reduces in the tower of LLaVA-1.5, so that the language model gets
    fewer tokens. One for the language model (``"ficoco-l"``, ``"fastv"``, ``"pyramiddrop"``)
    reduces there while the prompt is read: layers behind a reduction see and cache fewer columns, and every token keeps
    its position. ``"ficoco-vl"`` does both. ``ficoco env`` lists which models are served, and how far.

    ``model.generate(**processor(...))`` stays as it is, and what comes back begins with the caller's prompt. So do
    direct calls ``model(**inputs)``; their logits have the length that is left, a shorter row at the right. Beams,
    several returned sequences, dynamic and static caches work; a conversation goes on from a returned cache; a decoding
    loop of one's own counts from ``cache.get_seq_length()``. SDPA and eager attention keep running (tested); flash
    attention is served by the same tap and was never run.

    Args:
        model: a model of :data:`ficoco_ext.models.families.FAMILIES`; single instance, changed in place until
            ``handle.detach()``. Several threads may call it at once, each call with its own state and cache; the
            handle reports the call that ended last. Attach and detach while none runs. A deep copy is attached too,
            through its own ``copy.ficoco_handle``.
        method: a name (``ficoco_ext.METHODS``), a :class:`Method`, :class:`Split`, :class:`Staged`,
            :class:`DecoderMethod` or :class:`VisionAndDecoder`, or a sequence with one for each layer.
        r, keep_ratio, tokens: exactly one, as in :meth:`Schedule.build`: tokens removed in each layer; visual tokens
            kept at the end as a ratio, or one after each layer; or as a number. In the tower that is of every image, in
            the language model of every row of the prompt, all its images together. A row with fewer visual tokens than
            are to be removed loses all but one, one with no more than are to be kept loses none. FastV and PyramidDrop
            have a default.
        layers: layers that reduce, ascending. None in the tower: the second half up to the layer whose output the
            language model gets, 12 to 22 in LLaVA-1.5; the last of these for ``"pool"`` and ``"prumerge"``. None in the
            language model: the method's own, for FiCoCo-L from an eighth of the layers on, 4 to 31 of 32.
        vision, decoder: with a method of two parts, ``r``, ``keep_ratio`` or ``tokens``, and ``layers``, of each, such
            as ``vision={"tokens": 288}, decoder={"r": 14}``. Without them ``keep_ratio`` or ``tokens`` is what is left
            in the end of every image, and tower and language model keep the same share of what they get.
        static_counts: the caller promises that all rows of every prompt with images hold the same number of visual
            tokens: True where the number of images tells it (LLaVA-1.5), or that number. Then a prefill reads no device
            and has no shape that depends on data, so ``torch.compile(fullgraph=True)`` traces it. Prompts must end
            with text.
        **hyperparameters: of methods given by name.

    Returns:
        A :class:`Handle`, which is also a context manager that detaches at exit.

    Raises:
        ImportError: transformers is missing or not in 5.17 ... 5.x. NotImplementedError: a model that is not supported,
        or a transformers that has it in a form that is not known. A release that is newer than the tested ones draws a
        warning.
        ValueError, TypeError: a value that does not fit, or a model that is attached already. The model is untouched.

    Cost: the method's own, once for each reducing layer (see :func:`ficoco_ext.reduce`). In the tower two small device
    reads for each prompt; in the language model one, or none with ``static_counts``. With nothing to remove the model
    is left alone. A method with proportional attention (``"tome"``) also adds log(size) to the logits of each key in
    the layers behind its reductions; flash attention has no room for that and is refused.
    Source: FiCoCo, arXiv 2411.17686.

    Example:
        >>> import ficoco_ext
        >>> with ficoco_ext.attach(model, "ficoco-v", tokens=144) as handle:  # doctest: +SKIP
        ...     output = model.generate(**processor(images=image, text=prompt, return_tensors="pt"))
        ...     places = handle.reductions[-1].patch_ids
    """
    _require_transformers()
    if hasattr(model, "ficoco_handle"):
        checks.fail("attach", "model", "one without reduction", f"{model.ficoco_handle}", "call its detach() first")
    family = family_of(model)
    _require_known(family)
    for_vision, for_decoder, own = _sides(method, hyperparameters)
    amount = Amount.of(r=r, keep_ratio=keep_ratio, tokens=tokens, layers=layers)
    if for_vision and for_decoder:
        if not amount.given and vision is None and decoder is None:
            amount = Amount.of(**dict(own), layers=layers)
        amounts = split(model, family, amount, vision, decoder)
    else:
        for name, value in (("vision", vision), ("decoder", decoder)):
            if value is not None:
                remedy = "pass r, keep_ratio, tokens and layers themselves"
                checks.fail("attach", name, "None unless the method has two parts", value, remedy)
        amounts = amount, amount
    schedule: Schedule | None = None
    plan: Plan | None = None
    methods: tuple[LayerMethod, ...] = ()
    decoder_methods: tuple[LanguageMethod, ...] = ()
    if for_vision:
        schedule = vision_schedule(model, family, amounts[0], for_vision)
        methods = vision_methods(for_vision, schedule)
    if for_decoder:
        plan, decoder_methods = decoder_plan(model, family, for_decoder, amounts[1])
    count = static_count(static_counts, plan)
    handle = Handle(model, schedule, methods, plan, decoder_methods)
    try:
        handle._patches.set(model, "ficoco_handle", handle)
        _install(handle, model, family, count)
    except BaseException:
        handle.detach()
        raise
    return handle


def _install(handle: Handle, model: Any, family: Family, static_counts: bool | int) -> None:
    """Put the reductions in; what removes nothing stays out."""
    from . import clip, llava

    geometry = llava.geometry_or_none(model)
    schedule, plan, patches = handle.schedule, handle.plan, handle._patches
    removed = 0 if schedule is None else sum(schedule.r)
    if plan is not None and plan.removes:
        picture = None if geometry is None or geometry.extra or removed else geometry.grid
        per_image = None if geometry is None else geometry.patches + geometry.extra - removed
        check_grid(handle.decoder_methods, picture)
        if static_counts is True and per_image is None:
            remedy = "pass the number of visual tokens in each row"
            unsupported("static_counts", "a number for this model", True, remedy)
        handle._decoder = Decoder(
            model,
            family,
            plan,
            handle.decoder_methods,
            static_counts=static_counts,
            per_image=per_image,
            picture=picture,
        )
        handle._decoder.install(patches)
    if schedule is not None and removed:
        assert geometry is not None
        tower = model.model.vision_tower
        handle._chain = clip.install(tower, schedule, handle.methods, geometry.grid, patches)
        llava.Prompts(model, geometry, removed).install(patches)


def _sides(method: Any, hyperparameters: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Methods of the tower and of the language model: one for all layers, or a tuple with one for each, or None.

    And the amount of the method that has both.
    """
    if isinstance(method, (str, AnyMethod)):
        one = get_method(method, **hyperparameters)
        return one.tower, one.language_model, one.amount
    if not isinstance(method, Sequence):
        wanted = "a name, a Method, Split, Staged, DecoderMethod, or a sequence of these"
        checks.fail("attach", "method", wanted, method, "pass 'ficoco-v'", TypeError)
    chosen = tuple(get_method(one, **hyperparameters) for one in method)
    for one in chosen:
        if one.tower is not None and one.tower.varies:
            wanted, remedy = "one method for each layer", "pass it alone: it says which layer does what"
            checks.fail("attach", "method", wanted, f"{one.name}, which is for all layers", remedy)
    if chosen and all(one.language_model is None for one in chosen):
        return chosen, None, ()
    if chosen and all(one.tower is None for one in chosen):
        return None, chosen, ()
    names = ", ".join(one.name for one in chosen) or "none"
    remedy = "for both, pass one VisionAndDecoder(vision, decoder)"
    checks.fail("attach", "method", "methods that are all for the tower or all for the decoder", names, remedy)


def _require_transformers() -> None:
    wanted = f"transformers >= {_OLDEST[0]}.{_OLDEST[1]}, < {_BELOW[0]}"
    try:
        from transformers import __version__ as version
    except ImportError as error:
        message = f'ficoco::attach: needs {wanted}, which is not installed; pip install "ficoco_ext[hf]"'
        raise ImportError(message) from error
    found = api.version()
    if found is None or not _OLDEST <= found < _BELOW:
        raise ImportError(f'ficoco::attach: needs {wanted}, got {version}; pip install "ficoco_ext[hf]"')


def _require_known(family: Family) -> None:
    """Raise unless the installed transformers has the family as we know it; warn about an untested release."""
    from transformers import __version__ as version

    tested = f"{api.TESTED_OLDEST} to {api.TESTED_NEWEST}"
    reason = api.structure_problem(family.name)
    if reason is not None:
        changed = f"transformers changed {family.name}; {version} is installed, {tested} were tested; {api.REMEDY}"
        raise NotImplementedError(f"ficoco::attach: {reason}; {changed}")
    if api.newer_than_tested():
        message = (
            f"ficoco::attach: transformers {version} is newer than those that were tested, {tested}; it looks alike"
        )
        warnings.warn(f"{message}, but if answers are odd, {api.REMEDY}", stacklevel=3)
