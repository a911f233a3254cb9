"""Everything that must hold of a case."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from helpers.models import snapshot
from property.build import (
    NotHereError,
    attached,
    inputs_of,
    inputs_of_row,
    limits,
    model_of,
    nothing,
    part_of,
    placeholders,
    spell,
)
from property.cases import LLAVA, NEXT, Case
from property.language import Spy, check_lengths, check_logits, check_rows, check_specified, kept_columns, same_choice
from property.layout import rows_of
from property.tower import assert_close, check_tower, specified
from property.using import BEAMS, Used, use

REFUSALS = (ValueError, TypeError, NotImplementedError)
RIGHTLY_REFUSED = {  # how a refusal begins, and when it is right
    "ficoco::attach: method must be one for another part of": (
        lambda case: case.family != LLAVA and part_of(case) != "decoder"
    ),
    "ficoco::attach: method must be one that needs no grid": (
        lambda case: case.hyperparameters.get("penalty", 1) != 1 and part_of(case) != "tower"
    ),
    "ficoco::attach: r must be at most": lambda case: "half" in limits(case),
    "ficoco::attach: keep_ratio must be such that r is at most": lambda case: "half" in limits(case),
    "ficoco::attach: tokens must be such that r is at most": lambda case: "half" in limits(case),
    "ficoco::attach: layers must be in": lambda case: case.each,  # more methods than layers
    "ficoco::generate: use_cache=False is not supported": (
        lambda case: case.cache == "none" and case.use != "forward" and part_of(case) != "tower"
    ),
}


@dataclass
class Outcome:
    """What became of a case that did not fail.

    Attributes:
        kind: "held", "refused" or "not here". reason: of the latter two.
        compared, ties: selections that were compared with others, and those that differed as equal scores do.
    """

    kind: str
    reason: str = ""
    compared: int = 0
    ties: int = 0


@dataclass
class Run:
    """One use of the reduced model, and what its handle said."""

    used: Used
    schedule: object
    plan: object
    static_counts: object
    reductions: tuple
    told: tuple
    tower_calls: list
    calls: list


def check(case: Case) -> Outcome:
    """Build the case's model, use it with and without reduction, and compare.

    Raises:
        AssertionError: something does not hold. Anything else that is raised is a failure, too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small only wait for each other
    try:
        with torch.no_grad():
            return checked(case)
    finally:
        torch.set_num_threads(threads)


def checked(case: Case) -> Outcome:
    """:func:`check`, without gradients."""
    try:
        model = model_of(case)
        inputs = inputs_of(case, model)
        copies = {name: tensor.clone() for name, tensor in inputs.items()}
        plain = use(case, model, inputs)
    except NotHereError as error:
        return Outcome("not here", str(error))
    except Exception as error:  # of the model as it is: nothing can be compared
        return Outcome("not here", f"transformers fails without reduction: {type(error).__name__}: {error}"[:110])
    before = state(model)
    outcome = Outcome("held")
    try:
        first = run(case, model, inputs)
    except REFUSALS as error:
        outcome = Outcome("refused", refusal(case, error))
    assert state(model) == before, "detach left something behind"
    assert equal(use(case, model, inputs), plain), "the detached model differs from what it was"
    assert all(torch.equal(inputs[name], copy) for name, copy in copies.items()), "an input was written"
    if outcome.kind == "refused":
        return outcome
    with attached(case, model):
        assert equal(use(case, model, inputs), first.used), "the same call gave something else"
    with attached(case, model, **nothing(case)):
        assert equal(use(case, model, inputs), plain), "with nothing to remove something changed"
    if is_read_again(case):
        check_read_again(case, model, inputs, first)
        return outcome
    try:
        check_run(case, model, inputs, first, plain, outcome)
    except AssertionError:
        if plain_holds(case, model, inputs, plain):
            raise
        return Outcome("not here", "transformers without reduction is not its language model by hand either")
    if case.use == "forward" and len(case.rows) > 1:
        for number, row in enumerate(case.rows):
            text = not any(isinstance(one, tuple) for one in row)
            if case.holes and text and case.family not in (LLAVA, NEXT):
                continue  # transformers numbers the positions of hidden words unless the call has a picture
            outcome.compared += 1
            outcome.ties += not same_alone(case, model, number, first)
    return outcome


def state(model) -> dict:
    """What attach could leave behind, without what transformers notes at every call."""
    found = {}
    for name, (names, held, hooks, config) in snapshot(model).items():
        held = {key: value for key, value in held.items() if key != "rope_deltas"}
        found[name] = (sorted(set(names) - {"rope_deltas"}), held, hooks, config)
    return found


def equal(one: Used, other: Used) -> bool:
    """Bit for bit."""
    pairs = list(zip(one.tensors(), other.tensors(), strict=True))
    return all(torch.equal(a, b) for a, b in pairs)


def refusal(case: Case, error: Exception) -> str:
    """The reason, without its numbers; it must be one of ours, and right for the case."""
    message = str(error)
    if not any(message.startswith(known) and right(case) for known, right in RIGHTLY_REFUSED.items()):
        raise error
    return re.sub(r"\d+", "#", message)[:110]


def run(case: Case, model, inputs: dict) -> Run:
    """The case's use of the reduced model."""
    tower_calls: list = []
    calls: list = []
    with attached(case, model) as handle:
        if case.family == LLAVA:
            for index, layer in enumerate(model.model.vision_tower.encoder.layers):
                body = getattr(layer.forward, "__self__", None)
                if hasattr(body, "method"):
                    body.method = Spy(body.method, tower_calls, index)
        decoder = handle._decoder
        if decoder is not None:
            decoder.methods = tuple(Spy(method, calls) for method in decoder.methods)
        used = use(case, model, inputs)
        last = None if decoder is None else decoder.last
        records = [] if last is None else [one for one in last.records if one.reduction is not None]
        calls = calls[-len(records) :] if records else []
        with_rows = [(record.rows, call) for record, call in zip(records, calls, strict=True)]
        reductions = handle.reductions
        told = handle.decoder_reductions
        plan = handle.attach_plan
    tower_calls = tower_calls[-len(reductions) :] if reductions else []
    return Run(used, plan.schedule, plan.plan, plan.static_counts, reductions, told, tower_calls, with_rows)


def plain_holds(case: Case, model, inputs: dict, plain: Used) -> bool:
    """Whether the model without reduction is its language model by hand: else this says nothing of a reduced one."""
    n, rows = rows_of(case, spell(case, placeholders(case, model)), None, None)
    try:
        check_logits(case, model, n, rows, (), None, [], plain, inputs["input_ids"].shape[1])
    except AssertionError:
        return False
    return True


def is_read_again(case: Case) -> bool:
    """Whether every step of a generation reads the prompt and reduces it in the language model again."""
    return case.cache == "none" and case.use != "forward" and part_of(case) != "tower"


def check_read_again(case: Case, model, inputs: dict, done: Run) -> None:
    """Every step gives what a call with all the ids so far gives."""
    if case.use == "beams":
        return
    length, sequences = inputs["input_ids"].shape[1], done.used.seen.sequences
    with attached(case, model):
        for step, logits in enumerate(done.used.seen.logits):
            ids = sequences[:, : length + step]
            longer = {"input_ids": ids}
            for name, new in (("attention_mask", 1), ("mm_token_type_ids", 0)):
                if name in inputs:
                    longer[name] = torch.cat([inputs[name], inputs[name].new_full((len(ids), step), new)], 1)
            wanted = model(**inputs | longer, use_cache=False).logits[:, -1]
            assert_close(case, logits, wanted, f"step {step} without a cache")


def tower_reduces(case: Case, done: Run) -> bool:
    """Whether the tower loses patches."""
    return done.schedule is not None and bool(sum(done.schedule.r)) and bool(case.pictures)


def layout(case: Case, model, done: Run):
    """The width of the prompt that the language model gets, and its rows."""
    schedule = done.schedule if tower_reduces(case, done) else None
    return rows_of(case, spell(case, placeholders(case, model)), schedule, done.plan)


def check_run(case: Case, model, inputs: dict, done: Run, plain: Used, outcome: Outcome) -> None:
    """A use of the reduced model against its parts by hand."""
    n, rows = layout(case, model, done)
    if tower_reduces(case, done):
        check_tower(case, model, rows, done.schedule, done.tower_calls, done.reductions, done.used)
        for spy, args, options, result in done.tower_calls:
            outcome.compared += 1
            outcome.ties += not same_choice(case, result, specified(spy.method, args, options))
    else:
        assert torch.equal(done.used.seen.embeds, plain.seen.embeds), "other embeddings reached the language model"
    check_rows(rows, done.told, BEAMS if case.use == "beams" else 1)
    found = check_lengths(case, n, rows, done.plan, done.used, done.static_counts)
    if case.use == "forward":
        assert done.used.seen.logits[0].shape[1] == found[-1], (
            f"{done.used.seen.logits[0].shape[1]} logits, not {found}"
        )
    length = inputs["input_ids"].shape[1]
    assert done.used.seen.sequences is None or torch.equal(
        done.used.seen.sequences[:, :length],
        inputs["input_ids"].repeat_interleave(len(done.used.seen.sequences) // len(rows), 0),
    ), "the answer does not begin with the caller's prompt"
    check_logits(case, model, n, rows, done.told, done.plan, done.calls, done.used, length)
    compared, ties = check_specified(case, done.calls)
    outcome.compared += compared
    outcome.ties += ties


def same_alone(case: Case, model, number: int, batch: Run) -> bool:
    """A row gives alone what it gives in its batch; False if scores tied, so that it kept others."""
    one = run(replace(case, cache="dynamic"), model, inputs_of_row(case, model, number))
    counts = [sum(isinstance(one, tuple) for one in row) for row in case.rows]
    first = sum(counts[:number])
    for ours, theirs in zip(one.reductions, batch.reductions, strict=False):
        if counts[number] and not torch.equal(ours.kept, theirs.kept[first : first + counts[number]]):
            return False
    n, wide = one.used.seen.embeds.shape[1], batch.used.seen.embeds.shape[1]
    row = layout(case, model, batch)[1][number]
    mine = kept_columns(one.told[0] if one.told else (), n) + row.first
    theirs = kept_columns(batch.told[number] if batch.told else (), wide)
    mine_shown, shown = row.real[mine], row.real[theirs]
    if not torch.equal(mine[mine_shown], theirs[shown]):
        return False
    got = batch.used.seen.logits[0][number]
    wanted = one.used.seen.logits[0][0][-len(mine) :][mine_shown]
    assert_close(case, got[-len(theirs) :][shown[-len(got) :]], wanted, f"row {number} alone")
    return True
