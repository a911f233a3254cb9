"""Losses and gradients of a reduced language model: those of the sequence that is left, by hand and by the model."""

import threading

import pytest
import torch
from helpers.decoder import decoder_by_hand, reducing_layers, tiny
from helpers.families import next_inputs, qwen_inputs, tiny_next, tiny_qwen
from helpers.models import (
    PAD,
    batch,
    close,
    features,
    image,
    one_image,
    one_thread,  # noqa: F401
    spliced,
    words,
)
from torch.nn.functional import cross_entropy

import ficoco_ext

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
LAST = [*words(1, 2, 3), *image()]
TEXT = words(11, 12, 13, 14)
METHODS = {
    "fastv": {"method": "fastv"},
    "ficoco-l": {"method": "ficoco-l", "r": 9},
    "before attention": {"method": "ficoco-l", "r": 9, "before_attention": True},
    "pyramiddrop": {"method": "pyramiddrop"},
    "sparsevlm": {"method": "sparsevlm"},
    "mustdrop": {
        "method": "mustdrop",
        "part": "language_model",
        "keys": 0,
        "r": 5,
        "layers": (1, 3),
        "cache": "staircase",
    },
}
every = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def model():
    return tiny(seed=7)


def rows_by_hand(model, inputs, reductions, plan):
    """Of each row what is left: logits (n, V) of full length with what was dropped hidden, and positions (n,)."""
    pictures, found = list(features(model, inputs["pixel_values"])), []
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)):
        prompt = ids[mask].tolist()
        mine = [pictures.pop(0) for _ in range(prompt.count(3) // 36)]
        embeds = spliced(model, prompt, mine)
        padding = torch.zeros(1, int((~mask).sum()), embeds.shape[-1])
        embeds = torch.cat([padding, embeds], 1)  # where the reductions have their positions
        layers = reducing_layers(reductions[row], plan)
        positions = (mask.long().cumsum(0) - 1).clamp(min=0)[None]
        logits = decoder_by_hand(model, embeds, positions, mask, reductions[row], layers, before=plan.before_attention)
        kept = reductions[row][-1].kept[0] if reductions[row] else torch.arange(len(ids))
        kept = kept[mask[kept]]
        found.append((logits[kept], kept))
    return found


def loss_by_hand(model, inputs, labels, reductions, plan):
    """The mean over all rows of what each position that is left says about the next one."""
    total, count = 0.0, 0
    for row, (logits, kept) in enumerate(rows_by_hand(model, inputs, reductions, plan)):
        wanted = labels[row, kept[1:]]
        total = total + cross_entropy(logits[:-1], wanted, reduction="sum")
        count += int((wanted != -100).sum())
    return total / count


def answers_only(ids):
    """Labels as usual: text after the last picture."""
    return torch.where((ids == 3).flip(1).cumsum(1).flip(1) > 0, -100, ids).masked_fill(ids == PAD, -100)


LABELS = {"all ids": lambda ids: ids.clone(), "answers": answers_only}


@every
@pytest.mark.parametrize("chosen", LABELS)
@pytest.mark.parametrize("rows", [[ONE], [ONE, TWO], [TWO, ONE, TEXT], [ONE, LAST]], ids=len)
def test_the_loss_is_that_of_what_is_left(model, method, chosen, rows):
    inputs = batch(*rows)
    labels = LABELS[chosen](inputs["input_ids"])
    with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]) as handle:
        out = model(**inputs, labels=labels)
        as_tuple = model(**inputs, labels=labels, return_dict=False)
        assert torch.equal(model(**inputs).logits, out.logits)
        reductions, plan = handle.decoder_reductions, handle.plan
        assert torch.equal(as_tuple[0], out.loss) and torch.equal(as_tuple[1], out.logits) and out[0] is out.loss
    with torch.no_grad():
        assert close(out.loss, loss_by_hand(model, inputs, labels, reductions, plan))


@every
def test_gradients_are_those_of_what_is_left(model, method):
    """Those of the model by hand, of full length, in which the same tokens are hidden and merged."""
    inputs = batch(ONE, TWO)
    inputs["pixel_values"].requires_grad_()
    labels = answers_only(inputs["input_ids"])
    wanted = [inputs["pixel_values"], *model.parameters()]
    with ficoco_ext.attach(model, **METHODS[method]) as handle:
        model.train()
        found = torch.autograd.grad(model(**inputs, labels=labels).loss, wanted, allow_unused=True)
        model.eval()
        reductions, plan = handle.decoder_reductions, handle.plan
    loss = loss_by_hand(model, inputs, labels, reductions, plan)
    names = ["pixel_values", *dict(model.named_parameters())]
    used = 0
    for name, one, other in zip(names, found, torch.autograd.grad(loss, wanted, allow_unused=True), strict=True):
        assert (one is None) == (other is None), name
        if other is not None:
            used += bool(other.abs().max() > 0)
            assert close(one, other, 2e-4), name
    assert used > 0.9 * len(names) - 20  # the last vision layer and the class token's head are not read


@every
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(model, method, reentrant):
    """Also where the backward pass runs in a thread of its own, as it does on a GPU."""
    inputs = batch(ONE, TWO)
    labels = inputs["input_ids"]
    model.train()

    def gradients():
        model.zero_grad(set_to_none=True)
        loss = model(**inputs, labels=labels).loss
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        return loss, {name: one.grad for name, one in model.named_parameters()}

    with ficoco_ext.attach(model, **METHODS[method]) as handle:
        loss, wanted = gradients()
        steps = [step.kept for row in handle.decoder_reductions for step in row]
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        runs = []
        hook = model.model.language_model.layers[2].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
        again, found = gradients()
        hook.remove()
        assert len(runs) == 2, "nothing was computed again"
        assert torch.equal(loss, again)
        after = [step.kept for row in handle.decoder_reductions for step in row]
        assert len(steps) == len(after) and all(map(torch.equal, steps, after))
    assert wanted.keys() == found.keys()
    for name, one in wanted.items():
        assert (one is None) == (found[name] is None) and (one is None or torch.equal(one, found[name])), name


def test_what_scores_read_is_without_dropout(model):
    """Attention dropout is applied by the kernel; query and key that it got are what a method sees."""
    inputs = batch(ONE, TWO)
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5

    def kept():
        return [row[0].kept for row in handle.decoder_reductions]

    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", r=9, layers=(0,)) as handle:
        quiet, wanted = model(**inputs).logits, kept()
        model.train()
        assert not torch.equal(model(**inputs).logits, quiet)
        assert all(map(torch.equal, kept(), wanted))


MAKE = {
    "LLaVA": (tiny, lambda _, rows: batch(*rows), image(), image()),
    "LLaVA-NeXT": (tiny_next, next_inputs, [(24, 48)], [(40, 30)]),
    "Qwen2-VL": (tiny_qwen, qwen_inputs, [(8, 12)], [(6, 8)]),
    "Qwen2.5-VL": (lambda: tiny_qwen("2.5"), qwen_inputs, [(8, 12)], [(6, 8)]),
}


@every
@pytest.mark.parametrize("family", MAKE)
def test_every_family_trains(family, method):
    make, inputs_of, wide, tall = MAKE[family]
    model = make()
    inputs = inputs_of(model, [[*words(1), *wide, *words(2, 3)], [*words(4), *tall, *words(5), *wide, *words(6, 7)]])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == PAD, -100)
    inputs["pixel_values"].requires_grad_()
    model.train()
    with ficoco_ext.attach(model, **METHODS[method]) as handle:
        out = model(**inputs, labels=labels)
        out.loss.backward()
        rows = [row[-1].kept[0] for row in handle.decoder_reductions]
    total, count = 0.0, 0
    for row, kept in enumerate(rows):
        kept = kept[inputs["attention_mask"][row, kept].bool()]
        logits, wanted = out.logits[row, -len(kept) : -1], labels[row, kept[1:]]
        total, count = total + cross_entropy(logits, wanted, reduction="sum"), count + int((wanted != -100).sum())
    assert close(out.loss, total / count)
    assert inputs["pixel_values"].grad.abs().max() > 0
    for layer in model.model.language_model.layers:
        assert all(one.grad is not None and one.grad.isfinite().all() for one in layer.parameters())


def test_nothing_removed_nothing_changed(model):
    """Bit for bit the model's own loss, with padding too; in a batch of text alone the model computes it itself."""
    for rows in ([ONE, TWO], [TEXT, TEXT[:2]]):
        inputs = batch(*rows)
        options = {"labels": inputs["input_ids"], "num_items_in_batch": 7}
        with torch.no_grad():
            wanted = model(**inputs, **options).loss
            with ficoco_ext.attach(model, "ficoco-l", keep_ratio=0.9999):
                assert torch.equal(model(**inputs, **options).loss, wanted)


@every
def test_the_loss_of_a_batch_is_that_of_its_rows(model, method):
    with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]):
        losses, pictures = [], batch(ONE, TWO, TEXT)["pixel_values"]
        for row, images in ((ONE, pictures[:1]), (TWO, pictures[1:]), (TEXT, None)):
            inputs = batch(row) | ({} if images is None else {"pixel_values": images})
            losses.append(model(**inputs, labels=inputs["input_ids"], num_items_in_batch=1).loss)
        inputs = batch(ONE, TWO, TEXT)
        together = model(**inputs, labels=inputs["input_ids"], num_items_in_batch=1).loss
    assert close(together, sum(losses))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_loss_function_of_the_callers_own(model, when):
    got = []

    def mine(logits, labels, vocab_size, num_items_in_batch=None):
        got.append((logits.shape, labels.shape, vocab_size, num_items_in_batch))
        return logits.sum() * 0 + 5

    inputs = one_image()
    if when == "before":
        model.loss_function = mine
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", r=9):
        model.loss_function = mine
        out = model(**inputs, labels=inputs["input_ids"], num_items_in_batch=4, return_dict=True)
        assert out.loss == 5 and got == [(out.logits.shape, out.logits.shape[:2], out.logits.shape[2], 4)]


def test_labels_of_the_last_logits(model):
    inputs = one_image()
    labels = inputs["input_ids"]
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", r=9):
        ignored = labels.clone()
        ignored[:, :-2] = -100  # of the last three, the first has none before it
        wanted = model(**inputs, labels=ignored).loss
        assert torch.equal(model(**inputs, labels=labels[:, -3:], logits_to_keep=3).loss, wanted)
        assert model(**inputs, labels=labels, logits_to_keep=1000).loss == model(**inputs, labels=labels).loss


def test_labels_by_position(model):
    inputs = one_image()
    with torch.no_grad(), ficoco_ext.attach(model, "fastv"):
        wanted = model(**inputs, labels=inputs["input_ids"])
        out = model(inputs["input_ids"], inputs["pixel_values"], *[None] * 6, inputs["input_ids"])
        assert torch.equal(out.loss, wanted.loss) and torch.equal(out.logits, wanted.logits)


def test_labels_that_do_not_fit(model):
    inputs = one_image()
    with torch.no_grad(), ficoco_ext.attach(model, "fastv"):
        with pytest.raises(ValueError, match=r"labels must be \(1, 41\), one for each token, got \(1, 40\).*; pass"):
            model(**inputs, labels=inputs["input_ids"][:, 1:])
        with pytest.raises(ValueError, match=r"labels must be .*, or \(1, 5\) for the last ones, got \(1, 4\).*; pass"):
            model(**inputs, labels=inputs["input_ids"][:, -4:], logits_to_keep=5)
        with pytest.raises(ValueError, match=r"shift_labels must be None in a call with images, got .*; pass labels"):
            model(**inputs, labels=inputs["input_ids"], shift_labels=inputs["input_ids"])


def test_tower_and_language_model_together(model):
    """Labels lose the placeholders of the tower first, then the positions of the language model."""
    inputs = batch(ONE, TWO)
    labels = answers_only(inputs["input_ids"])
    model.train()
    with ficoco_ext.attach(model, "ficoco-vl", keep_ratio=0.5):
        out = model(**inputs, labels=labels)
        out.loss.backward()
    total = sum(
        cross_entropy(out.logits[row, -1 - text : -1], labels[row, -text:], reduction="sum")
        for row, text in ((0, 3), (1, 2))
    )
    assert close(out.loss, total / 5)
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().max() > 0
