"""Streamers of transformers: the text of an answer as it is made, in this thread and from another one."""

import threading

import pytest
import torch
from helpers.embedded import embedded, one_thread  # noqa: F401

import ficoco_ext
from ficoco_ext.apps import checkpoint

METHODS = {"ficoco-v": {"keep_ratio": 0.3}, "fastv": {"keep_ratio": 0.5}}
GREEDY = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def prompt():
    picture = checkpoint.open_image(checkpoint.SCENES / "scene_4.png")
    text = "<s> user : <image> what word is written ? assistant :"
    return dict(embedded().processor(images=picture, text=text, return_tensors="pt", add_special_tokens=False))


def said(prompt, skip_prompt):
    """The text that a streamer should give: of the prompt, unless that is skipped, and of the answer."""
    model, tokenizer = embedded().model, embedded().processor.tokenizer
    sequence = model.generate(**prompt, **GREEDY)[0]
    return tokenizer.decode(sequence[prompt["input_ids"].shape[1] if skip_prompt else 0 :])


@every_method
@pytest.mark.parametrize("skip_prompt", [True, False])
def test_text_streamer(method, skip_prompt, prompt, capsys):
    from transformers import TextStreamer

    model, tokenizer = embedded().model, embedded().processor.tokenizer
    with ficoco_ext.attach(model, method, **METHODS[method]):
        wanted = said(prompt, skip_prompt)
        capsys.readouterr()
        model.generate(**prompt, **GREEDY, streamer=TextStreamer(tokenizer, skip_prompt=skip_prompt))
        assert capsys.readouterr().out.split() == wanted.split()
    assert "taxi" in wanted.split()[-4:] and (wanted.count("<image>") == 144) != skip_prompt


@every_method
def test_iterator_streamer_in_another_thread(method, prompt):
    from transformers import TextIteratorStreamer

    model, tokenizer = embedded().model, embedded().processor.tokenizer
    with ficoco_ext.attach(model, method, **METHODS[method]):
        wanted = said(prompt, True)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        options = {**prompt, **GREEDY, "streamer": streamer}
        thread = threading.Thread(target=torch.inference_mode()(model.generate), kwargs=options)
        thread.start()
        pieces = list(streamer)
        thread.join()
    assert "".join(pieces).split() == wanted.split() and len(pieces) > 1
