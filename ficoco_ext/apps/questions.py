"""Questions about pictures: the embedded ones with their answers, asking them with and without reduction, judging."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import judging
from ..models import Handle
from .checkpoint import SCENES, Checkpoint, open_image


@dataclass(frozen=True)
class Question:
    """One question, of what kind it is, and its answer if that is known."""

    question: str
    kind: str = "free"
    truth: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the model said to one question with all tokens and with few.

    ``right``: None where no truth is known, or where it cannot be decided whether the answer says it.
    """

    question: str
    kind: str
    truth: str | None
    all_tokens: str
    reduced: str
    all_tokens_right: bool | None
    reduced_right: bool | None


@dataclass(frozen=True)
class Samples:
    """How many of all embedded sample questions were answered right, and how many answers cannot be judged."""

    asked: int
    all_tokens_right: int
    reduced_right: int
    all_tokens_undecided: int = 0
    reduced_undecided: int = 0


def sample_questions() -> dict[str, list[Question]]:
    """Questions with known answers about each embedded scene, by file name."""
    found: dict[str, list[Question]] = {}
    for entry in json.loads((SCENES / "questions.json").read_text()):
        question = Question(entry["question"], entry["kind"], entry["answer"])
        found.setdefault(entry["image"], []).append(question)
    return found


def choose(question: str | None, checkpoint: Checkpoint, path: Path, notice: Callable[[str], None]) -> list[Question]:
    """What to ask about the picture at ``path``."""
    ours = path.resolve().parent == SCENES.resolve()
    known = sample_questions().get(path.name, []) if ours else []
    if question is None and known:
        return known
    if checkpoint.embedded and not ours:
        notice(
            "the embedded model has only ever seen synthetic scenes of coloured shapes, digits and words: on this "
            "picture its answers mean little, the tokens and the cost are real; --model takes a LLaVA-1.5 checkpoint"
        )
    general = "how many shapes ?" if checkpoint.embedded else "Describe this picture in one sentence."
    asked = checkpoint.spelled(general if question is None else question)
    if not asked.strip():
        raise ValueError("question is empty")
    if words := checkpoint.unknown(asked):
        notice(f"the model's tokenizer has no token for {', '.join(map(repr, words))}: it reads <unk> there")
    return next(([one] for one in known if one.question == asked), [Question(asked)])


def right(answer: str, truth: str | None, exact: bool) -> bool | None:
    """Whether ``answer`` is, or in a sentence says, ``truth``; None where there is none or it cannot be decided."""
    if truth is None:
        return None
    return judging.exact(answer, truth) if exact else judging.contained(answer, truth)


def ask(
    checkpoint: Checkpoint,
    attached: Callable[[], Handle],
    asked: Sequence[tuple[Any, Question]],
    length: int,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """Every question about its image with all tokens and with few; ``step`` gets the answers done and all of them."""

    def answers(before: int) -> list[str]:
        found = []
        for index, (image, one) in enumerate(asked):
            step(before + index, 2 * len(asked))
            found.append(checkpoint.answer(image, one.question, length))
        return found

    full = answers(0)
    with attached():
        few = answers(len(asked))
    exact = checkpoint.embedded
    return [
        Answer(one.question, one.kind, one.truth, a, b, right(a, one.truth, exact), right(b, one.truth, exact))
        for (_, one), a, b in zip(asked, full, few, strict=True)
    ]


def ask_all_samples(
    checkpoint: Checkpoint,
    attached: Callable[[], Handle],
    length: int,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> Samples:
    """Every question about every embedded scene; ``step`` as of :func:`ask`."""
    images = {name: open_image(SCENES / name) for name in sample_questions()}
    asked = [(images[name], one) for name, questions in sample_questions().items() for one in questions]
    answers = ask(checkpoint, attached, asked, length, step)
    full, few = [a.all_tokens_right for a in answers], [a.reduced_right for a in answers]
    return Samples(len(answers), full.count(True), few.count(True), full.count(None), few.count(None))
