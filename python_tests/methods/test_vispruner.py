"""VisPruner and FasterVLM after the projector, against loops in float64 that are written from the descriptions."""

from __future__ import annotations

import pytest
import torch
from helpers.models import LAYERS, PATCHES, one_image, tiny_llava
from helpers.ops import DTYPES
from helpers.selects import alone, check_padding, exact

import ficoco_ext
from ficoco_ext import get_method, select
from ficoco_ext.ops.costs import evaluate
from ficoco_ext.stages import BipartiteThin, Shape, VisualFeatures, needs


def pruned(features, saliency, count, share=0.5, step=8):
    """One picture: part by saliency, and what thinning leaves of the rest."""
    x = features.double()
    x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    ranked = sorted(range(len(x)), key=lambda i: (-float(saliency[i]), i))
    important = int(count * share)
    left = ranked[important:]
    while len(left) > count - important:
        a, b = left[::2], left[1::2]
        if not b:
            return sorted(ranked[:important])
        scores = {i: max(float(x[i] @ x[j]) for j in b) for i in a}
        falling = sorted(a, key=lambda i: (-scores[i], left.index(i)))
        left = falling[min(step, len(left) - (count - important), len(a)) :] + b
    return sorted([*ranked[:important], *left])


def signs(b, n, d=16):
    """Vectors whose cosines every precision has exactly."""
    return torch.randn(b, n, d).sign()


def given(b=2, n=33, saliency=None):
    """Features before the projector, which decide, and others after it."""
    saliency = torch.rand(b, n) if saliency is None else saliency
    return VisualFeatures(signs(b, n), saliency=saliency, tower_features=signs(b, n))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("n", [1, 2, 5, 33])
def test_every_count(n, share):
    """Exactly T for all T in 1 ... N."""
    visual, method = given(n=n), get_method("vispruner", share=share)
    for count in range(1, n + 1):
        kept = method.keep(visual, count)
        wanted = [pruned(visual.tower_features[i], visual.saliency[i], count, share) for i in range(2)]
        assert kept.tolist() == wanted and len(wanted[0]) == count


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_dtypes(dtype):
    visual = given(saliency=torch.rand(2, 33).to(dtype))
    visual = visual._replace(features=visual.features.to(dtype), tower_features=visual.tower_features.to(dtype))
    kept = get_method("vispruner").keep(visual, 12)
    assert kept.tolist() == [pruned(visual.tower_features[i], visual.saliency[i], 12) for i in range(2)]


@pytest.mark.parametrize("step", [1, 3, 50])
def test_steps(step):
    visual = given()
    kept = get_method("vispruner", step=step).keep(visual, 9)
    assert kept.tolist() == [pruned(visual.tower_features[i], visual.saliency[i], 9, step=step) for i in range(2)]


def test_what_is_compared():
    """Features before the projector, or after it if asked for; neither has a say in the other."""
    visual = given()
    after = get_method("vispruner", before_projector=False)
    assert after.keep(visual, 9).tolist() == [pruned(visual.features[i], visual.saliency[i], 9) for i in range(2)]
    assert not torch.equal(after.keep(visual, 9), get_method("vispruner").keep(visual, 9))
    without = visual._replace(tower_features=None)
    assert torch.equal(after.keep(without, 9), after.keep(visual, 9))
    swapped = select(visual.features, 9, method="vispruner", saliency=visual.saliency, tower_features=visual.features)
    assert torch.equal(swapped, after.keep(visual, 9))


def test_the_published_numbers():
    """Of 128, 64 and 32 tokens half go by saliency; three quarters with the share of small numbers."""
    for count, share, important in ((128, 0.5, 64), (64, 0.5, 32), (32, 0.5, 16), (64, 0.75, 48), (5, 0.5, 2)):
        visual = given(1, 200)
        kept = get_method("vispruner", share=share).keep(visual, count)[0].tolist()
        ranked = visual.saliency[0].argsort(descending=True).tolist()
        assert set(ranked[:important]) <= set(kept) and not set(ranked[: important + 12]) <= set(kept)


def test_all_by_saliency_is_fastervlm_and_topk():
    visual = given(n=40)
    for count in (1, 13, 40):
        kept = get_method("fastervlm").keep(visual, count)
        assert torch.equal(kept, get_method("topk", part="projector").keep(visual, count))
        assert torch.equal(kept, get_method("vispruner", share=1.0).keep(visual, count))
        assert kept.tolist() == [visual.saliency[i].topk(count).indices.sort().values.tolist() for i in range(2)]


@pytest.mark.parametrize("rate", [0.667, 0.778, 0.889])
def test_fastervlm_is_topk_in_the_last_layer_in_use(rate):
    """T = round(N (1 - rate)). After that layer no token sees another, so reducing inside is selecting afterwards."""
    model, inputs = tiny_llava(), one_image()
    tokens, found = round(PATCHES * (1 - rate)), {}
    assert model.config.vision_feature_layer == -2
    for name, options in (("fastervlm", {}), ("topk", {"layers": [LAYERS - 2]})):
        with torch.no_grad(), ficoco_ext.attach(model, name, keep_ratio=1 - rate, **options):
            out = model(**inputs, output_hidden_states=True)
        features = out.image_hidden_states
        found[name] = features if isinstance(features, torch.Tensor) else torch.cat(list(features))
        found[name] = found[name].reshape(-1, found[name].shape[-1])
    assert found["topk"].shape[0] == tokens
    assert torch.allclose(found["topk"], found["fastervlm"], atol=1e-5)


def test_ties_take_the_lowest_index():
    """Equal saliency: the picture's order. Equal tokens too: by hand, a round leaves out the first even places."""
    visual = VisualFeatures(torch.ones(1, 10, 3), saliency=torch.ones(1, 10), tower_features=torch.ones(1, 10, 3))
    # 0 and 1 by saliency. 2 3 | 4 5 | 6 7 | 8 9: all four of 2 4 6 8 leave; 3 5 7 9: of 3 7 both.
    assert get_method("vispruner").keep(visual, 4).tolist() == [[0, 1, 5, 9]]
    assert get_method("fastervlm").keep(visual, 4).tolist() == [[0, 1, 2, 3]]


def test_duplicates_and_zero_vectors():
    """Of three copies of what differs one stays of each; zero vectors are like nothing."""
    kinds = torch.eye(8)
    visual = VisualFeatures(torch.ones(1, 24, 3), saliency=torch.ones(1, 24), tower_features=kinds.repeat(3, 1)[None])
    kept = get_method("vispruner", share=0.0).keep(visual, 12)
    assert kept.tolist() == [pruned(visual.tower_features[0], visual.saliency[0], 12, 0.0)]
    visual.tower_features[0, 5:9] = 0
    kept = get_method("vispruner", share=0.0).keep(visual, 12)
    assert kept.tolist() == [pruned(visual.tower_features[0], visual.saliency[0], 12, 0.0)]


@pytest.mark.parametrize("name", ["vispruner", "fastervlm"])
@pytest.mark.parametrize("where", ["after", "before", "among"])
def test_padding_is_not_there(name, where):
    check_padding(get_method(name), given(4, 40), where)


def test_a_batch_is_a_loop():
    visual = VisualFeatures(*torch.randn(2, 4, 50, 12)[:1], saliency=torch.rand(4, 50))
    visual = visual._replace(tower_features=torch.randn(4, 50, 12))
    together = get_method("vispruner").keep(visual, 17)
    for item in range(4):
        assert torch.equal(get_method("vispruner").keep(alone(visual, item), 17), together[item : item + 1])


def test_the_unit_of_saliency_does_not_matter():
    visual = given()
    kept = get_method("vispruner").keep(visual, 9)
    assert torch.equal(get_method("vispruner").keep(visual._replace(saliency=visual.saliency * 2.0**-100), 9), kept)


def test_it_compiles_and_leaves_its_inputs():
    visual, method = given(), get_method("vispruner")
    exact(method, visual, 9)


def test_needs():
    assert get_method("vispruner").needs == (needs.SALIENCY, needs.TOWER_FEATURES)
    assert get_method("vispruner", before_projector=False).needs == (needs.SALIENCY,)
    assert get_method("fastervlm").needs == (needs.SALIENCY,)


def test_price():
    """Half of all cosines of the tower's width; nothing where saliency alone chooses."""
    shape = Shape(1, 576, 576, 512, 4096, 32, 32, 128, tower_channels=1024)
    (priced,) = get_method("vispruner").operations(shape)[:1]
    assert evaluate(priced[0].operations, priced[1]) == 576 * 576 * 1024
    (priced,) = get_method("vispruner", before_projector=False).operations(shape)[:1]
    assert evaluate(priced[0].operations, priced[1]) == 576 * 576 * 4096
    for method in (get_method("vispruner", share=1.0), get_method("fastervlm")):
        assert [one.name for one, _ in method.operations(shape)] == ["compress"]


def test_the_price_in_a_prefill():
    """Far below 2 % of LLaVA-1.5-7B's; the class token's row is in it."""
    found = ficoco_ext.cost.prefill("llava-1.5-7b", projector=64, method="vispruner")
    assert found.after_projector.total.operations == 2 * 577 * 1024 + 576 * 576 * 1024
    assert found.selection_share < 0.001


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_method("vispruner", share=1.5), r"BipartiteThin: share must be a number in \[0, 1\], got 1\.5"),
        (lambda: get_method("vispruner", step=0), "BipartiteThin: step must be an integer of at least 1, got 0"),
        (lambda: get_method("vispruner", step=True), "BipartiteThin: step must be an integer of at least 1, got True"),
        (lambda: get_method("vispruner", before_projector=2), "before_projector must be one of True, False, got 2"),
        (lambda: BipartiteThin()(given()._replace(saliency=None), 9), "BipartiteThin: saliency is needed"),
        (
            lambda: BipartiteThin()(given()._replace(tower_features=None), 9),
            "BipartiteThin: features before the projector are needed, .* or before_projector=False",
        ),
        (
            lambda: select(signs(1, 9), 3, method="vispruner", saliency=torch.ones(1, 9)),
            "tower_features must be given, as the method needs it",
        ),
        (
            lambda: get_method("vispruner").keep(given()._replace(tower_features=signs(2, 33) * float("nan")), 9),
            "vispruner: tower_features must be finite",
        ),
        (
            lambda: get_method("vispruner").keep(given(saliency=torch.full((2, 33), float("nan"))), 9),
            "vispruner: saliency must be finite",
        ),
        (lambda: get_method("vispruner").keep(given(), 34), r"count must be in \[1, 33\]"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
