"""LLaVA-NeXT whose tower loses patches: prompts, caches, answers, against what the model's own packing leaves."""

from __future__ import annotations

import copy
import inspect
import random
import threading

import pytest
import torch
from helpers.crop_survivors import TowerWatch, read_by_hand, rows_by_hand
from helpers.decoder import watch
from helpers.families import next_inputs, tiny_next
from helpers.models import GREEDY, IMAGE, PAD, close, one_thread, snapshot, words  # noqa: F401
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import StaticCache

import ficoco_ext
from ficoco_ext.models.transformers_api import cache_name, output_cache
from ficoco_ext.stages import Crops

pytestmark = pytest.mark.usefixtures("no_gradients")
WIDE, TALL, SQUARE, THIN, NARROW = (20, 60), (50, 18), (48, 48), (4, 300), (300, 4)
ONE = [[*words(1, 2), WIDE, *words(3, 4, 5)]]
ROWS = [
    [*words(1, 2), WIDE, *words(3), TALL, *words(4, 5)],
    [*words(6, 7, 8)],
    [*words(1), SQUARE, *words(2, 9)],
    [*words(3), THIN, *words(4), NARROW, *words(5)],
]
METHODS = ("ficoco-v", "tome", "prune-then-merge", "topk", "evit", "prumerge", "pool", "random")
TWELVE = {"tokens": 12, "layers": [0, 1]}
DETAILS = GREEDY | {"return_dict_in_generate": True, "output_logits": True, "suppress_tokens": [IMAGE]}


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return tiny_next(seed=3)


@pytest.fixture(scope="module")
def inputs(model):
    return next_inputs(model, ROWS)


@pytest.fixture(params=["contiguous", "original"])
def positions(request):
    return request.param


@pytest.fixture
def handle(model, positions):
    with ficoco_ext.attach(model, "ficoco-v", positions=positions, **TWELVE) as made:
        yield made


def inputs_of(rows, seed=1):
    """What the processor writes for ``rows``: as many placeholders as a model without reduction has features."""
    return next_inputs(tiny_next(seed=3), rows, seed)


def amounts(method):
    return {"tokens": 9} if method in ("pool", "prumerge") else TWELVE


def by_hand(model, handle, inputs, positions, call=None):
    """(what ``call()`` returns, logits of every row cut by hand). The model is detached for a moment."""
    with TowerWatch(model, handle) as seen:
        result = (call or (lambda: model(**inputs)))()
    return result, rows_by_hand(model, inputs, *seen.calls[0])


def same_rows(logits, wanted):
    return all(close(row[-len(one) :], one) for row, one in zip(logits, wanted, strict=True))


@pytest.mark.parametrize("padding", ["first", "after"])
@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_of_the_prompt_cut_by_hand(model, inputs, method, positions, padding):
    """Rows with one picture, two, and none, of different grids."""
    with ficoco_ext.attach(model, method, positions=positions, padding=padding, **amounts(method)) as handle:
        output, rows = by_hand(model, handle, inputs, positions)
        kept = [len(one.kept) for one in handle.projections]
    assert same_rows(output.logits, [read_by_hand(model, row, positions) for row in rows])
    assert output.logits.shape[1] == max(len(row.columns) for row in rows) < inputs["input_ids"].shape[1]
    if padding == "first":
        assert kept == [handle.tokens_of(*size) for size in (WIDE, TALL, SQUARE, THIN, NARROW)]


@pytest.mark.parametrize("method", METHODS)
def test_random_sizes_keep_what_their_geometry_says(model, method):
    """Features, columns of the prompt and :meth:`Handle.tokens_of` are the same number; min(n_c, M) of every crop."""
    drawn = random.Random(11)
    rows = [[*words(1), (drawn.randint(1, 90), drawn.randint(1, 90)), *words(2)] for _ in range(25)]
    inputs, sizes = inputs_of(rows), [row[1] for row in rows]
    with ficoco_ext.attach(model, method, **amounts(method)) as handle:
        seen, _ = watch(model, lambda: model(**inputs))
        counts = [len(one.kept) for one in handle.projections]
        assert counts == [handle.tokens_of(*size) for size in sizes]
    assert (seen.mask.sum(1) - 2).tolist() == counts
    pictures = [Crops.of(size, model.config.image_grid_pinpoints, 6, 24) for size in sizes]
    assert [one.before for one in handle.projections] == [one.before for one in pictures]
    if method != "pool":  # which says beforehand what stays of the whole grid
        assert counts == [one.after(handle.schedule.final) for one in pictures]


def test_known_numbers(model, handle, inputs):
    """12 of 36 patches of every crop: those of the thumbnail, of 2 or 4 crops, and line ends; less where padding is."""
    model(**inputs)
    wanted = [12 + 2 * 12 + 4, 12 + 2 * 12 + 12, 12 + 4 * 12 + 12, 12, 12 + 6]
    assert [len(one.kept) for one in handle.projections] == wanted
    assert [one.before for one in handle.projections] == [36 + 4 * 13, 36 + 12 * 5, 36 + 12 * 13, 36, 36 + 6]


def test_positions_and_mask_that_reach_the_language_model(model, handle, inputs, positions):
    (seen, _), rows = by_hand(model, handle, inputs, positions, lambda: watch(model, lambda: model(**inputs)))
    for row, one in enumerate(rows):
        width = len(one.columns)
        assert seen.mask[row].tolist() == [0] * (seen.mask.shape[1] - width) + [1] * width
        at = one.columns.tolist() if positions == "original" else list(range(width))
        if seen.positions is not None:
            assert seen.positions[row, -width:].tolist() == at
        assert close(seen.embeds[row, -width:], one.embeds[0])


def test_a_row_alone_is_as_in_a_batch(model, handle, inputs):
    """Also where its pictures have fewer crops than others, filled up with crops that are never encoded."""
    together, numbers = model(**inputs).logits, [2, 0, 1, 2]
    first = 0
    for row, number in enumerate(numbers):
        mine = slice(first, first + number)
        shown = inputs["attention_mask"][row] != 0
        alone = {name: inputs[name][row : row + 1, shown] for name in ("input_ids", "attention_mask")}
        pictures = {name: inputs[name][mine] for name in ("pixel_values", "image_sizes")} if number else {}
        logits = model(**alone, **pictures).logits[0]
        assert close(together[row, -len(logits) :], logits)
        first += number


def test_crops_that_fill_a_batch_up_are_not_read(model, handle, inputs):
    wanted = model(**inputs).logits
    pixels = inputs["pixel_values"].clone()
    pixels[0, 3:] = float("nan")  # the first picture has a thumbnail and two crops
    assert torch.equal(model(**inputs | {"pixel_values": pixels}).logits, wanted)


def test_pictures_that_change_places(model, handle):
    """Of one prompt: features and what is kept of each follow it."""
    order = torch.tensor([2, 0, 1])
    inputs = inputs_of([[*words(1), TALL, *words(2), SQUARE, *words(3), WIDE]])
    model(**inputs)
    first = handle.projections
    encode = model.model.get_image_features
    features = encode(inputs["pixel_values"], inputs["image_sizes"], return_dict=True).pooler_output
    moved = {name: inputs[name][order] for name in ("pixel_values", "image_sizes")}
    found = encode(moved["pixel_values"], moved["image_sizes"], return_dict=True).pooler_output
    for at, number in enumerate(order):
        assert close(found[at], features[number])
    model(**inputs_of([[*words(1), WIDE, *words(2), TALL, *words(3), SQUARE]]) | moved)
    for at, number in enumerate(order):
        assert torch.equal(handle.projections[at].kept, first[number].kept)
        assert handle.projections[at].before == first[number].before


@pytest.mark.parametrize("method", ["ficoco-v", "pool"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generate_answers_as_row_by_row_by_hand(model, inputs, method, positions, options):
    """Greedy: the answer is that of the prompt cut by hand. Beams: each row says in the batch what it says alone."""
    length = inputs["input_ids"].shape[1]
    with ficoco_ext.attach(model, method, positions=positions, **amounts(method)) as handle:
        said, rows = by_hand(
            model,
            handle,
            inputs,
            positions,
            lambda: model.generate(**inputs, **GREEDY | options, suppress_tokens=[IMAGE]),
        )
        assert torch.equal(said[:: len(said) // 4, :length], inputs["input_ids"])
        first = {name: value[:1] for name, value in inputs.items()}
        first |= {name: inputs[name][:2] for name in ("pixel_values", "image_sizes")}
        alone = model.generate(**first, **GREEDY | options, suppress_tokens=[IMAGE])
        assert torch.equal(alone, said[: len(said) // 4])
    if not options:
        for row, one in enumerate(rows):
            assert (
                said[row, length]
                == read_by_hand(model, one, positions)[-1].index_fill(0, torch.tensor([IMAGE]), -torch.inf).argmax()
            )


def test_a_loop_of_ones_own_says_what_generate_says(model, handle, inputs):
    wanted = model.generate(**inputs, **DETAILS)
    output = model(**inputs, use_cache=True)
    cache, logits = output_cache(output), output.logits[:, -1]
    for step in range(3):
        logits = logits.index_fill(1, torch.tensor([IMAGE]), -torch.inf)
        assert close(logits.masked_fill(logits.isinf(), 0), wanted.logits[step].masked_fill(logits.isinf(), 0))
        output = model(input_ids=logits.argmax(1, keepdim=True), **{cache_name(type(model).forward): cache})
        logits = output.logits[:, -1]


def test_a_static_cache_says_the_same(model, handle, inputs):
    wanted = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, cache_implementation="static"), wanted)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=300)
    logits = model(**inputs, **{cache_name(type(model).forward): cache}, use_cache=True).logits
    assert close(logits, model(**inputs).logits)


def test_a_conversation_goes_on_from_its_cache(model, handle):
    """With whole ids, and with new ones alone; as one call of all of it. The picture's size does not come again."""
    inputs = inputs_of(ONE)
    name, said = cache_name(type(model).forward), []
    for whole in (True, False):
        first = model.generate(**inputs, **DETAILS)
        cache, asked = output_cache(first), torch.cat([first.sequences, torch.tensor([words(7, 8)])], 1)
        if whole:
            said.append(model.generate(input_ids=asked, **{name: cache}, **DETAILS))
        else:
            mask = torch.ones(1, cache.get_seq_length() + 3, dtype=torch.long)
            said.append(model.generate(input_ids=asked[:, -3:], attention_mask=mask, **{name: cache}, **DETAILS))
    assert torch.equal(said[0].sequences[:, -3:], said[1].sequences[:, -3:])
    ids = said[0].sequences[:, :-1]
    logits = model(**inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0, -3:]
    for one in said:
        assert close(
            torch.cat(one.logits).index_fill(1, torch.tensor([IMAGE]), 0),
            logits.index_fill(1, torch.tensor([IMAGE]), 0),
        )


def test_a_cache_of_other_rows(model, handle, inputs):
    """Reordered, a row goes on as it would."""
    name, new = cache_name(type(model).forward), torch.tensor([words(7), words(8), words(9), words(10)])
    wanted = model(input_ids=new, **{name: output_cache(model(**inputs, use_cache=True))}).logits
    cache = output_cache(model(**inputs, use_cache=True))
    order = torch.tensor([2, 0, 3, 1])
    cache.reorder_cache(order)
    assert close(model(input_ids=new[order], **{name: cache}).logits, wanted[order])


def test_labels_are_those_of_what_is_left(model, handle, inputs, positions):
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    labels = ids.masked_fill((ids == IMAGE) | (mask == 0), -100)
    output, rows = by_hand(model, handle, inputs, positions, lambda: model(**inputs, labels=labels))
    losses = []
    for row, one in enumerate(rows):
        mine = labels[row][mask[row] != 0][one.columns][1:]
        logits = output.logits[row][-len(one.columns) :]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], mine, reduction="none")[mine != -100])
    assert close(output.loss, torch.cat(losses).mean())


def test_features_that_were_encoded_before(model, handle, inputs):
    """By the attached model they are what its prompt is cut by; of another they are refused."""
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        pytest.skip("this release takes no encoder outputs")
    wanted = model(**inputs).logits
    encoded = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True)
    ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model(**ids, mm_encoder_outputs={"image": encoded}).logits, wanted)
    other = tiny_next(seed=3).model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True)
    with pytest.raises(ValueError, match="encode with get_image_features while attached, or pass pixels"):
        model(**ids, mm_encoder_outputs={"image": other})


def test_embeddings_equal_ids(model, handle, inputs):
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    given = {name: value for name, value in inputs.items() if name != "input_ids"} | {"inputs_embeds": embeddings}
    assert torch.equal(model(**given).logits, model(**inputs).logits)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(model.generate(**given, **GREEDY), model.generate(**inputs, **GREEDY)[:, length:])


def test_sizes_of_the_host_are_as_good_as_a_tensor(model, handle, inputs):
    sizes = [tuple(size) for size in inputs["image_sizes"].tolist()]
    assert torch.equal(model(**inputs | {"image_sizes": sizes}).logits, model(**inputs).logits)


def test_a_prompt_that_is_short_already(model, handle, inputs, positions):
    """With as many placeholders as tokens are left it stays as it is, where these are counted from 0."""
    wanted = model(**inputs).logits
    columns = (inputs["input_ids"] == IMAGE).flatten().nonzero().flatten()
    befores = [one.before for one in handle.projections]
    places = zip(columns.split(befores), handle.projections, strict=True)
    leave = torch.cat([here[len(one.kept) :] for here, one in places])
    stays = torch.ones(inputs["input_ids"].numel(), dtype=torch.bool).index_fill(0, leave, False)
    stays = stays.view_as(inputs["input_ids"]) & (inputs["attention_mask"] != 0)
    rows = [ids[mine] for ids, mine in zip(inputs["input_ids"], stays, strict=True)]
    widest = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (widest - len(row), 0), value=PAD) for row in rows])
    short = inputs | {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    if positions == "original":
        with pytest.raises(ValueError, match=r"454 placeholders .* got 190 placeholders"):
            model(**short)
    else:
        assert close(model(**short).logits, wanted)
        said = model.generate(**short, **GREEDY)[:, widest:]
        assert torch.equal(said, model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :])


def test_prompts_that_do_not_fit_are_refused(model, handle, inputs):
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    first = int((ids[2] == IMAGE).int().argmax())
    torn = mask.clone()
    torn[2, first + 5] = 0
    with pytest.raises(ValueError, match="shows all placeholders of an image or none"):
        model(**inputs | {"attention_mask": torn})
    hidden = mask.masked_fill((ids == IMAGE) & (torch.arange(4) == 2).unsqueeze(1), 0)
    assert model(**inputs | {"attention_mask": hidden}).logits.shape[0] == 4  # a whole picture may be hidden
    less = ids.clone()
    less[2, first] = words(1)[0]
    with pytest.raises(ValueError, match=r"454 placeholders .* got 453 placeholders"):
        model(**inputs | {"input_ids": less})
    less[0, -1] = IMAGE
    with pytest.raises(
        ValueError, match=r"rows of whole images, which have \[88, 96, 192, 36, 42\] .* got 185 in row 0"
    ):
        model(**inputs | {"input_ids": less})
    with pytest.raises(ValueError, match=r"height, width. of each of the 5 pictures, got 4"):
        model(**inputs | {"image_sizes": inputs["image_sizes"][:4]})
    with pytest.raises(ValueError, match=r"height, width. of each of the 5 pictures, got None;"):
        model(**{name: value for name, value in inputs.items() if name != "image_sizes"})


def test_after_an_exception_all_is_as_before(model, handle, inputs):
    wanted = model(**inputs).logits

    def stop(module, args, output):
        raise RuntimeError("stop")

    hook = model.model.multi_modal_projector.register_forward_hook(stop)
    with pytest.raises(RuntimeError, match="stop"):
        model(**inputs)
    hook.remove()
    assert handle._features.packing.pictures._now.here.pictures == ()
    assert torch.equal(model(**inputs).logits, wanted)


def test_detached_it_is_the_model_that_it_was(inputs):
    model = tiny_next(seed=3)
    wanted = model(**inputs).logits  # a first call sets hooks of transformers' own
    before = snapshot(model)
    handle = ficoco_ext.attach(model, "ficoco-v", **TWELVE)
    assert {"pack_image_features", "get_image_features"} <= vars(model.model).keys()
    reduced, copied = model(**inputs).logits, copy.deepcopy(model)
    handle.detach()
    assert snapshot(model) == before
    assert not {"pack_image_features", "get_image_features"} & vars(model.model).keys()
    assert torch.equal(model(**inputs).logits, wanted)
    assert torch.equal(copied(**inputs).logits, reduced)
    copied.ficoco_handle.detach()
    assert torch.equal(copied(**inputs).logits, wanted)


def test_nothing_to_remove_changes_nothing(model, inputs):
    """In a call, in generate, and with beams."""

    def answers():
        said = [model.generate(**inputs, **GREEDY, num_beams=beams) for beams in (1, 3)]
        return [model(**inputs).logits, *said]

    wanted = answers()
    with ficoco_ext.attach(model, "ficoco-v", keep_ratio=1.0):
        assert all(map(torch.equal, answers(), wanted))


def test_threads_do_not_mix_their_pictures(model, handle):
    prompts = [inputs_of([[*words(1), size, *words(2)]], seed) for seed, size in enumerate((WIDE, SQUARE))]
    wanted, found = [model(**one).logits for one in prompts], [[], []]

    def run(number):
        with torch.no_grad():
            for _ in range(6):
                found[number].append(torch.equal(model(**prompts[number]).logits, wanted[number]))

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == [[True] * 6] * 2


@pytest.mark.parametrize("method", ["ficoco-v+fastv", "ficoco-vl"])
def test_static_counts(model, method, positions):
    """Rows with equally many tokens: the same answers; others are refused."""
    parts = {"vision": TWELVE, "decoder": {"tokens": 10}}
    alike = inputs_of([[*words(1), WIDE, *words(2)], [*words(3), WIDE, *words(4)]])
    with ficoco_ext.attach(model, method, positions=positions, **parts):
        wanted = model(**alike).logits
    with ficoco_ext.attach(model, method, positions=positions, static_counts=40, **parts):
        assert close(model(**alike).logits, wanted)
        with pytest.raises(ValueError, match="as static_counts promises"):
            model(**inputs_of([[*words(1), WIDE, *words(2)], [*words(3), SQUARE, *words(4)]]))


@pytest.mark.parametrize("padding", ["first", "after"])
@pytest.mark.parametrize("method", METHODS)
def test_no_device_is_read_from_pixels_to_packed_features(model, inputs, method, padding):
    """With sizes on the host and padding that leaves first: fake tensors have no values that could be read."""
    sizes = [tuple(size) for size in inputs["image_sizes"].tolist()]
    with (
        ficoco_ext.attach(model, method, padding=padding, **amounts(method)) as handle,
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        pixels = mode.from_tensor(inputs["pixel_values"])
        if padding == "after":
            with pytest.raises(NotImplementedError, match="padding='first', where no number depends on the data"):
                model.model.get_image_features(pixels, sizes, return_dict=True)
        else:
            features = model.model.get_image_features(pixels, sizes, return_dict=True).pooler_output
            assert [len(one) for one in features] == [handle.tokens_of(*size) for size in sizes]


class Reads(TorchFunctionMode):
    """Tensors whose values the host reads."""

    NAMES = ("tolist", "item", "__bool__", "__int__", "__index__", "nonzero", "numpy")

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in self.NAMES:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(("padding", "more"), [("first", []), ("after", [(4,)])])
def test_what_an_encoder_reads(model, inputs, padding, more):
    """The sizes once, if they are a tensor; and once how much padding was kept, of the pictures that have some."""
    sizes = inputs["image_sizes"]
    encode = tiny_next(seed=3).model.get_image_features
    with Reads() as without:
        encode(inputs["pixel_values"], sizes, return_dict=True)
    assert len(without.shapes) >= 3 * len(sizes)  # of transformers alone, each size several times
    with ficoco_ext.attach(model, "ficoco-v", padding=padding, **TWELVE):
        for given, wanted in ((sizes, [(5, 2)]), ([tuple(size) for size in sizes.tolist()], [])):
            with Reads() as reads:
                model.model.get_image_features(inputs["pixel_values"], given, return_dict=True)
            assert reads.shapes == wanted + more
