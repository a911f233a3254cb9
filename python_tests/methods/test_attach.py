"""The new methods inside a tiny LLaVA: oracles by hand, batches, detach, which layers, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import (
    LAYERS,
    PATCHES,
    answers,
    batch,
    close,
    features,
    image,
    one_image,
    one_thread,  # noqa: F401
    pixels,
    snapshot,
    tiny_llava,
    tower_by_hand,
    words,
)

import ficoco_ext
from ficoco_ext import Method, get_method
from ficoco_ext.methods import Combined, Split, Staged
from ficoco_ext.stages import Match

pytest.importorskip("transformers")

LAST = LAYERS - 2
METHODS = {
    "convergent": {"method": "ficoco-v", "correlation": "convergent"},
    "evit": {"method": "evit"},
    "prumerge": {"method": "prumerge"},
    "prumerge+": {"method": "prumerge+"},
    "pool": {"method": "pool"},
    "random": {"method": "random", "seed": 3},
    "prune-then-merge": {"method": "prune-then-merge"},
    "split": {"method": "prune-then-merge", "split": 0.5, "prune": "ficoco", "weigh": 0.5},
}
DEFAULT = {"prumerge": (LAST,), "prumerge+": (LAST,), "pool": (LAST,)}
every = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@every
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", [9, 3])
def test_generate(name, attention, tokens):
    """The budget is met, the record is whole, the answer begins with the prompt, and everything comes back."""
    model = tiny_llava(attention=attention)
    plain, before = answers(model), snapshot(model)
    with ficoco_ext.attach(model, tokens=tokens, **METHODS[name]) as handle:
        logits, kept, generated = answers(model)
        record = handle.reductions[-1]
        assert handle.schedule.layers == DEFAULT.get(name, (3, 4)) and handle.schedule.final == tokens
        assert kept.shape[-2] == tokens and record.patch_ids.shape == (1, tokens)
        held = (record.source_map >= 0).sum()
        assert float(record.size.sum()) == pytest.approx(float(held), abs=1e-4)
        assert not close(logits[:, -1], plain[0][:, -1]) and generated.shape == plain[2].shape
        assert "36 -> " in repr(handle)
    assert snapshot(model) == before and all(map(torch.equal, answers(model), plain))


@every
def test_batch_is_a_loop(model, name):
    with torch.no_grad(), ficoco_ext.attach(model, tokens=9, **METHODS[name]) as handle:
        together = features(model, pixels(3))
        records = handle.reductions[-1]
        for item in range(3):
            assert close(features(model, pixels(3)[item : item + 1])[0], together[item])
            assert torch.equal(handle.reductions[-1].source_map[0], records.source_map[item])
        rows = batch([*words(1), *image(), *words(2)], [*image(), *words(4, 5), *image()])
        assert model(**rows).logits.shape[0] == 2


@pytest.mark.parametrize("layers", [(LAST,), (0, 1), (1, 2, 4)])
def test_random_is_masking_the_same_places(model, layers):
    """Nobody attends to what has left; places and values are those of a tower by hand."""
    picture = pixels(2)
    with torch.no_grad(), ficoco_ext.attach(model, "random", r=5, layers=layers, seed=1) as handle:
        dropped = features(model, picture)
        steps, records = handle.schedule.steps, handle.reductions
        hidden, gone = {}, torch.zeros(2, PATCHES + 1, dtype=torch.bool)
        for index in range(LAYERS):
            hidden[index] = gone
            for step, record in zip(steps, records, strict=True):
                if step.layer == index:
                    gone = torch.ones_like(gone).scatter(1, record.kept, False)
        oracle = tower_by_hand(model, picture, hidden_keys=hidden.get)[:, 1:]
        places = records[-1].patch_ids.unsqueeze(-1).expand(-1, -1, oracle.shape[-1])
    assert close(dropped, oracle.gather(1, places))


@pytest.mark.parametrize("layer", [1, LAST])
def test_pooling_is_averaging_behind_attention(model, layer):
    """36 to 9 patches: avg_pool2d between attention and MLP of that layer."""
    picture = pixels(2)

    def pooled(index, hidden):
        if index != layer:
            return hidden
        grid = hidden[:, 1:].mT.unflatten(-1, (6, 6))
        return torch.cat([hidden[:, :1], torch.nn.functional.avg_pool2d(grid, 2).flatten(2).mT], dim=1)

    with torch.no_grad(), ficoco_ext.attach(model, "pool", tokens=9, layers=(layer,)):
        assert close(features(model, picture), tower_by_hand(model, picture, after_attention=pooled)[:, 1:])


@pytest.mark.parametrize("name", ["evit", "prumerge", "prumerge+", "convergent", "prune-then-merge", "split"])
def test_layers_are_reductions_of_their_own_query_and_key(model, name):
    """A tower by hand that calls ficoco_ext.reduce between attention and MLP, with what each layer's method is."""
    picture, layers = pixels(2), (1, 2, 4)
    options = dict(METHODS[name])
    method = get_method(options.pop("method"), **options)
    each = dict(zip(layers, method.of_layers(3), strict=True))
    tower, config = model.model.vision_tower, model.config.vision_config
    with torch.no_grad(), ficoco_ext.attach(model, method, r=(9, 5, 13), layers=layers) as handle:
        got = features(model, picture)
        records = handle.reductions
    with torch.no_grad():
        hidden, result = tower.pre_layrnorm(tower.embeddings(picture)), None
        for index, layer in enumerate(tower.encoder.layers[: LAST + 1]):
            x, attn = layer.layer_norm1(hidden), layer.self_attn
            q, k, v = (
                f(x).unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)
                for f in (attn.q_proj, attn.k_proj, attn.v_proj)
            )
            mixed = (q @ k.mT * attn.head_dim**-0.5).softmax(-1) @ v
            hidden = hidden + attn.out_proj(mixed.transpose(1, 2).flatten(2))
            if index in layers:
                r = (9, 5, 13)[layers.index(index)]
                given = {"method": each[index], "previous": result, "return_reduction": True}
                result = ficoco_ext.reduce(hidden, ficoco_ext.QueryKey(q, k), r, **given)
                hidden = result.tokens
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        oracle = model.model.multi_modal_projector(hidden)[:, 1:]
    assert torch.equal(records[-1].source_map, result.source_map) and got.shape[1] == 9
    assert close(got, oracle)


def test_more_than_half_is_no_error_of_the_hybrid(model):
    """ToMe refuses; prune-then-merge prunes the excess first."""
    with pytest.raises(ValueError, match="half of the 36 patches"):
        ficoco_ext.attach(model, "tome", tokens=3, layers=(4,))
    with torch.no_grad(), ficoco_ext.attach(model, "prune-then-merge", tokens=3, layers=(4,)) as handle:
        assert features(model, pixels(1)).shape[1] == 3
        record = handle.reductions[-1]
    assert int((record.source_map < 0).sum()) == 30  # 36 - 30 = 6, of which half may merge
    assert float(record.size.sum()) == 7.0


def test_proportional_attention_of_the_hybrid():
    """Layers behind a merging one are told its sizes; sdpa and eager agree, and it makes a difference."""
    picture, found = pixels(1), {}
    for attention in ("sdpa", "eager"):
        model = tiny_llava(attention=attention)
        for on in (False, True):
            given = {"merge_layers": 1.0, "proportional_attention": on, "r": (9, 9), "layers": (1, 2)}
            with torch.no_grad(), ficoco_ext.attach(model, "prune-then-merge", **given):
                found[attention, on] = features(model, picture)
    assert close(found["sdpa", True], found["eager", True]) and not close(found["sdpa", True], found["sdpa", False])


def test_a_copy_is_attached_too(model):
    with ficoco_ext.attach(model, "prune-then-merge", keep_ratio=0.25):
        twin = copy.deepcopy(model)
        assert torch.equal(answers(twin)[0], answers(model)[0])
        twin.ficoco_handle.detach()
        assert not torch.equal(answers(twin)[1], answers(model)[1])


def test_of_two_parts(model):
    """A method of layers of its own and a staged one go with a method of the language model."""
    for vision in ("pool", "prune-then-merge"):
        both = Combined.of(get_method(vision), get_method("fastv"))
        with ficoco_ext.attach(model, both, keep_ratio=0.25) as handle:
            assert handle.schedule.layers == ((LAST,) if vision == "pool" else (3, 4))
            assert answers(model)[1].shape[-2] == 18


def test_one_for_each_layer(model):
    """Splits may stand among methods; their names are told."""
    split = Split("half", get_method("topk"), get_method("tome"), 0.5)
    with ficoco_ext.attach(model, ["random", split, "evit"], r=6, layers=(1, 2, 3)) as handle:
        assert answers(model)[1].shape[-2] == 18 and "random, half, evit" in repr(handle)
    with ficoco_ext.attach(model, split, r=6, layers=(1, 2)) as handle:
        assert handle.methods == (split, split)
    merge_first = Staged("merge-first", lambda layers: (get_method("tome"), *[get_method("topk")] * (layers - 1)))
    with ficoco_ext.attach(model, merge_first, r=6, layers=(1, 2)) as handle:
        assert [one.name for one in handle.methods] == ["tome", "topk"]


def refusals():
    def staged(*names):
        return Staged("own", lambda layers: tuple(map(get_method, names)))

    weighed = Method("weighed", Match(weigh=0.5), None, get_method("tome").compress)
    return {
        "pool twice": ({"method": "pool", "r": 4, "layers": (3, 4)}, "layers must be the first that reduces with"),
        "pool behind another": ({"method": ["topk", "pool"], "r": 4, "layers": (3, 4)}, "layer 4, which 32 of 36"),
        "a rule of another length": ({"method": staged("topk"), "r": 4}, "must give 2 methods for 2 layers, got 1"),
        "half in one layer": ({"method": staged("topk", "tome"), "r": (2, 20)}, "at most 17 in layer 4, half of the"),
        "half, weighed": ({"method": weighed, "r": 19, "layers": (4,)}, "at most 18 in layer 4"),
        "staged in a list": ({"method": ["prune-then-merge", "topk"], "r": 4}, "must be one method for each layer"),
        "with a Method": ({"method": staged("topk", "topk"), "r": 4, "seed": 1}, "not with a Method"),
        "unknown": ({"method": "pooling", "r": 4}, "'prumerge\\+', 'pool', 'random'"),
    }  # fmt: skip


@pytest.mark.parametrize("case", refusals())
def test_refused_at_attach(model, case):
    options, message = refusals()[case]
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError), match=message):
        ficoco_ext.attach(model, **options)
    assert snapshot(model) == before


def test_pooling_where_nothing_left_before(model):
    """A layer that removes nothing does not count."""
    with ficoco_ext.attach(model, "pool", r=(0, 27), layers=(3, 4)):
        assert answers(model, one_image())[1].shape[-2] == 9
