"""``pipeline("image-text-to-text")`` around an attached model: one chat, and several in a batch."""

import pytest
from helpers.embedded import embedded, one_thread  # noqa: F401

import ficoco_ext
from ficoco_ext.apps import checkpoint

METHODS = {"ficoco-v": {"keep_ratio": 0.3}, "prune-then-merge": {"keep_ratio": 0.25}, "fastv": {"keep_ratio": 0.5}}
KNOWN = [("scene_6.png", "what color is the cross ?", "green"), ("scene_4.png", "what word is written ?", "taxi")]


def chat(scene, question):
    content = [{"type": "image", "image": checkpoint.open_image(checkpoint.SCENES / scene)}]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


@pytest.mark.parametrize("method", METHODS)
def test_chats(method, monkeypatch):
    from transformers import pipeline

    model, processor = embedded().model, embedded().processor
    monkeypatch.setattr(processor.tokenizer, "padding_side", "left")  # as for any batch that is answered
    asked = [chat(scene, question) for scene, question, _ in KNOWN]
    options = {"max_new_tokens": 1, "return_full_text": False, "do_sample": False}
    with ficoco_ext.attach(model, method, **METHODS[method]) as handle:
        ask = pipeline("image-text-to-text", model=model, processor=processor)
        one_by_one = [ask(text=one, **options)[0]["generated_text"] for one in asked]
        together = [one[0]["generated_text"] for one in ask(text=asked, batch_size=2, **options)]
        assert handle.reductions or len(handle.decoder_reductions) == 2
    assert [one.split()[0] for one in one_by_one] == [answer for *_, answer in KNOWN]
    assert together == one_by_one
