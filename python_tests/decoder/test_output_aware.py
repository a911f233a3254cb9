"""Output-aware caches: after the prompt is read, layers from the first reducing one on keep what is left in the end."""

import copy
from dataclasses import replace

import pytest
import torch
from decoder.test_cache import ONE, TEXT, TWO, by_steps, logits_by_hand, same_steps, sizes, static_cache
from helpers.decoder import DECODER_LAYERS, generated, tiny, watch, worst_error
from helpers.families import qwen_inputs, tiny_qwen
from helpers.models import IMAGE, assert_refused, batch, close, image, one_thread, words  # noqa: F401

import ficoco_ext
from ficoco_ext import METHODS as REGISTERED
from ficoco_ext import get_method
from ficoco_ext.methods import Combined, distinct

pytest.importorskip("transformers")

AWARE = {"cache": "output-aware"}
LAST = [*words(1, 2, 3), *image()]  # nothing after the picture
L = {"method": "ficoco-l", "layers": (1, 3)}
METHODS = {
    "ficoco-l": L | {"r": 9},
    "merges before attention": L | {"r": 9, "before_attention": True},
    "one layer": {"method": "fastv"},
    "stages before attention": {"method": "pyramiddrop"},
    "recycles": {"method": "sparsevlm", "r": 13, "layers": (1, 2)},
    "both sides": {"method": "ficoco-vl", "vision": {"tokens": 20}, "decoder": {"r": 4, "layers": (1, 2)}},
}
ROWS = {
    "one row": [ONE],
    "two pictures": [ONE, TWO],
    "text row": [TWO, ONE, TEXT],
    "nothing after the picture": [LAST, ONE],
}
STEPS = 6


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny(attention=request.param, seed=31)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def columns(told, stage, length):
    """Positions of the prompt that a row holds after ``stage`` reductions."""
    return told[stage - 1].kept[0] if stage else torch.arange(length)


@pytest.mark.parametrize("method", METHODS)
def test_what_the_cache_holds(model, method):
    """Each layer from the first reducing one on: of the keys and values that it had, those that are left in the end."""
    given = METHODS[method]
    with ficoco_ext.attach(model, **given):
        stairs = model(**batch(ONE))
    with ficoco_ext.attach(model, **given, **AWARE) as handle:
        cut = model(**batch(ONE))
        told, plan = handle.decoder_reductions[0], handle.plan
    assert torch.equal(cut.logits, stairs.logits)
    held, uncut = cut.past_key_values.layers, stairs.past_key_values.layers
    length, first, final = uncut[0].keys.shape[2], plan.layers[0], len(told[-1].kept[0])
    assert sizes(cut.past_key_values) == [length] * first + [final] * (DECODER_LAYERS - first)
    for index, (ours, whole) in enumerate(zip(held, uncut, strict=True)):
        stage = sum(layer < index + plan.before_attention for layer in plan.layers)
        had = columns(told, stage, length)
        assert len(had) == whole.keys.shape[2]
        left = told[-1].kept[0] if index >= first else had
        at = torch.isin(had, left).nonzero()[:, 0]
        assert torch.equal(ours.keys, whole.keys[:, :, at]) and torch.equal(ours.values, whole.values[:, :, at])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("method", METHODS)
def test_later_tokens_attend_to_what_is_left(model, method, rows):
    with ficoco_ext.attach(model, **METHODS[method]):
        stairs = generated(model, batch(*ROWS[rows]), 1)
    with ficoco_ext.attach(model, **METHODS[method], **AWARE) as handle:
        seen = generated(model, batch(*ROWS[rows]), STEPS)
        told, plan = handle.decoder_reductions, handle.plan
    assert torch.equal(stairs.logits[0], seen.logits[0])  # the first new token is read before the cut
    check = {"new_ids": seen.sequences[:, -STEPS:], "steps": STEPS}
    assert worst_error(model, seen, told, plan, aware=True, **check) <= 2e-5
    assert worst_error(model, seen, told, plan, **check) > 1e-2


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_other_language_models(kind):
    model = tiny(kind, seed=4)
    with ficoco_ext.attach(model, "pyramiddrop", **AWARE) as handle:
        seen = generated(model, batch(TWO, ONE), STEPS)
        told, plan = handle.decoder_reductions, handle.plan
    check = {"new_ids": seen.sequences[:, -STEPS:], "steps": STEPS}
    assert worst_error(model, seen, told, plan, aware=True, **check) <= 2e-5


@pytest.mark.parametrize("name", [name for name in distinct() if get_method(name).language_model is not None])
def test_every_method_has_it(name):
    model = tiny(seed=31)
    method = get_method(name)
    given = {} if method.amount else {"keep_ratio": 0.5}
    if method.tower is None and method.language_model.layers(DECODER_LAYERS)[0] == 0:
        given = {"layers": (1, 2), "keep_ratio": 0.5}
    with ficoco_ext.attach(model, name, **given, **AWARE) as handle:
        cache, plan = model(**batch(ONE)).past_key_values, handle.plan
        final = handle.decoder_reductions[0][-1].kept.shape[1]
    assert sizes(cache)[plan.layers[0] :] == [final] * (DECODER_LAYERS - plan.layers[0])
    assert name in REGISTERED and final < sizes(cache)[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_in_a_batch_is_the_row_alone(model, side):
    """Also with padding on the right, which stays in every layer."""
    with ficoco_ext.attach(model, **METHODS["ficoco-l"], **AWARE):
        inputs, word = batch(ONE, TWO, TEXT), torch.tensor([[21], [22], [23]])
        if side == "right":
            gaps = [len(TWO) - len(ids) for ids in (ONE, TWO, TEXT)]
            for name in ("input_ids", "attention_mask"):
                inputs[name] = torch.stack([one.roll(-gap) for one, gap in zip(inputs[name], gaps, strict=True)])
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], 1)
        at = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        cache = model(**inputs, position_ids=at).past_key_values
        at = mask.cumsum(1)[:, -1:] - 1
        together = model(input_ids=word, attention_mask=mask, position_ids=at, past_key_values=cache).logits
        first = 0
        for row, ids in enumerate((ONE, TWO, TEXT)):
            pictures = ids.count(IMAGE) // 36
            alone = batch(ids, images=pictures)
            if pictures:
                alone["pixel_values"] = inputs["pixel_values"][first : first + pictures]
            first += pictures
            one = model(**alone).past_key_values
            assert close(model(input_ids=word[row : row + 1], past_key_values=one).logits, together[row : row + 1])


@pytest.mark.parametrize("method", [name for name in METHODS if name != "both sides"])
def test_a_static_cache_hides_what_a_dynamic_one_loses(model, method):
    with ficoco_ext.attach(model, **METHODS[method]):
        stairs = by_steps(model, batch(ONE, TWO), None)
    with ficoco_ext.attach(model, **METHODS[method], **AWARE):
        for turn, rows in enumerate(([ONE], [ONE, TWO], [TWO, TEXT])):
            inputs = batch(*rows, seed=turn)
            assert same_steps(by_steps(model, inputs, static_cache(model)), by_steps(model, inputs, None))
        again = by_steps(model, batch(ONE, TWO), None)
    assert torch.equal(again[1][0], stairs[1][0]) and (again[1][1] - stairs[1][1]).abs().max() > 1e-2


def test_a_static_cache_without_a_mask(model):
    inputs = batch(ONE)
    del inputs["attention_mask"]
    word = torch.tensor([[21]])
    with ficoco_ext.attach(model, **METHODS["ficoco-l"], **AWARE):
        logits = []
        for cache in (None, static_cache(model)):
            cache = model(**inputs, past_key_values=cache).past_key_values
            for _ in range(2):
                logits.append(model(input_ids=word, past_key_values=cache).logits)
    assert close(logits[0], logits[2]) and close(logits[1], logits[3])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_picture_at_the_very_beginning(model, kind):
    """Rows of one length without a mask: the one with two pictures gets empty entries, and its first column left."""
    several = [*image(), *words(7), *image(), *words(8, 9)]
    rows = [[*image(), *words(*range(4, 43))], several]
    assert len(rows[0]) == len(several)
    inputs, word = batch(*rows), torch.tensor([[21], [22]])
    del inputs["attention_mask"]
    with ficoco_ext.attach(model, **METHODS["one layer"], **AWARE) as handle:
        cache = static_cache(model) if kind == "static" else None
        cache = model(**inputs, past_key_values=cache).past_key_values
        told = handle.decoder_reductions
        together = model(input_ids=word, past_key_values=cache).logits
        assert told[1][-1].kept[0, 0] > 0 and len(told[1][-1].kept[0]) < len(told[0][-1].kept[0])
        for row, pictures in enumerate((slice(0, 1), slice(1, 3))):
            alone = {"input_ids": inputs["input_ids"][row : row + 1], "pixel_values": inputs["pixel_values"][pictures]}
            one = model(**alone).past_key_values
            assert close(model(input_ids=word[row : row + 1], past_key_values=one).logits, together[row : row + 1])


def test_a_static_cache_serves_one_prompt_after_another(model):
    cache = static_cache(model)
    with ficoco_ext.attach(model, **METHODS["ficoco-l"], **AWARE):
        for turn, rows in enumerate(([ONE], [TWO], [TEXT], [ONE])):
            inputs = batch(*rows, seed=turn)
            assert same_steps(by_steps(model, inputs, cache), by_steps(model, inputs, None))
            cache.reset()


def quantized_without_loss(model):
    """A cache of the kind that stores its keys in another form; this form is exact."""
    from transformers import DynamicCache
    from transformers.cache_utils import QuantizedLayer

    class Exact(QuantizedLayer):
        def _quantize(self, tensor, axis):
            return tensor.clone()

        def _dequantize(self, tensor):
            return tensor

    cache = DynamicCache(config=model.config.text_config)
    cache.layers = [Exact(residual_length=3) for _ in cache.layers]
    return cache


@pytest.mark.parametrize("rows", ["one row", "two pictures"])
def test_a_quantized_cache_hides_what_left(model, rows):
    inputs = batch(*ROWS[rows])
    with ficoco_ext.attach(model, **METHODS["ficoco-l"], **AWARE):
        cache = quantized_without_loss(model)
        assert same_steps(by_steps(model, inputs, cache), by_steps(model, inputs, None))
        lengths = [cache.get_seq_length(layer) for layer in range(DECODER_LAYERS)]
    assert lengths[1] > lengths[3] and lengths[0] == inputs["input_ids"].shape[1] + 5


@pytest.mark.parametrize("rows", [[ONE], [ONE, TWO], [TWO, TEXT]])
@pytest.mark.parametrize("method", ["ficoco-l", "stages before attention", "both sides"])
def test_a_conversation_goes_on(model, method, rows):
    """Every logit of two more turns, several words at once among them, is that by hand over the whole conversation."""
    inputs, steps = batch(*rows), 4
    length = inputs["input_ids"].shape[1]
    greedy = {"max_new_tokens": steps, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with ficoco_ext.attach(model, **METHODS[method], **AWARE) as handle:
        seen = generated(model, inputs, steps)
        told, plan, turns = handle.decoder_reductions, handle.plan, [(0, seen.logits)]
        sequences, mask = seen.sequences, inputs["attention_mask"]
        for turn in ([21, 22, 23], [24]):
            ids = torch.cat([sequences, torch.tensor([turn] * len(rows))], 1)
            whole = torch.cat([mask, mask.new_ones(len(rows), ids.shape[1] - length)], 1)
            going_on = {"attention_mask": whole, "past_key_values": seen.cache, "suppress_tokens": [IMAGE]}
            out = model.generate(ids, **going_on, **greedy)
            turns.append((ids.shape[1] - length, out.logits))
            sequences = out.sequences
    new = sequences[:, length:]
    wanted = logits_by_hand(model, seen, told, plan, new, forget=(plan.layers[0], seen.embeds.shape[1]))
    for first, said in turns:
        for i, some in enumerate(said):
            assert (wanted[:, first + i] - some).abs().max() <= 3e-5


@pytest.mark.parametrize("method", ["ficoco-l", "stages before attention"])
def test_beams(model, method):
    """The score of each beam is the sum of the log probabilities by hand: caches and columns were reordered alike."""
    inputs, beams = batch(ONE, LAST), 3
    details = {"num_beams": beams, "num_return_sequences": beams, "length_penalty": 0.0, "output_scores": True}
    greedy = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": [IMAGE], "return_dict_in_generate": True}
    with ficoco_ext.attach(model, **METHODS[method], **AWARE) as handle:
        seen, out = watch(model, lambda: model.generate(**inputs, **greedy, **details))
        told, plan = handle.decoder_reductions, handle.plan
    new = out.sequences[:, -STEPS:]
    assert len({tuple(row) for row in new.tolist()}) > 2
    for forget, alike in (((plan.layers[0], seen.embeds.shape[1]), True), (None, False)):
        said = logits_by_hand(model, seen, told, plan, new, forget=forget).log_softmax(-1)
        scores = said.gather(2, new[..., None]).sum((1, 2))
        assert torch.allclose(scores, out.sequences_scores, atol=1e-4 if alike else 1e-3) == alike


def test_several_returned_sequences(model):
    details = {"do_sample": True, "num_return_sequences": 3, "suppress_tokens": [IMAGE], "max_new_tokens": STEPS}
    told = {"return_dict_in_generate": True, "output_logits": True}
    torch.manual_seed(5)
    with ficoco_ext.attach(model, **METHODS["ficoco-l"], **AWARE) as handle:
        seen, out = watch(model, lambda: model.generate(**batch(ONE, TWO), **details, **told))
        reductions, plan = handle.decoder_reductions, handle.plan
    seen.logits = list(out.logits)
    check = {"new_ids": out.sequences[:, -STEPS:], "steps": STEPS}
    assert worst_error(model, seen, reductions, plan, aware=True, **check) <= 2e-5


MOVES = [("dynamic", how) for how in ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")]


@pytest.mark.parametrize(
    ("kind", "how"), [*MOVES, ("static", "reorder_cache")]
)  # a static one has a fixed number of rows
def test_rows_that_the_cache_moves_take_their_columns_along(model, kind, how):
    inputs, ids = batch(ONE, TWO), torch.tensor([[11], [12]])
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.int64)], 1)
    with ficoco_ext.attach(model, **METHODS["ficoco-l"], **AWARE):
        cache = model(**inputs, past_key_values=static_cache(model) if kind == "static" else None).past_key_values
        wanted = model(input_ids=ids, attention_mask=mask, past_key_values=copy.deepcopy(cache)).logits
        rows = torch.tensor([0, 0, 1, 1] if how == "batch_repeat_interleave" else [1, 0])
        getattr(cache, how)(2 if how == "batch_repeat_interleave" else rows)
        out = model(input_ids=ids[rows], attention_mask=mask[rows], past_key_values=cache)
    assert close(out.logits, wanted[rows])


def test_cropping(model):
    inputs = batch(ONE, TWO)
    with ficoco_ext.attach(model, **METHODS["ficoco-l"], **AWARE):
        seen = generated(model, inputs, 6)
        before, cache = sizes(seen.cache), seen.cache
        cache.crop(-3)
        assert sizes(cache) == [size - 3 for size in before]
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 3, dtype=torch.long)], 1)
        said = {"input_ids": seen.sequences[:, -4:-3], "past_key_values": cache, "attention_mask": mask}
        said["position_ids"] = mask.sum(1, keepdim=True) - 1
        assert close(model(**said).logits[:, -1], seen.logits[3])
        cache.crop(-4)  # three new tokens are there, so this takes one of the prompt's
        with pytest.raises(ValueError, match=r"past_key_values must be .* positions, .*crop no more than"):
            model(**said)


def test_without_a_cache_nothing_is_to_be_cut(model):
    with ficoco_ext.attach(model, **METHODS["ficoco-l"], **AWARE):
        out = model(**batch(ONE, TWO), use_cache=False)
        assert out.past_key_values is None and torch.equal(out.logits, model(**batch(ONE, TWO)).logits)
        seen = generated(model, batch(ONE, TWO), 3, use_cache=False)
    with ficoco_ext.attach(model, **METHODS["ficoco-l"]):
        stairs = generated(model, batch(ONE, TWO), 3, use_cache=False)
    assert all(map(torch.equal, seen.logits, stairs.logits))


def test_the_loss_is_that_of_the_staircase(model):
    inputs = batch(ONE, TWO)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    losses = []
    for cache in ("staircase", "output-aware"):
        with torch.enable_grad(), ficoco_ext.attach(model, **METHODS["ficoco-l"], cache=cache):
            loss = model(**inputs, labels=labels, use_cache=cache == "output-aware").loss
            loss.backward()
            losses.append(loss.detach())
            model.zero_grad()
    assert torch.equal(*losses)


def test_three_positions_a_token():
    """Qwen2-VL: row and column of each token stay."""
    model = tiny_qwen()
    inputs = qwen_inputs(model, [[*words(1), (8, 12), *words(2, 3)], words(4, 5)])
    with ficoco_ext.attach(model, **METHODS["ficoco-l"], **AWARE) as handle:
        seen = generated(model, inputs, STEPS)
        told, plan = handle.decoder_reductions, handle.plan
    check = {"new_ids": seen.sequences[:, -STEPS:], "steps": STEPS}
    assert worst_error(model, seen, told, plan, aware=True, **check) <= 2e-5
    assert worst_error(model, seen, told, plan, **check) > 1e-3


def test_detach_leaves_the_model_as_it_was(model):
    inputs = batch(ONE)
    before = generated(model, inputs, 3)
    with ficoco_ext.attach(model, **METHODS["ficoco-l"], **AWARE):
        generated(model, inputs, 3)
    after = generated(model, inputs, 3)
    assert all(map(torch.equal, before.logits, after.logits)) and sizes(after.cache) == sizes(before.cache)


def test_a_cache_of_the_other_kind_is_refused(model):
    with ficoco_ext.attach(model, **METHODS["ficoco-l"]):
        cache = model(**batch(ONE)).past_key_values
    message = "past_key_values must be a cache of this reduction"
    with ficoco_ext.attach(model, **METHODS["ficoco-l"], **AWARE), pytest.raises(ValueError, match=message):
        model(input_ids=torch.tensor([[12]]), past_key_values=cache)


def test_a_method_may_ask_for_it(model):
    own = replace(get_method("fastv"), cache="output-aware")
    for method in (own, Combined.of(get_method("topk"), own)):
        amount = {} if method is own else {"keep_ratio": 0.25}
        assert ficoco_ext.models.resolve(model, method, **amount).cache == "output-aware"
        assert ficoco_ext.models.resolve(model, method, **amount, cache="staircase").cache == "staircase"
    assert ficoco_ext.models.resolve(model, "fastv").cache == "staircase"
    several = [replace(own, layers=lambda layers: (1,)), replace(get_method("fastv"), layers=lambda layers: (1,))]
    given = {"layers": (1, 2), "r": 3}
    message = "cache must be 'staircase' or 'output-aware', got None for methods that say"
    assert_refused(model, given | {"method": several}, ValueError, message)
    assert ficoco_ext.models.resolve(model, several, **given, **AWARE).cache == "output-aware"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "ficoco-l", "r": 3, "layers": (0, 2), "cache": "output-aware"}, "layers must be from 1 on"),
        ({"method": "fastv", "cache": "h2o"}, "cache must be 'staircase' or 'output-aware', or None, got h2o"),
        ({"method": "topk", "keep_ratio": 0.5, "cache": "staircase"}, "cache must be None without a method for"),
        ({"method": "divprune", "keep_ratio": 0.5, "cache": "output-aware"}, "leave it out: without a method"),
    ],
)
def test_what_is_refused(model, given, message):
    assert_refused(model, given, ValueError, message)


def test_the_plan_says_it(model):
    plan = ficoco_ext.models.resolve(model, "pyramiddrop", **AWARE)
    assert "  output-aware cache: once the prompt is read it holds 4 visual tokens in layers 1 and after" in str(plan)
    assert "output-aware" not in str(ficoco_ext.models.resolve(model, "pyramiddrop"))
    nothing = ficoco_ext.models.resolve(model, "ficoco-l", r=0, layers=(0, 1), **AWARE)
    assert "output-aware" not in str(nothing)
