"""The tower's saliency in use: kernels, threads, copies, gradients, reductions beside it, what is refused."""

import copy
import gc
import threading
from inspect import getsource, signature

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import shared_model
from helpers.towers import NAMES, Installed, case, measured

from ficoco_ext.models.model_changes import ModelChanges
from ficoco_ext.models.tower_readings import TowerReadings

pytest.importorskip("transformers")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_every_kernel_keeps_running(attention):
    """Measured the same under each, and the model's own setting is read at every call."""
    one = case("qwen2.5-vl")
    model, tensors = one.family.model(attention), one.tensors()
    with Installed(model, one.family) as saliency:
        features = one.encode(model, tensors)
        found = saliency.take([len(entry) for entry in features])["saliency"]
        model.set_attn_implementation("eager" if attention == "sdpa" else "sdpa")
        features = one.encode(model, tensors)
        again = saliency.take([len(entry) for entry in features])["saliency"]
    torch.testing.assert_close(torch.cat(found), torch.cat(again))
    wanted, _ = measured(one, shared_model("qwen2.5-vl"), tensors)
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted))


@pytest.mark.parametrize("name", ["llava-siglip", "qwen2-vl", "qwen2.5-vl", "glm4v", "mistral3", "smolvlm"])
@torch.no_grad()
def test_with_kernels_that_take_pictures_in_one_call(name):
    """As flash attention does: the model passes where pictures end in one sequence, or which keys are real."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def kernel(module, query, key, value, attention_mask, **options):
        assert attention_mask is None
        ends = options.pop("cu_seq_lens_q", None)
        lengths = [query.shape[2]] if ends is None else ends.diff().tolist()
        calls.append(lengths)
        parts = zip(*(one.split(lengths, 2) for one in (query, key, value)), strict=True)
        return torch.cat([sdpa_attention_forward(module, *part, None, **options)[0] for part in parts], 1), None

    calls = []
    AttentionInterface.register("flash_attention_by_hand", kernel)
    one = case(name)
    plain, tensors = shared_model(name), one.tensors()
    if name == "mistral3" and "cu_seq_lens_q" not in getsource(type(plain.model.vision_tower)):
        pytest.skip("this release says by position ids where pictures end, which the kernel here does not read")
    wanted, features = measured(one, plain, tensors)
    model = copy.deepcopy(plain)
    for module in model.modules():
        if hasattr(module, "config") and one.attention(plain).config == module.config:
            module.config._attn_implementation_internal = "flash_attention_by_hand"
    one.encode(model, tensors)
    assert any(len(lengths) > 1 for lengths in calls) or name in ("llava-siglip", "smolvlm")
    patches = sum(map(sum, calls))
    calls.clear()
    found, again = measured(one, model, tensors)
    assert sum(map(sum, calls)) == patches  # the layer that is measured runs it, too
    torch.testing.assert_close(torch.cat(features), torch.cat(again), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted))


@pytest.mark.parametrize("name", ["llava-clip", "qwen2-vl", "mistral3"])
@torch.no_grad()
def test_query_and_key_do_not_outlive_their_layer(name):
    one, model = case(name), shared_model(name)
    with Installed(model, one.family) as saliency:
        gc.collect()
        before = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]  # of other tests
        one.encode(model, one.tensors())
        seen = saliency._state.here.seen
        assert all(part.shape[2] == 1 for part in seen.parts["saliency"]) and seen.mask is None
        old = set(map(id, before))
        new = [found for found in gc.get_objects() if isinstance(found, torch.Tensor) and id(found) not in old]
        held = [found for found in new if found.dim() == 4]
        assert not any(found.shape[:2] == (1, 4) and found.shape[-1] == 8 for found in held)


def test_each_thread_takes_its_own():
    one, model = case("qwen2-vl"), shared_model("qwen2-vl")
    tensors = [one.tensors(seed=seed) for seed in range(4)]
    with torch.no_grad():
        wanted = [measured(one, model, each)[0] for each in tensors]
    found, gate = {}, threading.Barrier(4)
    with Installed(model, one.family) as saliency:

        def run(index):
            with torch.no_grad():
                features = one.encode(model, tensors[index])
                gate.wait()
                found[index] = saliency.take([len(entry) for entry in features])["saliency"]

        threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    for index in range(4):
        torch.testing.assert_close(torch.cat(found[index]), torch.cat(wanted[index]), atol=0, rtol=0)


def test_it_is_a_constant_of_the_gradient():
    one, model = case("llava-siglip"), copy.deepcopy(shared_model("llava-siglip"))
    with Installed(model, one.family) as saliency:
        features = one.encode(model, one.tensors())
        found = saliency.take([len(entry) for entry in features])["saliency"]
        assert features[0].requires_grad and not found[0].requires_grad
        torch.cat(features).sum().backward()


@pytest.mark.parametrize("name", ["llava-siglip", "qwen2-vl"])
def test_a_layer_that_is_computed_again_is_not_measured_again(name):
    """Gradient checkpointing runs the tower's layers a second time, outside any call of the tower."""
    one, model = case(name), copy.deepcopy(shared_model(name)).train()
    with torch.no_grad():
        wanted, _ = measured(one, model.eval(), one.tensors())
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with Installed(model, one.family) as saliency:
        features = one.encode(model, one.tensors())
        torch.cat(features).sum().backward()
        found = saliency.take([len(entry) for entry in features])["saliency"]
        torch.testing.assert_close(torch.cat(found), torch.cat(wanted))
        assert saliency._state.here.seen is None


@pytest.mark.slow
@torch.no_grad()
def test_it_compiles_without_graph_breaks(fresh_compiler):
    one, model = case("llava-siglip"), shared_model("llava-siglip")
    wanted, _ = measured(one, model, one.tensors())
    with Installed(model, one.family) as saliency:

        def encode(tensors):
            features = one.encode(model, tensors)
            return saliency.take([len(entry) for entry in features])["saliency"]

        found = torch.compile(encode, fullgraph=True)(one.tensors())
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted))


@torch.no_grad()
def test_a_copy_measures_for_itself():
    one, model = case("llava-next"), copy.deepcopy(shared_model("llava-next"))
    with Installed(model, one.family) as saliency:
        model.saliency = saliency
        twin = copy.deepcopy(model)
        features = one.encode(twin, one.tensors())
        counts = [len(entry) for entry in features]
        with pytest.raises(RuntimeError, match="call get_image_features"):
            saliency.take(counts)
        found = twin.saliency.take(counts)["saliency"]
        del model.saliency
    wanted, _ = measured(one, shared_model("llava-next"), one.tensors())
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted))


@torch.no_grad()
def test_it_joins_a_reduction_inside_the_tower():
    """FiCoCo-V in the layer before, in the same layer, in both: a token that is left has its own number."""
    import ficoco_ext

    name = "llava-clip"
    one, model = case(name), copy.deepcopy(shared_model(name))
    found = {}
    for layers in ((0,), (1,), (0, 1)):
        with ficoco_ext.attach(model, "ficoco-v", r=4, layers=layers) as handle:
            plain = one.encode(model, one.tensors())
            changes, saliency = ModelChanges(), TowerReadings(model, NAMES[name], reductions=handle._tower)
            saliency.install(changes)
            features = one.encode(model, one.tensors())
            numbers = saliency.take([len(entry) for entry in features])["saliency"]
            changes.undo()
            assert all(map(torch.equal, plain, features))
            rows = zip(handle.reductions[-1].patch_ids.tolist(), torch.stack(numbers).tolist(), strict=True)
            found[layers] = [dict(zip(*row, strict=True)) for row in rows]
    whole, _ = measured(one, shared_model(name), one.tensors())
    for row in range(2):
        assert [len(found[layers][row]) for layers in found] == [12, 12, 8]
        assert found[1,][row] == {patch: float(whole[row][patch]) for patch in found[1,][row]}
        assert found[0, 1][row] == {patch: found[0,][row][patch] for patch in found[0, 1][row]}
    with ficoco_ext.attach(model, "ficoco-v", r=4, layers=(1,)), Installed(model, one.family) as saliency:
        features = one.encode(model, one.tensors())
        with pytest.raises(RuntimeError, match="projected 24 tokens, and its tower was measured for 32"):
            saliency.take([len(entry) for entry in features])


def test_numbers_are_taken_once():
    one, model = case("llava-next"), shared_model("llava-next")
    with Installed(model, one.family) as saliency, torch.no_grad():
        with pytest.raises(RuntimeError, match="did not run"):
            saliency.take([16])
        counts = [len(entry) for entry in one.encode(model, one.tensors())]
        assert len(saliency.take(counts)["saliency"]) == len(counts)
        with pytest.raises(RuntimeError, match="did not run"):
            saliency.take(counts)
        one.encode(model, one.tensors())
        saliency.drop()
        with pytest.raises(RuntimeError, match="did not run"):
            saliency.take(counts)
        model.model.vision_tower(one.tensors()["pixel_values"][0])
        with pytest.raises(RuntimeError, match="did not lay its features out"):
            saliency.take(counts)


@torch.no_grad()
def test_packing_something_else_changes_nothing():
    """The model's own packing may be asked for other things between the encoder and the numbers."""
    one, model = case("llava-next"), shared_model("llava-next")
    wanted, _ = measured(one, model, one.tensors())
    plain = signature(model.model.pack_image_features)
    with Installed(model, one.family) as saliency:
        assert signature(model.model.pack_image_features) == plain
        features = one.encode(model, one.tensors())
        model.model.pack_image_features([torch.zeros(3, 16, 1)], [(56, 112)], "default", torch.ones(1))
        found = saliency.take([len(entry) for entry in features])["saliency"]
        model.model.pack_image_features([torch.zeros(3, 16, 1)], [(56, 112)], "default", torch.ones(1))
    assert all(map(torch.equal, found, wanted))


@torch.no_grad()
def test_a_call_that_fails_leaves_nothing_to_the_next():
    one, model = case("qwen2-vl"), shared_model("qwen2-vl")
    wanted, _ = measured(one, model, one.tensors())
    with Installed(model, one.family) as saliency:
        broken = one.tensors()
        broken["image_grid_thw"] = broken["image_grid_thw"].clone()
        broken["image_grid_thw"][-1, 1] += 20
        with pytest.raises((RuntimeError, IndexError)):
            one.encode(model, broken)
        assert saliency._state.here.seen is None and not saliency._state.here.running
        features = one.encode(model, one.tensors())
        found = saliency.take([len(entry) for entry in features])["saliency"]
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted), atol=0, rtol=0)


def test_refusals():
    llava, siglip, qwen = (copy.deepcopy(shared_model(name)) for name in ("llava-clip", "llava-siglip", "qwen2.5-vl"))
    with pytest.raises(ValueError, match="saliency must be one of auto, class, column, keys, got row"):
        TowerReadings(llava, "LLaVA-1.5", saliency="row")
    with pytest.raises(NotImplementedError, match=r"saliency must be of the tower of LLaVA-1\.5, .*got BLIP-2; use a"):
        TowerReadings(llava, "BLIP-2")
    with pytest.raises(NotImplementedError, match=r"must be 'column' or 'keys', got class; the vision tower of L"):
        TowerReadings(siglip, "LLaVA-1.5", saliency="class")
    siglip.model.vision_tower = torch.nn.Identity()
    with pytest.raises(NotImplementedError, match=r"one of CLIPVisionModel, SiglipVisionModel, .*got Identity"):
        TowerReadings(siglip, "LLaVA-1.5")
    qwen.model.visual.config.fullatt_block_indexes = []
    with pytest.raises(NotImplementedError, match=r"attends to whole pictures.*got fullatt_block_indexes=\[\]"):
        TowerReadings(qwen, "Qwen2.5-VL")
    llava.config.vision_feature_layer = 0
    with pytest.raises(NotImplementedError, match="vision_feature_layer=0"):
        TowerReadings(llava, "LLaVA-1.5")
    llava.config.vision_feature_layer = -2
    llava.model.vision_tower.encoder.layers[1].self_attn = torch.nn.Identity()
    with pytest.raises(NotImplementedError, match="attention of vision layer 1 must be a CLIPAttention, got Identity"):
        TowerReadings(llava, "LLaVA-1.5")
