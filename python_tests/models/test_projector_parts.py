"""Parts that act together: tower, projector and language model against what is left when each is cut by hand."""

from __future__ import annotations

import pytest
import torch
from helpers.decoder import decoder_by_hand, tiny, watch
from helpers.models import (
    GREEDY,
    IMAGE,
    batch,
    close,
    image,
    one_image,
    one_thread,  # noqa: F401
    tiny_llava,
    tower_by_hand,
    words,
)

import ficoco_ext

pytest.importorskip("transformers")

LAYER = 3  # of the tower, where patches leave
ROW = [*words(1, 2), *image(), *words(3), *image(), *words(4, 5)]
TOWER = {"tokens": 18, "layers": (LAYER,)}
BOTH = {"method": "topk+divprune", "vision": TOWER, "projector": {"tokens": 9}}
ORIGINAL = {"method": "topk", "positions": "original", **TOWER}


@pytest.fixture(scope="module")
def model():
    return tiny(seed=11)


@pytest.fixture(scope="module")
def plain():
    """Its twin that nothing is ever attached to."""
    return tiny(seed=11)


def tower_features(plain, pictures, patches):
    """(images, P, C) projected, where only ``patches`` (images, P) go on after the attention of one layer."""
    left = torch.nn.functional.pad(patches + 1, (1, 0))  # the class token is token 0

    def drop(layer, hidden):
        return hidden.gather(1, left[..., None].expand(-1, -1, hidden.shape[-1])) if layer == LAYER else hidden

    return tower_by_hand(plain, pictures, after_attention=drop)[:, 1:]


def by_hand(plain, row, features, patches):
    """Embeddings (1, N, C) and positions (1, N) of a row whose pictures keep ``patches`` with ``features``."""
    ids = torch.tensor(row)
    columns = (ids == IMAGE).nonzero().flatten().view(len(patches), -1)
    embeds = plain.get_input_embeddings()(ids).clone()
    stays = ids != IMAGE
    for where, kept, values in zip(columns, patches, features, strict=True):
        embeds[where[kept]] = values
        stays[where[kept]] = True
    return embeds[stays][None], torch.arange(len(row))[stays][None]


def logits_of(plain, embeds, positions):
    mask = torch.ones_like(positions)
    out = plain.model.language_model(inputs_embeds=embeds, position_ids=positions, attention_mask=mask)
    return plain.lm_head(out.last_hidden_state)


@torch.no_grad()
def test_patches_of_the_tower_keep_their_positions(model, plain):
    inputs = batch(ROW)
    with ficoco_ext.attach(model, **ORIGINAL) as handle:
        got = model(**inputs).logits
        patches = handle.reductions[-1].patch_ids
        assert [one.kept.tolist() for one in handle.projections] == patches.tolist()
        assert [one.before for one in handle.projections] == [36, 36]
    features = tower_features(plain, inputs["pixel_values"], patches)
    embeds, positions = by_hand(plain, ROW, features, patches)
    assert got.shape[1] == len(ROW) - 36 and positions[0, -1] == len(ROW) - 1
    assert close(got, logits_of(plain, embeds, positions))
    with ficoco_ext.attach(model, "topk", **TOWER):  # contiguous is the default of a tower
        contiguous = model(**inputs).logits
    assert close(contiguous, logits_of(plain, embeds, torch.arange(positions.shape[1])[None]))
    assert not close(contiguous, got)


@torch.no_grad()
def test_patches_of_the_tower_keep_their_positions_in_generate(model, plain):
    """Rows of different lengths, padded on the left; new tokens are counted from the whole prompt."""
    rows = ROW, [*words(7), *image(), *words(8)]
    inputs = batch(*rows)
    with ficoco_ext.attach(model, **ORIGINAL) as handle:
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
        patches = handle.reductions[-1].patch_ids
    assert torch.equal(out.sequences[:, : len(ROW)], inputs["input_ids"])
    new = out.sequences[:, len(ROW) :]
    features = tower_features(plain, inputs["pixel_values"], patches)
    for number, (row, own) in enumerate(zip(rows, (slice(0, 2), slice(2, 3)), strict=True)):
        embeds, positions = by_hand(plain, row, features[own], patches[own])
        embeds = torch.cat([embeds, plain.get_input_embeddings()(new[number : number + 1, :-1])], 1)
        positions = torch.cat([positions, len(row) + torch.arange(new.shape[1] - 1)[None]], 1)
        wanted = logits_of(plain, embeds, positions)[0, -new.shape[1] :]
        assert close(torch.stack(out.logits)[:, number], wanted)


@torch.no_grad()
def test_the_class_token_is_a_visual_token_of_its_own():
    """With strategy "full" it is the first, and stays."""
    model = tiny_llava(seed=5, strategy="full")
    row = [*words(1, 2), *image(37), *words(3)]
    inputs = batch(row, images=1)
    with ficoco_ext.attach(model, "topk", positions="original", **TOWER) as handle:
        got, patches = model(**inputs).logits, handle.reductions[-1].patch_ids
        (one,) = handle.projections
        features = torch.cat(list(model.get_image_features(inputs["pixel_values"]).pooler_output))
    kept = torch.nn.functional.pad(patches[0] + 1, (1, 0))
    assert one.before == 37 and one.kept.tolist() == kept.tolist()
    positions = torch.cat([torch.arange(2), kept + 2, torch.tensor([39])])[None]
    left = torch.tensor(row)[positions[0]]
    embeds = model.get_input_embeddings()(left).masked_scatter((left == IMAGE)[:, None], features)[None]
    assert close(got, logits_of(model, embeds, positions))


@torch.no_grad()
@pytest.mark.parametrize("positions", [None, "contiguous"])
def test_tower_and_projector(model, plain, positions):
    """Nine of the eighteen patches that the tower leaves, at the positions that they had of all."""
    inputs = batch(ROW)
    with ficoco_ext.attach(model, **BOTH, positions=positions) as handle:
        got = model(**inputs).logits
        left = handle.reductions[-1].patch_ids
        kept = torch.stack([one.kept for one in handle.projections])
    features = tower_features(plain, inputs["pixel_values"], left)
    chosen = ficoco_ext.select(features, 9, method="divprune")
    assert torch.equal(left.gather(1, chosen), kept)
    features = features.gather(1, chosen[..., None].expand(-1, -1, features.shape[-1]))
    embeds, original = by_hand(plain, ROW, features, kept)
    wanted = original if positions is None else torch.arange(original.shape[1])[None]
    assert got.shape[1] == len(ROW) - 72 + 18 and close(got, logits_of(plain, embeds, wanted))


@torch.no_grad()
@pytest.mark.parametrize("where", [LAYER, 4])
def test_saliency_after_a_reduction_in_the_tower(model, plain, where):
    """Of the patches that are left, which the class token looks at alone after layer 3; in layer 4 it is measured."""
    inputs, seen = batch(ROW), {}
    with ficoco_ext.attach(model, "topk+scope", vision=TOWER | {"layers": (where,)}, projector={"tokens": 9}) as handle:
        model(**inputs)
        left = handle.reductions[-1].patch_ids
        kept = torch.stack([one.kept for one in handle.projections])

    def look(layer, query, key):
        seen[layer] = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)[:, :, 0, 1:].mean(1)

    def drop(layer, hidden):
        ids = torch.nn.functional.pad(left + 1, (1, 0))
        return hidden.gather(1, ids[..., None].expand(-1, -1, hidden.shape[-1])) if layer == where else hidden

    features = tower_by_hand(plain, inputs["pixel_values"], after_attention=drop, see=look)[:, 1:]
    saliency = seen[4] if where < 4 else seen[4].gather(1, left)
    assert saliency.shape == left.shape
    chosen = ficoco_ext.select(features, 9, method="scope", saliency=saliency)
    assert torch.equal(left.gather(1, chosen), kept)
    others = ficoco_ext.select(features, 9, method="scope", saliency=saliency.flip(1))
    assert not torch.equal(left.gather(1, others), kept)  # saliency decides something here


@torch.no_grad()
@pytest.mark.parametrize("row", [ROW, [*words(1, 2), *image(), *words(3, 4)]], ids=["two images", "one"])
def test_tower_projector_and_language_model(model, plain, row):
    """Of 36 patches the tower leaves 18, the projector 9, and half of all in the row stay after layer 1."""
    inputs = batch(row)
    parts = {"method": "topk+divprune+fastv", "decoder": {"keep_ratio": 0.5}}
    with ficoco_ext.attach(model, **BOTH | parts) as handle:
        seen, out = watch(model, lambda: model(**inputs))
        left = handle.reductions[-1].patch_ids
        kept = torch.stack([one.kept for one in handle.projections])
        (reductions,) = handle.decoder_reductions
    features = tower_features(plain, inputs["pixel_values"], left)
    chosen = ficoco_ext.select(features, 9, method="divprune")
    features = features.gather(1, chosen[..., None].expand(-1, -1, features.shape[-1]))
    embeds, positions = by_hand(plain, row, features, left.gather(1, chosen))
    assert torch.equal(kept, left.gather(1, chosen))
    assert close(seen.embeds, embeds) and torch.equal(seen.positions, positions)
    visual = 9 * len(kept)
    assert len(reductions) == 1 and reductions[0].kept.shape[1] == embeds.shape[1] - visual // 2
    real = torch.ones(embeds.shape[1], dtype=torch.bool)
    wanted = decoder_by_hand(plain, embeds, positions, real, reductions, handle.plan.layers)
    assert close(out.logits[0], wanted[reductions[0].kept[0]])


@torch.no_grad()
def test_two_reductions_in_the_tower(model):
    """Positions are those of the patches that are left in the end."""
    with ficoco_ext.attach(model, "topk", r=9, layers=(2, 4), positions="original") as handle:
        model(**batch(ROW))
        assert [one.patch_ids.shape[1] for one in handle.reductions] == [27, 18]
        kept = torch.stack([one.kept for one in handle.projections])
    assert torch.equal(kept, handle.reductions[-1].patch_ids)


@torch.no_grad()
def test_one_keep_ratio_is_shared_by_three_parts(model):
    """Of 36 patches 23, 14 and 9: 36 ** (2 / 3) * 9 ** (1 / 3) is 22.7, and so on."""
    with ficoco_ext.attach(model, "topk+divprune+fastv", keep_ratio=0.25) as handle:
        cache = model(**one_image(), use_cache=True).past_key_values
        (one,), (row,) = handle.projections, handle.decoder_reductions
    assert handle.reductions[-1].patch_ids.shape[1] == 23 and len(one.kept) == 14
    assert [layer.keys.shape[2] for layer in cache.layers] == [5 + 14, 5 + 14, 5 + 9, 5 + 9]
    assert row[-1].kept.shape[1] == 5 + 9


@torch.no_grad()
def test_projector_and_language_model_share(model):
    """Of 36 tokens a half, and of these a half; all its own layers but the one before them see 18."""
    with ficoco_ext.attach(model, "divprune+fastv", keep_ratio=0.25) as handle:
        cache = model(**one_image(), use_cache=True).past_key_values
    assert len(handle.projections[0].kept) == 18 and handle.reductions == ()
    assert [layer.keys.shape[2] for layer in cache.layers] == [5 + 18, 5 + 18, 5 + 9, 5 + 9]
