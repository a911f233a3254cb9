"""DART after the projector, against loops in float64 that are written from the description."""

from __future__ import annotations

import pytest
import torch
from helpers.ops import DTYPES
from helpers.selects import alone, check_padding, exact

import ficoco_ext
from ficoco_ext import get_method, select
from ficoco_ext.cost import flop_counter
from ficoco_ext.ops.costs import evaluate
from ficoco_ext.stages import PivotSelect, Shape, VisualFeatures, needs


def longest(vectors, count):
    norms = vectors.abs().sum(-1).tolist()
    return sorted(range(len(norms)), key=lambda i: (-norms[i], i))[:count]


def chosen(features, words, count, pivots=(4, 4)):
    """One picture: its longest tokens, and for every pivot in turn those least like it that none has taken."""
    x, text = features.double(), words.double()
    own = longest(x, min(pivots[0], count))
    every = [x[i] for i in own] + [text[i] for i in longest(text, pivots[1])]
    kept, missing = list(own), count - len(own)
    for number, pivot in enumerate(every):
        cosine = [
            float(x[i] @ pivot / (x[i].norm().clamp(min=1e-12) * pivot.norm().clamp(min=1e-12))) for i in range(len(x))
        ]
        pool = sorted((i for i in range(len(x)) if i not in kept), key=lambda i: (round(cosine[i], 9), i))
        kept += pool[: missing // len(every) + (number < missing % len(every))]
    return sorted(kept)


def given(b=2, n=33, words=7, d=12, dtype=torch.float32):
    return VisualFeatures(torch.randn(b, n, d).to(dtype), text=torch.randn(b, words, d).to(dtype))


@pytest.mark.parametrize("pivots", [(4, 4), (1, 0), (4, 0), (2, 5), (1, 20)])
@pytest.mark.parametrize("n", [1, 3, 9, 33])
def test_every_count(n, pivots):
    """Exactly T for all T in 1 ... N: fewer than the pivots of the picture, remainders of all sizes, everything."""
    visual, method = given(n=n), get_method("dart", image_pivots=pivots[0], text_pivots=pivots[1])
    for count in range(1, n + 1):
        kept = method.keep(visual, count)
        wanted = [chosen(visual.features[i], visual.text[i], count, pivots) for i in range(2)]
        assert kept.tolist() == wanted and len(set(wanted[0])) == count


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_dtypes(dtype):
    """Long vectors too: 4096 channels of 200 overflow a sum in float16."""
    visual = given(n=60, d=4096, dtype=dtype)
    visual = visual._replace(features=visual.features * 200)
    kept = get_method("dart").keep(visual, 20)
    assert kept.tolist() == [chosen(visual.features[i], visual.text[i], 20) for i in range(2)]


def test_the_longest_stay():
    visual = given()
    kept = get_method("dart").keep(visual, 9)
    for item in range(2):
        assert set(longest(visual.features[item], 4)) <= set(kept[item].tolist())
        assert get_method("dart").keep(visual, 3)[item].tolist() == sorted(longest(visual.features[item], 3))


def test_norms_are_sums_of_magnitudes():
    """(3, 3) is longer than (0, 5) as sums go; by squares it would not be."""
    features = torch.tensor([[[0.0, 5.0], [3.0, 3.0], [0.1, 0.1]]])
    assert get_method("dart", text_pivots=0).keep(VisualFeatures(features), 1).tolist() == [[1]]


def test_by_hand():
    """Two pivots of the picture and one word, five more tokens: the first two pick two each, the word one."""
    features = torch.tensor([[[9.0, 0], [0, 8], [1, -1], [-1, -1], [-3, 0], [0, -2], [1, 1], [-1, 1], [1, 3]]])
    text = torch.tensor([[[0.5, 0], [-6.0, -6.0]]])
    # Token 0 is the first pivot: least like it is 4 (-1), then 3 (7 is as little, but later). Token 1 takes 5 (-1),
    # then 2. The word points down left: 6 has -1.
    method = get_method("dart", image_pivots=2, text_pivots=1)
    assert method.keep(VisualFeatures(features, text=text), 7).tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert method.keep(VisualFeatures(features, text=text), 5).tolist() == [[0, 1, 4, 5, 6]]
    assert method.keep(VisualFeatures(features, text=text), 4).tolist() == [[0, 1, 4, 5]]
    assert method.keep(VisualFeatures(features, text=text), 3).tolist() == [[0, 1, 4]]


def test_words_in_another_order_change_nothing():
    visual = given(1, 40, 9)
    kept = get_method("dart").keep(visual, 15)
    for order in (torch.randperm(9), torch.arange(9).flip(0)):
        assert torch.equal(get_method("dart").keep(visual._replace(text=visual.text[:, order]), 15), kept)
    other = visual._replace(text=-visual.text)
    assert not torch.equal(get_method("dart").keep(other, 15), kept)
    assert set(longest(visual.features[0], 4)) <= set(get_method("dart").keep(other, 15)[0].tolist())


def test_without_words_none_are_read():
    """T: text_pivots=0 needs no text, and text that is there has no say."""
    visual, method = given(), get_method("dart", text_pivots=0)
    kept = method.keep(visual, 12)
    assert torch.equal(method.keep(visual._replace(text=None), 12), kept)
    assert torch.equal(select(visual.features, 12, method="dart", text_pivots=0), kept)
    assert method.needs == () and get_method("dart").needs == (needs.TEXT,)


def test_fewer_words_than_pivots():
    """One word is one pivot: what is missing is shared by five."""
    visual = given(words=1)
    kept = get_method("dart").keep(visual, 15)
    assert kept.tolist() == [chosen(visual.features[i], visual.text[i], 15) for i in range(2)]


def test_prompts_of_different_length():
    """Hidden words, whatever they hold, are not there; each picture keeps what it keeps alone."""
    visual = given(5, 40, 8)
    mask = torch.zeros(5, 8, dtype=torch.bool)
    for item, real in enumerate(([7], [0, 3], [1, 2, 3, 4], list(range(8)), [2, 5, 6])):
        mask[item, real] = True
    visual.text[~mask] = float("nan")
    visual = visual._replace(text_mask=mask)
    for count in (1, 5, 13, 40):
        kept = get_method("dart").keep(visual, count)
        for item in range(5):
            assert torch.equal(get_method("dart").keep(alone(visual, item), count), kept[item : item + 1])


def test_a_picture_without_words_has_the_pivots_of_the_picture():
    """A stage that reads words takes none for a picture whose mask hides them all; a method refuses it on the CPU."""
    visual = given()._replace(text_mask=torch.tensor([[True] * 7, [False] * 7]))
    kept = PivotSelect()(visual, 12)
    assert torch.equal(kept[1:], PivotSelect((4, 0))(alone(visual, 1), 12))
    with pytest.raises(
        ValueError, match="dart: text must be at least one word for every picture, got none for picture 1"
    ):
        get_method("dart").keep(visual, 12)


@pytest.mark.parametrize("where", ["after", "before", "among"])
def test_padding_is_not_there(where):
    check_padding(get_method("dart"), given(4, 40), where)


def test_a_batch_is_a_loop():
    visual = given(6, 50)
    together = get_method("dart").keep(visual, 17)
    for item in range(6):
        assert torch.equal(get_method("dart").keep(alone(visual, item), 17), together[item : item + 1])


@pytest.mark.parametrize("vector", [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
def test_equal_tokens_stay_from_the_front(vector):
    """All are pivots' equals, zero vectors too: the lowest indices."""
    visual = VisualFeatures(torch.tensor(vector).repeat(1, 20, 1), text=torch.ones(1, 5, 3))
    for count in (1, 4, 5, 19, 20):
        assert get_method("dart").keep(visual, count).tolist() == [list(range(count))]


def test_duplicates_stay_from_the_front():
    """Every token is there three times, in widths at which products of matrices change their order of summation."""
    for d, dtype in ((70, torch.float32), (130, torch.float16), (4096, torch.bfloat16), (301, torch.float64)):
        visual = given(1, 15, 5, d, dtype)
        visual = visual._replace(features=visual.features.repeat(1, 3, 1))
        kept = get_method("dart").keep(visual, 17)[0].tolist()
        assert len(kept) == 17
        for token in kept:
            assert all(other in kept for other in range(token % 15, token, 15))


def test_zero_vectors():
    visual = given(1, 12)
    visual.features[0, [2, 5]], visual.text[0, :6] = 0, 0
    for count in (3, 7, 12):
        assert get_method("dart").keep(visual, count)[0].tolist() == chosen(visual.features[0], visual.text[0], count)


def test_it_compiles_and_leaves_its_inputs():
    visual = given()._replace(text_mask=torch.rand(2, 7) < 0.6, mask=torch.rand(2, 33) < 0.8)
    visual.text_mask[:, 0] = True
    exact(get_method("dart"), visual, 12)
    exact(get_method("dart", text_pivots=0), given()._replace(text=None), 12)


def test_price():
    """2 N D for each pivot; torch counts the same. Nothing where fewer stay than there are pivots."""
    shape = Shape(3, 40, 40, 28, 24, 4, 4, 6)
    (operation, values), *_ = get_method("dart").operations(shape)
    assert evaluate(operation.operations, values) == 3 * 2 * 40 * 24 * 8
    visual = given(3, 40, d=24)
    with flop_counter.counter() as counted:
        PivotSelect()(visual, 12)
    assert counted.get_total_flops() == 3 * 2 * 40 * 24 * 8
    assert PivotSelect().operations(Shape(3, 40, 40, 36, 24, 4, 4, 6)) == []
    (operation, values), *_ = get_method("dart", image_pivots=3, text_pivots=0).operations(shape)
    assert evaluate(operation.operations, values) == 3 * 2 * 40 * 24 * 3


def test_the_price_in_a_prefill():
    found = ficoco_ext.cost.prefill("llava-1.5-7b", projector=64, method="dart")
    assert found.after_projector.total.operations == 2 * 576 * 4096 * 8
    assert found.selection_share < 0.0001


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_method("dart", part="tower"), "dart: part must be one of 'projector', 'language_model'"),
        (lambda: get_method("dart", layer=0), "dart: layer must be an integer >= 1, got 0; block 0 needs all tokens"),
        (lambda: get_method("dart", part="language_model", image_pivots=0), "PivotFilter: pivots must be two integers"),
        (lambda: get_method("dart", image_pivots=0), r"PivotSelect: pivots must be at least \(1, 0\)"),
        (lambda: get_method("dart", text_pivots=-1), r"PivotSelect: pivots must be at least \(1, 0\)"),
        (lambda: get_method("dart", image_pivots=2.0), "PivotSelect: pivots must be two integers"),
        (lambda: get_method("dart", image_pivots=True), "PivotSelect: pivots must be two integers"),
        (lambda: PivotSelect((1, 2, 3)), "PivotSelect: pivots must be two integers"),
        (lambda: PivotSelect()(given()._replace(text=None), 9), "words of the prompt are needed.* text_pivots=0"),
        (
            lambda: PivotSelect()(given()._replace(text=torch.randn(2, 3, 5)), 9),
            r"PivotSelect: text must be \(B, L, 12\) like features",
        ),
        (lambda: select(torch.randn(1, 9, 4), 3, method="dart"), "text must be given, as the method needs it"),
        (
            lambda: get_method("dart").keep(given()._replace(features=torch.full((2, 9, 12), float("nan"))), 5),
            "dart: features must be finite",
        ),
        (
            lambda: get_method("dart").keep(given()._replace(text=torch.full((2, 9, 12), float("inf"))), 5),
            "dart: text must be finite",
        ),
        (lambda: get_method("dart").keep(given(), 34), r"count must be in \[1, 33\]"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
