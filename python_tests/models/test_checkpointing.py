"""Gradient checkpointing with a reduced tower: layers are computed again in the backward pass, and nothing changes."""

import threading

import pytest
import torch
from helpers.models import one_image, tiny_llava

import ficoco_ext


def gradients(model, checkpointing=None):
    """Gradients of the tower's weights, and how often each layer was checkpointed."""
    counts = {}
    model.train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    layers = model.model.vision_tower.encoder.layers
    for index, layer in enumerate(layers):
        if checkpointing is not None:
            layer._gradient_checkpointing_func = counted(counts, index, layer._gradient_checkpointing_func)
    inputs = one_image()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    found = {name: weight.grad for name, weight in layers.named_parameters() if weight.grad is not None}
    return found, counts


def counted(counts, index, function):
    def call(*args, **kwargs):
        counts[index] = counts.get(index, 0) + 1
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("method", "layers"), [("ficoco-v", [1, 3]), ("tome", [0, 2])])
def test_gradients_are_those_without_checkpointing(method, layers, reentrant):
    plain, checkpointed = tiny_llava(), tiny_llava()
    for model in (plain, checkpointed):
        ficoco_ext.attach(model, method, layers=layers, tokens=16)
    wanted, _ = gradients(plain)
    if reentrant:
        checkpointed.enable_input_require_grads()
    got, counts = gradients(checkpointed, {"use_reentrant": reentrant})
    assert set(layers) <= set(counts) and set(counts.values()) == {1}
    assert got.keys() == wanted.keys() and any(weight.abs().max() > 0 for weight in wanted.values())
    for name, weight in wanted.items():
        torch.testing.assert_close(got[name], weight, rtol=1e-5, atol=1e-7)


def test_a_backward_pass_may_run_in_another_thread():
    """As it does on a GPU; the pass that it computes again was another thread's."""
    model = tiny_llava().train()
    ficoco_ext.attach(model, "tome", layers=[0, 2], tokens=16)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inputs = one_image()
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    failed = []

    def backward():
        try:
            loss.backward()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert failed == []
    assert model.model.vision_tower.encoder.layers[0].mlp.fc1.weight.grad.abs().max() > 0
