"""cdpruner: determinants weighed by relevance, against their definition in float64, and what must hold of any input."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import ficoco_ext
from ficoco_ext import get_method, select
from ficoco_ext.cost import flop_counter
from ficoco_ext.methods.cdpruner import cdpruner
from ficoco_ext.ops.costs import evaluate
from ficoco_ext.stages import RelevanceSelect, Shape, VisualFeatures, needs
from ficoco_ext.stages.relevance import likeness, per_picture

BLENDS = ("exp", "linear", "product")
HALVES = [torch.float16, torch.bfloat16]


def cosines(one, other):
    units = [x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (one.double(), other.double())]
    found = units[0] @ units[1].T
    return torch.where(found > 0.999, 1.0, found) if one is other else found


def relevance(features, words, sign=1):
    """Mean cosine with the words, moved into [0, 1]."""
    score = sign * cosines(features, words).mean(1)
    low, high = score.min(), score.max()
    return torch.ones_like(score) if high - low <= 1e-6 else (score - low + 1e-6) / (high - low)


def kernel(features, weight, theta, blend):
    s = cosines(features, features)
    product = weight[:, None] * s * weight[None]
    if blend == "product":
        return product
    if blend == "linear":
        return (1 - theta) * s + theta * product
    factor = torch.exp(theta / (2 * (1 - theta)) * weight)
    return factor[:, None] * s * factor[None]


def greedy(k, count):
    """The token that multiplies the determinant most, one after the other, by determinants."""
    chosen: list[int] = []
    for _ in range(count):
        rest = [j for j in range(len(k)) if j not in chosen]
        gains = {j: float(torch.linalg.det(k[[*chosen, j]][:, [*chosen, j]])) for j in rest}
        chosen.append(max(rest, key=lambda j: (gains[j], -j)))
    return sorted(chosen)


def drawn(n=None, d=None, words=4):
    n, d = n or int(torch.randint(2, 13, ())), d or int(torch.randint(13, 20, ()))
    return torch.randn(1, n, d, dtype=torch.float64), torch.randn(1, words, d, dtype=torch.float64)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("theta", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("blend", BLENDS)
def test_it_is_brute_force(blend, theta, sign):
    for _ in range(30):
        features, text = drawn()
        count = int(torch.randint(1, features.shape[1] + 1, ()))
        wanted = greedy(kernel(features[0], relevance(features[0], text[0], sign), theta, blend), count)
        given = {"theta": theta, "blend": blend, "sign": sign}
        assert select(features, count, method="cdpruner", text=text, **given)[0].tolist() == wanted


def test_kernels_choose_as_float64_does():
    """At the size of a picture and of its words."""
    features, text = torch.randn(2, 144, 200), torch.randn(2, 9, 200)
    for blend in BLENDS:
        kept = select(features, 48, method="cdpruner", text=text, blend=blend)
        wide = select(features.double(), 48, method="cdpruner", text=text.double(), blend=blend)
        assert torch.equal(kept, wide)


@pytest.mark.parametrize("blend", BLENDS)
def test_orthogonal_features_go_by_relevance(blend):
    """T1: nothing is like anything else, so the most relevant stay."""
    features, text = torch.eye(12)[None] * 3, torch.rand(1, 1, 12) + 0.1
    kept = select(features, 5, method="cdpruner", text=text, blend=blend)
    assert kept[0].tolist() == sorted(text[0, 0].argsort(descending=True)[:5].tolist())


@pytest.mark.parametrize("blend", BLENDS)
def test_duplicates_stay_last(blend):
    """T2. A product with the least relevance, 1e-6 of the largest, adds nothing more than a copy does."""
    features, text = torch.randn(1, 10, 20).repeat(1, 2, 1), torch.randn(1, 4, 20)
    count = 9 if blend == "product" else 10
    kept = select(features, count, method="cdpruner", text=text, blend=blend)[0].tolist()
    assert kept == sorted({one % 10 for one in kept})


def test_a_copy_is_the_original():
    """All tokens alike in pairs: of each pair the first stays, whatever decides."""
    for n, d in ((7, 9), (35, 193), (50, 64)):
        features, text = torch.randn(1, n, d).repeat_interleave(2, 1), torch.randn(1, 3, d)
        kept = select(features, n // 3, method="cdpruner", text=text)
        assert not (kept % 2).any()


def test_permuted_tokens_and_permuted_words():
    """T4 and T9."""
    features, text, order = torch.randn(1, 25, 40), torch.randn(1, 6, 40), torch.randperm(25)
    kept = select(features, 9, method="cdpruner", text=text)
    moved = select(features[:, order], 9, method="cdpruner", text=text)[0]
    assert sorted(order[moved].tolist()) == kept[0].tolist()
    assert torch.equal(select(features, 9, method="cdpruner", text=text.flip(1)), kept)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("blend", BLENDS)
def test_all_tokens(blend, blocks):
    """T5, more than there are channels."""
    features, text = torch.randn(2, 15, 4), torch.randn(2, 3, 4)
    kept = select(features, 15, method="cdpruner", text=text, blend=blend, blocks=blocks)
    assert torch.equal(kept, torch.arange(15).expand(2, 15))


def test_without_relevance_it_is_the_plain_determinant():
    """T6 and T7: no words, no weight, or words that are not to count."""
    features, text = torch.randn(2, 30, 40), torch.randn(2, 5, 40)
    none = select(features, 11, method="cdpruner", relevance="none")
    assert get_method("cdpruner", relevance="none").needs == ()
    for blend in ("exp", "linear"):
        assert torch.equal(select(features, 11, method="cdpruner", text=text, theta=0, blend=blend), none)
    assert none[0].tolist() == greedy(cosines(features[0], features[0]), 11)
    assert not torch.equal(select(features, 11, method="cdpruner", text=text), none)


def test_equal_relevance_is_none():
    """T10: theta cannot matter where all tokens are equally relevant; rounding does not pretend that they are not."""
    direction = torch.randn(40)
    features = torch.randn(1, 20, 40)
    features -= (features @ direction / (direction @ direction)).unsqueeze(-1) * direction  # orthogonal to the words
    none = select(features, 8, method="cdpruner", relevance="none")
    for blend in BLENDS:
        for theta in (0.3, 0.9):
            given = {"text": direction[None, None], "blend": blend, "theta": theta}
            assert torch.equal(select(features, 8, method="cdpruner", **given), none)


@pytest.mark.parametrize("relevance", ["words", "none"])
@pytest.mark.parametrize(("n", "count"), [(20, 8), (20, 7), (21, 8), (21, 9), (3, 3), (5, 1)])
def test_two_blocks(n, count, relevance):
    """T8: floor(T / 2) of the first floor(N / 2) tokens, each half as it would choose alone, then the rest."""
    features, text = torch.randn(2, n, 40), torch.randn(2, 4, 40)
    given = {"relevance": relevance, "text": text}
    kept = select(features, count, method="cdpruner", blocks=2, **given)
    half, share = n // 2, count // 2
    assert ((kept < half).sum(1) == share).all()
    later = select(features[:, half:], count - share, method="cdpruner", **given) + half
    assert torch.equal(kept[:, share:], later)
    if share:
        assert torch.equal(kept[:, :share], select(features[:, :half], share, method="cdpruner", **given))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("blend", BLENDS)
def test_padding_and_batches_change_nothing(blend, blocks):
    """Pictures of 31, 40 and 12 tokens, prompts of 3, 7 and 1 words, whatever the padding holds."""
    mask, there = torch.zeros(3, 40, dtype=torch.bool), torch.zeros(3, 7, dtype=torch.bool)
    for item, (tokens, words) in enumerate(((31, 3), (40, 7), (12, 1))):
        mask[item, torch.randperm(40)[:tokens]], there[item, torch.randperm(7)[:words]] = True, True
    features, text = torch.randn(3, 40, 24), torch.randn(3, 7, 24)
    features[~mask], text[~there] = float("nan"), float("inf")
    stage = RelevanceSelect(blend=blend, blocks=blocks)
    together = stage(VisualFeatures(features, mask, text=text, text_mask=there), 11)
    for item in range(3):
        alone = VisualFeatures(features[item : item + 1, mask[item]], text=text[item : item + 1, there[item]])
        assert torch.equal(mask[item].nonzero().squeeze(1)[stage(alone, 11)[0]], together[item])


def test_padding_is_not_what_is_least_relevant():
    """Where all tokens are like the words, what is not there changes nothing: no vector, an opposite one, a word."""
    features, text = torch.rand(1, 20, 16), torch.rand(1, 3, 16)
    for other in (torch.zeros(1, 5, 16), -torch.rand(1, 5, 16), 9 * text[:, :1].expand(-1, 5, -1)):
        padded, mask = torch.cat([features, other], 1), torch.arange(25)[None] < 20
        for blend in BLENDS:
            kept = select(padded, 7, method="cdpruner", text=text, blend=blend, mask=mask, theta=0.8)
            assert torch.equal(kept, select(features, 7, method="cdpruner", text=text, blend=blend, theta=0.8))


def test_how_words_are_padded_does_not_show():
    """Bit for bit, and a picture without words has no relevance."""
    features, text = torch.randn(2, 200, 64), torch.randn(2, 45, 64)
    wanted = likeness("t", VisualFeatures(features, text=text), "")
    for more in (1, 19, 60, 300):
        padded = torch.cat([torch.full((2, more, 64), float("nan")), text], 1)
        there = (torch.arange(45 + more) >= more).expand(2, -1)
        found = likeness("t", VisualFeatures(features, text=padded, text_mask=there), "")
        assert torch.equal(found, wanted)
    silent = likeness("t", VisualFeatures(features, text=text, text_mask=torch.zeros(2, 45) > 0), "")
    assert not silent.any() and bool((per_picture(silent, None) == 1).all())
    alone = likeness("t", VisualFeatures(features[:1], text=text[:1]), "")
    assert torch.equal(alone, wanted[:1])


def test_a_picture_without_words_goes_by_what_differs():
    features, text = torch.randn(2, 30, 40), torch.randn(2, 5, 40)
    there = torch.tensor([[True] * 5, [False] * 5])
    kept = RelevanceSelect()(VisualFeatures(features, text=text, text_mask=there), 9)
    assert torch.equal(kept[:1], RelevanceSelect()(VisualFeatures(features[:1], text=text[:1]), 9))
    assert torch.equal(kept[1:], RelevanceSelect("none")(VisualFeatures(features[1:]), 9))


@pytest.mark.parametrize("theta", [0.5, 0.8, 0.9])
def test_at_the_largest_theta_what_differs_still_counts(theta):
    """Eight tokens at right angles, each twice: of each one copy stays, also of the least relevant."""
    for seed in range(10):
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.linalg.qr(torch.randn(16, 16, generator=draw))[0][None, :8]
        text = torch.randn(1, 3, 16, generator=draw)
        assert select(tokens.repeat(1, 2, 1), 8, method="cdpruner", text=text, theta=theta).tolist() == [[*range(8)]]
        most = likeness("t", VisualFeatures(tokens, text=text), "").topk(3).indices.sort().values
        assert torch.equal(select(tokens, 3, method="cdpruner", text=text, theta=theta), most)


def test_a_large_theta_of_the_linear_blend_does_not_overflow():
    features, text = torch.randn(2, 30, 40), torch.randn(2, 5, 40)
    kept = select(features, 12, method="cdpruner", text=text, theta=1 - 1e-12, blend="linear")
    most = likeness("t", VisualFeatures(features, text=text), "").argmax(1, keepdim=True)
    assert bool((kept == most).any(1).all()) and bool((kept.diff() > 0).all())


@pytest.mark.parametrize("blend", BLENDS)
def test_zero_vectors(blend):
    features, text = torch.randn(1, 12, 20), torch.randn(1, 4, 20)
    features[0, [1, 5]] = 0
    kept = select(features, 9, method="cdpruner", text=text, blend=blend)[0].tolist()
    assert not {1, 5} & set(kept)
    assert select(features * 0, 4, method="cdpruner", text=text, blend=blend)[0].tolist() == [0, 1, 2, 3]
    assert select(features, 4, method="cdpruner", text=text * 0, blend=blend).shape == (1, 4)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_float32_rounded(dtype, blend):
    features, text = (torch.randn(1, 60, 4096) * 200).to(dtype), torch.randn(1, 7, 4096).to(dtype)
    half = select(features, 20, method="cdpruner", text=text, blend=blend)
    assert torch.equal(half, select(features.float(), 20, method="cdpruner", text=text.float(), blend=blend))
    mixed = select(features, 20, method="cdpruner", text=text.float(), blend=blend)
    assert torch.equal(half, mixed)


def test_a_smaller_number_keeps_a_part():
    features, text = torch.randn(2, 30, 40), torch.randn(2, 5, 40)
    larger = select(features, 30, method="cdpruner", text=text)
    for count in range(29, 0, -1):
        smaller = select(features, count, method="cdpruner", text=text)
        assert all(torch.isin(a, b).all() for a, b in zip(smaller, larger, strict=True))
        larger = smaller


def test_autocast_changes_nothing():
    features, text = torch.randn(2, 60, 64), torch.randn(2, 5, 64)
    wanted = {blend: select(features, 20, method="cdpruner", text=text, blend=blend) for blend in BLENDS}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for blend, kept in wanted.items():
            assert torch.equal(select(features, 20, method="cdpruner", text=text, blend=blend), kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("given", [{}, {"blend": "linear", "blocks": 2}, {"relevance": "none"}], ids=str)
def test_it_compiles_in_one_graph(given, dtype):
    def run(features, text, there, mask):
        return select(features, 9, method="cdpruner", text=text, text_mask=there, mask=mask, **given)

    features, text = torch.randn(2, 30, 16, dtype=dtype), torch.randn(2, 5, 16, dtype=dtype)
    there, mask = torch.arange(5).expand(2, -1) < 4, torch.arange(30).expand(2, -1) < 28
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert torch.equal(compiled(features, text, there, mask), run(features, text, there, mask))


def test_gradients_go_to_what_stays_and_not_through_the_choice():
    features, text = torch.randn(1, 20, 8, requires_grad=True), torch.randn(1, 3, 8, requires_grad=True)
    merged = ficoco_ext.merge(features, 5, method="cdpruner", text=text)
    merged.features.sum().backward()
    assert bool(features.grad.abs().sum() > 0) and text.grad is None
    assert merged.reduction.size.sum() == 20 and get_method("cdpruner").drops


def test_nothing_given_is_written():
    features, text = torch.randn(1, 20, 8), torch.randn(1, 3, 8)
    there, mask = torch.tensor([[True, False, True]]), torch.arange(20)[None] > 3
    before = [one.clone() for one in (features, text, there, mask)]
    for blend in BLENDS:
        select(features, 5, method="cdpruner", text=text, text_mask=there, mask=mask, blend=blend, blocks=2)
    assert all(map(torch.equal, before, (features, text, there, mask)))


@pytest.mark.parametrize(
    "given",
    [{}, {"blend": "linear"}, {"blocks": 2}, {"relevance": "none", "blocks": 2}, {"relevance": "none"}],
    ids=str,
)
def test_cost(given):
    """What is priced is what is counted, but for the likeness, which is no matrix product."""
    method, words = get_method("cdpruner", **given), given.get("relevance") != "none"
    shape = Shape(2, 30, 30, 19, channels=16, heads=4, kv_heads=4, head_dim=4, text=5)
    priced = {}
    for operation, values in method.select.operations(shape):
        priced[operation.name] = priced.get(operation.name, 0) + evaluate(operation.operations, values)
    assert priced.pop("likeness", None) == (2 * 2 * 16 * 35 if words else None)
    width, blocks = (32 if given.get("blend") == "linear" else 16), given.get("blocks", 1)
    share = {1: 11 * 11, 2: 5 * 5 + 6 * 6}[blocks]
    assert priced == {"greedy_select": 2 * 30 * (blocks * 30 * width + share)}
    with flop_counter.counter() as counted:
        select(torch.randn(2, 30, 16), 11, method=method, text=torch.randn(2, 5, 16))
    assert counted.get_total_flops() == sum(priced.values())


def test_it_says_what_it_needs_and_does():
    default = RelevanceSelect()
    assert (default.relevance, default.theta, default.blend, default.blocks, default.sign) == (
        "words",
        0.5,
        "exp",
        1,
        1,
    )
    assert default.needs == (needs.TEXT,) and get_method("cdpruner").reads_question
    assert not get_method("cdpruner", relevance="none").reads_question
    assert default.describe().endswith("weighed by likeness to the words of the prompt")
    assert (
        RelevanceSelect(sign=-1, blocks=2)
        .describe()
        .endswith("weighed by unlikeness to the words of the prompt, in each half of the picture")
    )
    assert RelevanceSelect("none").describe() == "features that add least to the determinant of those that stay"
    assert "chosen for one prompt" in str(cdpruner.__doc__)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"relevance": "clip"}, "relevance must be one of 'words', 'none'"),
        ({"theta": 1}, "theta must be below 1; blend='product' is relevance alone, got 1"),
        ({"theta": 0.91}, r"theta must be at most 0.9 with blend='exp' \(above it .* take 'product'\), got 0.91"),
        ({"theta": -0.1}, r"theta must be a number in \[0, 1\]"),
        ({"theta": math.nan}, "theta must be"),
        ({"blend": "sum"}, "blend must be one of 'exp', 'linear', 'product'"),
        ({"blocks": 3}, "blocks must be one of 1, 2"),
        ({"sign": 0}, "sign must be one of 1, -1"),
    ],
    ids=str,
)
def test_refusals_of_hyperparameters(given, message):
    with pytest.raises(ValueError, match=f"RelevanceSelect: {message}"):
        get_method("cdpruner", **given)


def test_refusals_of_input():
    features, text = torch.randn(1, 9, 8), torch.randn(1, 3, 8)
    with pytest.raises(ValueError, match=r"text must be given, .*'divprune'"):
        select(features, 3, method="cdpruner")
    with pytest.raises(ValueError, match=r"RelevanceSelect: text must be given, .* relevance='none', or 'divprune'"):
        RelevanceSelect()(VisualFeatures(features), 3)
    with pytest.raises(ValueError, match=r"text must be \(B, L, 8\), as wide as the features, got \(1, 3, 9\)"):
        select(features, 3, method="cdpruner", text=torch.randn(1, 3, 9))
    with pytest.raises(ValueError, match="text must be at least one word for every picture"):
        select(features, 3, method="cdpruner", text=text, text_mask=torch.zeros(1, 3) > 0)
    with pytest.raises(ValueError, match=r"tokens must be in \[1, 9\]"):
        select(features, 10, method="cdpruner", text=text)
    with pytest.raises(ValueError, match="features must be finite"):
        select(torch.full((1, 9, 8), float("nan")), 3, method="cdpruner", text=text)
    with pytest.raises(ValueError, match="text must be finite"):
        select(features, 3, method="cdpruner", text=text * float("nan"))
    with pytest.raises(ValueError, match="merge"):
        get_method("cdpruner", merge=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(features, 3, method="cdpruner", text=text)
