"""VisionZip against loops from its description: who is dominant, who is a centre, who goes where, what it becomes."""

from __future__ import annotations

import pytest
import torch
from helpers.ops import DTYPES

import ficoco_ext
from ficoco_ext import describe, get_method
from ficoco_ext.methods import ProjectorMethod
from ficoco_ext.ops.costs import evaluate
from ficoco_ext.stages import CentrePlusMean, Compress, Correlate, Shape, StrideSelect, VisualFeatures, needs
from ficoco_ext.stages.contextual import contextual_count


def given(b=3, n=40, d=16, k=6, **fields):
    return VisualFeatures(torch.randn(b, n, d), saliency=torch.rand(b, n) + 0.01, keys=torch.randn(b, n, k), **fields)


def by_hand(features, saliency, keys, kept, contextual=10 / 64, merging="sum"):
    """Indices, rows and holders of one picture, in float64."""
    features, keys = features.double(), torch.nn.functional.normalize(keys.double(), dim=-1, eps=1e-12)
    n = len(features)
    centres = 0 if contextual == 0 else min(max(1, round(contextual * kept)), kept - 1)
    ranked = sorted(range(n), key=lambda i: (-float(saliency[i]), i))
    dominant = sorted(ranked[: kept - centres])
    rest = [i for i in range(n) if i not in dominant]
    chosen = [rest[at * max(1, len(rest) // centres)] for at in range(centres)]
    stays = sorted(dominant + chosen)
    members = {i: [] for i in chosen}
    holders = [stays.index(i) if i in stays else -1 for i in range(n)]
    for i in rest:
        if i not in chosen and centres:
            best = max(chosen, key=lambda c: (float(keys[i] @ keys[c]), -c))
            members[best].append(i)
            holders[i] = stays.index(best)
    rows = []
    for i in stays:
        inherited = members.get(i, [])
        if not inherited:
            rows.append(features[i])
        elif merging == "sum":
            rows.append(features[i] + features[inherited].mean(0))
        else:
            rows.append(features[[i, *inherited]].mean(0))
    return stays, torch.stack(rows), holders


@pytest.mark.parametrize("merging", ["sum", "mean"])
@pytest.mark.parametrize(
    ("count", "share"), [(1, 10 / 64), (2, 10 / 64), (12, 10 / 64), (12, 0.5), (33, 0.3), (40, 0.2)]
)
def test_it_is_the_loop(merging, count, share):
    visual, plane = given(), torch.randn(3, 40, 5)
    found = get_method("visionzip", contextual=share, merging=merging)(visual, count, [plane])
    for item in range(3):
        parts = visual.saliency[item], visual.keys[item], count, share, merging
        stays, rows, holders = by_hand(visual.features[item], *parts)
        assert found.kept[item].tolist() == stays and found.reduction.source_map[item].tolist() == holders
        torch.testing.assert_close(found.features[item].double(), rows, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.planes[0][item].double(), by_hand(plane[item], *parts)[1], atol=1e-5, rtol=0)
        sizes = [holders.count(slot) for slot in range(count)]
        assert found.reduction.size[item].flatten().tolist() == sizes


def test_published_numbers():
    """54 and 10, 108 and 20, 162 and 30; one centre at least, and one token that is salient."""
    counts = [contextual_count(kept, 10 / 64) for kept in (64, 128, 192, 40, 16, 3, 2, 1)]
    assert counts == [10, 20, 30, 6, 2, 1, 1, 0]
    assert contextual_count(64, 0) == 0 and contextual_count(64, 1) == 63


@pytest.mark.parametrize("count", range(1, 41))
def test_exactly_as_many_as_asked_for(count):
    """T1 and T6, whatever the share."""
    visual = given(b=2)
    for share in (0, 0.01, 10 / 64, 0.6, 1.0):
        found = get_method("visionzip", contextual=share)(visual, count)
        assert found.kept.shape == (2, count) and bool((found.kept.diff() > 0).all())
        dominant = visual.saliency.sort(1, descending=True).indices[:, : count - contextual_count(count, share)]
        assert all(set(d.tolist()) <= set(k.tolist()) for d, k in zip(dominant, found.kept, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("merging", ["sum", "mean"])
def test_dominant_tokens_are_copied(dtype, merging):
    """T2: bit for bit; only centres that inherit become something else."""
    visual = given()
    visual = visual._replace(features=visual.features.to(dtype))
    found = get_method("visionzip", merging=merging)(visual, 16)
    before = visual.features.gather(1, found.kept.unsqueeze(-1).expand(-1, -1, 16))
    same = (found.features == before).all(2)
    assert torch.equal(same, found.reduction.size.squeeze(2) == 1) and found.features.dtype == dtype
    assert bool((same.sum(1) >= 14).all()) and not bool(same.all())


def test_a_sum_is_linear_and_about_twice_as_long():
    """T3: in the features, which decide nothing."""
    visual, other = given(), torch.randn(3, 40, 16)
    method = get_method("visionzip")
    one, two = method(visual, 16).features, method(visual._replace(features=other), 16).features
    both = method(visual._replace(features=visual.features * 3 - other), 16).features
    torch.testing.assert_close(both, one * 3 - two, atol=1e-5, rtol=0)
    same = method(visual._replace(features=torch.ones(3, 40, 16)), 16)
    wanted = 1 + (same.reduction.size > 1).float()
    torch.testing.assert_close(same.features, wanted.expand(-1, -1, 16))


def test_a_centre_without_members_stays_itself():
    """T4: all keys point to the first centre."""
    visual = given()._replace(keys=torch.ones(3, 40, 6))
    found = get_method("visionzip", contextual=0.25)(visual, 16)
    assert found.reduction.size.sort(1).values.flatten(1)[:, :15].eq(1).all()
    salient = visual.saliency.sort(1, descending=True).indices[:, :12]
    for item in range(3):
        centres = [i for i in found.kept[item].tolist() if i not in salient[item].tolist()]
        sources = set(range(40)) - set(found.kept[item].tolist())
        holder = found.kept[item][found.reduction.source_map[item]]
        assert {int(holder[i]) for i in sources} == {centres[0]}  # ties go to the lowest index
        untouched = centres[1:]
        slots = [found.kept[item].tolist().index(i) for i in untouched]
        assert torch.equal(found.features[item, slots], visual.features[item, untouched])


def test_a_batch_is_a_loop():
    """T5, bit for bit."""
    visual = given()
    together = get_method("visionzip")(visual, 13)
    for item in range(3):
        part = slice(item, item + 1)
        alone = VisualFeatures(visual.features[part], saliency=visual.saliency[part], keys=visual.keys[part])
        found = get_method("visionzip")(alone, 13)
        assert torch.equal(found.kept, together.kept[part]) and torch.equal(found.features, together.features[part])
        assert torch.equal(found.reduction.source_map, together.reduction.source_map[part])


@pytest.mark.parametrize("hidden", [float("nan"), float("inf"), 30.0])
@pytest.mark.parametrize("merging", ["sum", "mean"])
def test_padding_goes_nowhere(hidden, merging):
    """Hidden tokens before, between and after: each row is what it is without them."""
    mask = torch.rand(3, 40) < torch.tensor([[0.9], [0.6], [0.4]])
    mask[:, :9] |= torch.tensor([[True], [True], [False]])
    mask[2, 20:] = True
    visual = given(mask=mask)
    for tensor in (visual.features, visual.saliency, visual.keys):
        tensor[~mask] = hidden
    method = get_method("visionzip", merging=merging, contextual=0.4)
    together = method(visual, 9)
    for item in range(3):
        real = mask[item].nonzero().flatten()
        alone = method(
            VisualFeatures(
                visual.features[item, real][None],
                saliency=visual.saliency[item, real][None],
                keys=visual.keys[item, real][None],
            ),
            9,
        )
        assert torch.equal(together.kept[item], real[alone.kept[0]])
        torch.testing.assert_close(together.features[item], alone.features[0], atol=1e-6, rtol=0)
        assert torch.equal(together.reduction.source_map[item, real], alone.reduction.source_map[0])
        assert torch.equal(together.reduction.size[item], alone.reduction.size[0])
        assert bool((together.reduction.source_map[item][~mask[item]] == -1).all())


def test_ties_and_zeros():
    """Equal saliency: the first are dominant; zero keys and equal features give no NaN."""
    visual = VisualFeatures(torch.ones(1, 20, 4), saliency=torch.zeros(1, 20), keys=torch.zeros(1, 20, 3))
    found = get_method("visionzip", contextual=0.5)(visual, 8)
    assert found.kept[0].tolist() == [0, 1, 2, 3, 4, 8, 12, 16] and bool(found.features.isfinite().all())
    assert found.reduction.source_map[0, 5:8].tolist() == [4, 4, 4]
    whole = get_method("visionzip")(visual, 20)
    assert torch.equal(whole.features, visual.features)


def test_without_centres_it_drops():
    method, visual = get_method("visionzip", contextual=0), given()
    assert method.drops and method.needs == (needs.SALIENCY,)
    found = method(visual._replace(keys=None), 9)
    assert torch.equal(found.kept, get_method("topk", part="projector")(visual, 9).kept)
    one = get_method("visionzip")(visual, 1)
    assert torch.equal(one.kept[:, 0], visual.saliency.argmax(1)) and one.reduction.targets.shape == (3, 39, 0)


def test_keys_are_for_merging_alone():
    """Who stays is a matter of saliency; who goes where is not."""
    visual, method = given(), get_method("visionzip")
    assert method.needs == (needs.SALIENCY, needs.TOWER_KEYS) and method.needs_to_keep == (needs.SALIENCY,)
    kept = ficoco_ext.select(visual.features, 9, method="visionzip", saliency=visual.saliency)
    assert torch.equal(kept, method(visual, 9).kept)
    with pytest.raises(ValueError, match="select: saliency must be given, as the method needs it"):
        ficoco_ext.select(visual.features, 9, method="visionzip", keys=visual.keys)
    with pytest.raises(ValueError, match="merge: keys must be given, as the method needs it"):
        ficoco_ext.merge(visual.features, 9, method="visionzip", saliency=visual.saliency)
    with pytest.raises(ValueError, match="visionzip: keys must be given, as the method needs it"):
        method(visual._replace(keys=None), 9)


@pytest.mark.parametrize("merging", ["sum", "mean"])
def test_gradients(merging):
    features = torch.randn(2, 12, 3, dtype=torch.float64, requires_grad=True)
    plane = torch.randn(2, 12, 2, dtype=torch.float64, requires_grad=True)
    visual, mask = given(2, 12), torch.arange(12) < torch.tensor([[12], [9]])

    def run(features, plane):
        found = get_method("visionzip", merging=merging, contextual=0.5)(
            visual._replace(features=features, mask=mask), 5, [plane]
        )
        return found.features, *found.planes

    assert torch.autograd.gradcheck(run, (features, plane))


def test_compiles_without_graph_breaks(fresh_compiler):
    visual = given(2, mask=torch.arange(40) < torch.tensor([[40], [19]]))

    def run(features, saliency, keys, mask):
        found = get_method("visionzip")(VisualFeatures(features, mask=mask, saliency=saliency, keys=keys), 7)
        return found.kept, found.features, found.reduction.source_map

    tensors = visual.features, visual.saliency, visual.keys, visual.mask
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors)
    assert all(map(torch.equal, compiled, run(*tensors)))


def test_nothing_is_read_and_nothing_written():
    meta = [torch.ones(shape, device="meta") for shape in ((2, 30, 4), (2, 30), (2, 30, 3))]
    mask = torch.ones(2, 30, dtype=torch.bool, device="meta")
    found = get_method("visionzip")(VisualFeatures(meta[0], saliency=meta[1], keys=meta[2], mask=mask), 7)
    assert found.features.shape == (2, 7, 4)
    visual = given(mask=torch.arange(40).expand(3, 40) < 30)
    copies = [tensor.clone() for tensor in (visual.features, visual.saliency, visual.keys, visual.mask)]
    get_method("visionzip")(visual, 9)
    assert all(map(torch.equal, copies, (visual.features, visual.saliency, visual.keys, visual.mask)))


@pytest.mark.parametrize("size_weighted", [True, False])
def test_tokens_that_stand_for_several(size_weighted):
    """Means weighted by size, or not; the sizes of what is merged add up either way."""
    tokens, size = torch.randn(1, 9, 4).double(), torch.rand(1, 9, 1).double() * 5 + 1
    method = ProjectorMethod("own", StrideSelect(), Correlate(by="key", targets=1), Compress())
    found = method(VisualFeatures(tokens), 3)
    from ficoco_ext.methods.projector_method import _selection
    from ficoco_ext.stages import Links

    selection, links = _selection(found.kept, tokens), Links(found.reduction.targets, found.reduction.weights)
    made, size_out, _ = CentrePlusMean()(tokens, selection, links, size=size, size_weighted=size_weighted)
    weight = size if size_weighted else torch.ones_like(size)
    for slot, index in enumerate(found.kept[0].tolist()):
        inherited = [i for i in range(9) if found.reduction.source_map[0, i] == slot and i != index]
        w = weight[0, inherited]
        wanted = tokens[0, index] + ((w * tokens[0, inherited]).sum(0) / w.sum() if inherited else 0)
        torch.testing.assert_close(made[0, slot], wanted)
        torch.testing.assert_close(size_out[0, slot], size[0, [index, *inherited]].sum(0))


def test_it_says_what_it_does():
    words = get_method("visionzip").describe()
    assert words == (
        "features of least saliency, except every k-th of them",
        "the best of every k-th by cosine of the tower's keys",
        "itself plus the mean of what it inherits",
    )
    assert get_method("visionzip", merging="mean").describe().compress == "mean of all"
    assert describe("visionzip").needs == (needs.SALIENCY, needs.TOWER_KEYS)


def test_cost():
    """Keys are as wide as a head of the tower; who leaves meets the centres alone."""
    shape = Shape(
        batch=2, tokens=640, visual=576, r=512, channels=4096, heads=32, kv_heads=8, head_dim=128, tower_head_dim=64
    )
    operations = get_method("visionzip").operations(shape)
    found = {one.name: evaluate(one.operations, values) for one, values in operations}
    assert found == {"correlate": 2 * 2 * 512 * 10 * 64, "compress": 2 * 2 * 512 * 4096}
    (correlate, values), _ = operations
    assert evaluate(correlate.loads, values) == 2 * 522 * 64


def test_mistakes():
    visual = given()
    with pytest.raises(ValueError, match="visionzip: keys must be given, as the method needs it"):
        get_method("visionzip")(visual._replace(keys=None), 9)
    with pytest.raises(ValueError, match="saliency must be given"):
        ficoco_ext.merge(visual.features, 9, method="visionzip", keys=visual.keys)
    with pytest.raises(ValueError, match="keys must be finite"):
        get_method("visionzip")(visual._replace(keys=visual.keys.masked_fill(visual.keys > 1, float("nan"))), 9)
    for options, words in (
        ({"contextual": 1.5}, r"share must be a number in \[0, 1\]"),
        ({"merging": "max"}, "merging must be one of 'sum', 'mean'"),
        ({"saliency": "row"}, "saliency must be one of 'auto'"),
    ):
        with pytest.raises(ValueError, match=words):
            get_method("visionzip", **options)
