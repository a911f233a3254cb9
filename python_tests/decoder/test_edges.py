"""A reduced language model at its edges: guesses, promises that do not hold, rows that move, other ways in."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import batch, close, image, one_image, one_thread, words  # noqa: F401

import ficoco_ext
from ficoco_ext.models.decoder_layer import CALL

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
END = [*words(1, 2), *image()]


@pytest.fixture(scope="module")
def model():
    return tiny(seed=3)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("option", [{"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 2}])
def test_guesses_that_are_read_with_the_prompt_are_refused(model, option):
    with ficoco_ext.attach(model, "fastv"):
        with pytest.raises(NotImplementedError, match=f"{next(iter(option))} is not supported"):
            model.generate(**one_image(), max_new_tokens=3, **option)
        assert model.generate(**one_image(), max_new_tokens=3, do_sample=False).shape == (1, 44)


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_static_counts_with_a_picture_at_the_end_are_refused(model, method):
    with ficoco_ext.attach(model, method, static_counts=True):
        with pytest.raises(ValueError, match=r"text after them, as promised, got .*an image at the end"):
            model(**batch(END))
        assert model(**batch(ONE)).logits.shape[1] < len(ONE)


def test_new_pictures_on_a_static_cache_are_refused_with_static_counts_too(model):
    from transformers import StaticCache

    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=128)
    with ficoco_ext.attach(model, "ficoco-l", r=1, static_counts=True):
        model(**one_image(), past_key_values=cache)
        with pytest.raises(NotImplementedError, match="new images on a cache that is not empty"):
            model(**one_image(), past_key_values=cache)


def behind(model):
    """A cache of two unlike rows, the next inputs, and their logits."""
    inputs, ids = batch(ONE, TWO), torch.tensor([[11], [12]])
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.int64)], 1)
    cache = model(**inputs).past_key_values
    wanted = model(input_ids=ids, attention_mask=mask, past_key_values=copy.deepcopy(cache)).logits
    return cache, ids, mask, wanted


@pytest.mark.parametrize("held", [lambda cache: cache, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
@pytest.mark.parametrize("how", ["reorder_cache", "batch_select_indices", "batch_repeat_interleave"])
def test_rows_that_the_cache_moves_take_their_columns_along(model, how, held):
    with ficoco_ext.attach(model, "ficoco-l", r=5):
        cache, ids, mask, wanted = behind(model)
        cache = held(cache)
        rows = torch.tensor([0, 0, 1, 1] if how == "batch_repeat_interleave" else [1, 0])
        getattr(cache, how)(2 if how == "batch_repeat_interleave" else rows)
        out = model(input_ids=ids[rows], attention_mask=mask[rows], past_key_values=cache)
    assert close(out.logits, wanted[rows])


def test_a_cache_that_is_reset_is_a_cache_like_any_other(model):
    with ficoco_ext.attach(model, "ficoco-l", r=5):
        cache, *_ = behind(model)
        names = set(vars(cache))
        cache.reset()
        assert set(vars(cache)) == {name for name in names if "ficoco" not in name} - {
            "reorder_cache",
            "batch_select_indices",
            "batch_repeat_interleave",
            "reset",
        }
        if cache.get_seq_length():
            pytest.skip("in this release of transformers a dynamic cache that is reset holds zeros, not nothing")
        word = torch.tensor([[5]])
        assert close(model(input_ids=word, past_key_values=cache).logits, model(input_ids=word).logits)


def test_the_language_model_itself_goes_on_from_a_reduced_cache(model):
    with ficoco_ext.attach(model, "ficoco-l", r=5):
        cache, ids, mask, wanted = behind(model)
        hidden = model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask, past_key_values=cache
        ).last_hidden_state
        assert close(model.lm_head(hidden), wanted)


def test_masks_of_earlier_stages_are_not_held(model):
    calls, held = [], []
    with ficoco_ext.attach(model, "ficoco-l", r=5, layers=(0, 1, 2)):
        hooks = [
            model.model.language_model.register_forward_pre_hook(
                lambda _, args, kwargs: calls.append(kwargs[CALL]), with_kwargs=True
            ),
            model.model.language_model.norm.register_forward_hook(lambda *_: held.append(len(calls[0].arguments))),
        ]
        model(**batch(ONE, TWO))
        for hook in hooks:
            hook.remove()
    assert held == [1]


@pytest.mark.parametrize("rows", [[END], [TWO[:-2]], [ONE, END]])
def test_a_penalty_counts_pictures_that_end_the_prompt(model, rows):
    with ficoco_ext.attach(model, "ficoco-l", r=5, penalty=2.0):
        assert model(**batch(*rows)).logits.isfinite().all()


@pytest.mark.parametrize("method", ["ficoco-v", "ficoco-l", "ficoco-vl"])
def test_a_handle_that_is_kept_does_not_keep_the_model(method):
    model = tiny(seed=1)
    seen = [weakref.ref(part) for part in (model.model.language_model.layers[0].mlp, model.model.vision_tower)]
    handle = ficoco_ext.attach(model, method, keep_ratio=0.25)
    model(**one_image())
    told = len(handle.reductions), len(handle.decoder_reductions)
    handle.detach()
    del model
    gc.collect()
    assert [one() for one in seen] == [None, None]
    assert (len(handle.reductions), len(handle.decoder_reductions)) == told and any(told)


def test_an_attention_kernel_set_later_that_is_not_served_is_refused(model):
    with ficoco_ext.attach(model, "fastv"):
        model.set_attn_implementation("flex_attention")
        try:
            with pytest.raises(NotImplementedError, match="must be sdpa, eager or flash attention, got BlockMask"):
                model(**one_image())
        finally:
            model.set_attn_implementation("sdpa")
        assert model(**one_image()).logits.shape[1] < 41


def test_fastv_says_its_layer_one_way(model):
    with pytest.raises(ValueError, match=r"layers must be None with method 'fastv', or \(2,\).*say layer=2"):
        ficoco_ext.attach(model, "fastv", layer=3, layers=[1])
    with ficoco_ext.attach(model, "fastv", layer=3, layers=[2]) as handle:
        assert handle.plan.layers == (2,)


def test_stages_need_layers():
    with pytest.raises(ValueError, match="2 layers are too few for 3 stages"):
        ficoco_ext.attach(tiny(layers=2), "pyramiddrop")
