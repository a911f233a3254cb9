"""The words of a prompt, for methods that choose by them which tokens of its pictures stay.

Which ids are words cannot be seen from a model alone: a chat template writes words too. So all real tokens count but
placeholders and the special ones that the configs name, and a caller can leave out more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from .attach_plan import AttachPlan


class PromptWords:
    """The words of the prompts of one call.

    Args:
        vectors: function (columns (I, n) of rows (I,)) -> their embeddings (I, n, C).
        there: (B, L) bool, which columns are words.
        visual: for each modality (B, L) bool, its placeholders.
    """

    def __init__(
        self, vectors: Callable[[Tensor, Tensor], Tensor], there: Tensor, visual: Mapping[str, Tensor]
    ) -> None:
        self.vectors, self.there, self.visual = vectors, there, visual

    def of(self, modality: str, counts: Sequence[int], times: int = 1) -> tuple[Tensor, Tensor]:
        """For each picture the words of its prompt: (I, n, C) embeddings and (I, n) bool, which of them are there.

        Waits for no device: a prompt of one row has n non-visual columns, several rows have all their columns.

        Args:
            modality: of the pictures. counts: placeholders of each of them, in the order of the prompt.
            times: how many times the pictures of each row follow one another, in any order, where ``generate`` repeats
                them for several sequences.
        """
        b, length = self.there.shape
        starts = torch.tensor([sum(counts[:number]) for number in range(len(counts))], device=self.there.device)
        ends = self.visual[modality].sum(1).cumsum(0)
        rows = torch.searchsorted(ends, starts, right=True).clamp(max=b - 1).repeat_interleave(times)
        width = max(length - sum(counts), 1) if b == 1 else length
        columns = self.there.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :width]
        flags = self.there.gather(1, columns)
        return self.vectors(columns[rows], rows), flags[rows]


class WordReader:
    """Finds the words in the prompts of one model.

    Args:
        model: the whole model. plan: what was asked for. tokens: the id of placeholders of each modality.
    """

    def __init__(self, model: Any, plan: AttachPlan, tokens: Mapping[str, int]) -> None:
        self.model, self.tokens = model, dict(tokens)
        self.chosen = plan.words if callable(plan.words) else None
        left_out = () if callable(plan.words) or plan.words is None else plan.words
        self.says_which = plan.words is not None
        self.not_words = tuple(sorted({*special_ids(model.config), *tokens.values(), *left_out}))

    def read(self, ids: Tensor, embeddings: Tensor | None, mask: Tensor | None) -> PromptWords:
        """The words of one call.

        Args:
            ids: (B, L). embeddings: (B, L, C) if the prompt was given so, and then ``ids`` hold its placeholders alone.
            mask: (B, L) of padding, or None.

        Raises:
            ValueError, TypeError: the caller said which ids are words, and gave none; or the function returns something
                else than (B, L) bool.
        """
        if embeddings is not None and self.says_which:
            remedy = "pass input_ids, or attach without words"
            checks.fail("forward", "inputs_embeds", "None with words, which are chosen by ids", embeddings, remedy)
        there = ~torch.isin(ids, torch.tensor(self.not_words, device=ids.device))
        if embeddings is not None:
            there = torch.ones_like(there)
        visual = {name: ids == token for name, token in self.tokens.items()}
        for one in visual.values():
            there = there & ~one
        if mask is not None:
            there = there & (mask != 0)
        if self.chosen is not None:
            found = self.chosen(ids)
            if not isinstance(found, Tensor) or found.dtype != torch.bool or found.shape != ids.shape:
                wanted, remedy = f"a function that returns {tuple(ids.shape)} bool", "return one flag for each id"
                checks.fail("forward", "words", wanted, found, remedy, TypeError)
            there = there & found.to(there.device)

        def vectors(columns: Tensor, rows: Tensor) -> Tensor:
            with torch.no_grad():
                if embeddings is not None:
                    return embeddings.detach()[rows.unsqueeze(1), columns]
                made: Tensor = self.model.get_input_embeddings()(ids[rows.unsqueeze(1), columns])
                return made

        return PromptWords(vectors, there, visual)


def special_ids(config: Any) -> set[int]:
    """All ids that a config and its parts name: beginnings, ends, padding, placeholders."""
    found: set[int] = set()
    for name, value in config.to_dict().items():
        part = getattr(config, name, None)
        if hasattr(part, "to_dict"):
            found |= special_ids(part)
        elif name.endswith(("_token_id", "_token_index")):
            found |= {one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, int)}
    return found


class QuestionTie:
    """Warns, once, that a conversation goes on after pictures that were cut for its first question.

    Args:
        plan: of the reduction.
    """

    def __init__(self, plan: AttachPlan) -> None:
        self.names = plan.question_readers
        self._said = False

    def warn(self, op: str) -> None:
        """A call of ``op`` brings more text after a reduced prompt."""
        if not self.names or self._said or torch.compiler.is_compiling():
            return
        self._said = True
        message = (
            f"ficoco::{op}: {', '.join(self.names)} chose the visual tokens that stay by the words of the first prompt,"
            " and this call goes on from its cache: what another question needs may have left. Pass the whole "
            "conversation again, or use a method that reads no words, such as 'divprune'"
        )
        warnings.warn(message, stacklevel=2)


def template_ids(processor: Any) -> tuple[int, ...]:
    """The ids of what a processor's chat template writes around a question: pass them to ``attach`` as ``words``.

    Args:
        processor: of transformers, with a ``tokenizer``; its chat template is asked with one picture and one question.

    Returns:
        ids, ascending; empty without a chat template. A word of the question that the template writes too is among
        them: mostly a short one, such as "a".

    Example:
        >>> from ficoco_ext import attach, template_ids
        >>> handle = attach(model, "cdpruner", tokens=64, words=template_ids(processor))  # doctest: +SKIP
    """
    if getattr(processor, "chat_template", None) is None:
        return ()
    question = "\u241f"  # the symbol for a separator, which no template writes
    content = [{"type": "image"}, {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    written = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    parts = written.split(question)
    if len(parts) != 2:
        wanted = "one whose chat template writes the question once"
        checks.fail("template_ids", "processor", wanted, f"one that writes it {len(parts) - 1} times", "pass ids")
    ids = [processor.tokenizer(part, add_special_tokens=False).input_ids for part in parts]
    return tuple(sorted({one for part in ids for one in part}))
