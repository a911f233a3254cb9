"""``attach``: reduce tokens inside a Hugging Face model. ``resolve``: the plan of that, without touching the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from ..methods import AnyMethod
from ..ops import checks
from . import key_sets, vision_tower
from . import transformers_release as release
from .attach_plan import AttachPlan, make_plan
from .count_cutter import CountCutter
from .crop_packing import CropPacking
from .crop_pictures import CropPictures
from .decoder_reduction import DecoderReduction
from .facts import read_facts
from .families import Family
from .feature_cutter import FeatureCutter
from .handle import Handle
from .key_sets import KeySets
from .model_checks import check_crops, check_parts, family_of
from .projector_reduction import ProjectorReduction
from .prompt_words import QuestionTie
from .request import OP, Request
from .short_prompts import ShortPrompts

_OLDEST, _BELOW = (5, 17), (6, 0)


def attach(
    model: Any,
    method: str | AnyMethod | Sequence[str | AnyMethod] = "ficoco-v",
    *,
    r: int | Sequence[int] | None = None,
    layers: Iterable[int] | None = None,
    keep_ratio: float | Sequence[float] | None = None,
    tokens: int | Callable[[tuple[int, int] | None], int] | None = None,
    vision: Mapping[str, Any] | None = None,
    projector: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
    positions: Literal["original", "contiguous"] | None = None,
    static_counts: bool | int = False,
    cache: Literal["staircase", "output-aware"] | None = None,
    words: Callable[[Any], Any] | Sequence[int] | None = None,
    padding: Literal["first", "after"] | None = None,
    **hyperparameters: Any,
) -> Handle:
    """Reduce visual tokens inside a multimodal model from transformers. No weights, no training.

    A method for the vision encoder (``"ficoco-v"``, ``"tome"``, ``"prune-then-merge"``, ``"topk"``, ``"evit"``,
    ``"prumerge"``, ``"pool"`` and ``"random"``) reduces in the tower of LLaVA-1.5, LLaVA-NeXT and PaliGemma, so that
    the language model gets fewer tokens. One that acts after the projector (``"divprune"``, ``"scope"``,
    ``"cdpruner"``, ``"visionzip"`` and more) chooses among the tokens that the language model would get, in every
    family that gives what it needs. One for the language model (``"ficoco-l"``, ``"fastv"``, ``"pyramiddrop"``,
    ``"sparsevlm"``, ``"fitprune"``) reduces there while the prompt is read: layers after a reduction see and cache
    fewer tokens, and every token keeps its position.
    ``"ficoco-vl"`` and ``"mustdrop"`` are one of the first and one of the last kind; names joined by ``+``, such as
    ``"divprune+ficoco-l"``, are too. ``ficoco env`` lists which models are served, and how far.

    ``model.generate(**processor(...))`` stays as it is, and what comes back begins with the caller's prompt. So do
    direct calls ``model(**inputs)``; their logits have the length that is left, a shorter row at the right. Beams,
    several returned sequences, dynamic and static caches work; a conversation continues from a returned cache; your own
    decoding loop counts from ``cache.get_seq_length()``. ``labels`` of the whole prompt give the loss of what is left,
    in training mode too; the selection is a constant of the gradient. SDPA and eager attention keep running (tested);
    flash attention is served in the same way and was never run.

    First a plan is made: ``print(handle.attach_plan)`` shows which method removes how many tokens in which layer.
    :func:`ficoco_ext.models.resolve` returns the same plan and does not change the model.

    Args:
        model: a model of :data:`ficoco_ext.models.families.FAMILIES`; single instance, changed in place until
            ``handle.detach()``. Several threads may call it at once, each call with its own state and cache; the
            handle reports the call that ended last. Attach and detach while none runs. A deep copy is attached too,
            through its own ``copy.ficoco_handle``.
        method: a name (``ficoco_ext.METHODS``), a :class:`Method`, :class:`Split`, :class:`Staged`,
            :class:`DecoderMethod` or :class:`Combined`, or a sequence with one for each layer.
        r, keep_ratio, tokens: exactly one, as in :meth:`Schedule.build`: tokens removed in each layer; visual tokens
            kept at the end as a ratio, or one after each layer; or as a number. In the tower that is of every image, or
            of every crop of LLaVA-NeXT, whose thumbnail is one; in the language model of every row of the prompt, all
            its images together. A row with fewer visual tokens than are to be removed loses all but one, one with no
            more than are to be kept loses none. The presets (``"balanced"``), FastV and PyramidDrop have an amount of
            their own and need none.
            After the projector: ``keep_ratio``, or ``tokens`` of every picture, video, or tile that the model encodes
            alone, also as a function of its grid (rows, columns), which gets None where that is not known. Ends of
            lines stay and are not counted. A picture with fewer tokens keeps all of them, and that is said once.
        layers: layers that reduce, ascending. None in the tower: the second half up to the layer whose output the
            language model gets, 12 to 22 in LLaVA-1.5; the last of these for ``"pool"`` and ``"prumerge"``. None in the
            language model: the method's own, for FiCoCo-L from an eighth of the layers on, 4 to 31 of 32.
        vision, projector, decoder: with a method of several parts, ``r``, ``keep_ratio`` or ``tokens``, and ``layers``,
            of each, such as ``vision={"tokens": 288}, decoder={"r": 14}``. Without them ``keep_ratio`` or ``tokens`` is
            what is left in the end of every image, and each part keeps the same share of what it gets.
        positions: of the tokens that tower and projector leave. ``"original"``: those of the full prompt, which keeps
            where in the picture a token was; the default after the projector. ``"contiguous"``: the short prompt is
            counted from 0; the default of tower methods, and not possible with M-RoPE (Qwen-VL).
        static_counts: the caller promises that all rows of every prompt with images hold the same number of visual
            tokens: True where it follows from the number of images (LLaVA-1.5), or that number, of those that reach the
            language model after tower and projector. Then a prefill reads no
            device and has no shape that depends on data, so ``torch.compile(fullgraph=True)`` traces it. Prompts must
            end with text.
        cache: what layers of the language model keep of a prompt that is read. ``"staircase"``: each layer all that it
            attended to while it read. ``"output-aware"``: from the first reducing layer on, which must not be layer 0,
            every layer just the tokens that are left in the end; the first new token is the same, later ones attend to
            less. A dynamic cache gets shorter, in a static or quantized one the rest is hidden. None: what the method
            says, ``"staircase"`` for nearly all.
        words: for methods after the projector that choose by the words of the prompt, such as ``"cdpruner"``: ids that
            are not words, such as ``ficoco_ext.template_ids(processor)``, or a function of the ids (B, L) that returns
            (B, L) bool, True for words. None: all real tokens of the picture's row are, but placeholders and the
            special ones that the model's configs name. Such a picture fits that question alone; a conversation that
            goes on from its cache is warned of, once.
        padding: when patches of padding leave the vision tower of LLaVA-NeXT. ``"first"``, the default: before all
            others, and no method sees them where it chooses; so a picture keeps a number of tokens that its size
            decides, see :meth:`Handle.tokens_of`. ``"after"``: the method chooses among all patches, and padding that
            it kept is dropped after the tower; so the data decide how many are left, and one device read more tells.
        **hyperparameters: of methods given by name.

    Returns:
        A :class:`Handle`, which is also a context manager that detaches at exit.

    Raises:
        ImportError: transformers is missing or not in 5.17 ... 5.x. NotImplementedError: a model that is not supported,
        or a transformers whose classes changed. A release that is newer than the tested ones gives a warning.
        ValueError, TypeError: a value that does not fit, or a model that is attached already. The model is not changed.

    Cost: the method's own, once for each reducing layer (see :func:`ficoco_ext.reduce`). In the tower two small device
    reads for each prompt; in that of LLaVA-NeXT one, another for ``image_sizes`` on the device, and another for
    ``padding="after"``; after the projector and in the language model one, or none with ``static_counts``. With nothing
    to remove the model is not changed. A method with proportional attention (``"tome"``) also adds log(size) to the
    logits of each key in the layers after its reductions; flash attention cannot do that and is refused.
    Source: FiCoCo, arXiv 2411.17686.

    Example:
        >>> import ficoco_ext
        >>> with ficoco_ext.attach(model, "ficoco-v", tokens=144) as handle:  # doctest: +SKIP
        ...     output = model.generate(**processor(images=image, text=prompt, return_tensors="pt"))
        ...     patches = handle.reductions[-1].patch_ids
    """
    plan = _resolve(
        model,
        method,
        hyperparameters,
        r=r,
        layers=layers,
        keep_ratio=keep_ratio,
        tokens=tokens,
        parts={"vision": vision, "projector": projector, "decoder": decoder},
        positions=positions,
        static_counts=static_counts,
        cache=cache,
        words=words,
        padding=padding,
    )
    return _install(model, plan)


def resolve(
    model: Any,
    method: str | AnyMethod | Sequence[str | AnyMethod] = "ficoco-v",
    *,
    r: int | Sequence[int] | None = None,
    layers: Iterable[int] | None = None,
    keep_ratio: float | Sequence[float] | None = None,
    tokens: int | Callable[[tuple[int, int] | None], int] | None = None,
    vision: Mapping[str, Any] | None = None,
    projector: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
    positions: Literal["original", "contiguous"] | None = None,
    static_counts: bool | int = False,
    cache: Literal["staircase", "output-aware"] | None = None,
    words: Callable[[Any], Any] | Sequence[int] | None = None,
    padding: Literal["first", "after"] | None = None,
    **hyperparameters: Any,
) -> AttachPlan:
    """What :func:`attach` would do to ``model`` with these arguments. The model is not touched.

    Returns:
        An :class:`AttachPlan`, a value that holds nothing of the model; ``print`` shows which method removes how many
        tokens in which layer. ``attach(...).attach_plan`` is equal to it.

    Raises:
        ImportError, NotImplementedError, ValueError, TypeError: as ``attach``, and for a model that is attached.

    Example:
        >>> from ficoco_ext.models import resolve
        >>> print(resolve(model, "ficoco-vl", keep_ratio=0.25))  # doctest: +SKIP
    """
    return _resolve(
        model,
        method,
        hyperparameters,
        r=r,
        layers=layers,
        keep_ratio=keep_ratio,
        tokens=tokens,
        parts={"vision": vision, "projector": projector, "decoder": decoder},
        positions=positions,
        static_counts=static_counts,
        cache=cache,
        words=words,
        padding=padding,
    )


def _resolve(model: Any, method: Any, hyperparameters: Mapping[str, Any], **arguments: Any) -> AttachPlan:
    """Check what is installed and the model, read its facts once, and decide."""
    _require_transformers()
    if hasattr(model, "ficoco_handle"):
        checks.fail(OP, "model", "one without reduction", f"{model.ficoco_handle}", "call its detach() first")
    family = family_of(model)
    _require_known(family)
    request = Request.of(method, hyperparameters, **arguments)
    check_parts(model, family, tower=request.tower is not None, language_model=request.decoder is not None)
    if request.projector is not None:
        check_crops(model, family, request.projector)
    plan = make_plan(read_facts(model, family), request)
    key_sets.check(model, family, plan)
    return plan


def _install(model: Any, plan: AttachPlan) -> Handle:
    """Change the model as planned; a part that removes nothing is left alone."""
    handle = Handle(model, plan)
    changes, tie = handle._changes, QuestionTie(plan)
    try:
        changes.set(model, "ficoco_handle", handle)
        if plan.changes_language_model:
            language_model = getattr(model.model, family_of(model).language_model)
            handle._decoder = DecoderReduction(model, language_model, plan, tie)
            handle._decoder.install(changes)
        if plan.schedule is not None and plan.removed:
            assert plan.facts.tower is not None
            tower, facts = model.model.vision_tower, plan.facts.tower
            pictures = None if plan.facts.crops is None else CropPictures()
            handle._tower = vision_tower.install(
                tower, plan.schedule, plan.methods, facts, changes, pictures, plan.padding_first
            )
        _cut_prompts(model, plan, handle, tie)
        _read_key_sets(model, plan, handle)
    except BaseException:
        handle.detach()
        raise
    return handle


def _cut_prompts(model: Any, plan: AttachPlan, handle: Handle, tie: QuestionTie) -> None:
    """Make prompts as short as what tower and projector leave of each picture."""
    changes, family = handle._changes, family_of(model)
    if plan.cuts_by_features:
        tower, packing = handle._tower, None
        if tower is not None and tower.pictures is not None:
            packing = CropPacking(model.model, tower.pictures, tower, plan.tokens_of)
        handle._features = ProjectorReduction(model, family, plan, tower, packing)
        handle._features.install(changes)
        cutter = FeatureCutter(model, family, plan, handle._features, tie)
        cutter.install(changes)
        ShortPrompts(model, cutter).install(changes)
    elif plan.removed:
        assert plan.facts.tower is not None
        ShortPrompts(model, CountCutter(model, plan.facts.tower, plan.removed, family.token_types)).install(changes)


def _read_key_sets(model: Any, plan: AttachPlan, handle: Handle) -> None:
    """Read in the vision tower which tokens the language model keeps longest, if a method asks for that."""
    share = key_sets.share_of(plan)
    if share:
        assert handle._decoder is not None
        keys = KeySets(model, family_of(model), share, handle._tower)
        keys.install(handle._changes)
        handle._decoder.keys = keys
        if handle._features is not None:
            handle._features.keys = keys


def _require_transformers() -> None:
    wanted = f"transformers >= {_OLDEST[0]}.{_OLDEST[1]}, < {_BELOW[0]}"
    try:
        from transformers import __version__ as version
    except ImportError as error:
        message = f'ficoco::attach: needs {wanted}, which is not installed; pip install "ficoco_ext[hf]"'
        raise ImportError(message) from error
    found = release.version()
    if found is None or not _OLDEST <= found < _BELOW:
        raise ImportError(f'ficoco::attach: needs {wanted}, got {version}; pip install "ficoco_ext[hf]"')


def _require_known(family: Family) -> None:
    """Raise unless the installed transformers has the family as we know it; warn about an untested release."""
    from transformers import __version__ as version

    tested = f"{release.TESTED_OLDEST} to {release.TESTED_NEWEST}"
    reason = release.structure_problem(family)
    if reason is not None:
        changed = f"transformers changed {family.name}; {version} is installed, {tested} were tested; {release.REMEDY}"
        raise NotImplementedError(f"ficoco::attach: {reason}; {changed}")
    if release.newer_than_tested():
        message = (
            f"ficoco::attach: transformers {version} is newer than those that were tested, {tested}; it looks alike"
        )
        warnings.warn(f"{message}, but if answers are odd, {release.REMEDY}", stacklevel=4)
