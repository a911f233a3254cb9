"""The positions of a question's words and of the visual tokens in a prompt with one picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checkpoint import Checkpoint


@dataclass(frozen=True)
class WordSpans:
    """Positions in a prompt.

    Attributes:
        visual: of the visual tokens, ascending.
        words: of the tokens of each word of the question, by the word; of one that occurs twice, of the first.
    """

    visual: tuple[int, ...]
    words: dict[str, tuple[int, ...]]


def find_words(checkpoint: Checkpoint, inputs: Mapping[str, Any], question: str) -> WordSpans:
    """Find the words of ``question`` in ``inputs``, which :meth:`Checkpoint.inputs` made of it.

    A word is a run of letters, digits and underscores, or a single other character; upper and lower case are the same.

    Raises:
        NotImplementedError: a tokenizer that gives no offsets of its tokens. ValueError: the prompt does not hold
            the question as it is.

    Example:
        >>> import torch
        >>> from ficoco_ext.apps import checkpoint, word_spans
        >>> tiny = checkpoint.load(None, torch.float32, torch.device("cpu"))
        >>> picture = checkpoint.open_image(checkpoint.find_image("scene_4"))
        >>> found = word_spans.find_words(tiny, tiny.inputs(picture, "how many squares ?"), "how many squares ?")
        >>> len(found.visual), list(found.words), found.words["many"][0] - found.words["how"][0]
        (144, ['how', 'many', 'squares', '?'], 1)
    """
    ids = inputs["input_ids"][0].tolist()
    placeholder = checkpoint.model.config.image_token_id
    visual = tuple(position for position, one in enumerate(ids) if one == placeholder)
    text, tokenizer = checkpoint.prompt(question), checkpoint.processor.tokenizer
    if not tokenizer.is_fast:
        raise NotImplementedError(f"words need a tokenizer that gives offsets, got {type(tokenizer).__name__}")
    special = not text.startswith(tokenizer.bos_token or "\0")
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    short, spans = encoded["input_ids"], encoded["offset_mapping"]
    more = len(ids) - len(short)  # placeholders that the processor put in for the one in the text
    start = text.rfind(question)
    if start < 0 or [one for one in short if one != placeholder] != [one for one in ids if one != placeholder]:
        raise ValueError(f"question {question!r} cannot be found in the model's prompt as it is")
    where = [index + (more if index > short.index(placeholder) else 0) for index in range(len(short))]
    words: dict[str, tuple[int, ...]] = {}
    for match in re.finditer(r"\w+|[^\w\s]", question):
        left, right = start + match.start(), start + match.end()
        held = tuple(where[i] for i, (a, b) in enumerate(spans) if a < right and b > left)
        if held:
            words.setdefault(match.group().lower(), held)
    return WordSpans(visual, words)
