"""PEFT: LoRA put on before or after ``attach``, merged while attached, and trained."""

import copy

import pytest
import torch
from helpers import clients
from helpers.decoder import tiny
from helpers.models import one_thread  # noqa: F401

import ficoco_ext

peft = clients.need("peft")


def lora(model, start=False):
    """``model`` in a ``PeftModel``, with a LoRA whose weights are not zero unless it is the start of a training."""
    config = peft.LoraConfig(
        r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=start or False, lora_dropout=0.0
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return peft.get_peft_model(model, config).eval()


def logits(model):
    with torch.no_grad():
        return model(**clients.INPUTS).logits


@clients.every_method
def test_before_and_after_attach(method):
    wrapped = lora(tiny())
    full = logits(wrapped)
    with torch.no_grad():
        answer, kept = clients.reduced(wrapped.get_base_model(), method)
        assert torch.allclose(answer, clients.by_hand(wrapped.get_base_model(), method, kept), atol=1e-4)
    assert torch.equal(logits(wrapped), full)

    model = tiny()
    without = clients.reduced(model, method)[0]
    assert not torch.allclose(answer, without, atol=0.1)  # the LoRA changes answers
    with clients.attach(model, method) as handle:
        late = lora(model)
        assert torch.equal(logits(late), answer)
        with late.disable_adapter():
            assert torch.equal(logits(late), without)
        handle.detach()
        assert torch.equal(logits(late), full)


@clients.every_method
def test_generate_through_the_wrapper(method):
    wrapped = lora(tiny())
    merged = copy.deepcopy(wrapped).merge_and_unload()
    options = {"max_new_tokens": 4, "do_sample": False}
    with clients.attach(merged, method):
        wanted = merged.generate(**clients.INPUTS, **options)
    with clients.attach(wrapped.get_base_model(), method):
        assert torch.equal(wrapped.generate(**clients.INPUTS, **options), wanted)


@clients.every_method
def test_merged_while_attached(method):
    model = tiny()
    with clients.attach(model, method) as handle:
        wrapped = lora(model)
        answer = logits(wrapped)
        merged = wrapped.merge_and_unload()
        assert merged is model and torch.allclose(logits(merged), answer, atol=1e-4)
        kept = clients.kept_by(handle)
        handle.detach()
        with torch.no_grad():
            assert torch.allclose(clients.by_hand(merged, method, kept), answer, atol=1e-4)


def test_the_wrapper_itself_is_refused():
    with pytest.raises(NotImplementedError, match=r"got PeftModel; .*get_base_model\(\)"):
        ficoco_ext.attach(lora(tiny()), "topk", keep_ratio=0.5)


@clients.every_method
def test_training(method):
    """The loss falls, no weight of the model moves, and the gradient is that of the layers called by hand."""
    wrapped, losses = lora(tiny(), start=True), []
    model = wrapped.get_base_model()
    frozen = {name: weight.clone() for name, weight in model.state_dict().items() if "lora_" not in name}
    labels = clients.INPUTS["input_ids"].masked_fill(clients.INPUTS["input_ids"] == model.config.image_token_id, -100)
    trained = [weight for weight in wrapped.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=0.02)
    with clients.attach(model, method) as handle:
        wrapped.train()
        for _ in range(6):
            optimiser.zero_grad()
            loss = wrapped(**clients.INPUTS, labels=labels).loss
            loss.backward()
            losses.append(loss.item())
            optimiser.step()
        loss = wrapped(**clients.INPUTS, labels=labels).loss
        kept = clients.kept_by(handle)
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(weight, frozen[name]) for name, weight in model.state_dict().items() if name in frozen)
    logits = clients.by_hand(model, method, kept)[0]
    says = torch.cat([logits[:1], logits[-4:-1]])  # before the image, and the three words after it
    wanted = torch.nn.functional.cross_entropy(says, torch.tensor([clients.ROW[1], *clients.ROW[-3:]]))
    assert torch.allclose(loss, wanted, atol=1e-5)
    gradients = (torch.autograd.grad(one, trained, allow_unused=True) for one in (loss, wanted))
    used = 0
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)  # the model does not use the tower's last layer
        if one is not None:
            used += 1
            assert torch.allclose(one, other, atol=1e-4 * float(other.abs().max()))
    assert used == 2 * 2 * (5 + 4)
