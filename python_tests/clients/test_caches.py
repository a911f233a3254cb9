"""Caches of ``generate`` that a client chooses by name: quantised, static, and offloaded to the CPU."""

import pytest
import torch
from helpers import clients
from helpers.backends import needs_gpu
from helpers.decoder import tiny
from helpers.models import one_thread  # noqa: F401

from ficoco_ext.models.transformers_api import output_cache

OPTIONS = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
LENGTHS = {"topk": [27] * 4, "fastv": [45, 45, 27, 27]}  # of 41 and 4 new ones; 18 are removed


def rounded(layer):
    """What a layer in 8 bits gives back for keys and values of ``layer``."""
    from transformers.cache_utils import Fp8QuantizedLayer

    other = Fp8QuantizedLayer()
    other.lazy_initialization(layer.keys, layer.values)
    return other._dequantize(other._quantized_keys), other._dequantize(other._quantized_values)


@clients.every_method
def test_a_cache_in_8_bits(method):
    """The prefill is exact, and the first new token reads the rounded cache of the positions that are left."""
    pytest.importorskip("transformers", "5.24")
    model = tiny(seed=4)
    with torch.no_grad(), clients.attach(model, method):
        found = model.generate(
            **clients.INPUTS, **OPTIONS, cache_implementation="quantized", cache_config={"backend": "fp8"}
        )
        cache = output_cache(found)
        assert [layer.get_seq_length() for layer in cache.layers] == LENGTHS[method]
        out = model(**clients.INPUTS)
        assert torch.allclose(found.logits[0], out.logits[:, -1], atol=1e-4)
        cache = output_cache(out)
        new, start = found.sequences[:, -5:-4], cache.get_seq_length()
        for layer in cache.layers:
            layer.keys, layer.values = rounded(layer)
        mask = torch.ones(1, start + 1, dtype=torch.long)
        step = model(input_ids=new, attention_mask=mask, past_key_values=cache).logits[:, -1]
    # the new token's own key and value are rounded too, by the scale of the prompt's
    assert torch.allclose(found.logits[1], step, atol=0.05 * float(step.abs().max()))


@clients.every_method
@pytest.mark.parametrize("name", ["static", pytest.param("offloaded", marks=needs_gpu)])
def test_caches_that_hold_the_same(method, name):
    model = tiny(seed=4).to("cuda" if name == "offloaded" else "cpu")
    inputs = {key: value.to(model.device) for key, value in clients.INPUTS.items()}
    with clients.attach(model, method):
        wanted = model.generate(**inputs, **OPTIONS)
        found = model.generate(**inputs, **OPTIONS, cache_implementation=name, disable_compile=True)
    assert torch.equal(found.sequences, wanted.sequences)
    for one, other in zip(found.logits, wanted.logits, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
