"""Questions as batches: prompts made once for all settings, greedy answers, judging."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..apps.checkpoint import Checkpoint
from ..gridvqa.vocabulary import vocabulary
from ..io.suggest import did_you_mean
from ..judging import contained, exact
from .data import Questions
from .sharing import SharedPictures, can_share, needs_pixels, reads_text

Judge = Callable[[str, str], bool | None]
Tick = Callable[[int], None]

_CHUNK = 64  # pictures whose features are held at once
_CACHED_BYTES = 2**30  # of preprocessed pictures
_FEW = 4  # questions to warm up with


JUDGES: dict[str, Judge] = {"exact": exact, "contained": contained}
RULES = {"contained": 3}  # of judges whose rules have changed: runs judged by others are not continued


@dataclass(frozen=True)
class Asking:
    """How the model is asked and judged; see :meth:`of` for what None stands for."""

    judge: Judge
    max_new_tokens: int
    batch: int = 32

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        judge: str | Judge | None = None,
        max_new_tokens: int | None = None,
        batch: int = 32,
    ) -> Asking:
        """With the defaults of a checkpoint: one exact word from a model of grid scenes, else as the demo asks.

        Raises:
            ValueError: an unknown judge, or a number below 1.
        """
        if isinstance(judge, str) and judge not in JUDGES:
            near = did_you_mean(judge, JUDGES)
            raise ValueError(
                f"judge must be one of {', '.join(JUDGES)}, or a function (answer, truth), got {judge!r}{near}"
            )
        for name, value in (("max_new_tokens", max_new_tokens), ("batch", batch)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if judge is None:
            judge = "exact" if checkpoint.embedded else "contained"
        length = (1 if checkpoint.embedded else 48) if max_new_tokens is None else max_new_tokens
        return cls(JUDGES[judge] if isinstance(judge, str) else judge, length, batch)


def with_embedded_rules(checkpoint: Checkpoint) -> Checkpoint:
    """A model of grid scenes, recognised by its tokenizer, is asked and judged as the embedded one."""
    known = checkpoint.processor.tokenizer.get_vocab()
    return replace(checkpoint, embedded=checkpoint.embedded or all(word in known for word in vocabulary()))


class Prompts:
    """The prompts of all questions, tokenized, and the pictures, preprocessed, once for all settings.

    Args:
        checkpoint: who is asked.
        asked: what.
    """

    def __init__(self, checkpoint: Checkpoint, asked: Questions) -> None:
        self.checkpoint, self.asked = checkpoint, asked
        self._pixels: dict[int, Tensor] = {}
        self._texts = [checkpoint.prompt(checkpoint.spelled(item.question)) for item in asked.items]
        first = self.processed([0])
        image = getattr(checkpoint.model.config, "image_token_id", None)
        self.ids: list[list[int]] = []
        self.visual = int((first["input_ids"] == image).sum())
        if can_share(checkpoint.model):
            self.ids = [_expanded(row, image, self.visual) for row in self._tokenized()]
        # Text and pictures apart must be what the processor makes of both together; otherwise it is used for both.
        known = ("input_ids", "attention_mask", "pixel_values")
        self.shares = bool(self.ids) and self.ids[0] == first["input_ids"][0].tolist() and set(first) <= set(known)

    @cached_property
    def text_tokens(self) -> tuple[int, int]:
        """Tokens of a prompt besides the visual ones, and those of them after the picture: means, rounded."""
        image = getattr(self.checkpoint.model.config, "image_token_id", None)
        rows, placeholders = (self.ids, self.visual) if self.shares else (self._tokenized(), 1)
        mean = round(sum(map(len, rows)) / len(rows)) - placeholders
        before = rows[0].index(image) if image in rows[0] else 0
        return mean, max(mean - before, 0)

    def _tokenizer(self, text: str) -> Any:
        tokenizer = self.checkpoint.processor.tokenizer
        return tokenizer(text, add_special_tokens=self._special(text))

    def _special(self, text: str) -> bool:
        return not text.startswith(self.checkpoint.processor.tokenizer.bos_token or "\0")

    def _tokenized(self) -> list[list[int]]:
        return [list(self._tokenizer(text).input_ids) for text in self._texts]

    def processed(self, which: Sequence[int]) -> dict[str, Any]:
        """The questions with the numbers ``which`` as the processor makes them, padded on the left."""
        images = [self.asked.open(self.asked.items[i].picture) for i in which]
        texts = [self._texts[i] for i in which]
        options = {"padding": True, "padding_side": "left"} if len(which) > 1 else {}
        batch = self.checkpoint.processor(
            images=images, text=texts, return_tensors="pt", add_special_tokens=self._special(texts[0]), **options
        )
        return dict(batch.to(self.checkpoint.model.device, self.checkpoint.model.dtype))

    def pixels(self, pictures: Sequence[int]) -> Tensor:
        """(P, 3, height, width) preprocessed; kept up to a limit."""
        processor = self.checkpoint.processor.image_processor
        found = []
        for picture in pictures:
            one = self._pixels.get(picture)
            if one is None:
                one = processor(images=self.asked.open(picture), return_tensors="pt")["pixel_values"]
                if (len(self._pixels) + 1) * one.nbytes <= _CACHED_BYTES:
                    self._pixels[picture] = one
            found.append(one)
        return torch.cat(found)

    def warm(self) -> None:
        """Preprocess what can be kept, so that no setting's time has it."""
        if self.shares:
            for picture in range(len(self.asked.pictures)):
                if picture not in self._pixels:
                    self.pixels([picture])
                    if picture not in self._pixels:
                        return

    def chunks(self) -> Iterator[tuple[list[int], list[int]]]:
        """Some pictures at a time, and all questions about them, short prompts first."""
        about: list[list[int]] = [[] for _ in self.asked.pictures]
        for number, item in enumerate(self.asked.items):
            about[item.picture].append(number)
        for start in range(0, len(about), _CHUNK):
            pictures = list(range(start, min(start + _CHUNK, len(about))))
            numbers = [number for picture in pictures for number in about[picture]]
            yield pictures, sorted(numbers, key=lambda number: (len(self.ids[number]), number))


def _expanded(row: list[int], image: Any, visual: int) -> list[int]:
    """The row with ``visual`` placeholders for each one."""
    return [token for one in row for token in ([one] * visual if one == image else [one])]


def answers(prompts: Prompts, asking: Asking, tick: Tick = lambda number: None) -> list[str]:
    """Greedy answers to all questions by the model as it is now, with or without reduction attached.

    Questions go in batches, and a picture goes through the tower once, unless the method that is attached reads the
    question before it chooses, which ties what is left of a picture to one. What is said is what
    :meth:`ficoco_ext.apps.checkpoint.Checkpoint.answer` says to one question alone.

    Args:
        prompts: what is asked, of whom.
        asking: longest answer and size of a batch.
        tick: gets the number of questions answered, after each batch.
    """
    found = [""] * len(prompts.asked.items)
    run = _plain
    if prompts.shares:
        model = prompts.checkpoint.model
        run = _each if reads_text(model) or needs_pixels(model) else _shared
    for numbers, said in run(prompts, asking):
        for number, text in zip(numbers, said, strict=True):
            found[number] = text
        tick(len(numbers))
    return found


def warm_up(prompts: Prompts, asking: Asking) -> None:
    """Answer a few questions, so that the first setting's time does not have what is done once a process."""
    items = prompts.asked.items[:_FEW]
    pictures = prompts.asked.pictures[: 1 + max(item.picture for item in items)]
    answers(Prompts(prompts.checkpoint, replace(prompts.asked, items=items, pictures=pictures)), asking)


def _shared(prompts: Prompts, asking: Asking) -> Iterator[tuple[list[int], list[str]]]:
    model, items = prompts.checkpoint.model, prompts.asked.items
    for pictures, numbers in prompts.chunks():
        with SharedPictures(model, prompts.pixels(pictures)) as shared:
            for start in range(0, len(numbers), asking.batch):
                part = numbers[start : start + asking.batch]
                shared.rows = [items[number].picture - pictures[0] for number in part]
                inputs = _texts(prompts, part) | {"pixel_values": shared.pixel_values()}
                yield part, _generated(prompts.checkpoint, inputs, asking.max_new_tokens)


def _each(prompts: Prompts, asking: Asking) -> Iterator[tuple[list[int], list[str]]]:
    """Every question with a picture of its own, so that it is encoded and reduced for this question."""
    model, items = prompts.checkpoint.model, prompts.asked.items
    for _, numbers in prompts.chunks():
        for start in range(0, len(numbers), asking.batch):
            part = numbers[start : start + asking.batch]
            pixels = prompts.pixels([items[number].picture for number in part])
            inputs = _texts(prompts, part) | {"pixel_values": pixels.to(model.device, model.dtype)}
            yield part, _generated(prompts.checkpoint, inputs, asking.max_new_tokens)


def _texts(prompts: Prompts, part: Sequence[int]) -> dict[str, Tensor]:
    """The prompts of the questions ``part`` as one batch."""
    ids, mask = _padded([prompts.ids[number] for number in part], _pad(prompts.checkpoint))
    device = prompts.checkpoint.model.device
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _plain(prompts: Prompts, asking: Asking) -> Iterator[tuple[list[int], list[str]]]:
    for start in range(0, len(prompts.asked.items), asking.batch):
        part = list(range(start, min(start + asking.batch, len(prompts.asked.items))))
        yield part, _generated(prompts.checkpoint, prompts.processed(part), asking.max_new_tokens)


def _generated(checkpoint: Checkpoint, inputs: dict[str, Any], length: int) -> list[str]:
    with torch.inference_mode():
        output = checkpoint.model.generate(
            **inputs, max_new_tokens=length, do_sample=False, pad_token_id=_pad(checkpoint)
        )
    new = output[:, inputs["input_ids"].shape[1] :]
    decoded = checkpoint.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [str(text).strip() for text in decoded]


def _pad(checkpoint: Checkpoint) -> int:
    """An id for masked positions and for those after an answer's end."""
    tokenizer = checkpoint.processor.tokenizer
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return 0 if found is None else int(found)


def _padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows on the left of which something is missing, and the mask that says so."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
