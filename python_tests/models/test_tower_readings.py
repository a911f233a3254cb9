"""Keys, features and early saliency of the vision tower, against eager runs laid out by hand, for every family."""

import copy

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import shared_model
from helpers.tiny_processors import Picture
from helpers.towers import (
    CASES,
    CLASS_TOKENS,
    NAMES,
    PACKED,
    EagerCalls,
    Installed,
    case,
    expected,
    keys_of_patches,
    of_patches,
    read,
    vectors,
)

from ficoco_ext.models.tower_readings import TowerReadings
from ficoco_ext.stages import needs

pytest.importorskip("transformers")

ALL = (needs.SALIENCY, needs.TOWER_KEYS, needs.TOWER_FEATURES, needs.EARLY_SALIENCY)
FIELDS = {"saliency", "keys", "tower_features", "early_saliency"}
PROJECTED_CLASS_TOKEN = "video-llava-video"


class Outputs:
    """What modules returned in eager calls, or were given, one tensor for each call."""

    def __init__(self):
        self.found = {}

    def of(self, name, module, given=False):
        def keep(module, args, output=None):
            value = args[0] if given else output[0] if isinstance(output, tuple) else output
            self.found.setdefault(name, []).append(value.detach())

        return (module.register_forward_pre_hook if given else module.register_forward_hook)(keep)


def states(one, model):
    """The layer whose output is selected for the projector, and the norm behind it that the model applies."""
    name, core, tower = one.family.name, model.model, one.tower(model)
    layers = one.layers(model)
    if name in PACKED:
        return layers[-1], getattr(tower, "post_layernorm", None)
    if name in ("gemma3", "paligemma", "smolvlm", "idefics3"):
        return layers[-1], tower.post_layernorm
    if name == "internvl":
        return layers[-1], tower.layernorm
    return layers[core.config.vision_feature_layer], None


def split(one, states):
    """One tensor (n, C) for each picture, tile or frame, with a class token if there is one."""
    if one.family.name in PACKED:
        sizes = [frame for v in one.visuals for frame in ([v[1:]] * v[0] if one.video else [v])]
        return list(states.split([h * w for h, w in sizes]))
    if one.family.name in ("mistral3", "llava-pixtral"):
        return list(states[0].split([4 * h * w for h, w in one.visuals]))
    return list(states)


@pytest.mark.parametrize("one", CASES, ids=str)
@torch.no_grad()
def test_all_readings_are_what_eager_layers_say(one, monkeypatch):
    """In one call, of pictures of several sizes; features are bit for bit those of the untouched model."""
    model, tensors = shared_model(one.family.name), one.tensors()
    plain = one.encode(model, tensors)
    with Installed(model, one.family, "column", ALL) as readings:
        features = one.encode(model, tensors)
        found = readings.take([len(entry) for entry in features])
        early = readings.early_layer
    assert all(map(torch.equal, plain, features)) and set(found) == FIELDS
    assert early == (1 if one.family.name == "qwen2.5-vl" else 0)  # its first layer attends in windows
    counts = [len(entry) for entry in features]
    assert all([len(entry) for entry in entries] == counts for entries in found.values())

    eager, outputs = one.family.model("eager"), Outputs()
    calls, of_early = (EagerCalls(monkeypatch, one.attention(eager, layer)) for layer in (None, early))
    layer, norm = states(one, eager)
    hook = outputs.of("layer", layer)
    one.encode(eager, tensors)
    hook.remove()
    first = int(one.family.name in CLASS_TOKENS)
    state = outputs.found["layer"][-1]
    whole = split(one, state if norm is None else norm(state))

    for name, of in (("early_saliency", of_early), ("saliency", calls)):
        assert_near(found[name], expected(one, of_patches("column", of, one), counts))
    keys = vectors(one, keys_of_patches(calls, one), counts)
    states_ = vectors(one, [entry[first:].double() for entry in whole], counts)
    if str(one) == PROJECTED_CLASS_TOKEN:  # it has its own
        own = torch.cat([rows.double().mean(1)[:, :1] for rows in calls.keys])
        keys = [torch.cat([mine, entry[1:]]) for mine, entry in zip(own, keys, strict=True)]
        states_ = [torch.cat([mine[:1].double(), entry[1:]]) for mine, entry in zip(whole, states_, strict=True)]
    for name, entries in (("keys", keys), ("tower_features", states_)):
        assert_near(found[name], entries)
        assert torch.cat(entries).std() > 1e-3


def assert_near(found, wanted):
    """To 1e-5 of the largest value, or of 1."""
    found, wanted = torch.cat(found).double(), torch.cat(wanted).double()
    torch.testing.assert_close(found, wanted, atol=1e-5 * max(1, float(wanted.abs().max())), rtol=0)


PROJECTORS = [one for one in CASES if one.family.name not in ("internvl", "gemma3", "smolvlm", "idefics3", "mistral3")]
PROJECTORS = [one for one in PROJECTORS if str(one) != "llava-onevision-video"]  # its frames are pooled after it


@pytest.mark.parametrize("one", PROJECTORS, ids=str)
@torch.no_grad()
def test_features_are_what_the_projector_gets(one):
    """No shuffle before it: its input, or that of the tower's merger, meaned over merge units, is the same rows."""
    model, tensors, outputs = shared_model(one.family.name), one.tensors(), Outputs()
    if one.family.name in PACKED:
        module = getattr(one.tower(model), "downsample", one.tower(model).merger)
    else:
        module = model.model.multi_modal_projector
    hook = outputs.of("projector", module, given=True)
    found, _ = read(one, model, tensors, (needs.TOWER_FEATURES,))
    hook.remove()
    given = torch.cat(outputs.found["projector"])
    if one.family.name in PACKED:
        units = given.flatten(2).mean(2) if given.dim() == 4 else given.unflatten(0, (-1, 4)).mean(1)
    else:
        units = given.flatten(0, -2)
    rows = torch.cat(found["tower_features"])
    if one.family.name in ("llava-next", "llava-onevision"):  # tiles are packed, unpadded, and given line ends
        rows = rows[rows.any(1)]
        assert len(rows) > 32 and set(map(tuple, rows.tolist())) <= set(map(tuple, units.tolist()))
        return
    if one.family.name == "qwen2.5-vl":  # its merge units come in the order of windows
        rows, units = (each[each[:, 0].argsort()] for each in (rows, units))
    torch.testing.assert_close(rows, units, atol=1e-6, rtol=0)


@pytest.mark.parametrize("one", CASES, ids=str)
@torch.no_grad()
def test_a_batch_is_its_pictures_alone(one):
    """What is read of a picture does not depend on those beside it."""
    model = shared_model(one.family.name)
    generator = torch.Generator().manual_seed(5)
    alone = [one.family.encode(visual, generator) for visual in one.visuals]
    together, _ = read(one, model, one.family.join([[encoded] for encoded in alone]), ALL)
    each = [read(one, model, one.family.join([[encoded]]), ALL)[0] for encoded in alone]
    for name in FIELDS:
        wanted = torch.cat([entry for found in each for entry in found[name]])
        assert_near(together[name], [wanted])


@torch.no_grad()
def test_what_is_read_has_the_types_that_it_says():
    """Numbers and keys in float32, features as the tower has them; nothing that is not wanted is read."""
    one, model = case("llava-clip"), copy.deepcopy(shared_model("llava-clip")).bfloat16()
    tensors = {name: value.bfloat16() if value.is_floating_point() else value for name, value in one.tensors().items()}
    found, _ = read(one, model, tensors, (*ALL, needs.GRID, needs.TEXT))
    assert {name: entries[0].dtype for name, entries in found.items()} == {
        "saliency": torch.float32,
        "early_saliency": torch.float32,
        "keys": torch.float32,
        "tower_features": torch.bfloat16,
    }
    assert found["keys"][0].shape == (16, 8) and found["tower_features"][0].shape == (16, 32)
    for need, name in zip(ALL, ("saliency", "keys", "tower_features", "early_saliency"), strict=True):
        assert set(read(one, model, tensors, (need,))[0]) == {name}
    assert TowerReadings.serve((needs.GRID, needs.TOWER_KEYS)) and not TowerReadings.serve((needs.GRID, needs.TEXT))


@torch.no_grad()
def test_features_of_several_layers_lie_side_by_side():
    """As the projector gets them; and the class token of full features is there with its own."""
    one, model = case("llava-clip"), copy.deepcopy(shared_model("llava-clip"))
    model.config.vision_feature_layer = [-3, -2]
    model.config.vision_feature_select_strategy = "full"
    model.model.multi_modal_projector = torch.nn.Identity()  # the features are what it gets
    found, features = read(one, model, one.tensors(), ALL)
    assert features[0].shape == (17, 64)
    assert all(map(torch.equal, found["tower_features"], features))
    assert all(len(entry) == 17 and entry.any(1).all() for entry in found["keys"])
    assert all(entry[0] == 0 and (entry[1:] > 0).all() for entry in (*found["saliency"], *found["early_saliency"]))


def test_readings_are_constants_of_the_gradient():
    one, model = case("glm4v"), copy.deepcopy(shared_model("glm4v"))
    found, features = read(one, model, one.tensors(), ALL)
    assert features[0].requires_grad and not any(entry.requires_grad for each in found.values() for entry in each)
    one, model = case("llava-siglip"), copy.deepcopy(shared_model("llava-siglip"))
    found, features = read(one, model, one.tensors(), ALL)
    assert features[0].requires_grad and not any(entry.requires_grad for each in found.values() for entry in each)


@pytest.mark.parametrize(
    ("asked", "layer"), [(None, 0), (0, 0), (1, 1), (0.3, 0), (0.5, 1), (2 / 3, 1), (0.01, 0)], ids=str
)
def test_the_early_layer(asked, layer):
    """A number counts from 0; a share of three layers is the last of that many."""
    model = shared_model("llava-clip")  # three layers, of which the second is selected
    readings = TowerReadings(model, "LLaVA-1.5", ALL, early_layer=asked)
    assert (readings.early_layer, readings.layer) == (layer, 1)
    assert TowerReadings(model, "LLaVA-1.5", early_layer=asked).early_layer is None  # not wanted


@pytest.mark.parametrize("asked", [2, 3, 1.0, -1])
def test_an_early_layer_that_is_too_late_or_not_there(asked):
    with pytest.raises(ValueError, match=r"early_layer must be a layer in \[0, 1\], .*name an earlier one"):
        TowerReadings(shared_model("llava-clip"), "LLaVA-1.5", ALL, early_layer=asked)


def test_published_early_layers():
    """9 of 24 layers of CLIP; 16 of 32 of Qwen2.5-VL, which attends to whole pictures; windows are passed over."""
    from types import SimpleNamespace

    from ficoco_ext.models.tower_families import CLIP, TOWERS
    from ficoco_ext.models.tower_layers import early_layer_of

    def tower(count, path, full=()):
        layers = SimpleNamespace(layers=[None] * count, blocks=[None] * count)
        return SimpleNamespace(encoder=layers, blocks=layers.blocks, config=SimpleNamespace(fullatt_block_indexes=full))

    qwen = TOWERS["Qwen2.5-VL"].bodies[0]
    assert early_layer_of(tower(24, "encoder"), CLIP, None, 22) == 8
    assert early_layer_of(tower(32, "blocks", [7, 15, 23, 31]), qwen, None, 31) == 15
    assert early_layer_of(tower(32, "blocks", [7, 15, 23, 31]), qwen, 14, 31) == 7
    assert early_layer_of(tower(32, "blocks", [7, 15, 23, 31]), qwen, 3, 31) == 7


@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)], ids=str)
@torch.no_grad()
def test_after_reductions_inside_the_tower(layers):
    """Whatever is read before a reduction loses the same patches; the features are what is left."""
    import ficoco_ext

    one, model = case("llava-clip"), copy.deepcopy(shared_model("llava-clip"))
    whole, _ = read(one, model, one.tensors(), ALL)
    with ficoco_ext.attach(model, "topk", r=4, layers=layers) as handle:
        with Installed(model, one.family, wanted=ALL, reductions=handle._tower) as readings:
            features = one.encode(model, one.tensors())
            found = readings.take([len(entry) for entry in features])
        left = handle.reductions[-1].patch_ids
    assert left.shape == (2, 16 - 4 * len(layers))
    for row, kept in enumerate(left):
        torch.testing.assert_close(found["early_saliency"][row], whole["early_saliency"][row][kept])
        assert found["tower_features"][row].shape == (len(kept), 32)
        if layers == (1,):  # read before anything left
            torch.testing.assert_close(found["keys"][row], whole["keys"][row][kept])
            torch.testing.assert_close(found["saliency"][row], whole["saliency"][row][kept])


@torch.no_grad()
def test_nothing_is_taken_from_a_call_that_did_not_give_all():
    one, model = case("llava-clip"), shared_model("llava-clip")
    with Installed(model, one.family, wanted=ALL) as readings:
        features = one.encode(model, one.tensors([Picture(1, 1)]))
        readings._state.here.seen.parts.pop("keys")
        with pytest.raises(RuntimeError, match="did not run"):
            readings.take([len(entry) for entry in features])


def test_refusals_say_what_is_needed():
    model = copy.deepcopy(shared_model("llava-clip"))
    with pytest.raises(NotImplementedError, match=r"keys and early_saliency must be of the tower of LLaVA"):
        TowerReadings(model, "BLIP-2", (needs.TOWER_KEYS, needs.EARLY_SALIENCY))
    model.model.vision_tower.encoder.layers[0].self_attn = torch.nn.Identity()
    assert TowerReadings(model, NAMES["llava-clip"], (needs.SALIENCY, needs.TOWER_KEYS, needs.TOWER_FEATURES))
    with pytest.raises(NotImplementedError, match="attention of vision layer 0 must be a CLIPAttention, got Identity"):
        TowerReadings(model, NAMES["llava-clip"], (needs.EARLY_SALIENCY,))


@torch.no_grad()
def test_a_last_norm_counts_where_the_model_reads_it():
    """InternVL: what the tower ends with is normed, and a layer that is selected by its number is not."""
    one, model = case("internvl"), copy.deepcopy(shared_model("internvl"))
    model.model.vision_tower.layernorm = torch.nn.LayerNorm(32)
    for selected in (-1, -2):
        model.config.vision_feature_layer = selected
        outputs = Outputs()
        hook = outputs.of("layer", one.layers(model)[selected])
        found, features = read(one, model, one.tensors(), (needs.TOWER_FEATURES,))
        hook.remove()
        states_ = outputs.found["layer"][0]
        states_ = model.model.vision_tower.layernorm(states_) if selected == -1 else states_
        wanted = vectors(one, [entry[1:] for entry in states_], [len(entry) for entry in features])
        assert_near(found["tower_features"], wanted)
