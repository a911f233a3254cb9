"""Calls with embeddings instead of ids: visual tokens are found where the model itself finds them."""

import pytest
import torch
from helpers.decoder import tiny
from helpers.families import next_inputs, qwen_inputs, tiny_next, tiny_qwen
from helpers.models import (
    GREEDY,
    batch,
    close,
    image,
    one_image,
    one_thread,  # noqa: F401
    without,
    words,
)

import ficoco_ext

pytest.importorskip("transformers")

METHODS = {
    "fastv": {"method": "fastv"},
    "ficoco-l": {"method": "ficoco-l", "r": 9},
    "pyramiddrop": {"method": "pyramiddrop"},
}
MAKE = {
    "LLaVA": (tiny, lambda _, rows: batch(*rows), image(), image()),
    "LLaVA-NeXT": (tiny_next, next_inputs, [(24, 48)], [(40, 30)]),
    "Qwen2-VL": (tiny_qwen, qwen_inputs, [(8, 12)], [(6, 8)]),
    "Qwen2.5-VL": (lambda: tiny_qwen("2.5"), qwen_inputs, [(8, 12)], [(6, 8)]),
}
QWEN = [name for name in MAKE if name.startswith("Qwen")]


def made(family):
    """A model of the family, and inputs of two rows; Qwen's with the positions that it can only make from ids."""
    make, inputs_of, wide, tall = MAKE[family]
    model = make()
    inputs = inputs_of(model, [[*words(1), *wide, *words(2, 3)], [*words(4), *tall, *words(5), *wide, *words(6, 7)]])
    if family in QWEN:
        inputs["position_ids"], _ = model.model.get_rope_index(**without(inputs, "pixel_values"))
    return model, inputs


def embedded(model, inputs):
    """The same call with embeddings, those of placeholders among them."""
    return {**without(inputs, "input_ids"), "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}


def merged(model, inputs):
    """The same call with embeddings alone, pictures where they belong."""
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    return {**without(inputs, "input_ids", "pixel_values", "image_grid_thw"), "inputs_embeds": seen[0]}


def answer(model, handle, inputs):
    """Logits, loss and what was kept."""
    labels = torch.arange(inputs["attention_mask"].numel()).view_as(inputs["attention_mask"]) % 50
    out = model(**inputs, labels=labels)
    return out.logits, out.loss, [step.kept for row in handle.decoder_reductions for step in row]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", MAKE)
def test_embeddings_with_pictures_equal_ids(family, method):
    model, inputs = made(family)
    with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]) as handle:
        logits, loss, kept = answer(model, handle, inputs)
        found, found_loss, found_kept = answer(model, handle, embedded(model, inputs))
    assert logits.shape[1] < inputs["input_ids"].shape[1] and kept
    assert torch.equal(found, logits) and torch.equal(found_loss, loss)
    assert len(found_kept) == len(kept) and all(map(torch.equal, found_kept, kept))


@pytest.mark.parametrize("family", ["LLaVA", "LLaVA-NeXT"])  # transformers gives Qwen other positions here
def test_generate_from_embeddings_equals_ids(family):
    model, inputs = made(family)
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", r=9) as handle:
        wanted = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
        assert torch.equal(model.generate(**embedded(model, inputs), **GREEDY), wanted)
        assert all(handle.decoder_reductions)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", QWEN)
def test_embeddings_alone_with_the_type_of_every_token_equal_ids(family, method):
    model, inputs = made(family)
    with torch.no_grad():
        alone = merged(model, inputs)
        with ficoco_ext.attach(model, **METHODS[method]) as handle:
            logits, loss, kept = answer(model, handle, inputs)
            found, found_loss, found_kept = answer(model, handle, alone)
            assert close(found, logits) and close(found_loss, loss) and all(map(torch.equal, found_kept, kept))
            full = model(**without(alone, "mm_token_type_ids")).logits  # nothing says where pictures are
            assert full.shape[1] == inputs["input_ids"].shape[1]
            text = model(**alone | {"mm_token_type_ids": alone["mm_token_type_ids"] * 0}).logits
            assert torch.equal(text, full)


@pytest.mark.parametrize("family", QWEN)
def test_new_embeddings_after_a_reduced_cache(family):
    """The type of every token may come along: new words are text."""
    model, inputs = made(family)
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", r=9):
        ids = torch.tensor([words(8, 9)] * 2)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids)], 1)
        more = {"attention_mask": mask, "position_ids": inputs["position_ids"].amax((0, 2))[None, :, None] + ids - 17}
        from_ids = model(input_ids=ids, **more, past_key_values=model(**inputs).past_key_values).logits
        more |= {"inputs_embeds": model.get_input_embeddings()(ids), "mm_token_type_ids": torch.zeros_like(ids)}
        assert torch.equal(model(**more, past_key_values=model(**inputs).past_key_values).logits, from_ids)


def test_embeddings_that_hold_no_placeholders():
    model = tiny()
    inputs = embedded(model, one_image())
    inputs["inputs_embeds"] = inputs["inputs_embeds"] * 1.5
    with torch.no_grad(), ficoco_ext.attach(model, "fastv"):
        with pytest.raises(ValueError, match=r"with 1 x 36 placeholders \(id 3\) for 1 images, got 0 placeholders"):
            model(**inputs)
        alone = {**without(inputs, "pixel_values")}
        assert model(**alone).logits.shape[1] == 41  # taken for text
