"""``generate`` with a method after the projector, on every family: what a hand cut says token by token, no cache."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import TINY, WITH_VIDEO, shared_model, untouched_model
from helpers.tiny_oracle import cut, kept_of
from helpers.tiny_prompts import one_picture, pictures_and_videos, prompt, unequal_rows, words

import ficoco_ext

pytest.importorskip("transformers")

PROMPTS = [(family, unequal_rows) for family in TINY] + [(family, pictures_and_videos) for family in WITH_VIDEO]
IDS = [f"{family}-{make.__name__}" for family, make in PROMPTS]
STEPS = 4
SHORT = {"do_sample": False, "max_new_tokens": 2}
DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False, "max_new_tokens": STEPS}


def worst_step(hand, out, past=0):
    """The largest difference of any logit between a generation and the hand cut with ``past`` more tokens before."""
    new = out.sequences[:, -STEPS - past :]
    logits = hand.logits(untouched_model(hand.family.name), new[:, :-1])[:, -STEPS:]
    return max(float((logits[:, step] - one).abs().max()) for step, one in enumerate(out.logits))


def cache_of(out):
    """The cache of a generation, and the name by which ``generate`` takes it."""
    name = "cache" if "cache" in inspect.signature(type(shared_model("llava-clip")).forward).parameters else None
    name = name or "past_key_values"
    return {name: getattr(out, name)}


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize(("family", "make"), PROMPTS, ids=IDS)
@torch.no_grad()
def test_generate_is_the_hand_cut_without_a_cache(family, make, positions):
    if family.mrope and positions == "contiguous":
        return  # refused: test_projector_calls.py
    model, full = shared_model(family.name), make(family)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5, positions=positions) as handle:
        out = model.generate(**full.inputs, **DETAILS)
        hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections), positions)
    assert torch.equal(out.sequences[:, : full.ids.shape[1]], full.ids)
    assert out.sequences.shape[1] == full.ids.shape[1] + STEPS
    assert worst_step(hand, out) < 1e-5


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_a_prompt_that_ends_with_a_picture(family):
    """The answer goes on after the picture's last position, whether or not its last token is left."""
    model, full = shared_model(family.name), prompt(family, [[*words(3), family.pictures[0]]])
    with ficoco_ext.attach(model, "divprune", tokens=2) as handle:
        out = model.generate(**full.inputs, **DETAILS)
        kept = kept_of(full, handle.projections)
    assert worst_step(cut(untouched_model(family.name), full, kept), out) < 1e-5


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_one_of_two_rows_ends_with_a_picture(family):
    """Where a family keeps all pictures in one tensor, the last token cannot be put back into one of them alone."""
    model, picture = shared_model(family.name), family.pictures[0]
    full = prompt(family, [[*words(6), picture], [*words(3), picture, *words(3)]])
    with ficoco_ext.attach(model, "stride", keep_ratio=0.25):
        logits = model(**full.inputs).logits
        said = model.generate(**full.inputs, **SHORT)
        beams = model.generate(**full.inputs, **SHORT, num_beams=2)
    assert logits.isfinite().all() and said.shape[0] == beams.shape[0] == 2


@pytest.mark.parametrize("options", [{"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}])
@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_every_cache_says_the_same(family, options):
    model, full = shared_model(family.name), unequal_rows(family)
    if "use_cache" in options and family.name == "paligemma" and not _answers_are_suffixes():
        pytest.skip("this transformers reads answers as a part of the prompt if there is no cache")
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5) as handle:
        out = model.generate(**full.inputs, **DETAILS, **options)
        hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
    assert worst_step(hand, out) < 1e-5


def _answers_are_suffixes():
    from transformers import PaliGemmaForConditionalGeneration as PaliGemma

    return "_update_model_kwargs_for_generation" in vars(PaliGemma)


ALONE = [(family.name, "divprune", {"keep_ratio": 0.5}) for family in TINY]
ALONE += [(name, method, {"tokens": 10}) for name in ("llava-clip", "llava-next") for method in ("ficoco-v", "tome")]
ALONE += [("llava-clip", "scope", {"tokens": 6}), ("llava-next", "globalcom2", {"keep_ratio": 0.3})]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("name", "method", "amount"), ALONE, ids=["-".join(case[:2]) for case in ALONE])
@torch.no_grad()
def test_rows_without_padding_need_no_cache(name, method, amount, rows):
    """``generate`` drops their mask, and without a cache positions that jump must not become several sequences."""
    if name == "paligemma" and not _answers_are_suffixes():
        pytest.skip("this transformers reads answers as a part of the prompt if there is no cache")
    model, family = shared_model(name), next(one for one in TINY if one.name == name)
    full = prompt(family, [[*words(3, row), family.pictures[0], *words(5, 3 + row)] for row in range(rows)])
    assert full.mask.all()
    with ficoco_ext.attach(model, method, positions="original", **amount):
        first = model(**full.inputs).logits[:, -1]
        cached = model.generate(**full.inputs, **DETAILS)
        asked = model.generate(**full.inputs, **DETAILS, use_cache=False)
    assert torch.equal(asked.sequences, cached.sequences)
    assert float((asked.logits[0] - first).abs().max()) < 1e-5
    assert all(float((one - other).abs().max()) < 1e-5 for one, other in zip(asked.logits, cached.logits, strict=True))


@pytest.mark.parametrize("name", ["llava-clip", "llava-next", "internvl", "mistral3"])
@torch.no_grad()
def test_flash_attention_reads_one_sequence(name, monkeypatch):
    """It takes positions that jump for several ones, and masks of ones do not reach it."""
    from transformers import AttentionInterface, AttentionMaskInterface

    found = []

    def kernel(module, query, key, value, mask, scaling=None, position_ids=None, **kwargs):
        found.append(mask is None and position_ids is not None and bool((position_ids.diff() != 1).any()))
        key, value = (one.repeat_interleave(query.shape[1] // key.shape[1], 1) for one in (key, value))
        causal = query.shape[2] > 1
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scaling).transpose(1, 2), None

    AttentionInterface.register("flash_probe", kernel)
    AttentionMaskInterface.register("flash_probe", lambda *args, attention_mask=None, **kwargs: None)
    model, family = shared_model(name), next(one for one in TINY if one.name == name)
    full = one_picture(family)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5):
        wanted, said = model(**full.inputs).logits, model.generate(**full.inputs, **DETAILS).sequences
        monkeypatch.setattr(family.language_model(model).config, "_attn_implementation_internal", "flash_probe")
        assert float((model(**full.inputs).logits - wanted).abs().max()) < 1e-5
        for options in ({}, {"use_cache": False}):
            assert torch.equal(model.generate(**full.inputs, **DETAILS, **options).sequences, said)
    assert found and not any(found)


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_beams(family):
    """All beams of a row start from its own pictures, and the best one's score is that of the hand cut."""
    model = shared_model(family.name)
    picture = family.pictures[1 if family.name == "internvl" else 0]  # of one tile: see several_pictures
    full = prompt(family, [[*words(4), picture, *words(5, 4)], [*words(2), picture, *words(3, 6)]])
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5) as handle:
        model(**full.inputs)
        hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
        out = model.generate(**full.inputs, **DETAILS, num_beams=3, output_scores=True)
    first = hand.logits(untouched_model(family.name))[:, -1].repeat_interleave(3, 0)
    assert float((first - out.logits[0]).abs().max()) < 1e-5
    new = out.sequences[:, -STEPS:]
    said = (
        hand.logits(untouched_model(family.name), new[:, :-1])[:, -STEPS:]
        .log_softmax(-1)
        .gather(-1, new[:, :, None])[..., 0]
    )
    assert float((said.mean(1) - out.sequences_scores).abs().max()) < 1e-5


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_a_conversation_goes_on(family):
    model, full = shared_model(family.name), unequal_rows(family)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5) as handle:
        first = model.generate(**full.inputs, **DETAILS)
        hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
        asked = torch.cat([first.sequences, torch.tensor([words(3, 5 * row) for row in range(3)])], 1)
        mask = torch.cat([full.mask, torch.ones(3, STEPS + 3, dtype=torch.long)], 1)
        second = model.generate(input_ids=asked, attention_mask=mask, **cache_of(first), **DETAILS)
    assert torch.equal(second.sequences[:, : asked.shape[1]], asked)
    assert worst_step(hand, second, past=STEPS + 3) < 1e-5


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_a_loop_of_ones_own(family):
    """Prefill by a call, then token by token on its cache, with the mask of the prompt that was cut."""
    model, full = shared_model(family.name), one_picture(family)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5) as handle:
        out = model(**full.inputs, use_cache=True)
        hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
        new, logits = [], [out.logits[:, -1]]
        for token in words(3, 7):
            new.append(token)
            out = model(input_ids=torch.tensor([[token]]), **cache_of(out), use_cache=True)
            logits.append(out.logits[:, -1])
    wanted = hand.logits(untouched_model(family.name), torch.tensor([new]))[:, -len(logits) :]
    assert max(float((wanted[:, step] - one).abs().max()) for step, one in enumerate(logits)) < 1e-5
