"""VidCom2's select: what is unlike its video and its frame stays, and frames share a budget that comes out exactly."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.ops import DTYPES

from ficoco_ext import get_method, select
from ficoco_ext.ops.costs import evaluate
from ficoco_ext.stages import Outliers, SelectStage, Shape, VisualFeatures
from ficoco_ext.stages.outliers import WIDTHS


def video(frames, each, d=16, b=1, dtype=torch.float32, spread=0.3):
    """Frames that differ, each around a centre of its own, in channels of unequal variance."""
    centres = torch.randn(b, frames, 1, d) * spread
    tokens = (centres + torch.randn(b, frames, each, d)) * torch.linspace(0.2, 3, d)[torch.randperm(d)]
    return (tokens + torch.randn(d)).view(b, frames * each, d).to(dtype)


def scenes(which, each, d=16, noise=0.1):
    """(1, N, D): frames of the scenes ``which``, each scene a direction of its own; noise is the same in all frames."""
    directions, around = torch.randn(max(which) + 1, 1, d), torch.randn(each, d) * noise
    return torch.cat([directions[one] + around for one in which])[None]


def usual(tokens, frames, channels=0.5):
    """By hand, in float64: how much alike each token is to the centre of the video, and to that of its frame."""
    tokens = tokens.double()
    n, d = tokens.shape
    shifted = tokens - tokens[0]
    variance = [float(((one - one.mean()) ** 2).mean()) for one in shifted.unbind(1)]
    taken = sorted(sorted(range(d), key=lambda one: (variance[one], one))[: max(1, math.floor(channels * d))])
    unit = torch.stack([one / max(float(one.norm()), 1e-12) for one in tokens[:, taken]])

    def alike(one, centre):
        distance = float(((one - centre) ** 2).sum())
        return sum(math.exp(-distance / (2 * alpha)) for alpha in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    each = n // frames
    to_video = [alike(one, unit.mean(0)) for one in unit]
    to_frame = [alike(unit[i], unit[i // each * each : (i // each + 1) * each].mean(0)) for i in range(n)]
    return to_video, to_frame


def dealt(to_video, frames, count, temperature=0.01):
    """By hand: tokens of each frame."""
    n = len(to_video)
    each = n // frames
    unusual = [-sum(to_video[f * each : (f + 1) * each]) / each for f in range(frames)]
    most_unusual = sorted(range(frames), key=lambda f: (-unusual[f], f))
    exponents = [math.exp((one - max(unusual)) / temperature) for one in unusual]
    claims = [each * min(1.0, count / n * (1 + one / sum(exponents) - 1 / frames)) for one in exponents]
    got = [0] * frames
    for f in most_unusual[:count]:
        got[f] = 1
    while sum(got) < count:
        free = [f for f in range(frames) if got[f] < each]
        got[max(free, key=lambda f: (claims[f] - got[f], -f))] += 1
    return got, claims


def by_hand(tokens, frames, count, channels=0.5, temperature=0.01):
    to_video, to_frame = usual(tokens, frames, channels)
    each, kept = len(tokens) // frames, []
    for frame, many in enumerate(dealt(to_video, frames, count, temperature)[0]):
        own = sorted(range(frame * each, (frame + 1) * each), key=lambda i: (to_video[i] + to_frame[i], i))
        kept += own[:many]
    return sorted(kept)


def of_frames(kept, frames, each):
    """(B, F) how many of each frame stay."""
    return torch.stack([(kept // each == frame).sum(1) for frame in range(frames)], 1)


@pytest.mark.parametrize(("frames", "each", "d"), [(1, 30, 16), (4, 9, 16), (8, 33, 24), (5, 1, 7), (3, 2, 1)])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_equations(frames, each, d, share, dtype):
    given = video(frames, each, d, b=3, dtype=dtype)
    count = max(1, round(share * frames * each))
    kept = Outliers()(VisualFeatures(given, frames=frames), count)
    assert kept.tolist() == [by_hand(one, frames, count) for one in given]


@pytest.mark.parametrize(("channels", "temperature"), [(1.0, 0.01), (0.3, 0.1), (0.01, 1.0), (0.5, 1e-4), (0.5, 1e9)])
def test_equals_the_equations_with_other_hyperparameters(channels, temperature):
    given = video(6, 12, 20)
    kept = Outliers(channels, temperature)(VisualFeatures(given, frames=6), 20)
    assert kept.tolist() == [by_hand(given[0], 6, 20, channels, temperature)]


def test_widths():
    assert WIDTHS == (1 / 8, 1 / 4, 1 / 2, 1, 2)


@pytest.mark.parametrize(("frames", "each"), [(1, 20), (4, 5), (5, 4), (20, 1)])
def test_exactly_as_many_as_asked_for(frames, each):
    """Ascending, distinct, at least one of each frame where there are as many, and no frame gives more than it has."""
    given = video(frames, each, b=2, spread=2.0)
    for count in range(1, 21):
        kept = Outliers()(VisualFeatures(given, frames=frames), count)
        assert kept.dtype == torch.int64 and kept.shape == (2, count) and kept.is_contiguous()
        assert bool((kept.diff() > 0).all()) and int(kept.min()) >= 0 and int(kept.max()) < 20
        shares = of_frames(kept, frames, each)
        assert int(shares.max()) <= each and int(shares.min()) >= (1 if count >= frames else 0)
        assert int(shares.max()) <= 1 or count > frames


@pytest.mark.parametrize("count", [4, 6, 8, 13, 17, 24])
def test_identical_frames_share_equally(count):
    """What is left over goes to the first frames. All keep the same tokens."""
    each = 6
    given = video(1, each, b=2).repeat(1, 4, 1)
    kept = Outliers()(VisualFeatures(given, frames=4), count)
    assert of_frames(kept, 4, each).tolist() == [[count // 4 + (f < count % 4) for f in range(4)]] * 2
    for item in kept:
        own = [set((item[item // each == f] % each).tolist()) for f in range(4)]
        assert all(later <= earlier for earlier, later in itertools.pairwise(own))


@pytest.mark.parametrize("odd", [0, 2, 3])
def test_one_odd_frame_gets_more(odd):
    """Three frames of one scene and one of another, which claims 3 (1 + 1 - 1/4) tokens; the others 3 (1 - 1/4)."""
    given = scenes([int(f == odd) for f in range(4)], 10)
    shares = of_frames(Outliers()(VisualFeatures(given, frames=4), 12), 4, 10)[0].tolist()
    assert shares.pop(odd) == 5 and shares == [3, 2, 2]


def test_fewer_than_frames_go_to_the_most_unusual_ones():
    given = video(6, 4, spread=1.0)
    to_video, to_frame = usual(given[0], 6)
    order = sorted(range(6), key=lambda f: sum(to_video[f * 4 : f * 4 + 4]))
    for count in range(1, 6):
        kept = Outliers()(VisualFeatures(given, frames=6), count)[0]
        assert sorted((kept // 4).tolist()) == sorted(order[:count])
        assert all(min(range(f * 4, f * 4 + 4), key=lambda i: to_video[i] + to_frame[i]) in kept for f in order[:count])


def test_claims_that_are_cut_to_the_frame():
    """An odd frame would get more than it has: it stays whole, and what it cannot take goes to the others."""
    given, count = scenes([0, 1, 0, 0], 8), 26
    claims = dealt(usual(given[0], 4)[0], 4, count)[1]
    assert claims[1] == 8 and sum(claims) < count - 1  # more is left than rounding alone leaves
    shares = of_frames(Outliers()(VisualFeatures(given, frames=4), count), 4, 8)[0].tolist()
    assert shares == [6, 8, 6, 6]


def test_a_single_frame_is_a_picture():
    """It has one centre, so what is least like it stays."""
    given = video(1, 40, b=2)
    kept = Outliers()(VisualFeatures(given, frames=1), 11)
    assert torch.equal(kept, Outliers()(VisualFeatures(given), 11))
    for item, tokens in zip(kept, given, strict=True):
        alike = torch.tensor(usual(tokens, 1)[0])
        assert torch.equal(item, alike.sort(stable=True).indices[:11].sort().values)


def test_a_video_is_not_a_picture():
    """A token may be usual in its video and not in its frame."""
    given = video(4, 10, spread=1.0)
    assert not torch.equal(select(given, 12, method="vidcom2", frames=4), select(given, 12, method="vidcom2"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_batch_is_a_loop(dtype):
    given = video(5, 8, b=4, dtype=dtype)
    together = Outliers()(VisualFeatures(given, frames=5), 13)
    for item in range(4):
        assert torch.equal(together[item : item + 1], Outliers()(VisualFeatures(given[item : item + 1], frames=5), 13))


@pytest.mark.parametrize("where", ["after", "before", "among"])
def test_padding_is_not_there(where):
    """Videos of 3, 6 and 2 frames of 5 real tokens among 6 frames of 8, whatever the others hold."""
    mask = torch.zeros(3, 6, 8, dtype=torch.bool)
    for item, frames in enumerate((3, 6, 2)):
        choice = {"after": torch.arange(6), "before": torch.arange(5, -1, -1), "among": torch.randperm(6)}[where]
        places = {"after": torch.arange(8), "before": torch.arange(7, -1, -1), "among": torch.randperm(8)}[where]
        mask[item, choice[:frames, None], places[None, :5]] = True
    given = video(6, 8, b=3)
    given[~mask.flatten(1)] = float("nan")
    together = Outliers()(VisualFeatures(given, mask.flatten(1), frames=6), 9)
    for item, frames in enumerate((3, 6, 2)):
        there = mask[item].flatten()
        alone = Outliers()(VisualFeatures(given[item : item + 1, there], frames=frames), 9)
        assert torch.equal(there.nonzero().squeeze(1)[alone[0]], together[item])


def test_frames_with_unequally_many_real_tokens():
    """A claim is a share of the tokens that are there: a frame of 2 real ones never gives 3."""
    mask = torch.ones(1, 3, 6, dtype=torch.bool)
    mask[0, 1, 2:] = False
    given = VisualFeatures(video(3, 6), mask.flatten(1), frames=3)
    for count in range(3, 15):
        kept = Outliers()(given, count)
        shares = of_frames(kept, 3, 6)[0].tolist()
        assert bool(mask.flatten(1).gather(1, kept).all()) and sum(shares) == count and 1 <= shares[1] <= 2


def test_equal_tokens_by_lowest_index():
    """Of each frame the first; zero vectors are no exception, and no channel differs."""
    for tokens in (torch.zeros(1, 12, 4), torch.ones(1, 12, 4), torch.full((1, 12, 4), 0.1)):
        assert Outliers()(VisualFeatures(tokens, frames=3), 6).tolist() == [[0, 1, 4, 5, 8, 9]]
        assert Outliers()(VisualFeatures(tokens, frames=3), 2).tolist() == [[0, 4]]
        assert Outliers()(VisualFeatures(tokens, frames=3), 7).tolist() == [[0, 1, 2, 4, 5, 8, 9]]


def test_of_copies_the_first_stay():
    """Wherever they lie: equal tokens are equally usual to the last bit, alone and in a batch."""
    for n in (23, 24, 31):
        given = torch.randn(3, 7, 10)[:, torch.arange(n) % 7]
        for count in range(1, n):
            kept = Outliers()(VisualFeatures(given), count)
            assert all(set(range(token % 7, token, 7)) <= set(own) for own in kept.tolist() for token in own)
            assert torch.equal(kept[1:2], Outliers()(VisualFeatures(given[1:2]), count))


def test_channels_of_equal_variance_by_lowest_index():
    """All four vary alike; the first two are compared, in which the third token is the odd one."""
    tokens = torch.tensor([[[1.0, 1, 1, 3], [1, 1, 3, 1], [1, 3, 1, 1], [3, 1, 1, 1], [1, 1, 1, 1]]])
    first = torch.tensor([[[1.0, 1], [1, 1], [1, 3], [3, 1], [1, 1]]])
    wanted = Outliers(1.0)(VisualFeatures(first), 2)
    assert torch.equal(Outliers(0.5)(VisualFeatures(tokens), 2), wanted) and wanted.tolist() == [[2, 3]]


@pytest.mark.parametrize("constant", [12345.67, 1e4 / 3, 54321.1])
def test_a_channel_that_does_not_vary_is_the_steadiest(constant):
    """Its mean, in float32, is another number, which seems to vary more than what does a little."""
    tokens = torch.full((1, 999, 2), constant)
    assert float(tokens[0, :, 0].mean()) != float(tokens[0, 0, 0])
    tokens[..., 1] = 1e-6 * torch.arange(999).remainder(2).float()
    assert Outliers(0.5)(VisualFeatures(tokens), 3).tolist() == [[0, 1, 2]]  # by the first channel all are equal


def test_the_length_of_a_token_has_no_influence():
    given = video(4, 9, spread=0.5) * 100
    scaled = given * torch.rand(1, 36, 1).add(0.5)
    every = Outliers(1.0)
    assert torch.equal(every(VisualFeatures(given, frames=4), 10), every(VisualFeatures(scaled, frames=4), 10))


def test_nothing_is_read():
    """On the meta device there is nothing to read."""
    given = VisualFeatures(torch.empty(2, 24, 8, device="meta"), torch.ones(2, 24, dtype=torch.bool, device="meta"))
    assert Outliers()(given._replace(frames=4), 7).shape == (2, 7)


def test_what_is_given_stays_as_it_is():
    given, mask = video(4, 6), torch.ones(1, 24, dtype=torch.bool)
    mask[:, 20:] = False
    before = given.clone()
    Outliers()(VisualFeatures(given, mask, frames=4), 7)
    assert torch.equal(given, before) and int(mask.sum()) == 20


def test_merged():
    """Tokens that leave go into the nearest that stay: means of all."""
    given = video(4, 6)
    merged = get_method("vidcom2", merge=True)(VisualFeatures(given, frames=4), 8)
    assert torch.equal(merged.kept, select(given, 8, method="vidcom2", frames=4))
    assert float(merged.reduction.size.sum()) == 24
    sums = (merged.features * merged.reduction.size).sum(1)
    torch.testing.assert_close(sums, given.sum(1), rtol=1e-5, atol=1e-4)


def test_by_name():
    """All hyperparameters reach the stage."""
    given = video(6, 8)
    for channels, temperature in ((0.5, 0.01), (1.0, 0.01), (0.5, 1.0)):
        wanted = Outliers(channels, temperature)(VisualFeatures(given, frames=6), 12)
        options = {"method": "vidcom2", "channels": channels, "temperature": temperature}
        assert torch.equal(select(given, 12, frames=6, **options), wanted)
    assert not torch.equal(wanted, Outliers()(VisualFeatures(given, frames=6), 12))


def test_price_and_words():
    """Counted by hand: D channels a token; of half of them the length, two centres and two distances."""
    shape = Shape(batch=2, tokens=640, visual=640, r=512, channels=10, heads=1, kv_heads=1, head_dim=10)
    mean, variance, length, centres, distances = 10, 3 * 10, 3 * 5, 2 * 5, 2 * 3 * 5
    [(operation, values)] = Outliers().operations(shape)
    assert operation.name == "outliers"
    assert evaluate(operation.operations, values) == 2 * 640 * (mean + variance + length + centres + distances)
    [(_, values)] = Outliers(1.0).operations(shape)
    assert evaluate(operation.operations, values) == 2 * 640 * (40 + 11 * 10)
    assert "least like" not in Outliers().describe() and SelectStage.of(Outliers()).needs == ()
    assert get_method("vidcom2").describe().filter == "features most like their frame and the whole video"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Outliers(0), "Outliers: channels must be a number in"),
        (lambda: Outliers(1.5), "Outliers: channels must be a number in"),
        (lambda: Outliers(temperature=0), "Outliers: temperature must be a finite number"),
        (lambda: Outliers(temperature=math.nan), "Outliers: temperature must be"),
        (lambda: Outliers()(VisualFeatures(torch.ones(1, 10, 2), frames=3), 2), r"frames must be a divisor of the 10"),
        (lambda: Outliers()(VisualFeatures(torch.ones(1, 10, 2), frames=0), 2), r"frames must be a divisor of the 10"),
        (lambda: select(torch.ones(1, 10, 2), 2, method="vidcom2", frames=4), "frames must be a divisor of the 10"),
        (lambda: select(torch.ones(1, 4, 2) / 0, 2, method="vidcom2", frames=2), "features must be finite"),
        (lambda: select(torch.ones(1, 4, 2), 5, method="vidcom2", frames=2), r"tokens must be in \[1, 4\]"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
