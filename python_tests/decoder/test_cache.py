"""Caches of a reduced language model: static ones, several turns, beams, cropped and foreign ones."""

import inspect

import pytest
import torch
from helpers.decoder import (
    decoder_by_hand,
    generated,
    real_columns,
    reducing_layers,
    row_positions,
    tiny,
    worst_error,
)
from helpers.models import (
    IMAGE,
    batch,
    close,
    image,
    one_thread,  # noqa: F401
    words,
)

import ficoco_ext

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
LAST = [*words(1, 2, 3), *image()]
TEXT = words(11, 12, 13, 14)
L = {"method": "ficoco-l", "r": 9}
METHODS = {
    "ficoco-l": L,
    "before attention": L | {"before_attention": True},
    "fastv": {"method": "fastv"},
    "pyramiddrop": {"method": "pyramiddrop"},
    "sparsevlm": {"method": "sparsevlm"},
    "fitprune": {"method": "fitprune", "r": 5},
    "both sides": {"method": "ficoco-vl", "keep_ratio": 0.3},
}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny(attention=request.param, seed=31)


def static_cache(model, length=128):
    from transformers import StaticCache

    return StaticCache(config=model.config.text_config, max_cache_len=length)


def by_steps(model, inputs, cache, steps=5):
    """Greedy tokens and their logits, by direct calls."""
    out, found, tokens = model(**inputs, past_key_values=cache, use_cache=True), [], []
    mask = inputs["attention_mask"]
    for _ in range(steps):
        found.append(out.logits[:, -1])
        chosen = found[-1].index_fill(1, torch.tensor([IMAGE]), -1e9).argmax(-1, keepdim=True)
        tokens.append(chosen)
        mask = torch.cat([mask, torch.ones_like(chosen)], 1)
        out = model(input_ids=chosen, attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
    return torch.cat(tokens, 1), [*found, out.logits[:, -1]]


def same_steps(one, other):
    return torch.equal(one[0], other[0]) and all(map(close, one[1], other[1]))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "both sides"])
def test_one_static_cache_serves_one_prompt_after_another(model, method):
    cache = static_cache(model)
    with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]):
        for turn, rows in enumerate(([ONE], [TWO], [LAST], [TEXT], [ONE])):
            inputs = batch(*rows, seed=turn)
            assert same_steps(by_steps(model, inputs, cache), by_steps(model, inputs, None))
            cache.reset()


def test_a_static_cache_of_several_rows(model):
    with torch.no_grad(), ficoco_ext.attach(model, **L):
        for rows in ([ONE, TWO], [TWO, TEXT, ONE]):
            inputs = batch(*rows)
            for length in (128, len(TWO) + 5):  # the second is full in the end
                assert same_steps(by_steps(model, inputs, static_cache(model, length)), by_steps(model, inputs, None))


def test_a_cache_that_was_reset_knows_nothing_of_its_pictures(model):
    cache, text = static_cache(model), batch(TEXT, images=0)
    with torch.no_grad():
        plain = by_steps(model, text, static_cache(model))
        with ficoco_ext.attach(model, **L):
            by_steps(model, batch(TWO), cache)
            cache.reset()
            assert same_steps(by_steps(model, text, cache), plain)
            assert not any("ficoco" in name for name in vars(cache))


@pytest.mark.parametrize("rows", [[ONE], [ONE, TWO], [TWO, TEXT], [LAST]])
@pytest.mark.parametrize("method", METHODS)
def test_a_conversation_goes_on_from_the_returned_cache(model, method, rows):
    """Two more turns of text; every logit is that of the language model by hand over the whole conversation."""
    inputs, steps = batch(*rows), 4
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        with ficoco_ext.attach(model, **METHODS[method]) as handle:
            seen = generated(model, inputs, steps)
            told, plan, turns = handle.decoder_reductions, handle.plan, [(0, seen.logits)]
            sequences, mask = seen.sequences, inputs["attention_mask"]
            for turn in ([21, 22, 23], [24]):
                ids = torch.cat([sequences, torch.tensor([turn] * len(rows))], 1)
                whole = torch.cat([mask, mask.new_ones(len(rows), ids.shape[1] - length)], 1)
                options = {"attention_mask": whole, "past_key_values": seen.cache, "suppress_tokens": [IMAGE]}
                out = model.generate(
                    ids,
                    **options,
                    max_new_tokens=steps,
                    do_sample=False,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
                assert torch.equal(out.sequences[:, : ids.shape[1]], ids)
                turns.append((ids.shape[1] - length, out.logits))
                sequences = out.sequences
            assert len(handle.decoder_reductions) == len(rows)  # the last prefill's still
        new = sequences[:, length:]
        for dropping in (True, False):
            wanted = logits_by_hand(model, seen, told, plan, new, dropping=dropping)
            errors = [
                float((wanted[:, first + i] - some).abs().max()) for first, said in turns for i, some in enumerate(said)
            ]
            assert max(errors) <= 3e-5 if dropping else max(errors) > 1e-2


def logits_by_hand(model, seen, told, plan, new, **oracle):
    """(B, new, V): what the language model by hand says at the last prompt column and at every new token."""
    n, real, rows = seen.embeds.shape[1], real_columns(seen), []
    for row in range(len(new)):
        embeds = torch.cat([seen.embeds[row : row + 1], model.get_input_embeddings()(new[row, :-1])[None]], 1)
        there = torch.cat([real[row], torch.ones(new.shape[1] - 1, dtype=torch.bool)])
        layers = reducing_layers(told[row], plan)
        logits = decoder_by_hand(
            model,
            embeds,
            row_positions(seen, row, embeds.shape[1]),
            there,
            told[row],
            layers,
            before=plan.before_attention,
            **oracle,
        )
        rows.append(logits[n - 1 :])
    return torch.stack(rows)


@pytest.mark.parametrize("other", [LAST, TWO], ids=["one picture", "two pictures"])
@pytest.mark.parametrize("method", METHODS)
def test_scores_of_beams_are_sums_of_log_probabilities(model, method, other):
    if other is TWO and "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        pytest.skip("this release of transformers deals pictures out to beams one by one, whatever row they belong to")
    inputs, steps, beams = batch(ONE, other), 5, 3
    details = {"num_beams": beams, "num_return_sequences": beams, "length_penalty": 0.0, "output_scores": True}
    with torch.no_grad():
        with ficoco_ext.attach(model, **METHODS[method]) as handle:
            seen = generated(model, inputs, steps, **details)
            told, plan = handle.decoder_reductions, handle.plan
            out = model.generate(
                **inputs,
                max_new_tokens=steps,
                do_sample=False,
                suppress_tokens=[IMAGE],
                return_dict_in_generate=True,
                **details,
            )
        assert torch.equal(out.sequences, seen.sequences) and len(out.sequences) == 2 * beams
        assert torch.equal(out.sequences[:, :-steps], inputs["input_ids"].repeat_interleave(beams, 0))
        new = out.sequences[:, -steps:]
        assert len({tuple(row) for row in new.tolist()}) > 2  # the beams differ
        said = logits_by_hand(model, seen, told, plan, new).log_softmax(-1)
        scores = said.gather(2, new[..., None]).sum((1, 2))
        assert torch.allclose(scores, out.sequences_scores, atol=1e-4)
        other = logits_by_hand(model, seen, told, plan, new, dropping=False).log_softmax(-1)
        assert not torch.allclose(other.gather(2, new[..., None]).sum((1, 2)), out.sequences_scores, atol=1e-2)


def test_several_returned_sequences(model):
    inputs, steps = batch(ONE, TWO), 5
    with torch.no_grad():
        with ficoco_ext.attach(model, **L) as handle:
            torch.manual_seed(5)
            details = {
                "do_sample": True,
                "num_return_sequences": 3,
                "suppress_tokens": [IMAGE],
                "max_new_tokens": steps,
            }
            from helpers.decoder import watch

            seen, out = watch(
                model,
                lambda: model.generate(**inputs, **details, return_dict_in_generate=True, output_logits=True),
            )
            told, plan = handle.decoder_reductions, handle.plan
        seen.logits = list(out.logits)
        assert len({tuple(row) for row in out.sequences.tolist()}) > 2
        assert worst_error(model, seen, told, plan, steps, new_ids=out.sequences[:, -steps:]) <= 2e-5


def sizes(cache):
    return [layer.keys.shape[2] for layer in cache.layers]


@pytest.mark.parametrize("method", METHODS)
def test_cropping_takes_the_same_number_from_every_layer(model, method):
    inputs = batch(ONE, TWO)
    with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]) as handle:
        seen = generated(model, inputs, 6)
        before, cache = sizes(seen.cache), seen.cache
        cache.crop(-3)
        assert sizes(cache) == [size - 3 for size in before]
        again = seen.sequences[:, -4:-3]  # what is cached: 5 of 6, less 3
        new, width = 3, cache.get_seq_length() + 1  # a decoding loop of one's own counts from the cache
        gone = 0 if handle.schedule is None else 36 - handle.schedule.final
        real = torch.tensor([[len(ONE) - gone + new], [len(TWO) - 2 * gone + new]])
        mask = (torch.arange(width) >= width - real).long()
        said = {"input_ids": again, "past_key_values": cache, "position_ids": mask.sum(1, keepdim=True) - 1}
        logits = model(**said, attention_mask=mask).logits
        assert close(logits[:, -1], seen.logits[3])
        cache.crop(-4)  # three new tokens are there, so this takes one of the prompt's
        with pytest.raises(ValueError, match=r"forward: past_key_values must be .* positions, .*crop no more than"):
            model(**said, attention_mask=mask[:, :-new])


@pytest.mark.parametrize("layer", [0, 3])
def test_a_cache_cropped_in_one_layer_only_is_refused(model, layer):
    with torch.no_grad(), ficoco_ext.attach(model, **L):
        out = model(**batch(ONE))
        cache = model(input_ids=torch.tensor([[12]]), past_key_values=out.past_key_values).past_key_values
        one = cache.layers[layer]
        one.keys, one.values = one.keys[:, :, :-1], one.values[:, :, :-1]
        with pytest.raises(
            ValueError, match=r"past_key_values must be .* positions, as the prefill left them, and the new"
        ):
            model(input_ids=torch.tensor([[13]]), past_key_values=cache)


def test_a_cache_that_was_emptied_by_other_means_knows_nothing_of_its_pictures(model):
    """Layer by layer, without the method of the whole cache that we replace."""
    cache, text = static_cache(model), batch(TEXT, images=0)
    with torch.no_grad():
        plain = by_steps(model, text, static_cache(model))
        with ficoco_ext.attach(model, **L):
            by_steps(model, batch(TWO), cache)
            for layer in cache.layers:
                layer.reset()
            assert same_steps(by_steps(model, text, cache), plain)
            assert not any("ficoco" in name for name in vars(cache))


def prefilled(model, rows=(ONE,), **options):
    with ficoco_ext.attach(model, **options):
        return model(**batch(*rows)).past_key_values


OTHERS = [{"method": "ficoco-l", "r": 8}, {"method": "fastv"}, L | {"before_attention": True}, L | {"layers": (2, 3)}]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_a_cache_of_another_plan_is_refused(model, other):
    with torch.no_grad():
        cache = prefilled(model, **L)
        held = sizes(cache)
        with ficoco_ext.attach(model, **other):
            with pytest.raises(
                ValueError, match=r"past_key_values must be a cache of this reduction, got one of another"
            ):
                model(input_ids=torch.tensor([[12]]), past_key_values=cache)
            assert sizes(cache) == held
            model(**batch(ONE))
        with ficoco_ext.attach(model, **L):  # the same plan again
            out = model(input_ids=torch.tensor([[12]]), past_key_values=cache)
            fresh = model(**batch([*ONE, 12]))
            assert out.logits.shape == (1, 1, 60) and fresh.logits.shape[1] == 42 - 27


def test_rows_must_be_those_of_the_cache(model):
    with torch.no_grad(), ficoco_ext.attach(model, **L):
        cache = model(**batch(ONE, TWO)).past_key_values
        cache.batch_select_indices(torch.tensor([1]))
        message = r"forward: input_ids must be 1 rows, as the cache has, got 2; change rows by the cache's own methods"
        with pytest.raises(ValueError, match=message):
            model(input_ids=torch.tensor([[12], [13]]), past_key_values=cache)


def test_a_cache_from_before_attach_goes_on_unreduced(model):
    inputs, token = batch(ONE), torch.tensor([[12]])
    with torch.no_grad():
        plain = model(input_ids=token, past_key_values=model(**inputs).past_key_values)
        cache = model(**inputs).past_key_values
        with ficoco_ext.attach(model, **L):
            out = model(input_ids=token, past_key_values=cache)
            assert torch.equal(out.logits, plain.logits) and sizes(cache) == [42] * 4


def test_use_cache_false_in_a_direct_call(model):
    with torch.no_grad(), ficoco_ext.attach(model, **L):
        out = model(**batch(ONE), use_cache=False)
        assert out.past_key_values is None
        assert torch.equal(out.logits, model(**batch(ONE)).logits)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_cache_every_step_is_a_call_of_its_own(model, method):
    """Each reads the prompt and what was generated, and reduces that."""
    inputs, steps = batch(ONE, TWO), 4
    with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]):
        seen = generated(model, inputs, steps, use_cache=False)
        for step, logits in enumerate(seen.logits):
            ids = seen.sequences[:, : seen.sequences.shape[1] - steps + step]
            mask = torch.cat([inputs["attention_mask"], torch.ones(2, step, dtype=torch.long)], 1)
            direct = model(ids, attention_mask=mask, pixel_values=inputs["pixel_values"], use_cache=False)
            assert close(direct.logits[:, -1], logits)
        assert getattr(direct, "cache", None) is None and getattr(direct, "past_key_values", None) is None
