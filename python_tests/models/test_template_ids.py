"""The ids that a chat template writes around a question."""

from __future__ import annotations

import pytest

import ficoco_ext
from ficoco_ext.apps import checkpoint

transformers = pytest.importorskip("transformers")


class Processor:
    """What is asked of a processor: a template, and a tokenizer whose ids are letters."""

    chat_template = "there is one"

    def __init__(self, written):
        self.written = written

    def apply_chat_template(self, chat, *, add_generation_prompt, tokenize):
        assert add_generation_prompt and not tokenize
        (message,) = chat
        assert message["role"] == "user" and [part["type"] for part in message["content"]] == ["image", "text"]
        return self.written.replace("Q", message["content"][1]["text"])

    class tokenizer:
        def __new__(cls, text, *, add_special_tokens):
            assert not add_special_tokens
            return type("Encoded", (), {"input_ids": [ord(letter) for letter in text]})


def test_what_stands_around_the_question():
    assert ficoco_ext.template_ids(Processor("bQa b")) == tuple(sorted(map(ord, {"a", "b", " "})))
    assert ficoco_ext.template_ids(Processor("Q")) == ()


def test_without_a_template_there_are_none():
    plain = Processor("xQ")
    plain.chat_template = None
    assert ficoco_ext.template_ids(plain) == ()


@pytest.mark.parametrize("written", ["x", "QxQ"])
def test_a_template_that_does_not_write_the_question_once(written):
    with pytest.raises(ValueError, match="template_ids: processor must be one whose chat template writes the question"):
        ficoco_ext.template_ids(Processor(written))


def test_of_the_embedded_model():
    processor = transformers.AutoProcessor.from_pretrained(checkpoint.EMBEDDED)
    found = ficoco_ext.template_ids(processor)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what word is written ?"}]}]
    whole = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(whole).input_ids
    question = processor.tokenizer("what word is written ?", add_special_tokens=False).input_ids
    assert set(ids) - set(found) == set(question) - set(found) and set(question) - set(found)
