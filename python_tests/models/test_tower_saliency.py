"""What the vision tower looks at, against maps of eager attention averaged by hand, for every family."""

import copy
import gc
import threading
from inspect import getsource

import pytest
import torch
from helpers.models import one_thread, sharpened, snapshot  # noqa: F401
from helpers.tiny_families import TINY, shared_model
from helpers.tiny_processors import Picture
from helpers.towers import CASES, CLASS_TOKENS, LAYER, NAMES, PACKED, EagerCalls, case, expected, of_patches

from ficoco_ext.models import tower_saliency
from ficoco_ext.models.families import FAMILIES
from ficoco_ext.models.model_changes import ModelChanges
from ficoco_ext.models.tower_families import TOWERS
from ficoco_ext.models.tower_saliency import TowerSaliency

pytest.importorskip("transformers")

KINDS = [(one, kind) for one in CASES for kind in ("class", "column", "keys")]
KINDS = [(one, kind) for one, kind in KINDS if kind != "class" or one.family.name in CLASS_TOKENS]


class Installed:
    """A model whose tower is measured, as a context."""

    def __init__(self, model, family, kind="auto"):
        self.saliency, self.changes = TowerSaliency(model, NAMES[family.name], kind), ModelChanges()

    def __enter__(self):
        self.saliency.install(self.changes)
        return self.saliency

    def __exit__(self, *error):
        self.changes.undo()


def measured(one, model, tensors, kind="auto"):
    """The numbers of each entry, and its features."""
    with Installed(model, one.family, kind) as saliency:
        features = one.encode(model, tensors)
        return saliency.take([len(entry) for entry in features]), features


@pytest.mark.parametrize(("one", "kind"), KINDS, ids=lambda value: str(value))
@torch.no_grad()
def test_it_is_what_eager_attention_says(one, kind, monkeypatch):
    """Pictures of several sizes in one call; features are bit for bit those of the untouched model."""
    model, tensors = shared_model(one.family.name), one.tensors()
    plain = one.encode(model, tensors)
    found, features = measured(one, model, tensors, kind)
    assert all(map(torch.equal, plain, features))

    eager = one.family.model("eager")
    calls = EagerCalls(monkeypatch, one.attention(eager))
    one.encode(eager, tensors)
    wanted = expected(one, of_patches(kind, calls, one), [len(entry) for entry in features])
    assert [len(entry) for entry in found] == [len(entry) for entry in features]
    torch.testing.assert_close(torch.cat(found).double(), torch.cat(wanted), atol=1e-5, rtol=0)
    assert all(entry.dtype == torch.float32 and entry.min() >= 0 for entry in found)
    assert torch.cat(wanted).std() > 1e-3  # a map that is flat would prove nothing


@pytest.mark.parametrize("one", CASES, ids=str)
@torch.no_grad()
def test_a_part_of_the_picture_is_the_same_token_in_features_and_numbers(one, monkeypatch):
    """No patch sees another, and its number is the length of its own key: what changes says which token it is."""

    def lengths(attn, class_token, mask=None):
        return attn.key.norm(dim=-1).mean(1)[:, int(class_token) :]

    monkeypatch.setattr(tower_saliency, "received", lengths)
    model, tensors = sharpened(one.family.build, 0), one.tensors()
    for module in model.modules():
        for name in ("out_proj", "proj", "projection_layer", "o_proj") * type(module).__name__.endswith("Attention"):
            if hasattr(module, name):
                getattr(module, name).weight.zero_()
    name = next(key for key in tensors if key.startswith("pixel_values"))
    before, features = map(torch.cat, measured(one, model, tensors, "column"))
    hit = set()
    for where in parts_of(one, tensors[name]):
        changed = tensors | {name: tensors[name].clone()}
        changed[name][where] *= -3
        after, moved = map(torch.cat, measured(one, model, changed, "column"))
        tokens = (moved != features).any(1).nonzero().flatten().tolist()
        assert (after != before).nonzero().flatten().tolist() == tokens, where
        assert len(tokens) == 1 or (not tokens and one.family.name in ("llava-next", "llava-onevision"))
        hit |= set(tokens)
    assert hit == set(before.nonzero().flatten().tolist())  # line ends and class tokens have 0


def parts_of(one, pixels):
    """Indices of the pixels of each merge unit, of tiles that are not all zeros."""
    name = one.family.name
    if name in PACKED:
        return [slice(4 * unit, 4 * unit + 4) for unit in range(len(pixels) // 4)]
    size = 28 if name in ("internvl", "gemma3", "smolvlm", "idefics3", "mistral3") else 14
    found = []
    for tile in torch.cartesian_prod(*map(torch.arange, pixels.shape[:-3])).view(-1, pixels.dim() - 3).tolist():
        for top in range(0, pixels.shape[-2], size):
            for left in range(0, pixels.shape[-1], size):
                where = (*tile, slice(None), slice(top, top + size), slice(left, left + size))
                if pixels[where].any():
                    found.append(where)
    return found


@pytest.mark.parametrize("one", CASES, ids=str)
@torch.no_grad()
def test_a_batch_is_its_pictures_alone(one):
    """The numbers of a picture do not depend on those beside it."""
    model = shared_model(one.family.name)
    generator = torch.Generator().manual_seed(5)
    alone = [one.family.encode(visual, generator) for visual in one.visuals]
    together, _ = measured(one, model, one.family.join([[encoded] for encoded in alone]))
    each = [measured(one, model, one.family.join([[encoded]]))[0] for encoded in alone]
    torch.testing.assert_close(torch.cat(together), torch.cat([entry for found in each for entry in found]))


@pytest.mark.parametrize("one", CASES, ids=str)
@torch.no_grad()
def test_half_precision(one):
    model, tensors = copy.deepcopy(shared_model(one.family.name)).bfloat16(), one.tensors()
    tensors = {name: value.bfloat16() if value.is_floating_point() else value for name, value in tensors.items()}
    found, features = measured(one, model, tensors)
    exact, _ = measured(one, shared_model(one.family.name), one.tensors())
    assert features[0].dtype == torch.bfloat16 and all(entry.dtype == torch.float32 for entry in found)
    torch.testing.assert_close(torch.cat(found), torch.cat(exact), atol=0.2 * float(torch.cat(exact).max()), rtol=0)


@pytest.mark.parametrize("one", CASES, ids=str)
@torch.no_grad()
def test_undoing_leaves_nothing(one):
    model, tensors = shared_model(one.family.name), one.tensors()
    before = snapshot(model)
    measured(one, model, tensors)
    assert snapshot(model) == before


def test_every_family_is_declared_by_its_own_name():
    assert {family.name for family in FAMILIES} <= set(TOWERS)
    assert {NAMES[family.name] for family in TINY} <= set(TOWERS)
    for known in TOWERS.values():
        for body in known.bodies:
            tower, attention = body.classes()
            assert issubclass(tower, torch.nn.Module) and issubclass(attention, torch.nn.Module)


def test_which_layer_and_what_is_read():
    """Class row where a class token was trained for it; the layer whose output is selected; windows are passed over."""
    for name, family in NAMES.items():
        saliency = TowerSaliency(shared_model(name), family)
        assert saliency.layer == LAYER.get(name, 1), name
        assert saliency.kind == ("class" if name in CLASS_TOKENS[:3] else "column"), name


@pytest.mark.parametrize(
    ("selected", "layer"), [(-1, 2), (-2, 1), (-3, 0), (1, 0), (3, 2), ([-3, -1], 2), ([1, 2], 1), ([-2], 1)]
)
def test_the_layer_follows_the_selected_features(selected, layer):
    """hidden_states[i] is what layer i - 1 gives."""
    model = copy.deepcopy(shared_model("llava-clip"))
    model.config.vision_feature_layer = selected
    assert TowerSaliency(model, "LLaVA-1.5").layer == layer


@torch.no_grad()
def test_the_last_layer_with_full_attention_is_read():
    """Qwen2.5-VL: a window after it is local and is passed over."""
    model = copy.deepcopy(shared_model("qwen2.5-vl"))
    one, visual = case("qwen2.5-vl"), model.model.visual
    for layers, wanted in (([0], 0), ([1], 1), ([0, 1], 1)):
        visual.fullatt_block_indexes = visual.config.fullatt_block_indexes = layers
        with Installed(model, one.family) as saliency:
            features = one.encode(model, one.tensors())
            found = saliency.take([len(entry) for entry in features])
        assert saliency.layer == wanted
        sums = torch.stack([entry.sum() for entry in found])
        torch.testing.assert_close(sums, torch.full_like(sums, 0.25))  # each patch is looked at from its whole picture


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
@pytest.mark.parametrize("kind", ["column", "keys"])
@torch.no_grad()
def test_padding_of_a_picture_counts_for_nothing(name, kind, monkeypatch):
    """Patches that are not there neither look nor are looked at, and their share of a token is 0."""
    one, model = case(name), shared_model(name)
    tensors = one.tensors([Picture(1, 1), Picture(1, 1)])
    tensors["pixel_attention_mask"][1, :, 42:] = 0  # the last row of patches
    tensors["pixel_attention_mask"][1, :, :, 28:] = 0  # and the right half
    found, _ = measured(one, model, tensors, kind)
    eager = one.family.model("eager")
    calls = EagerCalls(monkeypatch, one.attention(eager))
    one.encode(eager, tensors)
    real = torch.tensor([row < 3 and column < 2 for row in range(4) for column in range(4)])
    if kind == "column":
        whole = calls.weights[0][1].mean(0)[real].mean(0)
        assert not whole[~real].any()
    else:
        keys = calls.keys[0][1].mean(0)
        whole = (1 - torch.cosine_similarity(keys[real].mean(0, keepdim=True), keys)) * real
    grid = whole.view(4, 4)
    wanted = torch.stack([grid[:2, :2].mean(), grid[:2, 2:].mean(), grid[2:, :2].mean(), grid[2:, 2:].mean()])
    torch.testing.assert_close(torch.cat(found)[4:], wanted, atol=1e-5, rtol=0)
    assert wanted[1] == 0 and wanted[2] > 0
    unpadded, _ = measured(one, model, one.tensors([Picture(1, 1), Picture(1, 1)]), kind)
    torch.testing.assert_close(torch.cat(found)[:4], torch.cat(unpadded)[:4])


@torch.no_grad()
def test_a_large_picture_is_shrunk_with_its_features():
    """LLaVA-OneVision halves 8 x 8 patches if four crops are too many: means of squares, and a line end each."""
    one, model = case("llava-onevision"), copy.deepcopy(shared_model("llava-onevision"))
    tensors = one.tensors([Picture(112, 112)])
    long, _ = measured(one, model, tensors)
    model.config.vision_aspect_ratio = "anyres_max_1"
    short, features = measured(one, model, tensors)
    assert len(features[0]) == 16 + 4 * 5
    lines = long[0][16:].view(8, 9)[:, :8]
    wanted = torch.stack([lines[r : r + 2, c : c + 2].mean() for r in range(0, 8, 2) for c in range(0, 8, 2)])
    torch.testing.assert_close(short[0][16:].view(4, 5)[:, :4].flatten(), wanted)
    assert not short[0][16:].view(4, 5)[:, 4].any()


@torch.no_grad()
def test_pictures_beside_others_are_one_crop():
    """LLaVA-OneVision: each of several pictures of a row has its patches and one line end."""
    one, model = case("llava-onevision"), shared_model("llava-onevision")
    generator = torch.Generator().manual_seed(3)
    row = [one.family.encode_beside(visual, generator) for visual in one.visuals]
    found, features = measured(one, model, one.family.join([row]))
    assert [len(entry) for entry in features] == [17] * 3
    assert all(entry[16] == 0 and torch.isclose(entry.sum(), torch.tensor(1.0)) for entry in found)


@torch.no_grad()
def test_the_class_token_of_full_features_has_none():
    """Strategy "full" projects CLIP's class token, too: it is no part of the picture."""
    one, model = case("llava-clip"), copy.deepcopy(shared_model("llava-clip"))
    patches, _ = measured(one, model, one.tensors())
    model.config.vision_feature_select_strategy = "full"
    found, _ = measured(one, model, one.tensors())
    for entry, alone in zip(found, patches, strict=True):
        assert entry[0] == 0 and torch.equal(entry[1:], alone)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_every_kernel_keeps_running(attention):
    """Measured the same under each, and the model's own setting is read at every call."""
    one = case("qwen2.5-vl")
    model, tensors = one.family.model(attention), one.tensors()
    with Installed(model, one.family) as saliency:
        features = one.encode(model, tensors)
        found = saliency.take([len(entry) for entry in features])
        model.set_attn_implementation("eager" if attention == "sdpa" else "sdpa")
        features = one.encode(model, tensors)
        again = saliency.take([len(entry) for entry in features])
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
        one.encode(model, one.tensors())
        seen = saliency._state.here.seen
        assert all(part.dim() == 2 for part in seen.parts) and seen.mask is None
        held = [found for found in gc.get_objects() if isinstance(found, torch.Tensor) and found.dim() == 4]
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
                found[index] = saliency.take([len(entry) for entry in features])

        threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    for index in range(4):
        torch.testing.assert_close(torch.cat(found[index]), torch.cat(wanted[index]), atol=0, rtol=0)


def test_it_is_a_constant_of_the_gradient():
    one, model = case("llava-siglip"), copy.deepcopy(shared_model("llava-siglip"))
    with Installed(model, one.family) as saliency:
        features = one.encode(model, one.tensors())
        found = saliency.take([len(entry) for entry in features])
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
        found = saliency.take([len(entry) for entry in features])
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
            return saliency.take([len(entry) for entry in features])

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
        found = twin.saliency.take(counts)
        del model.saliency
    wanted, _ = measured(one, shared_model("llava-next"), one.tensors())
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted))


@torch.no_grad()
def test_it_joins_a_reduction_inside_the_tower():
    """FiCoCo-V up to the layer before: both read the same layers, and numbers are those of what is left."""
    import ficoco_ext

    one, model = case("llava-clip"), copy.deepcopy(shared_model("llava-clip"))
    with ficoco_ext.attach(model, "ficoco-v", r=4, layers=(0,)) as handle:
        with Installed(model, one.family) as saliency:
            features = one.encode(model, one.tensors())
            found = saliency.take([len(entry) for entry in features])
            assert [len(entry) for entry in found] == [12, 12] and len(handle.reductions) == 1
            assert all(0.1 < float(entry.sum()) < 1 for entry in found)
        again = one.encode(model, one.tensors())
        assert all(map(torch.equal, features, again))
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
        assert len(saliency.take(counts)) == len(counts)
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
        found = saliency.take([len(entry) for entry in features])
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted), atol=0, rtol=0)


def test_refusals():
    llava, siglip, qwen = (copy.deepcopy(shared_model(name)) for name in ("llava-clip", "llava-siglip", "qwen2.5-vl"))
    with pytest.raises(ValueError, match="saliency must be one of auto, class, column, keys, got row"):
        TowerSaliency(llava, "LLaVA-1.5", "row")
    with pytest.raises(NotImplementedError, match=r"saliency must be that of LLaVA-1\.5, .*got BLIP-2; use a"):
        TowerSaliency(llava, "BLIP-2")
    with pytest.raises(NotImplementedError, match=r"must be 'column' or 'keys', got class; the vision tower of L"):
        TowerSaliency(siglip, "LLaVA-1.5", "class")
    siglip.model.vision_tower = torch.nn.Identity()
    with pytest.raises(NotImplementedError, match=r"one of CLIPVisionModel, SiglipVisionModel, .*got Identity"):
        TowerSaliency(siglip, "LLaVA-1.5")
    qwen.model.visual.config.fullatt_block_indexes = []
    with pytest.raises(NotImplementedError, match=r"attends to whole pictures.*got fullatt_block_indexes=\[\]"):
        TowerSaliency(qwen, "Qwen2.5-VL")
    llava.config.vision_feature_layer = 0
    with pytest.raises(NotImplementedError, match="vision_feature_layer=0"):
        TowerSaliency(llava, "LLaVA-1.5")
    llava.config.vision_feature_layer = -2
    llava.model.vision_tower.encoder.layers[1].self_attn = torch.nn.Identity()
    with pytest.raises(NotImplementedError, match="attention of vision layer 1 must be a CLIPAttention, got Identity"):
        TowerSaliency(llava, "LLaVA-1.5")
