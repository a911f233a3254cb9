"""Gradient checkpointing with a reduced tower: layers are computed again in the backward pass, and nothing changes."""

import threading

import pytest
import torch
from helpers import next_tower, tiny_families
from helpers.models import one_image, one_thread, tiny_llava  # noqa: F401
from helpers.tiny_prompts import prompt, words

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


TOWERS = {"llava-clip": tiny_families.BY_NAME["llava-clip"], "llava-next": next_tower.CLIP}
BOTH = pytest.mark.parametrize("reentrant", [False, True])
SEVERAL = [  # in "tome" a layer after these has proportional attention without a reduction
    ("llava-clip", "tome", (0,)),
    ("llava-clip", "ficoco-v", (0, 1)),
    ("llava-next", "tome", (2,)),
    ("llava-next", "tome", (1, 3)),
    ("llava-next", "ficoco-v", (1, 3)),
]


def two_prompts(family):
    """Of one picture and of two, whose labels are all their words."""
    first, second = family.pictures[0], family.pictures[-1]
    one = prompt(family, [[*words(2), first, *words(9)]], 1)
    return one, prompt(family, [[*words(2), second, *words(9)], [*words(3), first, *words(8)]], 2)


def all_gradients(model, run, checkpointing):
    """Gradients of all weights after ``run(model)`` and its backward pass, with or without checkpointing."""
    model.zero_grad()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        model.enable_input_require_grads()
        run(model).backward()
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()
    else:
        run(model).backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def joint(one, other):
    """The sum of both losses."""
    return lambda model: sum(model(**each.inputs, labels=each.labels()).loss for each in (one, other))


def looked_at(one, other):
    """The loss of one; the other is only looked at before the backward pass."""

    def run(model):
        loss = model(**one.inputs, labels=one.labels()).loss
        with torch.no_grad():
            model(**other.inputs)
        return loss

    return run


def failed_between(one, other):
    """The loss of one; a call of the other fails in the middle of the tower before the backward pass."""

    def run(model):
        loss = model(**one.inputs, labels=one.labels()).loss
        hook = model.model.vision_tower.encoder.layers[1].mlp.register_forward_pre_hook(stop)
        with pytest.raises(RuntimeError, match="stopped"):
            model(**other.inputs)
        hook.remove()
        return loss

    return run


def stop(*args):
    raise RuntimeError("stopped")


@pytest.mark.parametrize("calls", [joint, looked_at, failed_between], ids=lambda calls: calls.__name__)
@BOTH
@pytest.mark.parametrize(("name", "method", "layers"), SEVERAL, ids=str)
def test_other_calls_before_the_backward_pass(name, method, layers, reentrant, calls):
    """Each layer is computed again with what the layers before it left in its own pass."""
    family = TOWERS[name]
    model, run = family.model().train(), calls(*two_prompts(family))
    with ficoco_ext.attach(model, method, r=3, layers=layers) as handle:
        wanted = all_gradients(model, run, None)
        before = [one.patch_ids for one in handle.reductions]
        got = all_gradients(model, run, {"use_reentrant": reentrant})
        assert [one.patch_ids.tolist() for one in handle.reductions] == [one.tolist() for one in before]
    assert got.keys() == wanted.keys()
    assert any(weight.abs().max() > 0 for name, weight in wanted.items() if "vision_tower" in name)
    for name, weight in wanted.items():
        torch.testing.assert_close(got[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TOWERS)
def test_the_backward_pass_of_another_thread_after_another_call(name):
    family = TOWERS[name]
    model, prompts = family.model().train(), two_prompts(family)
    with ficoco_ext.attach(model, "tome", r=3, layers=(0,)):
        wanted = all_gradients(model, looked_at(*prompts), None)

        class Elsewhere:
            def __init__(self, loss):
                self.loss = loss

            def backward(self):
                thread = threading.Thread(target=self.loss.backward)
                thread.start()
                thread.join()

        got = all_gradients(model, lambda model: Elsewhere(looked_at(*prompts)(model)), {"use_reentrant": False})
    assert got.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(got[name], weight, rtol=1e-4, atol=1e-6)
