"""``transformers.Trainer`` around a reduced model, and gradients down to the pixels."""

import torch
from helpers import clients
from helpers.decoder import tiny
from helpers.models import batch, one_thread  # noqa: F401

clients.need("accelerate")


def labelled(model, seed):
    inputs = batch(clients.ROW, seed=seed)
    return inputs | {
        "labels": inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    }


@clients.every_method
def test_a_few_steps(method, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = tiny()
    samples = [{name: value[0] for name, value in labelled(model, seed).items()} for seed in range(4)]
    options = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 5e-3, "logging_steps": 1}
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    arguments = TrainingArguments(tmp_path, **options, **quiet)
    with clients.attach(model, method) as handle:
        trainer = Trainer(model, arguments, train_dataset=samples)
        trainer.train()
        rows = [one.kept for one in handle.reductions] or [
            torch.cat([row[0].kept for row in handle.decoder_reductions])
        ]
        assert [tuple(one.shape) for one in rows] == [(2, {"topk": 19, "fastv": 23}[method])]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < 0.7 * losses[0]


@clients.every_method
def test_gradients_of_pixels_are_those_of_the_layers_called_by_hand(method):
    model = tiny()
    inputs = clients.INPUTS | {"pixel_values": clients.INPUTS["pixel_values"].clone().requires_grad_()}
    with clients.attach(model, method) as handle:
        logits = model(**inputs).logits
        kept = clients.kept_by(handle)
    [found] = torch.autograd.grad(logits[:, -1].logsumexp(-1).sum(), inputs["pixel_values"])
    by_hand = clients.by_hand(model, method, kept, inputs["pixel_values"])
    [wanted] = torch.autograd.grad(by_hand[:, -1].logsumexp(-1).sum(), inputs["pixel_values"])
    assert wanted.abs().max() > 0 and torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))
