"""``torch.ao.quantization.quantize_dynamic``: linear layers that are replaced by others, before or after ``attach``."""

import pytest
import torch
from helpers import clients
from helpers.models import one_thread  # noqa: F401


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_quantised_model():
    def quantise(model):
        torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)

    clients.check_quantised(quantise, lambda module: isinstance(module, torch.ao.nn.quantized.dynamic.Linear))
