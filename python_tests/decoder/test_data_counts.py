"""Numbers that the data decide: rows of a batch lose different numbers, each what it loses alone."""

import traceback

import pytest
import torch
from helpers.decoder import DECODER_LAYERS, decoder_by_hand, generated, real_columns, row_positions, tiny
from helpers.models import IMAGE, assert_refused, batch, close, image, one_thread, words  # noqa: F401

import ficoco_ext
from ficoco_ext import Plan, get_method
from ficoco_ext.methods import DecoderMethod
from ficoco_ext.models import resolve
from ficoco_ext.ops import sequence
from ficoco_ext.stages import Compress, LastTokenFilter
from ficoco_ext.stages.frozen import value

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
OTHER = [*words(7, 8), *image(), *words(9, 6, 3)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
TEXT = words(11, 12, 13, 14)
STEPS = 5


@value
class Below(LastTokenFilter):
    """Drops what the last token attends to less than ``share`` of the mean over the visual tokens."""

    share: float = 0.7

    @property
    def data_decides(self):
        return True

    def leaving(self, attn, layout):
        received = sequence.last_token_scores(attn, layout.visual, layout.last, layout.real, given=False)
        return (received < self.share * received.mean(1, keepdim=True)).sum(1)


@value
class ByLength(Below):
    """All but one of 36 tokens or fewer, 3 of more."""

    def leaving(self, attn, layout):
        rows, n = layout.visual.shape
        return torch.full((rows,), n - 1 if n <= 36 else 3)


@value
class Says(Below):
    """Whatever ``number``."""

    number: int = 0

    def leaving(self, attn, layout):
        return torch.full((layout.visual.shape[0],), self.number)


def method_of(filter, layers=(1, 2), **options):
    return DecoderMethod("below", filter, None, Compress(), layers=lambda count: layers, **options)


BELOW = {"method": method_of(Below())}
CASES = {
    "one row": [ONE],
    "rows alike": [ONE, OTHER, ONE],
    "rows unlike": [ONE, TWO, OTHER],
    "lengths unlike": [ONE, [*words(5, 12), *OTHER], [*words(14, 15, 16), *OTHER]],
    "text row": [TWO, TEXT, OTHER, ONE],
}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny(attention=request.param, seed=31)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def reducing(prefill, row):
    """The layers in which a row lost something."""
    return [
        record.layer
        for record in prefill.records
        if record.reduction is not None and (record.rows is None or row in record.rows.tolist())
    ]


@pytest.mark.parametrize("cache", ["staircase", "output-aware"])
@pytest.mark.parametrize("rows", CASES)
def test_generation_equals_the_language_model_by_hand(model, rows, cache):
    with ficoco_ext.attach(model, **BELOW, cache=cache) as handle:
        seen = generated(model, batch(*CASES[rows]), STEPS)
        told, prefill = handle.decoder_reductions, handle._decoder.last
    n, real, new = seen.embeds.shape[1], real_columns(seen), seen.sequences[:, -STEPS:]
    lost = []
    for row, ids in enumerate(CASES[rows]):
        embeds = torch.cat([seen.embeds[row : row + 1], model.get_input_embeddings()(new[row, :-1])[None]], 1)
        there = torch.cat([real[row], torch.ones(STEPS - 1, dtype=torch.bool)])
        layers, positions = reducing(prefill, row), row_positions(seen, row, embeds.shape[1])
        forget = (1, n) if cache == "output-aware" else None
        logits = decoder_by_hand(model, embeds, positions, there, told[row], layers, forget=forget)
        for step, said in enumerate(seen.logits):
            assert (logits[n - 1 + step] - said[row]).abs().max() <= 2e-5
        lost.append([one.sources.shape[1] for one in told[row]])
        assert bool(lost[-1]) == (IMAGE in ids)
    if rows == "rows alike":
        assert len(set(map(tuple, lost))) > 1, "the rows lose equally many: this shows nothing"


def test_a_row_in_a_batch_loses_what_it_loses_alone(model):
    inputs = batch(ONE, TWO, TEXT, OTHER)
    with ficoco_ext.attach(model, **BELOW) as handle:
        together, told = model(**inputs), handle.decoder_reductions
        first = 0
        for row, ids in enumerate((ONE, TWO, TEXT, OTHER)):
            pictures, gap = ids.count(IMAGE) // 36, len(TWO) - len(ids)
            given = batch(ids, images=0)
            if pictures:
                given["pixel_values"] = inputs["pixel_values"][first : first + pictures]
            first += pictures
            at = torch.arange(gap, len(TWO))[None]
            alone = model(**given, position_ids=at)
            assert close(alone.logits[:, -1], together.logits[row, None, -1])
            if pictures:
                mine = handle.decoder_reductions[0]
                assert [(one.kept + gap)[0].tolist() for one in mine] == [
                    [k for k in one.kept[0].tolist() if k >= gap] for one in told[row]
                ]


@pytest.mark.parametrize("rows", CASES)
def test_the_numbers_given_in_advance_are_the_same_run(model, rows):
    """What a count of the host removes, where the count is that which the data decided."""
    ids = CASES[rows][:1]
    with ficoco_ext.attach(model, **BELOW) as handle:
        wanted, told = model(**batch(*ids)), handle.decoder_reductions[0]
    r = tuple(one.sources.shape[1] for one in told)
    with ficoco_ext.attach(model, method_of(LastTokenFilter()), r=r) as handle:
        got = model(**batch(*ids))
        assert torch.equal(got.logits, wanted.logits)
        assert all(torch.equal(a.kept, b.kept) for a, b in zip(told, handle.decoder_reductions[0], strict=True))


def test_a_stage_may_remove_nothing(model):
    """Of some rows, or of all of them; the others go on."""
    with ficoco_ext.attach(model, method_of(Says(number=0))):
        assert model(**batch(ONE, TWO)).logits.shape[1] == len(TWO)
    one, other = method_of(Says(number=0)), method_of(Below())
    with ficoco_ext.attach(model, [one, other], layers=(1, 2)) as handle:
        cache = model(**batch(ONE, TWO)).past_key_values
        lengths = [layer.keys.shape[2] for layer in cache.layers]
        assert lengths[:3] == [len(TWO)] * 3 and lengths[3] < len(TWO)
        assert [len(row) for row in handle.decoder_reductions] == [1, 1]


def test_one_token_left_stays(model):
    """A row that came down to one visual token is not asked again."""
    methods = [method_of(Says(number=35)), method_of(Says(number=1)), method_of(Says(number=0))]
    with ficoco_ext.attach(model, methods, layers=(0, 1, 2)) as handle:
        model(**batch(ONE))
        assert [one.sources.shape[1] for one in handle.decoder_reductions[0]] == [35]
    with ficoco_ext.attach(model, method_of(ByLength())) as handle:
        model(**batch(ONE, TWO, TEXT))
        lost = [[one.sources.shape[1] for one in row] for row in handle.decoder_reductions]
        assert lost == [[35], [3, 3], []]


@pytest.mark.parametrize("number", [-1, 36, 37])
def test_a_method_that_says_too_many_is_refused(model, number):
    with ficoco_ext.attach(model, method_of(Says(number=number))):
        message = rf"leaving must be in \[0, 35\] for each row of 36 visual tokens, got {number}"
        with pytest.raises(ValueError, match=message):
            model(**batch(ONE))


def test_checkpointing_divides_the_rows_again():
    """A backward pass computes the layers again, and loses what the forward lost."""
    model = tiny(seed=31)
    grads = []
    for checkpoints in (False, True):
        model.train()
        if checkpoints:
            model.gradient_checkpointing_enable()
        with torch.enable_grad(), ficoco_ext.attach(model, **BELOW):
            inputs = batch(ONE, TWO, OTHER)
            labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
            model(**inputs, labels=labels, use_cache=False).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("rows", [(ONE, OTHER), (ONE, TWO, TEXT)])
def test_one_read_a_stage(rows, monkeypatch):
    model, inputs, reads = tiny(seed=31), batch(*rows), []
    with ficoco_ext.attach(model, **BELOW):
        for name in ("item", "tolist", "__bool__", "__int__", "nonzero", "cpu"):
            original = getattr(torch.Tensor, name)

            def counted(self, *args, original=original):
                caller = traceback.extract_stack(limit=2)[0]
                if "ficoco_ext" in caller.filename and "/models/" in caller.filename:
                    reads.append(caller.filename)
                return original(self, *args)

            monkeypatch.setattr(torch.Tensor, name, counted)
        model(**inputs)
    assert len(reads) == 1 + 2  # what is in the prompt, then each of two stages


def test_static_caches_and_beams(model):
    inputs = batch(ONE, TWO)
    options = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": [IMAGE]}
    with ficoco_ext.attach(model, **BELOW, cache="output-aware"):
        wanted = model.generate(**inputs, **options)
        static = model.generate(**inputs, **options, cache_implementation="static", disable_compile=True)
        beams = model.generate(**inputs, **options, num_beams=3)
        assert torch.equal(wanted, static) and beams.shape == wanted.shape


def test_the_plan_says_it(model):
    plan = resolve(model, **BELOW, cache="output-aware")
    assert plan.plan == Plan(layers=(1, 2), by_data=True) and plan.changes_language_model
    assert str(plan).splitlines()[1:5] == [
        "language model, as many as the data decide:",
        "  layer   1: below",
        "  layer   2: below",
        "  output-aware cache: once the prompt is read it holds what is left in the end in layers 1 and after",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (BELOW | {"static_counts": True}, "static_counts must be False with method below, which decides by the data"),
        (BELOW | {"r": 3}, "r must be None with method 'below', which decides by the data, got 3"),
        (BELOW | {"keep_ratio": 0.5}, "keep_ratio must be None with method 'below'"),
        (
            {"method": [method_of(Below()), get_method("fastv")], "layers": (1, 2)},
            "method must be methods that all, or none, decide by the data how many tokens leave, got below, fastv",
        ),
    ],
)
def test_what_is_refused(model, given, message):
    assert_refused(model, given, ValueError, message)


def test_a_plan_by_data_has_no_schedule():
    plan = Plan(layers=(1, 2), by_data=True)
    assert plan.removes and Plan(layers=(1, 2), by_data=True) == plan
    with pytest.raises(ValueError, match="is decided while a prompt is read; there is no schedule before"):
        plan.schedule(36)
    with pytest.raises(ValueError, match="the data decide how many tokens leave, so leave out tokens"):
        Plan(layers=(1, 2), tokens=3, by_data=True)
    with pytest.raises(ValueError, match="layers must be ascending"):
        Plan(layers=(2, 1), by_data=True)
    assert DECODER_LAYERS > 2
