"""LLaVA-NeXT with a method in its tower: calls at once, calls that fail, rows alone, both parts, and drawn cases."""

from __future__ import annotations

import copy
import random
import threading

import pytest
import torch
from helpers.models import close, one_thread, snapshot  # noqa: F401
from helpers.next_tower import CLIP, DETAILS, LAYERS, PICTURES, StandIn, amount, crops_of, rows, steps_of
from helpers.tiny_oracle import cut, worst
from helpers.tiny_processors import Picture
from helpers.tiny_prompts import one_picture

import ficoco_ext
from ficoco_ext import METHODS, get_method

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():
    return CLIP.model()


@pytest.fixture(scope="module")
def plain():
    return CLIP.model()


def any_patches(method):
    """Whether it acts in the tower alone, in any layers, and does the same in each."""
    own = method.tower
    return own is not None and method.language_model is None and own.layers is None and not own.varies


def drawn(seed):
    """A tower, a method for each of some layers, what each removes, pictures of any size, and how padding leaves."""
    draw = random.Random(seed)
    layers = sorted(draw.sample(range(5), draw.randint(1, 5)))
    methods = [draw.choice(ANY_PATCHES) for _ in layers]
    if draw.random() < 0.25:
        methods[0] = "pool"
    pictures = [Picture(draw.randint(1, 300), draw.randint(1, 300)) for _ in range(3)]
    r = [draw.randint(1, 3) for _ in layers]
    return methods, {"r": r, "layers": layers, "padding": draw.choice(["first", "after"])}, pictures


ANY_PATCHES = [name for name in METHODS if any_patches(get_method(name))]


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_drawn_layers_methods_and_pictures(seed, model, plain, monkeypatch):
    methods, options, pictures = drawn(seed)
    full, _ = rows(*pictures, seed=seed)
    with ficoco_ext.attach(model, methods, **options) as handle:
        got, kept = model(**full.inputs).logits, [one.kept for one in handle.projections]
        steps = steps_of(handle.attach_plan)
    hand = StandIn(plain, full, pictures, steps, options["padding"] == "first")
    assert all(torch.equal(one, wanted) for one, wanted in zip(kept, hand.kept, strict=True))
    monkeypatch.setattr(plain.model, "get_image_features", hand)
    short = cut(plain, full, kept, "contiguous")
    assert worst(short, short.logits(plain), got) < 5e-5


@pytest.mark.parametrize("name", ["ficoco-v", "tome", "pool"])
@torch.no_grad()
def test_a_row_alone_is_the_row_in_a_batch(name, model):
    """Whatever the other pictures are, and in whatever order two pictures come."""
    full, _ = rows(*PICTURES)
    with ficoco_ext.attach(model, name, **amount(name)) as handle:
        together = model.generate(**full.inputs, **DETAILS)
        kept = [one.kept for one in handle.projections]
        for row in range(3):
            alone = one_row(full, row)
            said = model.generate(**alone, **DETAILS)
            assert torch.equal(handle.projections[0].kept, kept[row])
            assert torch.equal(said.sequences[0, -3:], together.sequences[row, -3:])
            for step, wanted in zip(said.logits, together.logits, strict=True):
                assert close(step[0], wanted[row])


def one_row(full, row):
    """The arguments of one row with one picture, as its processor makes them, without padding."""
    real = full.mask[row].bool()
    inputs = {"input_ids": full.ids[row, real][None], "attention_mask": full.mask[row, real][None]}
    return inputs | CLIP.join([full.encoded[row]])


@pytest.mark.parametrize("name", ["ficoco-vl", "topk+fastv", "tome+pyramiddrop"])
@torch.no_grad()
def test_the_language_model_reduces_what_the_tower_left(name, model, plain):
    """It gets the features of the tower's method alone, and loses as many of them as its plan says of each row."""
    full, pictures = rows(PICTURES[1], PICTURES[4], PICTURES[2])
    parts = {"vision": {"tokens": 8}, "decoder": {"keep_ratio": 0.5, "layers": (1,)}}
    inputs = []

    def read(_, args, kwargs):
        inputs.append(kwargs["inputs_embeds"])

    for one, which in ((plain, name.split("+")[0].replace("-vl", "-v")), (model, name)):
        hook = one.model.language_model.register_forward_pre_hook(read, with_kwargs=True)
        options = {"tokens": 8} if one is plain else parts
        with ficoco_ext.attach(one, which, **options) as handle:
            logits = one(**full.inputs).logits
            if one is model:
                said = one.generate(**full.inputs, **DETAILS)
                before = [handle.tokens_of(*picture) for picture in pictures]
                records, plan = handle.decoder_reductions, handle.plan
        hook.remove()
    assert torch.equal(inputs[0], inputs[1])
    visual = [before[0], before[1] + before[2]]
    for row, record in enumerate(records[:2]):
        removed = sum(one.sources.shape[1] for one in record)
        assert removed == visual[row] - plan.schedule(visual[row]).final > 0
    assert not records[2]
    lengths = [len(row) for row in (full.ids[0], full.ids[1])]
    assert logits.shape[1] < min(lengths)
    assert torch.equal(said.sequences[:, :-3], full.ids)


@torch.no_grad()
def test_threads_have_pictures_of_their_own(model):
    """Each of several calls at once gives what it gives alone, while the others' pictures are in the tower."""
    prompts = [one_picture(CLIP, picture, seed) for seed, picture in enumerate(PICTURES)]
    with ficoco_ext.attach(model, "tome", r=3, layers=LAYERS):
        wanted = [model(**one.inputs).logits for one in prompts]
        barrier, got = threading.Barrier(len(prompts)), [None] * len(prompts)

        def meet(*_):
            barrier.wait(60)

        hook = model.model.vision_tower.encoder.layers[1].register_forward_pre_hook(meet)

        def call(index):
            with torch.no_grad():
                got[index] = model(**prompts[index].inputs).logits

        threads = [threading.Thread(target=call, args=(index,)) for index in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        hook.remove()
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


@torch.no_grad()
def test_an_exception_in_the_tower_leaves_nothing_behind(model):
    first, second = one_picture(CLIP, PICTURES[1]), one_picture(CLIP, PICTURES[4])
    with ficoco_ext.attach(model, "ficoco-v", r=3, layers=LAYERS) as handle:
        wanted = model(**second.inputs).logits
        layer = model.model.vision_tower.encoder.layers[2].mlp

        def fail(*_):
            raise RuntimeError("stopped on purpose")

        hook = layer.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="stopped on purpose"):
            model(**first.inputs)
        hook.remove()
        assert not handle.reductions and not handle.crops
        assert torch.equal(model(**second.inputs).logits, wanted)
        assert handle.crops[0].crops == crops_of(PICTURES[4])


@torch.no_grad()
def test_detached_it_is_as_it_was_and_a_copy_is_attached_for_itself():
    model, full = CLIP.model(), one_picture(CLIP, PICTURES[1])
    plain = model(**full.inputs).logits
    before = snapshot(model)
    handle = ficoco_ext.attach(model, "tome", r=3, layers=LAYERS)
    wanted = model(**full.inputs).logits
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**full.inputs).logits, wanted)
    assert twin.ficoco_handle.crops == handle.crops and twin.ficoco_handle is not handle
    crops, tokens = handle.crops, handle.tokens_of(*PICTURES[1])
    handle.detach()
    assert not {"pack_image_features", "get_image_features"} & set(vars(model.model))
    assert snapshot(model) == before and torch.equal(model(**full.inputs).logits, plain)
    assert handle.crops == crops and handle.tokens_of(*PICTURES[1]) == tokens
    assert torch.equal(twin(**full.inputs).logits, wanted)
    twin.ficoco_handle.detach()
    assert torch.equal(twin(**full.inputs).logits, plain)
