"""accelerate: weights on the CPU or on disk until a layer needs them, dispatched before or after ``attach``."""

import pytest
import torch
from helpers import clients
from helpers.decoder import tiny
from helpers.models import GREEDY, one_thread  # noqa: F401

accelerate = clients.need("accelerate")

SPREAD = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "cpu",
    "model.language_model": "disk",
    "lm_head": "cpu",
}
WAYS = {
    "cpu_offload": lambda model, folder: accelerate.cpu_offload(model, execution_device="cpu"),
    "disk_offload": lambda model, folder: accelerate.disk_offload(model, folder, execution_device="cpu"),
    "dispatch_model": lambda model, folder: accelerate.dispatch_model(
        model, SPREAD, main_device="cpu", offload_dir=folder, force_hooks=True
    ),
}


@clients.every_method
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attach_first", [True, False])
def test_offloaded_weights(way, method, attach_first, tmp_path):
    model = tiny()
    full = model.generate(**clients.INPUTS, **GREEDY)
    with clients.attach(model, method):
        wanted = model.generate(**clients.INPUTS, **GREEDY)
    if not attach_first:
        WAYS[way](model, tmp_path)
    with clients.attach(model, method) as handle:
        if attach_first:
            WAYS[way](model, tmp_path)
        assert model.model.language_model.layers[-1].mlp.up_proj.weight.is_meta  # it is not in memory
        assert torch.equal(model.generate(**clients.INPUTS, **GREEDY), wanted)
        clients.kept_by(handle)
    assert torch.equal(model.generate(**clients.INPUTS, **GREEDY), full)


@clients.every_method
def test_loaded_with_a_device_map(method, tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "model")
    with clients.attach(model, method):
        wanted = model.generate(**clients.INPUTS, **GREEDY)
    loaded = type(model).from_pretrained(tmp_path / "model", device_map=SPREAD, offload_folder=tmp_path / "disk").eval()
    loaded.generation_config = model.generation_config
    assert loaded.model.language_model.norm.weight.is_meta
    with clients.attach(loaded, method):
        assert torch.equal(loaded.generate(**clients.INPUTS, **GREEDY), wanted)
