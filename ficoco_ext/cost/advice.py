"""Honest words: where reduction helps, and where it cannot."""

from __future__ import annotations

from .architecture import Architecture
from .compare import Comparison, Side
from .selection import LIMIT

_LARGE = 0.3  # a share of the time from which on something is worth a sentence


def advice(found: Comparison) -> list[str]:
    """Sentences about what reduction does to the time of ``found``, the important one first; of time with hardware."""
    return [one for one in (_gain(found), _selection(found), *_limits(found), _served(found)) if one]


def _selection(found: Comparison) -> str:
    bill = found.shown.running
    share, there = bill.reduction_share, bill.after_projector
    if not share:
        return ""
    much = f", more than the {LIMIT:.0%} that selection should cost" if share > LIMIT else ""
    if there is None or set(found.schedules._asdict().values()) - {None, found.schedules.projector}:
        return f"Selection costs {share:.2%} of the prefill's FLOPs{much}."
    operations = f"{there.total.operations / 1e9:.3g} GFLOP"
    before, after = there.pictures * there.before, there.pictures * there.after
    chosen = f"Choosing {after} of {before} tokens after the projector"
    return f"{chosen} costs {operations}, {share:.2%} of the prefill's{much}."


def _served(found: Comparison) -> str:
    vision, shape = found.schedules.vision, found.shape
    if vision is None or shape.crops == 1:
        return ""
    if shape.pinpoints:
        return _padding(shape, vision.final)
    return (
        f"attach does not reduce in the tower of {found.shape.name}, whose crops are put together after it: this is "
        "what it would cost."
    )


def _padding(shape: Architecture, left: int) -> str:
    """How much of an image stays if ``left`` patches of every crop do; "" without padding."""
    before, after, patches = shape.visual_tokens, shape.tokens_with(left), shape.tower.patches
    if shape.leaves_first(patches, patches) == {0: shape.crops}:
        return ""
    return (
        "Padding leaves the tower first, so a padded image keeps a larger share than its crops do: "
        f"{after} of {before} visual tokens ({after / before:.0%}) by {left} of {patches} patches of a crop "
        f"({left / patches:.0%})."
    )


def _of(side: Side, *parts: str) -> float:
    """The share of the time to the first token that these parts take."""
    held = side.running.parts
    total = side.running.total.seconds or 0.0
    return sum(held[part].seconds or 0.0 for part in parts if part in held) / total if total else 0.0


def _gain(found: Comparison) -> str:
    few, full = found.reduced, found.full
    if few is None or not few.ttft_ms or not full.ttft_ms or not few.answer_ms or not full.answer_ms:
        return ""
    first, answer = full.ttft_ms / few.ttft_ms, full.answer_ms / few.answer_ms
    if first < 1:
        return (
            f"Reduction does not help here: it costs more than it saves, {1 / first:.2f}x the time to the first token."
        )
    whole = f", an answer of {full.new_tokens} tokens {answer:.2f}x" if full.new_tokens > 1 else ""
    return f"By the roofline the first token comes {first:.2f}x faster{whole}. That is modelled, not measured."


def _limits(found: Comparison) -> list[str]:
    side, full = found.shown, found.full
    if side.ttft_ms is None or side.tpot_ms is None or side.answer_ms is None:
        return []
    said = []
    visual = full.running.tokens.entering
    share = visual / (visual + found.text_tokens) if visual else 0.0
    if share < _LARGE:
        said.append(
            f"Few of the prompt's tokens are visual, {visual:g} of {visual + found.text_tokens:g}: the text stays and "
            "is read at any keep ratio."
        )
    if full.running.parts["decoder"].bound == "memory":
        said.append(
            "The prompt is short: reading the weights takes longer than computing with them, and that stays the same "
            "with fewer tokens."
        )
    elif side.running.parts["decoder"].bound == "memory":
        said.append(
            "Reading the weights now takes the language model longer than computing with them; removing more tokens "
            "saves little."
        )
    decoding = 1 - side.ttft_ms / side.answer_ms
    if decoding > 1 - _LARGE:
        saved = (full.tpot_ms or 0.0) / side.tpot_ms
        said.append(
            f"Decoding takes {decoding:.0%} of an answer of {side.new_tokens} tokens. Each of them reads all weights; "
            f"a smaller cache makes it {saved:.2f}x faster, so reduction shortens the wait for the first token only."
        )
    tower = _of(side, "tower", "projector")
    if tower > _LARGE:
        said.append(
            f"The vision tower takes {tower:.0%} of the time to the first token; what is removed after it, or in the "
            "language model, does not touch it, and what is removed in the tower only its last layers."
        )
    own = _of(side, "reduction")
    if own > 0.05:
        said.append(f"The reduction itself takes {own:.0%} of the time to the first token.")
    there, decoder = side.running.after_projector, found.schedules.decoder
    if there is not None and there.before > there.after == 1:
        said.append("After the projector a single visual token of a picture is left.")
    if decoder is not None and decoder.patches > decoder.final == 1:
        last = max(step.layer for step in decoder.steps if step.r)
        said.append(f"After layer {last} of the language model a single visual token is left.")
    return said
