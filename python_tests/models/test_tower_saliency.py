"""What the vision tower looks at, against maps of eager attention averaged by hand, for every family."""

import copy

import pytest
import torch
from helpers.models import one_thread, sharpened, snapshot  # noqa: F401
from helpers.tiny_families import TINY, shared_model
from helpers.tiny_processors import Picture
from helpers.towers import (
    CASES,
    CLASS_TOKENS,
    LAYER,
    NAMES,
    PACKED,
    EagerCalls,
    Installed,
    case,
    expected,
    measured,
    of_patches,
)

from ficoco_ext.models import tower_saliency
from ficoco_ext.models.families import FAMILIES
from ficoco_ext.models.tower_families import TOWERS
from ficoco_ext.models.tower_readings import TowerReadings

pytest.importorskip("transformers")

KINDS = [(one, kind) for one in CASES for kind in ("class", "column", "keys")]
KINDS = [(one, kind) for one, kind in KINDS if kind != "class" or one.family.name in CLASS_TOKENS]


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
        saliency = TowerReadings(shared_model(name), family)
        assert saliency.layer == LAYER.get(name, 1), name
        assert saliency.kind == ("class" if name in CLASS_TOKENS[:3] else "column"), name


@pytest.mark.parametrize(
    ("selected", "layer"), [(-1, 2), (-2, 1), (-3, 0), (1, 0), (3, 2), ([-3, -1], 2), ([1, 2], 1), ([-2], 1)]
)
def test_the_layer_follows_the_selected_features(selected, layer):
    """hidden_states[i] is what layer i - 1 gives."""
    model = copy.deepcopy(shared_model("llava-clip"))
    model.config.vision_feature_layer = selected
    assert TowerReadings(model, "LLaVA-1.5").layer == layer


@torch.no_grad()
def test_the_last_layer_with_full_attention_is_read():
    """Qwen2.5-VL: a window after it is local and is passed over."""
    model = copy.deepcopy(shared_model("qwen2.5-vl"))
    one, visual = case("qwen2.5-vl"), model.model.visual
    for layers, wanted in (([0], 0), ([1], 1), ([0, 1], 1)):
        visual.fullatt_block_indexes = visual.config.fullatt_block_indexes = layers
        with Installed(model, one.family) as saliency:
            features = one.encode(model, one.tensors())
            found = saliency.take([len(entry) for entry in features])["saliency"]
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
