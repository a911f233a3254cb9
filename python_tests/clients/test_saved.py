"""What is saved of an attached model, and what is loaded into one: nothing but weights. And a larger vocabulary."""

import io

import torch
from helpers import clients
from helpers.decoder import tiny
from helpers.models import GREEDY, VOCABULARY, one_thread  # noqa: F401


def answer(model):
    return model.generate(**clients.INPUTS, **GREEDY)


@clients.every_method
def test_state_dict(method):
    model, other = tiny(seed=1), tiny(seed=2)
    full = answer(model)
    keys = list(model.state_dict())
    with clients.attach(model, method), clients.attach(other, method):
        wanted = answer(model)
        assert list(model.state_dict()) == keys and not torch.equal(answer(other), wanted)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(answer(other), wanted)
    assert torch.equal(answer(other), full)


@clients.every_method
def test_save_pretrained(method, tmp_path):
    model = tiny(seed=1)
    full = answer(model)
    with clients.attach(model, method):
        wanted = answer(model)
        model.save_pretrained(tmp_path)
    assert not any("ficoco" in file.read_text() for file in tmp_path.glob("*.json"))
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(answer(loaded), full)
    with clients.attach(loaded, method):
        assert torch.equal(answer(loaded), wanted)


@clients.every_method
def test_a_whole_model_in_a_file(method):
    model, file = tiny(seed=1), io.BytesIO()
    with clients.attach(model, method):
        torch.save(model, file)  # before the first call: transformers' own hooks cannot be pickled
        wanted = answer(model)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(answer(loaded), wanted)
    loaded.ficoco_handle.detach()
    assert torch.equal(answer(loaded), answer(model))


@clients.every_method
def test_resized_embeddings(method):
    """New words change no answer: their rows are the last ones, and far too small to be chosen."""
    model = tiny(seed=1)
    with clients.attach(model, method), torch.no_grad():
        wanted = model(**clients.INPUTS).logits
        model.resize_token_embeddings(VOCABULARY + 8)
        logits = model(**clients.INPUTS).logits
        assert logits.shape[-1] == VOCABULARY + 8 and torch.equal(logits[..., :VOCABULARY], wanted)
        new = {**clients.INPUTS, "input_ids": clients.INPUTS["input_ids"].clone()}
        new["input_ids"][0, -1] = VOCABULARY + 3
        model.get_input_embeddings().weight[VOCABULARY + 3] = model.get_input_embeddings().weight[clients.ROW[-1]]
        assert torch.equal(model(**new).logits, logits)
