"""Methods that choose by the words of the prompt: each picture gets those of its own row, and of one question alone."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_configs import IMAGE, WORD
from helpers.tiny_families import BY_NAME, TINY, WITH_VIDEO, shared_model, untouched_model
from helpers.tiny_oracle import cut, kept_of, worst
from helpers.tiny_processors import Picture
from helpers.tiny_prompts import one_picture, pictures_and_videos, prompt, unequal_rows, words

import ficoco_ext
from ficoco_ext.methods import ProjectorMethod
from ficoco_ext.models.prompt_words import PromptWords, special_ids
from ficoco_ext.stages import SelectStage, needs

pytest.importorskip("transformers")

PROMPTS = [(family, unequal_rows) for family in TINY] + [(family, pictures_and_videos) for family in WITH_VIDEO]
IDS = [f"{family}-{make.__name__}" for family, make in PROMPTS]


class LikeTheWords(SelectStage):
    """Keeps the tokens with the largest product with the mean word, and remembers what it was given."""

    needs = (needs.TEXT,)

    def __init__(self):
        self.seen = []

    def __call__(self, visual, count):
        self.seen.append(visual)
        there = visual.text_mask.unsqueeze(-1)
        mean = (visual.text * there).sum(1) / there.sum(1)
        order = (visual.features @ mean.unsqueeze(-1)).squeeze(-1).argsort(dim=1, descending=True, stable=True)
        return order[:, :count].sort(1).values


def reading():
    """A method, and its stage."""
    stage = LikeTheWords()
    return ProjectorMethod("like-the-words", stage), stage


def is_word(ids):
    return ids >= WORD


def given(stage):
    """For every picture that was reduced, its words as a set of vectors, each as a tuple."""
    return [
        tuple(sorted(tuple(word.tolist()) for word, there in zip(text, flags, strict=True) if there))
        for visual in stage.seen
        for text, flags in zip(visual.text, visual.text_mask, strict=True)
    ]


def words_of(model, ids):
    return tuple(sorted(tuple(one.tolist()) for one in model.get_input_embeddings()(ids)))


@pytest.mark.parametrize(("family", "make"), PROMPTS, ids=IDS)
@torch.no_grad()
def test_each_picture_gets_the_words_of_its_row(family, make):
    model, full = shared_model(family.name), make(family)
    method, stage = reading()
    with ficoco_ext.attach(model, method, keep_ratio=0.5, words=is_word) as handle:
        out = model(**full.inputs)
        kept = kept_of(full, handle.projections)
        hand = cut(untouched_model(family.name), full, kept)
    wanted = sorted(words_of(model, full.ids[one.row][is_word(full.ids[one.row])]) for one in full.visuals)
    found = given(stage)
    assert len(found) >= len(wanted) and sorted(set(found)) == sorted(set(wanted))  # tiles and frames are apart in some
    assert sorted(found) == wanted or len(found) > len(wanted)
    assert worst(hand, hand.logits(untouched_model(family.name)), out.logits) < 1e-5


@pytest.mark.parametrize("name", ["llava-clip", "qwen2.5-vl", "llava-onevision", "smolvlm"])
@torch.no_grad()
def test_what_stays_is_chosen_by_the_own_words(name):
    """Of the same picture with two questions in one batch, as of each alone."""
    family, model = BY_NAME[name], shared_model(name)
    asked = [words(5, 3), words(7, 20)]
    rows = [[*words(2), family.pictures[0], *question] for question in asked]
    alone = []
    for row in rows:
        full = prompt(family, [row])
        with ficoco_ext.attach(model, reading()[0], keep_ratio=0.5) as handle:
            model(**full.inputs)
            alone.append([one.kept.tolist() for one in handle.projections])
    full = prompt(family, [rows[0]])
    both = prompt(family, rows)
    pixels = {
        name: full.inputs[name] for name in full.inputs if name.startswith("pixel") or name.endswith(("thw", "sizes"))
    }
    for key, value in pixels.items():
        both.inputs[key] = torch.cat([value, value])  # the same picture twice
    with ficoco_ext.attach(model, reading()[0], keep_ratio=0.5) as handle:
        model(**both.inputs)
        together = [one.kept.tolist() for one in handle.projections]
    assert together[: len(alone[0])] == alone[0]
    with ficoco_ext.attach(model, reading()[0], keep_ratio=0.5) as handle:
        second = prompt(family, [rows[1]])
        model(**{**second.inputs, **pixels})
        assert together[len(alone[0]) :] == [one.kept.tolist() for one in handle.projections]


@pytest.mark.parametrize("name", ["llava-clip", "qwen3-vl", "paligemma"])
@torch.no_grad()
def test_by_default_all_but_special_ids_are_words(name):
    family, model = BY_NAME[name], shared_model(name)
    full = unequal_rows(family)
    method, stage = reading()
    special = special_ids(model.config)
    assert {0, 1, 2, 3} <= special and not special & set(range(WORD, 64))
    with ficoco_ext.attach(model, method, keep_ratio=0.5):
        model(**full.inputs)
    wanted = {
        words_of(model, torch.tensor([one for one in full.ids[visual.row].tolist() if one not in special]))
        for visual in full.visuals
    }
    assert set(given(stage)) == wanted


@torch.no_grad()
def test_ids_that_are_not_words_are_left_out():
    family, model = BY_NAME["llava-clip"], shared_model("llava-clip")
    full = one_picture(family)
    method, stage = reading()
    with ficoco_ext.attach(model, method, keep_ratio=0.5, words=[WORD, WORD + 1, WORD + 4]):
        model(**full.inputs)
    left = [one for one in full.ids[0].tolist() if one >= WORD and one not in (WORD, WORD + 1, WORD + 4)]
    assert given(stage) == [words_of(model, torch.tensor(left))]


@torch.no_grad()
def test_embeddings_are_their_own_words():
    family, model = BY_NAME["llava-clip"], shared_model("llava-clip")
    full = unequal_rows(family)
    method, stage = reading()
    with ficoco_ext.attach(model, method, keep_ratio=0.5) as handle:
        model(**full.inputs)
        wanted = [one.kept.tolist() for one in handle.projections]
        inputs = {key: value for key, value in full.inputs.items() if key != "input_ids"}
        vectors = model.get_input_embeddings()(full.ids)
        stage.seen.clear()
        model(**inputs, inputs_embeds=vectors)
        real = (full.mask != 0) & (full.ids != IMAGE)  # special ids cannot be seen in vectors
        assert given(stage) == [words_of(model, full.ids[one.row][real[one.row]]) for one in full.visuals]
        assert [len(one.kept) for one in handle.projections] == list(map(len, wanted))


@pytest.mark.parametrize("name", ["llava-clip", "qwen2-vl"])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
@torch.no_grad()
def test_several_sequences_of_one_prompt(name, options):
    """Some releases encode each picture again for each sequence: the words go with it."""
    family, model = BY_NAME[name], shared_model(name)
    full = prompt(family, [[*words(3), family.pictures[0], *words(4, 5)], [family.pictures[-1], *words(6, 20)]])
    method, stage = reading()
    with ficoco_ext.attach(model, method, tokens=2, words=is_word):
        torch.manual_seed(0)
        model.generate(**full.inputs, max_new_tokens=2, **options)
    wanted = {words_of(model, ids[is_word(ids)]) for ids in full.ids}
    found = given(stage)
    assert set(found) == wanted
    assert all(found.count(one) == len(found) // 2 for one in wanted)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
@pytest.mark.parametrize("method", ["cdpruner", "dart"])
@pytest.mark.parametrize("name", ["qwen2-vl", "qwen3-vl"])
@torch.no_grad()
def test_several_sequences_of_rows_with_several_pictures(name, method, options):
    """Older releases encode a row's pictures again as a block for each sequence; the first token is that of one."""
    family, model = BY_NAME[name], shared_model(name)
    small, large = Picture(2, 6), Picture(8, 8)
    full = prompt(family, [[*words(3), small, large, *words(4, 5)], [small, large, *words(6, 20)]])
    given = {**full.inputs, "max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    with ficoco_ext.attach(model, method, keep_ratio=0.5):
        alone = model.generate(**given, do_sample=False).logits[0]
        several = model.generate(**given, **options).logits[0]
    assert float((several - alone.repeat_interleave(2, 0)).abs().max()) < 1e-5


@torch.no_grad()
def test_ids_that_are_no_words_cannot_be_found_in_embeddings():
    family, model = BY_NAME["llava-clip"], shared_model("llava-clip")
    full = one_picture(family)
    given = {key: value for key, value in full.inputs.items() if key != "input_ids"}
    given["inputs_embeds"] = model.get_input_embeddings()(full.ids)
    for chosen in ([WORD], is_word):
        refused = pytest.raises(ValueError, match=r"inputs_embeds must be None with words.*pass input_ids, or attach")
        with ficoco_ext.attach(model, reading()[0], keep_ratio=0.5, words=chosen), refused:
            model(**given)


@torch.no_grad()
def test_a_copied_cache_goes_on_whatever_says_which_ids_are_words():
    family, model = BY_NAME["llava-clip"], shared_model("llava-clip")
    full, new = one_picture(family), torch.tensor([words(1)])
    at_least = functools.partial(lambda ids, first: ids >= first, first=WORD)
    with ficoco_ext.attach(model, reading()[0], keep_ratio=0.5, words=at_least):
        caches = [model(**full.inputs, use_cache=True).past_key_values for _ in range(2)]
        first = model(input_ids=new, past_key_values=caches[0])
        second = model(input_ids=new, past_key_values=copy.deepcopy(caches[1]))
    assert torch.equal(first.logits, second.logits)


@torch.no_grad()
def test_features_of_the_caller_are_refused_with_what_works():
    family, model = BY_NAME["llava-clip"], shared_model("llava-clip")
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        return
    full = one_picture(family)
    features = model.model.get_image_features(full.inputs["pixel_values"], return_dict=True)
    given = {key: value for key, value in full.inputs.items() if key != "pixel_values"}
    refused = pytest.raises(ValueError, match=r"mm_encoder_outputs must be None with mmtok.*; pass pixels$")
    with ficoco_ext.attach(model, "mmtok", keep_ratio=0.5), refused:
        model(**given, mm_encoder_outputs={"image": features})


def test_pictures_that_follow_themselves_have_the_words_of_one_row():
    """As older releases encode them for beams."""
    ids = torch.tensor([[3, 3, 30], [31, 3, 3]])
    read = PromptWords(lambda columns, rows: ids[rows[:, None], columns], ids > 3, {"image": ids == 3})
    vectors, there = read.of("image", [2, 2], times=2)
    assert [one[flags].tolist() for one, flags in zip(vectors, there, strict=True)] == [[30], [30], [31], [31]]
    assert [one[0].tolist() for one in read.of("image", [2, 2])] == [[30, 3, 3], [True, False, False]]


@torch.no_grad()
def test_a_prompt_without_words_is_refused():
    family, model = BY_NAME["llava-clip"], shared_model("llava-clip")
    with ficoco_ext.attach(model, reading()[0], keep_ratio=0.5):
        with pytest.raises(ValueError, match=r"like-the-words: text must be .*none for picture 1; ask .*'divprune'"):
            model(**prompt(family, [[family.pictures[0], *words(3)], [family.pictures[0]]]).inputs)
        full = one_picture(family)
        with pytest.raises(ValueError, match=r"get_image_features: prompt must be given with the pictures.*'divprune'"):
            model.model.get_image_features(full.inputs["pixel_values"])
        model(**full.inputs)  # nothing of the failed calls is left
    refused = pytest.raises(
        ValueError, match="text must be at least one word for every picture, got none for picture 0"
    )
    with ficoco_ext.attach(model, reading()[0], keep_ratio=0.5, words=range(64)), refused:
        model(**full.inputs)


@pytest.mark.parametrize(
    ("method", "value", "kind", "message"),
    [
        ("divprune", [1, 2], ValueError, "words must be None for a method that reads none, got .*'cdpruner'"),
        ("fastv", is_word, ValueError, "words must be None for a method that reads none"),
        ("words", "USER:", TypeError, "words must be ids that are not words, or a function .*template_ids"),
        ("words", [1, "USER"], TypeError, "words must be ids that are not words"),
        ("words", 3, TypeError, "words must be ids that are not words"),
        ("words", [True], TypeError, "words must be ids that are not words"),
    ],
)
def test_what_are_no_words(method, value, kind, message):
    chosen = reading()[0] if method == "words" else method
    with pytest.raises(kind, match=message):
        ficoco_ext.attach(shared_model("llava-clip"), chosen, keep_ratio=0.5, words=value)


@pytest.mark.parametrize("wrong", [lambda ids: ids, lambda ids: ids[:, 1:] > 0, lambda ids: None])
@torch.no_grad()
def test_a_function_that_gives_no_flags(wrong):
    model = shared_model("llava-clip")
    refused = pytest.raises(TypeError, match=r"forward: words must be a function that returns \(1, \d+\) bool")
    with ficoco_ext.attach(model, reading()[0], keep_ratio=0.5, words=wrong), refused:
        model(**one_picture(BY_NAME["llava-clip"]).inputs)


def goes_on(model, method, how, **more):
    """The warnings of a conversation that goes on from the cache of a reduced prompt."""
    full = one_picture(BY_NAME["llava-clip"])
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        with ficoco_ext.attach(model, method, **more):
            for _ in range(2):  # said once
                if how == "generate":
                    asked = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
                    first = model.generate(**full.inputs, **asked)
                    ids = torch.cat([first.sequences, torch.tensor([words(3)])], 1)
                    model.generate(input_ids=ids, past_key_values=first.past_key_values, **asked)
                else:
                    cache = model(**full.inputs, use_cache=True).past_key_values
                    model(input_ids=torch.tensor([words(1)]), past_key_values=cache)  # one token of an answer
                    model(input_ids=torch.tensor([words(3)]), past_key_values=cache)
    return [str(one.message) for one in caught if "this call goes on from its cache" in str(one.message)]


@pytest.mark.parametrize("how", ["generate", "forward"])
@pytest.mark.parametrize("method", ["words", "fastv", "words+fastv"])
def test_a_conversation_that_goes_on_is_warned_of(method, how):
    """Once: the picture was cut for the first question."""
    chosen, amount = reading()[0], {"keep_ratio": 0.5}
    if method == "fastv":
        chosen, amount = "fastv", {"keep_ratio": 0.5, "layer": 1}
    if method == "words+fastv":
        chosen = ficoco_ext.methods.Combined.of(chosen, ficoco_ext.get_method("fastv", layer=1))
    (message,) = goes_on(shared_model("llava-clip"), chosen, how, **amount)
    assert ("like-the-words" in message) == ("words" in method) and ("fastv" in message) == ("fastv" in method)
    assert "chose the visual tokens that stay by the words of the first prompt" in message and "'divprune'" in message


@pytest.mark.parametrize("how", ["generate", "forward"])
@pytest.mark.parametrize("method", ["divprune", "scope", "topk"])
def test_a_method_that_reads_no_words_serves_any_question(method, how):
    assert goes_on(shared_model("llava-clip"), method, how, keep_ratio=0.5) == []


def test_which_methods_read_the_question():
    reads = {name for name in ficoco_ext.METHODS if ficoco_ext.get_method(name).reads_question}
    assert {"fastv", "ficoco-l", "ficoco-vl", "pyramiddrop"} <= reads
    assert not reads & {"divprune", "scope", "stride", "tome", "topk", "ficoco-v", "random", "balanced"}
    assert reading()[0].reads_question
