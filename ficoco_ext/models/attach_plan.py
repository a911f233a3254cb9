"""What ``attach`` will do to a model, decided from facts alone before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..methods import LanguageMethod, LayerMethod
from ..ops import checks
from ..resolve import (
    ProjectorPlan,
    decoder_plan,
    projector_plan,
    require_single_patches,
    require_whole_first_layer,
    tower_schedule,
)
from ..schedule import Plan, Schedule, Step
from ..stages import Crops
from ..stages.needs import GRID, WHOLE_GRID
from .facts import ModelFacts
from .model_checks import unsupported
from .padding_first import PaddingFirst
from .qk_capture import check_bias
from .request import OP, Request, Words

_EXAMPLE = 576  # visual tokens of the prompt that is printed where images differ in theirs


@dataclass(frozen=True)
class AttachPlan:
    """Which method acts in which layer, and how much it removes. A value: no module, no tensor, no model.

    ``print(plan)`` shows both staircases with their methods.

    Attributes:
        facts: what the plan was made for: the model's family, its grid of patches, its layers.
        schedule: of the vision tower, for every image; None if the tower is left alone.
        methods: one for each layer of ``schedule``.
        plan: of the language model, for any number of visual tokens; None if it is left alone.
        decoder_methods: one for each layer of ``plan``.
        projector: what leaves every picture after the projector; None if nothing does.
        positions: ``"original"``: tokens that stay after tower and projector keep the positions of the full prompt;
            ``"contiguous"``: the short prompt is counted from 0. The language model's own reductions keep positions.
        static_counts: False, or the promise that all rows of a prompt have the same number of visual tokens: True, or
            that number.
        words: which ids of a prompt are its words, as ``attach`` takes it, for a method that reads them.
        padding: when the padding of crops leaves in the tower, ``"first"`` or ``"after"``. None: pictures are no crops,
            or nothing leaves and nothing was asked for.
        cache: ``"staircase"``: a layer of the language model keeps all that it attended to while the prompt was read;
            ``"output-aware"``: from the first reducing layer on, what is left in the end.
    """

    facts: ModelFacts
    schedule: Schedule | None
    methods: tuple[LayerMethod, ...]
    plan: Plan | None
    decoder_methods: tuple[LanguageMethod, ...]
    projector: ProjectorPlan | None = None
    positions: str = "contiguous"
    static_counts: bool | int = False
    words: Words = None
    padding: str | None = None
    cache: str = "staircase"

    @property
    def padding_first(self) -> PaddingFirst | None:
        """How many patches of padding leave before all others; None where that is not asked."""
        if self.padding != "first" or not self.removed:
            return None
        assert self.facts.tower is not None and self.schedule is not None
        return PaddingFirst.of(self.facts.tower.grid, self.schedule, self.methods)

    def tokens_of(self, crops: Crops) -> int | None:
        """Tokens of a picture of these crops that the language model gets, line ends included.

        None if the data decide: padding that is to leave after the tower is among what the method chooses from, or what
        the picture holds says how many of its tokens stay.
        """
        if self.removed:
            assert self.schedule is not None
            rule = self.padding_first
            if rule is not None:
                return rule.after(crops)
            whole = all(one == crops.patches for one in crops.valid)
            return crops.after(self.schedule.final) if whole else None
        if self.projector is None:
            return crops.before
        if self.projector.method.data_decides:
            return None
        return self.projector.count(crops.tokens, None, crops) + crops.lines

    @property
    def question_readers(self) -> tuple[str, ...]:
        """The names of the methods that choose by the words of the prompt."""
        after = () if self.projector is None or not self.changes_features else (self.projector.method,)
        inside = self.decoder_methods if self.changes_language_model else ()
        return tuple(dict.fromkeys(one.name for one in (*after, *inside) if one.reads_question))

    @property
    def removed(self) -> int:
        """Patches of every image that leave in the tower."""
        return 0 if self.schedule is None else sum(self.schedule.r)

    @property
    def changes_language_model(self) -> bool:
        """Whether any prompt would lose something in the language model."""
        return self.plan is not None and self.plan.removes

    @property
    def changes_features(self) -> bool:
        """Whether any picture could lose something after the projector."""
        return self.projector is not None and self.projector.removes(2**20)

    @property
    def cuts_by_features(self) -> bool:
        """Whether a prompt can be cut only once it is known which tokens of a picture stay."""
        of_crops = self.facts.crops is not None
        return self.changes_features or (self.removed > 0 and (of_crops or self.positions == "original"))

    @property
    def per_image(self) -> int | None:
        """Visual tokens of an image that the language model gets; None if that depends on the image."""
        tower = self.facts.tower
        if tower is None or self.facts.crops is not None:
            return None
        left, whole = tower.patches + tower.extra - self.removed, not (tower.extra or self.removed)
        return left if self.projector is None else self.projector.count(left, tower.grid if whole else None)

    @property
    def picture(self) -> tuple[int, int] | None:
        """The grid of an image's visual tokens in the language model; None if they are no whole grid."""
        tower = None if self.facts.crops is not None else self.facts.tower
        return None if tower is None or tower.extra or self.removed or self.changes_features else tower.grid

    @property
    def left_alone(self) -> tuple[str, ...]:
        """For each part that is not changed, why."""
        reasons = []
        for part, given, removes in (
            ("the vision tower", self.schedule is not None, bool(self.removed)),
            ("the language model", self.plan is not None, self.changes_language_model),
        ):
            if not removes:
                why = "nothing is to be removed" if given else "the method has no part in it"
                reasons.append(f"{part} is left alone: {why}")
        if self.padding is not None and not self.removed:
            reasons[0] += f", so padding={self.padding!r} changes nothing"
        if self.projector is not None and not self.changes_features:
            reasons.append("what the projector gives is left alone: nothing is to be removed")
        return tuple(reasons)

    def __deepcopy__(self, memo: object) -> AttachPlan:
        """Itself: a copy of a function of the caller's would not be equal to it."""
        return self

    def __str__(self) -> str:
        lines = [_heading(self.facts)]
        if self.removed:
            assert self.schedule is not None
            lines += [f"vision tower, for every {_image(self.facts)}:"]
            lines += _staircase(self.schedule, self.methods, "patches")
            if self.padding is not None:
                lines.append(f"  patches of padding leave {_PADDING[self.padding]}")
        if self.changes_features:
            assert self.projector is not None
            lines += ["after the projector, for every picture:"]
            lines += [f"  {self.projector.amount} left, {self.positions} positions  {self.projector.method.name}"]
        if self.changes_language_model:
            assert self.plan is not None
            lines += self._in_language_model(self.plan)
        if self.static_counts:
            promised = "equally many" if self.static_counts is True else str(self.static_counts)
            lines.append(f"static counts: all rows of a prompt are promised to have {promised} visual tokens")
        return "\n".join([*lines, *self.left_alone])

    def _in_language_model(self, plan: Plan) -> list[str]:
        """What the language model removes, and what its cache keeps."""
        if plan.by_data:
            lines = ["language model, as many as the data decide:"]
            pairs = zip(plan.layers, self.decoder_methods, strict=True)
            lines += [f"  layer {layer:>3}: {method.name}" for layer, method in pairs]
            kept = "what is left in the end"
        else:
            what = "one image" if self.per_image else f"{_EXAMPLE} visual tokens, as an example"
            schedule = plan.schedule(self.per_image or _EXAMPLE)
            lines = [f"language model, for a prompt with {what}:"]
            lines += _staircase(schedule, self.decoder_methods, "visual tokens")
            kept = f"{schedule.final} visual tokens"
        if self.cache == "output-aware":
            where = f"in layers {plan.layers[0]} and after"
            lines.append(f"  output-aware cache: once the prompt is read it holds {kept} {where}")
        return lines

    @property
    def summary(self) -> str:
        """Methods and numbers in one line."""
        parts = []
        if self.schedule is not None:
            parts.append(f"{_names(self.methods)}, {self.schedule.patches} -> {self.schedule.final} patches")
        if self.projector is not None:
            parts.append(f"{self.projector.method.name}, {self.projector.amount} after the projector")
        if self.plan is not None:
            parts.append(f"{_names(self.decoder_methods)} in {len(self.plan.layers)} layers of the language model")
        return "; ".join(parts)

    def __repr__(self) -> str:
        return f"<AttachPlan for {self.facts.family}: {self.summary}>"


def make_plan(facts: ModelFacts, request: Request) -> AttachPlan:
    """The plan for one model: which layers reduce, by which method, and how much.

    Raises:
        ValueError, TypeError: an amount or layers that do not fit the model. NotImplementedError: something that this
            model cannot do.
    """
    schedule: Schedule | None = None
    plan: Plan | None = None
    projector: ProjectorPlan | None = None
    methods: tuple[LayerMethod, ...] = ()
    decoder_methods: tuple[LanguageMethod, ...] = ()
    known = facts.tower is not None and (facts.crops is None or request.tower is not None)
    amounts = request.amounts(facts.tower.patches if facts.tower is not None and known else 0)
    if request.tower is not None:
        assert facts.tower is not None
        schedule, methods = tower_schedule(OP, facts.tower, request.tower, amounts["vision"])
        if facts.crops is not None:
            removing = [one for step, one in zip(schedule.steps, methods, strict=True) if step.r]
            remedy = "pass part='language_model', or vision={'r': 0}, decoder={...}"
            require_single_patches(OP, facts.family, removing, remedy)
    if request.projector is not None:
        projector = projector_plan(OP, request.projector, amounts["projector"])
    if request.decoder is not None:
        alone = request.tower is None and request.projector is None
        plan, decoder_methods = decoder_plan(OP, facts.language_model, request.decoder, amounts["decoder"], alone=alone)
    positions = request.positions or ("contiguous" if projector is None else "original")
    promise = request.promise()
    padding = _padding(facts, schedule, request)
    made = AttachPlan(
        facts,
        schedule,
        methods,
        plan,
        decoder_methods,
        projector,
        positions,
        promise,
        request.words,
        padding,
        request.kept_in_cache(decoder_methods),
    )
    _check_possible(made)
    _check_positions(made, request)
    return made


def _padding(facts: ModelFacts, schedule: Schedule | None, request: Request) -> str | None:
    """When padding leaves, as asked for; ``"first"`` if nothing is, and None then where nothing leaves.

    Raises:
        ValueError: asked for where no picture has padding in the tower.
    """
    if request.tower is None or facts.crops is None:
        if request.padding is not None:
            what = "a method of another part" if request.tower is None else f"{facts.family}, whose pictures have none"
            remedy = "leave it out: it says when the padding of crops leaves the vision tower"
            checks.fail(OP, "padding", f"None for {what}", repr(request.padding), remedy)
        return None
    assert schedule is not None
    return request.padding or ("first" if sum(schedule.r) else None)


def _check_positions(plan: AttachPlan, request: Request) -> None:
    """Raise for positions that this model, or this plan, cannot have."""
    if request.positions is not None and plan.schedule is None and plan.projector is None:
        remedy = "leave it out: reductions inside the language model keep every token's position"
        checks.fail(OP, "positions", "None for a method of the language model", request.positions, remedy)
    if plan.positions == "contiguous" and plan.projector is not None and plan.facts.rope_index:
        remedy = "leave positions out: the row and the column of a token are in its position"
        unsupported("positions", f"'original' for {plan.facts.family}", "'contiguous'", remedy)


def _check_possible(plan: AttachPlan) -> None:
    """Raise for what the parts of the plan cannot do together."""
    if plan.changes_language_model:
        for one in plan.decoder_methods:
            if GRID in one.needs and plan.picture is None:
                wanted = (
                    "one that needs no grid where the visual tokens of an image are not its whole grid, line by line"
                )
                unsupported("method", wanted, f"{one.name}, which needs the grid", one.remedy(GRID))
        assert plan.plan is not None
        if plan.cache == "output-aware":
            require_whole_first_layer(OP, plan.plan.layers)
        if plan.plan.by_data and plan.static_counts:
            wanted = (
                f"False with method {_names(plan.decoder_methods)}, which decides by the data how many tokens leave"
            )
            remedy = "let a number decide, by r, keep_ratio or tokens, or attach without static_counts"
            checks.fail(OP, "static_counts", wanted, plan.static_counts, remedy)
        if plan.static_counts is True and plan.per_image is None:
            remedy = "pass the number of visual tokens in each row"
            unsupported("static_counts", "a number for this model", True, remedy)
    if plan.static_counts and plan.removed and plan.padding == "after":
        wanted = "'first' with static_counts, which promises that no device is read"
        checks.fail(OP, "padding", wanted, "'after', by which the data decide how many tokens stay", _FIRST)
    if plan.static_counts and plan.projector is not None and plan.projector.method.data_decides:
        got = f"{plan.projector.method.name} with a budget that the data decide"
        remedy = "pass budget='exact', or attach without static_counts"
        unsupported("method", "one whose numbers the host knows, with static_counts", got, remedy)
    if plan.projector is not None and plan.projector.method.resizes:
        _check_resizes(plan, plan.projector.method.name)
    if plan.facts.crops is not None and plan.schedule is not None:
        _check_crops(plan)
    if plan.schedule is not None:
        steps = zip(plan.schedule.steps, plan.methods, strict=True)
        if any(step.r and method.proportional_attention for step, method in steps):
            check_bias(OP, plan.facts.tower_attention)


def _check_crops(plan: AttachPlan) -> None:
    """Raise for what the tower of a model with crops cannot do beside another part, or with padding first."""
    assert plan.schedule is not None and plan.facts.tower is not None
    if plan.removed and plan.changes_features:
        assert plan.projector is not None
        wanted = f"one with a single part before the language model for {plan.facts.family}"
        got = f"{_names(plan.methods)} in the vision tower and {plan.projector.method.name} after the projector"
        remedy = "use one of them alone: what the tower leaves is packed with line ends, among which none may choose"
        unsupported("method", wanted, got, remedy)
    if plan.padding_first is not None:
        for step, one in zip(plan.schedule.steps, plan.methods, strict=True):
            if step.r and WHOLE_GRID in one.needs and one.places(plan.facts.tower.grid, step.after) is None:
                wanted = "one that works on any patches, or keeps the same ones of every crop"
                unsupported("method", wanted, f"{one.name}, which needs the whole grid", 'pass padding="after"')


def _check_resizes(plan: AttachPlan, name: str) -> None:
    """Raise unless the vision tower of this model can read smaller pictures, whole."""
    tower = plan.facts.tower
    if tower is None or plan.facts.crops is not None:
        remedy = "give its processor fewer pixels, such as max_pixels of Qwen-VL, or use 'stride'"
        unsupported("method", f"one that chooses among features for {plan.facts.family}", name, remedy)
    if tower.extra:
        remedy = "use 'stride', or vision_feature_select_strategy='default'"
        unsupported("method", "one that chooses among features where a class token is among them", name, remedy)
    if plan.schedule is not None:
        remedy = "use one of them alone"
        unsupported("method", f"one without a part in the vision tower beside {name}", _names(plan.methods), remedy)


def _names(methods: Iterable[LayerMethod | LanguageMethod]) -> str:
    return ", ".join(dict.fromkeys(method.name for method in methods))


_FIRST = "pass padding='first', or attach without static_counts"
_PADDING = {
    "first": "before all others, so a picture keeps a number of tokens that its size decides",
    "after": "after the tower, so the data decide how many tokens a picture keeps",
}


def _image(facts: ModelFacts) -> str:
    """What goes through the tower as one image."""
    return "image" if facts.crops is None else "crop"


def _heading(facts: ModelFacts) -> str:
    tower, decoder = facts.tower, f"{facts.language_model.layers} layers in the language model"
    if tower is None:
        return f"{facts.family}: {decoder}; the number of visual tokens depends on the image"
    height, width = tower.grid
    more = " and its class token" if tower.extra else ""
    used = f"{tower.layers} layers in the vision tower ({tower.used} used)"
    of_one = "an image" if facts.crops is None else "a crop"
    heading = f"{facts.family}: {height} x {width} = {tower.patches} patches of {of_one}{more}, {used}, {decoder}"
    return heading if facts.crops is None else f"{heading}; the number of visual tokens depends on the image"


def _staircase(
    schedule: Schedule, methods: tuple[LayerMethod, ...] | tuple[LanguageMethod, ...], unit: str
) -> list[str]:
    def line(step: Step, name: str) -> str:
        return f"  layer {step.layer:>3}: {step.before:>5} - {step.r:>4} = {step.after:>5}  {name}"

    rows = [line(step, method.name) for step, method in zip(schedule.steps, methods, strict=True)]
    return [*rows, f"  {schedule.final} of {schedule.patches} {unit} left (keep ratio {schedule.keep_ratio:.3f})"]
