"""The state of a call belongs to the call: several threads, calls that fail, caches that are done with."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
import weakref

import pytest
import torch
from helpers.models import GREEDY, batch, image, one_image, one_thread, tiny_llava, words  # noqa: F401

import ficoco_ext
from ficoco_ext.models import kv_cache
from ficoco_ext.models.per_thread import PerThread
from ficoco_ext.models.transformers_api import output_cache

pytest.importorskip("transformers")

METHODS = {
    "ficoco-v": {"keep_ratio": 0.5},
    "tome": {"keep_ratio": 0.5},
    "fastv": {"layer": 1},
    "ficoco-l": {"keep_ratio": 0.5},
    "ficoco-vl": {"keep_ratio": 0.5},
}
every = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def model():
    return tiny_llava()


@pytest.fixture
def impatient():
    """Threads take turns so often that none gets through a layer alone."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(calls):
    """What the calls return, each in a thread of its own, started at once."""
    found, barrier = [None] * len(calls), threading.Barrier(len(calls))

    def run(place, call):
        barrier.wait()
        try:
            found[place] = call()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=one) for one in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@every
def test_several_threads_on_one_model(model, method, impatient):
    inputs = [one_image(seed) for seed in (1, 2, 3)]
    inputs.append(batch([*words(1, 2, 3, 4), *image(), *words(3), *image(), *words(9)], seed=9))
    inputs.append(batch(words(1, 2, 3)))

    def serve(one):
        return lambda: [model.generate(**one, **GREEDY) for _ in range(6)]

    with ficoco_ext.attach(model, method, **METHODS[method]):
        wanted = [model.generate(**one, **GREEDY) for one in inputs]
        for got, right in zip(together([serve(one) for one in inputs]), wanted, strict=True):
            assert isinstance(got, list), got
            assert all(torch.equal(one, right) for one in got)


@every
def test_the_handle_tells_of_a_call_in_another_thread(model, method):
    inputs = one_image()
    with ficoco_ext.attach(model, method, **METHODS[method]) as handle:
        model.generate(**inputs, **GREEDY)
        wanted = handle.reductions, handle.decoder_reductions
    with ficoco_ext.attach(model, method, **METHODS[method]) as handle:
        together([lambda: model.generate(**inputs, **GREEDY)])
        got = handle.reductions, handle.decoder_reductions
    assert [len(one) for one in got] == [len(one) for one in wanted]
    assert all(torch.equal(a.kept, b.kept) for a, b in zip(got[0], wanted[0], strict=True))


@every
def test_a_finished_generate_gives_its_cache_back(model, method):
    with ficoco_ext.attach(model, method, **METHODS[method]):
        gc.collect()
        gc.disable()
        try:
            for options in (GREEDY, GREEDY | {"num_beams": 2}):
                result = model.generate(**one_image(), **options, return_dict_in_generate=True)
                cache = output_cache(result)
                alive = [weakref.ref(cache), weakref.ref(cache.layers[0])]
                del result, cache
                assert [one() for one in alive] == [None, None]
        finally:
            gc.enable()


def test_a_cache_that_is_copied_or_pickled_moves_its_own_columns(model):
    with ficoco_ext.attach(model, "fastv", layer=1), torch.no_grad():
        cache = output_cache(model(**batch([*words(1), *image(), *words(2)], [*words(1, 2), *image(), *words(3)])))
        for make in (copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
            other = make(cache)
            assert (
                kv_cache.positions_on(other) is not kv_cache.positions_on(cache) and other._ficoco_rows.cache is other
            )
            other.batch_select_indices(torch.tensor([1]))
            assert kv_cache.positions_on(other).rows == other.layers[0].keys.shape[0] == 1
            assert kv_cache.positions_on(cache).rows == cache.layers[0].keys.shape[0] == 2


FAILS = (
    "vision_tower.encoder.layers.4.self_attn.out_proj",
    "vision_tower.encoder.layers.4.mlp",
    "vision_tower.encoder.layers.5",
    "multi_modal_projector",
    "language_model.layers.1.self_attn.o_proj",
    "language_model.layers.2.mlp",
    "language_model.norm",
)


@every
@pytest.mark.parametrize("where", FAILS)
def test_a_call_that_fails_leaves_nothing(model, method, where):
    """Out of memory in the middle of a pass, caught: the next call is right, and this one gives its memory back."""
    inputs, seen = one_image(), []

    def watch(module, args, kwargs):
        seen.extend(weakref.ref(one) for one in [*args, *kwargs.values()] if isinstance(one, torch.Tensor))

    def broken(*_):
        raise torch.OutOfMemoryError("on purpose")

    with ficoco_ext.attach(model, method, **METHODS[method]):
        wanted = model.generate(**inputs, **GREEDY)
        inside = [*model.model.vision_tower.encoder.layers, *model.model.language_model.layers]
        hooks = [one.register_forward_pre_hook(watch, with_kwargs=True) for one in inside]
        hooks.append(model.model.get_submodule(where).register_forward_pre_hook(broken))
        with pytest.raises(torch.OutOfMemoryError):
            model.generate(**inputs, **GREEDY)
        for hook in hooks:
            hook.remove()
        gc.collect()
        assert seen and not any(one() is not None for one in seen)
        captures = [getattr(each, "_ficoco_capture", None) for each in model.modules()]
        assert all(one is None or one._captured is None for one in captures)
        assert torch.equal(model.generate(**inputs, **GREEDY), wanted)


def test_each_thread_has_its_own_values():
    class Counts:
        def __init__(self, start):
            self.value = start

    counts = PerThread(Counts, 5)
    counts.here.value += 1
    assert together([lambda: counts.here.value]) == [5]
    assert counts.here.value == 6
    assert copy.deepcopy(counts).here.value == 5
