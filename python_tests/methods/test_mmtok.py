"""mmtok: coverage of words and tokens against its definition in float64, and what must hold of any input."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import ficoco_ext
from ficoco_ext import get_method, select
from ficoco_ext.cost import flop_counter
from ficoco_ext.methods.mmtok import mmtok
from ficoco_ext.ops.costs import evaluate
from ficoco_ext.stages import CoverSelect, Shape, VisualFeatures, needs

WIDE = {"tau_text": 0.2, "tau_vision": 0.5}  # temperatures for the narrow features of these tests


def shares(things, tokens, temperature):
    """(R, N) softmax over tokens of their cosines with each thing, one thing at a time."""
    rows = []
    for thing in things.double():
        alike = [float(thing @ x / max(thing.norm() * x.norm(), 1e-12)) / temperature for x in tokens.double()]
        exps = [math.exp(one - max(alike)) for one in alike]
        rows.append([one / sum(exps) for one in exps])
    return torch.tensor(rows, dtype=torch.float64).reshape(len(things), len(tokens))


def rows(features, tower, words, tau_text, tau_vision, alpha):
    """(L + N, N) what each token covers of each word and each token."""
    of_words = shares(words, features, tau_text) / max(len(words), 1)
    return torch.cat([of_words, alpha * shares(tower, tower, tau_vision) / len(tower)])


def adds(cover, chosen, j):
    held = cover[:, chosen].amax(1) if chosen else torch.zeros(len(cover), dtype=torch.float64)
    return float((cover[:, j] - held).clamp_min(0).sum())


def check(cover, chooser):
    """Each larger number adds the token that covers most, or one of those that cover equally much."""
    chosen: list[int] = []
    for count in range(1, cover.shape[1] + 1):
        kept = set(chooser(count)[0].tolist())
        (new,) = kept - set(chosen)
        gains = {j: adds(cover, chosen, j) for j in range(cover.shape[1]) if j not in chosen}
        assert set(chosen) < kept and gains[new] >= max(gains.values()) - 1e-12
        chosen.append(new)


def drawn(b=1, n=None, words=4, dtype=torch.float64):
    n, d = n or int(torch.randint(2, 12, ())), int(torch.randint(4, 9, ()))
    return tuple(torch.randn(b, count, width, dtype=dtype) for count, width in ((n, d), (n, 5), (words, d)))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_it_is_brute_force_and_a_smaller_number_keeps_a_part(alpha):
    """T4 with the definition: each pick is the best, and all before stay."""
    for _ in range(15):
        features, tower, text = drawn()
        cover = rows(features[0], tower[0], text[0], 0.2, 0.5, alpha)
        given = {"text": text, "tower_features": tower, "alpha": alpha, **WIDE}
        check(cover, lambda count, x=features, given=given: select(x, count, method="mmtok", **given))


def test_without_text_the_tokens_alone_are_covered():
    """T1, whatever alpha; and by the projected features if asked."""
    for _ in range(10):
        features, tower, text = drawn()
        cover = rows(features[0], tower[0], text[0][:0], 0.2, 0.5, 1.0)
        given = {"tower_features": tower, "cover_words": False, **WIDE}
        check(cover, lambda count, x=features, given=given: select(x, count, method="mmtok", **given))
        own = rows(features[0], features[0], text[0][:0], 0.2, 0.5, 1.0)
        given = {"cover_words": False, "before_projector": False, "alpha": 7.0, **WIDE}
        check(own, lambda count, x=features, given=given: select(x, count, method="mmtok", **given))


def test_the_token_that_is_like_the_word_comes_first():
    """T2."""
    for j in (0, 7, 19):
        features, tower, _ = drawn(n=20)
        text = 3 * features[:, j : j + 1]
        assert select(features, 1, method="mmtok", text=text, tower_features=tower).tolist() == [[j]]


def test_each_kind_of_thing_weighs_the_same_however_many():
    """T3: rows of words add up to 1, those of tokens to alpha, and lengths do not matter."""
    features, tower, text = drawn(b=2, n=20, words=6)
    stage = CoverSelect(alpha=0.25)
    cover = stage.cover(VisualFeatures(features, text=text, tower_features=tower))
    assert cover.shape == (2, 20, 26)
    assert torch.allclose(cover.sum(1)[:, :6], torch.full((2, 6), 1 / 6, dtype=torch.float64))
    assert torch.allclose(cover.sum(1)[:, 6:], torch.full((2, 20), 0.25 / 20, dtype=torch.float64))
    scaled = VisualFeatures(features * 8, text=text * 4, tower_features=tower * 2)
    assert torch.equal(stage.cover(scaled), cover)


@pytest.mark.parametrize("given", [{}, {"cover_words": False}, {"before_projector": False}], ids=str)
def test_padding_and_batches_change_nothing(given):
    """T5: pictures of 31, 40 and 12 tokens, prompts of 3, 7 and 1 words, whatever the padding holds."""
    mask, there = torch.zeros(3, 40, dtype=torch.bool), torch.zeros(3, 7, dtype=torch.bool)
    for item, (tokens, words) in enumerate(((31, 3), (40, 7), (12, 1))):
        mask[item, torch.randperm(40)[:tokens]], there[item, torch.randperm(7)[:words]] = True, True
    features, tower, text = torch.randn(3, 40, 24), torch.randn(3, 40, 18), torch.randn(3, 7, 24)
    features[~mask], tower[~mask], text[~there] = float("nan"), float("inf"), float("inf")
    stage = CoverSelect(**WIDE, **given)
    visual = VisualFeatures(features, mask, text=text, text_mask=there, tower_features=tower)
    together = stage(visual, 11)
    assert bool(mask.gather(1, together).all()) and bool(stage.cover(visual).isfinite().all())
    for item in range(3):
        real, spoken = mask[item], text[item : item + 1, there[item]]
        alone = VisualFeatures(
            features[item : item + 1, real], text=spoken, tower_features=tower[item : item + 1, real]
        )
        assert torch.equal(real.nonzero().squeeze(1)[stage(alone, 11)[0]], together[item])


def test_a_picture_without_words_covers_its_tokens():
    features, tower, text = drawn(b=2, n=30, words=5, dtype=torch.float32)
    there = torch.tensor([[True] * 5, [False] * 5])
    kept = CoverSelect(**WIDE)(VisualFeatures(features, text=text, text_mask=there, tower_features=tower), 9)
    silent = CoverSelect(**WIDE, cover_words=False)(VisualFeatures(features[1:], tower_features=tower[1:]), 9)
    assert torch.equal(kept[1:], silent)
    spoken = CoverSelect(**WIDE)(VisualFeatures(features[:1], text=text[:1], tower_features=tower[:1]), 9)
    assert torch.equal(kept[:1], spoken)


def test_a_copy_is_the_original():
    """All tokens alike in pairs: the first of each pair stays; rounding does not choose."""
    for n, d in ((7, 9), (35, 193), (50, 64)):
        features, tower = (torch.randn(1, n, width).repeat_interleave(2, 1) for width in (d, d + 5))
        kept = select(features, n // 2, method="mmtok", text=torch.randn(1, 3, d), tower_features=tower)
        assert not (kept % 2).any()


@pytest.mark.parametrize("b", [2, 5])
def test_a_batch_is_its_pictures(b):
    features, tower, text = torch.randn(b, 70, 50), torch.randn(b, 70, 33), torch.randn(b, 9, 50)
    together = select(features, 30, method="mmtok", text=text, tower_features=tower)
    for i in range(b):
        part = slice(i, i + 1)
        alone = select(features[part], 30, method="mmtok", text=text[part], tower_features=tower[part])
        assert torch.equal(alone, together[part])


def test_kernels_choose_as_float64_does():
    features, tower, text = torch.randn(2, 144, 200), torch.randn(2, 144, 100), torch.randn(2, 9, 200)
    kept = select(features, 48, method="mmtok", text=text, tower_features=tower)
    wide = select(features.double(), 48, method="mmtok", text=text.double(), tower_features=tower.double())
    assert torch.equal(kept, wide)


def test_permuted_tokens_and_permuted_words():
    features, tower, text = drawn(n=25, words=6)
    order = torch.randperm(25)
    kept = select(features, 9, method="mmtok", text=text, tower_features=tower)
    moved = select(features[:, order], 9, method="mmtok", text=text.flip(1), tower_features=tower[:, order])[0]
    assert sorted(order[moved].tolist()) == kept[0].tolist()


def test_all_tokens_and_zero_vectors():
    features, tower, text = (one.float() for one in drawn(n=15, words=3))
    everyone = torch.arange(15)[None]
    given = {"method": "mmtok", "text": text, "tower_features": tower}
    assert torch.equal(select(features, 15, **given), everyone)
    assert torch.equal(select(features * 0, 15, **given), everyone)
    nothing = select(features * 0, 4, method="mmtok", text=text * 0, before_projector=False)
    assert nothing.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_float32_rounded(dtype):
    features, tower, text = ((torch.randn(1, n, 1024) * 200).to(dtype) for n in (60, 60, 7))
    given = {"text": text, "tower_features": tower, "method": "mmtok"}
    half = select(features, 20, **given)
    wide = select(features.float(), 20, method="mmtok", text=text.float(), tower_features=tower.float())
    assert torch.equal(half, wide)
    assert torch.equal(half, select(features, 20, **(given | {"text": text.float()})))


def test_autocast_changes_nothing():
    features, tower, text = drawn(b=2, n=60, words=5, dtype=torch.float32)
    given = {"method": "mmtok", "text": text, "tower_features": tower}
    kept = select(features, 20, **given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(select(features, 20, **given), kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("given", [{}, {"cover_words": False, "before_projector": False}], ids=str)
def test_it_compiles_in_one_graph(given, dtype):
    def run(features, tower, text, there, mask):
        words = {"text": text, "text_mask": there, "tower_features": tower}
        return select(features, 9, method="mmtok", mask=mask, **words, **given)

    args = [torch.randn(2, n, 16, dtype=dtype) for n in (30, 30, 5)]
    args += [torch.arange(5).expand(2, -1) < 4, torch.arange(30).expand(2, -1) < 28]
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*args), run(*args))


def test_gradients_go_to_what_stays_and_not_through_the_choice():
    features, tower, text = (one.requires_grad_() for one in drawn(n=20, dtype=torch.float32))
    merged = ficoco_ext.merge(features, 5, method="mmtok", text=text, tower_features=tower)
    merged.features.sum().backward()
    assert bool(features.grad.abs().sum() > 0) and text.grad is None and tower.grad is None
    assert merged.reduction.size.sum() == 20 and get_method("mmtok").drops


def test_nothing_given_is_written():
    features, tower, text = drawn(n=20, dtype=torch.float32)
    there, mask = torch.tensor([[True, False, True, True]]), torch.arange(20)[None] > 3
    given = (features, tower, text, there, mask)
    before = [one.clone() for one in given]
    select(features, 5, method="mmtok", text=text, text_mask=there, tower_features=tower, mask=mask)
    assert all(map(torch.equal, before, given))


@pytest.mark.parametrize("before_projector", [True, False])
@pytest.mark.parametrize("words", [True, False])
def test_cost(words, before_projector):
    """What is priced is what is counted: tokens by the width of the tower if it is known, words by that of features."""
    method = get_method("mmtok", cover_words=words, before_projector=before_projector)
    shape = Shape(2, 30, 30, 19, channels=16, heads=4, kv_heads=4, head_dim=4, text=5, tower_channels=12)
    things, own = 35 if words else 30, 12 if before_projector else 16
    cosines = 2 * 2 * 30 * (30 * own + (5 * 16 if words else 0))
    assert priced(method, shape) == {"cosines": cosines, "greedy_cover": 2 * 2 * 30 * things}
    with flop_counter.counter() as counted:
        features, tower, text = torch.randn(2, 30, 16), torch.randn(2, 30, 12), torch.randn(2, 5, 16)
        select(features, 11, method=method, text=text, tower_features=tower)
    assert counted.get_total_flops() == sum(priced(method, shape).values())
    unknown = priced(method, replace(shape, tower_channels=0))["cosines"]
    assert unknown == 2 * 2 * 30 * 16 * things


def priced(method, shape):
    """Operations by the name of the operator."""
    found: dict[str, int] = {}
    for one, values in method.select.operations(shape):
        found[one.name] = found.get(one.name, 0) + evaluate(one.operations, values)
    return found


def test_it_says_what_it_needs_and_does():
    default = CoverSelect()
    assert (default.tau_text, default.tau_vision, default.alpha) == (0.02, 0.2, 0.5)
    assert default.needs == (needs.TEXT, needs.TOWER_FEATURES)
    assert get_method("mmtok").needs == (needs.TOWER_FEATURES, needs.TEXT) and get_method("mmtok").reads_question
    assert get_method("mmtok", before_projector=False).needs == (needs.TEXT,)
    silent = get_method("mmtok", cover_words=False, before_projector=False)
    assert silent.needs == () and not silent.reads_question
    assert (
        default.describe() == "features that cover least of the words of the prompt and tokens that those that stay "
        "do not"
    )
    assert "chosen for one prompt" in str(mmtok.__doc__) and "do not carry over" in str(mmtok.__doc__)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tau_text": 0}, "tau_text must be a finite number >= 1e-06, got 0"),
        ({"tau_vision": -1.0}, "tau_vision must be"),
        ({"tau_vision": math.inf}, "tau_vision must be finite"),
        ({"alpha": -0.5}, "alpha must be a finite number >= 0"),
        ({"alpha": 0, "cover_words": False}, "alpha must be above 0 without words"),
        ({"cover_words": "all"}, "cover_words must be one of True, False"),
        ({"before_projector": None}, "before_projector must be one of True, False"),
    ],
    ids=str,
)
def test_refusals_of_hyperparameters(given, message):
    with pytest.raises(ValueError, match=f"CoverSelect: {message}"):
        get_method("mmtok", **given)


def test_refusals_of_input():
    features, tower, text = torch.randn(1, 9, 8), torch.randn(1, 9, 5), torch.randn(1, 3, 8)
    with pytest.raises(ValueError, match=r"text must be given, .*'divprune'"):
        select(features, 3, method="mmtok", tower_features=tower)
    with pytest.raises(ValueError, match=r"tower_features must be given"):
        select(features, 3, method="mmtok", text=text)
    with pytest.raises(ValueError, match=r"CoverSelect: text must be given, .* cover_words=False, or 'divprune'"):
        CoverSelect()(VisualFeatures(features, tower_features=tower), 3)
    with pytest.raises(
        ValueError, match=r"CoverSelect: features before the projector are needed.*before_projector=Fals"
    ):
        CoverSelect()(VisualFeatures(features, text=text), 3)
    with pytest.raises(ValueError, match=r"text must be \(B, L, 8\), as wide as the features, got \(1, 3, 9\)"):
        select(features, 3, method="mmtok", text=torch.randn(1, 3, 9), tower_features=tower)
    with pytest.raises(ValueError, match="text must be at least one word for every picture"):
        select(features, 3, method="mmtok", text=text, text_mask=torch.zeros(1, 3) > 0, tower_features=tower)
    with pytest.raises(ValueError, match=r"tokens must be in \[1, 9\]"):
        select(features, 10, method="mmtok", text=text, tower_features=tower)
    with pytest.raises(ValueError, match="tower_features must be finite"):
        select(features, 3, method="mmtok", text=text, tower_features=tower * float("nan"))
