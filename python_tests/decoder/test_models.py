"""A reduced language model: what stays as it was, how long every cache is, and that a batch is its rows."""

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import (
    answers,
    batch,
    close,
    image,
    one_thread,  # noqa: F401
    pixels,
    words,
)

import ficoco_ext
from ficoco_ext import get_method
from ficoco_ext.models.reduced_prefill import ReducedPrefill, RowGroup, _Part

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]  # 41 columns
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]  # 76
LAST = [*words(1, 2, 3), *image()]  # 39
TEXT = words(11, 12, 13, 14)
BOOK = words(*range(40), *range(10))  # 50
METHODS = {
    "paper": {"method": "ficoco-l", "keep_ratio": 0.3},
    "released": {"method": "ficoco-l", "variant": "released", "keep_ratio": 0.3},
    "before attention": {"method": "ficoco-l", "before_attention": True, "r": 8},
    "layer 0": {"method": "ficoco-l", "r": 12, "layers": (0, 3)},
    "fastv": {"method": "fastv"},
    "pyramiddrop": {"method": "pyramiddrop"},
    "sparsevlm": {"method": "sparsevlm"},
    "both sides": {"method": "ficoco-vl", "keep_ratio": 0.3},
    "stages": {
        "method": "ficoco-l",
        "keep_ratio": (0.5, 0.49, 0.25),
        "layers": (0, 1, 2),
    },  # 36: 18, 0, 9; 72: 36, 1, 17
}
GREEDY = {"max_new_tokens": 4, "do_sample": False}
DETAILS = {"return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny(attention=request.param, seed=21)


NOTHING = [
    {"method": "ficoco-l", "r": 0},
    {"method": "ficoco-l", "keep_ratio": 1.0},
    {"method": "ficoco-l", "keep_ratio": 0.9999},  # attached, but 36 of 36 stay
    {"method": "ficoco-l", "tokens": 10_000, "layers": (0, 1, 2, 3)},
    {"method": "ficoco-l", "tokens": 10_000, "before_attention": True},
    {"method": "ficoco-l", "tokens": 10_000, "static_counts": True},
    {"method": "fastv", "keep_ratio": 1},
    {"method": "fastv", "tokens": 72},
    {"method": "pyramiddrop", "keep_ratio": (1.0, 1.0, 1.0)},
    {"method": "ficoco-vl", "keep_ratio": 1.0},
    {"method": "ficoco-vl", "vision": {"keep_ratio": 1.0}, "decoder": {"r": 0}},
    {"method": "ficoco-vl", "vision": {"tokens": 36}, "decoder": {"tokens": 72}},
]


@pytest.mark.parametrize("options", NOTHING, ids=str)
def test_removing_nothing_changes_no_bit(model, options):
    rows = ([ONE, ONE],) if options.get("static_counts") else ([ONE], [ONE, TWO], [TEXT, TWO], [LAST])
    for inputs in (batch(*some) for some in rows):
        plain = answers(model, inputs)
        with ficoco_ext.attach(model, **options) as handle:
            assert all(map(torch.equal, answers(model, inputs), plain))
            assert not any(handle.decoder_reductions)


def test_text_alone_is_left_alone(model):
    inputs = batch(TEXT, BOOK, images=0)
    with torch.no_grad():
        plain = model(**inputs).logits, model.generate(**inputs, **GREEDY)
        with ficoco_ext.attach(model, "ficoco-l", r=10) as handle:
            model(**batch(ONE))
            found = model(**inputs).logits, model.generate(**inputs, **GREEDY)
            assert all(map(torch.equal, found, plain)) and len(handle.decoder_reductions) == 1


L = {"method": "ficoco-l"}
LENGTHS = [  # rows, options, columns of the prompt in each layer's cache
    ([ONE], L | {"r": 10}, (41, 41, 31, 21)),
    ([ONE], L | {"r": 10, "layers": (0,)}, (41, 31, 31, 31)),
    ([ONE], L | {"r": 10, "layers": (3,)}, (41, 41, 41, 41)),
    ([ONE], L | {"r": (10, 0, 20), "layers": (0, 1, 2)}, (41, 31, 31, 11)),
    ([ONE], L | {"tokens": 9, "layers": (1, 2)}, (41, 41, 27, 14)),
    ([ONE], L | {"keep_ratio": (0.5, 0.25), "layers": (0, 2)}, (41, 23, 23, 14)),
    ([ONE], L | {"r": 10, "before_attention": True, "layers": (1, 2)}, (41, 31, 21, 21)),
    ([ONE], L | {"r": 50, "layers": (1, 2)}, (41, 41, 6, 6)),
    ([TWO], L | {"r": 10}, (76, 76, 66, 56)),
    ([ONE, TWO], L | {"r": 10}, (76, 76, 66, 56)),
    ([ONE, TWO], L | {"r": 60, "layers": (0,)}, (76, 16, 16, 16)),
    ([ONE, TWO], L | {"keep_ratio": 0.25, "layers": (0, 1)}, (76, 49, 22, 22)),
    ([ONE, TWO], L | {"tokens": 30, "layers": (0,)}, (76, 35, 35, 35)),  # 5 of ONE's columns are text
    ([TWO, TEXT], L | {"keep_ratio": 0.25}, (76, 76, 58, 40)),
    ([ONE, BOOK], L | {"r": 10}, (50, 50, 50, 50)),
    ([ONE, BOOK, TWO], L | {"r": 40, "layers": (1, 2)}, (76, 76, 50, 50)),
    ([LAST], L | {"r": 10}, (39, 39, 29, 19)),
    ([LAST], {"method": "fastv", "keep_ratio": 0.5}, (39, 39, 22, 22)),  # 18 of 35, and the last one as text
    ([ONE], {"method": "fastv"}, (41, 41, 23, 23)),
    ([ONE], {"method": "fastv", "layer": 1, "keep_ratio": 0.25}, (41, 14, 14, 14)),
    ([ONE], {"method": "pyramiddrop"}, (41, 23, 14, 9)),
    ([ONE, TWO, TEXT], {"method": "pyramiddrop"}, (76, 40, 22, 13)),
    ([ONE], {"method": "topk", "tokens": 9}, (14, 14, 14, 14)),
    ([ONE], {"method": "ficoco-vl", "keep_ratio": 0.25}, (23, 23, 20, 17)),
    ([ONE, TWO], {"method": "ficoco-vl", "vision": {"tokens": 18}, "decoder": {"r": 6}}, (40, 40, 34, 28)),
]


@pytest.mark.parametrize(("rows", "options", "lengths"), LENGTHS)
def test_every_cache_is_as_long_as_its_layer_needs(model, rows, options, lengths):
    inputs = batch(*rows)
    with torch.no_grad(), ficoco_ext.attach(model, **options):
        out = model.generate(**inputs, **GREEDY, **DETAILS)
        assert out.sequences.shape[1] == inputs["input_ids"].shape[1] + 4
        assert torch.equal(out.sequences[:, :-4], inputs["input_ids"])
        cache = model(**inputs).past_key_values
    for held, new in ((out.past_key_values, 3), (cache, 0)):
        assert tuple(layer.keys.shape[2] - new for layer in held.layers) == lengths
        assert tuple(layer.values.shape[2] - new for layer in held.layers) == lengths
        assert held.get_seq_length() == lengths[0] + new


def test_hidden_states_and_logits_have_the_columns_that_are_left(model):
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", r=10):
        out = model(**batch(ONE, TWO), output_hidden_states=True)
        assert [state.shape[1] for state in out.hidden_states] == [76, 76, 66, 56, 46]
        assert out.logits.shape[1] == 46
        assert model(**batch(ONE, TWO), logits_to_keep=1).logits.shape[1] == 1
    with torch.no_grad(), ficoco_ext.attach(model, "pyramiddrop"):
        out = model(**batch(ONE), output_hidden_states=True)
        assert [state.shape[1] for state in out.hidden_states] == [41, 41, 23, 14, 9]


def alone(rows, pictures, b):
    """Inputs of one row of a batch, with its own pictures."""
    counts = [row.count(3) // 36 for row in rows]
    first = sum(counts[:b])
    inputs = batch(rows[b], images=0)
    return inputs | ({"pixel_values": pictures[first : first + counts[b]]} if counts[b] else {})


BATCHES = {
    "unequal pictures": [ONE, TWO],
    "text between": [TWO, TEXT, ONE],
    "a long text": [ONE, BOOK],
    "equal": [ONE, ONE],
    "equal lengths, unequal pictures": [[*words(*range(35)), *ONE], TWO],  # padding comes by reduction alone
    "pictures at the end": [LAST, TWO, [*words(1), *LAST]],
}


@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("method", METHODS)
def test_a_row_alone_equals_the_row_in_a_batch(model, method, case):
    rows = BATCHES[case]
    inputs = batch(*rows)
    with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]) as handle:
        whole, direct = model.generate(**inputs, **GREEDY, **DETAILS), model(**inputs).logits
        told = handle.decoder_reductions
        for b in range(len(rows)):
            one = alone(rows, inputs.get("pixel_values"), b)
            single = model.generate(**one, **GREEDY, **DETAILS)
            assert torch.equal(whole.sequences[b, -4:], single.sequences[0, -4:])
            assert all(close(many[b], few[0]) for many, few in zip(whole.logits, single.logits, strict=True))
            logits = model(**one).logits[0]
            assert close(direct[b, -len(logits) :], logits)  # a shorter row stands at the right
            if "pixel_values" in one:
                assert_same_story(told[b], handle.decoder_reductions[0])
            else:
                assert told[b] == ()


def assert_same_story(one, other):
    """Two accounts of a row, of which one has more padding in front of the prompt."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        shift = a.source_map.shape[1] - b.source_map.shape[1]
        assert torch.equal(a.sources - shift, b.sources)
        common = b.kept.shape[1]
        assert torch.equal(a.kept[:, -common:] - shift, b.kept)
        assert torch.equal(a.targets - (a.kept.shape[1] - common), b.targets)
        assert torch.allclose(a.weights, b.weights, atol=1e-5)
        assert torch.allclose(a.size[:, -common:], b.size, atol=1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "both sides"])
def test_padding_anywhere_in_a_direct_call(model, method):
    """Padding on the right and holes; positions are passed, so that they count real tokens alone."""
    rows = [ONE, LAST, TWO]
    width = 84
    ids, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    places = [list(range(41)), [0, 1, 4, *range(7, 43)], [*range(2, 40), *range(45, 83)]]
    for b, (row, at) in enumerate(zip(rows, places, strict=True)):
        ids[b, at] = torch.tensor(row)
        mask[b, at] = 1
    pictures = pixels(4, seed=3)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures}
    inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]) as handle:
        whole, told = model(**inputs).logits, handle.decoder_reductions
        for b, at in enumerate(places):
            one = alone(rows, pictures, b)
            logits = model(**one).logits[0]
            kept, (mine,) = told[b][-1].kept[0], handle.decoder_reductions
            there = mask[b].bool()[kept]
            assert torch.equal(kept[there], torch.tensor(at)[mine[-1].kept[0]])
            assert close(whole[b, -len(kept) :][there], logits)


def test_the_last_real_token_always_stays(model):
    """The answer is read from it, be it a picture's."""
    inputs = batch(LAST, [*words(1), *LAST])
    for options in (L | {"r": 50}, {"method": "fastv", "tokens": 1}, L | {"r": 50, "before_attention": True}):
        with torch.no_grad(), ficoco_ext.attach(model, **options) as handle:
            model(**inputs)
            for row in handle.decoder_reductions:
                assert int(row[-1].kept[0, -1]) == inputs["input_ids"].shape[1] - 1
                assert (row[-1].kept[0] >= 4).sum() == 2  # of its 36 one besides


def test_attention_kernels_may_be_changed_while_attached():
    model = tiny(seed=22)
    inputs = batch(ONE, TWO)
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", r=10):
        sdpa = model(**inputs).logits
        model.set_attn_implementation("eager")
        assert close(model(**inputs).logits[:, -11:], sdpa[:, -11:])  # in front of them ONE has padding
        assert model.config.text_config._attn_implementation == "eager"


def test_half_precision():
    model = tiny(seed=23, dtype=torch.bfloat16)
    inputs = batch(ONE, TWO)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    for method in METHODS.values():
        with torch.no_grad(), ficoco_ext.attach(model, **method):
            assert model(**inputs).logits.isfinite().all()
            assert model.generate(**inputs, **GREEDY).shape == (2, 80)


@pytest.mark.parametrize("static", [True, 18])
def test_static_counts_of_a_method_of_two_parts(model, static):
    """What is promised is what the tower leaves, not what the processor wrote."""
    inputs, options = batch(ONE, ONE), {"method": "ficoco-vl", "keep_ratio": 0.25}
    with torch.no_grad(), ficoco_ext.attach(model, **options):
        wanted = model(**inputs).logits
    with torch.no_grad(), ficoco_ext.attach(model, **options, static_counts=static) as handle:
        assert handle.attach_plan.per_image == 18
        assert close(model(**inputs).logits, wanted)


def test_a_penalty_counts_the_cells_of_the_images(model):
    """Also after a reduction, when other tokens stand at the positions; and one image may end in a smaller window."""
    visual = torch.zeros(1, 10, dtype=torch.bool)
    visual[:, 2:8] = True  # an image of 2 x 3
    method, held = get_method("ficoco-l", penalty=2.0, window=1), torch.tensor([[0, 1, 3, 4, 6, 7, 8, 9]])
    part = _Part(torch.zeros(1, 8, 1), held, None, torch.ones(1, 8, 1))
    for pictured, height in ((6, 2), (5, 2), (7, 4)):
        group = RowGroup(None, None, torch.tensor([[2, 3, 4, 5]]), None, pictured, [8])
        ids, grid = ReducedPrefill(visual, None, [group], (2, 3))._grid(method, part, group.visual, group)
        assert (ids.tolist(), grid) == ([[1, 2, 4, 5]], (height, 3))
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", r=5, penalty=2.0, window=4):
        assert model(**batch(ONE)).logits.isfinite().all()
