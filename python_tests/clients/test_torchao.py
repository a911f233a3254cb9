"""torchao: weights in 8 bits, or weights and activations, quantised before or after ``attach``."""

import pytest
import torch
from helpers import clients
from helpers.decoder import tiny
from helpers.models import one_thread  # noqa: F401

clients.need("torchao")
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_  # noqa: E402


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig])
def test_a_quantised_model(config):
    clients.check_quantised(
        lambda model: quantize_(model, config()), lambda module: type(module.weight).__name__ == "Int8Tensor"
    )


@clients.every_method
def test_weights_in_8_bits_are_those_that_they_stand_for(method):
    """The same answers as a float model with the rounded weights."""
    model, other = tiny(), tiny()
    quantize_(model, Int8WeightOnlyConfig())
    rounded = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in other.named_parameters():
            weight.copy_(rounded[name].dequantize() if hasattr(rounded[name], "dequantize") else rounded[name])
        (logits, kept), (wanted, same) = clients.reduced(model, method), clients.reduced(other, method)
    assert torch.equal(kept, same) and torch.allclose(logits, wanted, atol=1e-4)
