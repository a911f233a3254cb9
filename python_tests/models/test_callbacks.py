"""What ``generate`` calls back sees the caller's prompt, whatever the tower removed."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import EOS, GREEDY, IMAGE, PAD, batch, image, one_image, one_thread, tiny_llava, words  # noqa: F401

import ficoco_ext

pytest.importorskip("transformers")

from transformers import (
    ExponentialDecayLengthPenalty,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensAtBeginLogitsProcessor,
)

from ficoco_ext.models.callbacks import Callbacks

METHODS = {
    "ficoco-v": {"keep_ratio": 0.25},
    "tome": {"keep_ratio": 0.5},
    "ficoco-vl": {"vision": {"keep_ratio": 0.5}, "decoder": {"keep_ratio": 0.5, "layers": (1,)}},
}
TWO = ([*words(1, 2, 9), *image(), *words(3, 4)], [*image(), *words(5), *image(), *words(6)])
every = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def begin_with(prompt, seen):
    """Whether rows of ids begin with the rows of the prompt, each as often as there are rows for it."""
    repeated = prompt.repeat_interleave(len(seen) // len(prompt), 0)
    return bool((seen[:, : prompt.shape[1]] == repeated).all())


@every
def test_a_criterion_that_counts_from_the_prompt(model, method):
    inputs = one_image()
    length = inputs["input_ids"].shape[1]

    class AfterTwo(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([row[length:].numel() >= 2 for row in input_ids])

    with ficoco_ext.attach(model, method, **METHODS[method]):
        free = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        for criteria in (StoppingCriteriaList([AfterTwo()]), [AfterTwo()], (AfterTwo(),)):
            out = model.generate(**inputs, max_new_tokens=6, do_sample=False, stopping_criteria=criteria)
            assert torch.equal(out, free[:, : length + 2])
            assert type(criteria[0]) is AfterTwo  # the caller's list is left as it was


@every
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
        {"do_sample": True, "num_return_sequences": 2},
    ],
    ids=["greedy", "beams", "sampled"],
)
def test_all_of_them_see_the_callers_prompt(model, method, options):
    inputs = batch(*TWO)
    prompt, seen = inputs["input_ids"], []

    class Processor(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(input_ids)
            return scores

    class Criterion(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def allowed(batch_id, ids):
        rows = len(prompt) * (options.get("num_return_sequences", 1) if options["do_sample"] else 1)
        assert torch.equal(ids[: prompt.shape[1]], prompt[batch_id * len(prompt) // rows])
        return list(range(5, 60))

    with ficoco_ext.attach(model, method, **METHODS[method]):
        model.generate(
            **inputs,
            max_new_tokens=3,
            logits_processor=LogitsProcessorList([Processor()]),
            stopping_criteria=StoppingCriteriaList([Criterion()]),
            prefix_allowed_tokens_fn=allowed,
            **options,
        )
    assert {ids.shape[1] - prompt.shape[1] for ids in seen} == {0, 1, 2, 3}
    assert all(begin_with(prompt, ids) for ids in seen)


@every
@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_a_function_inside_one_of_transformers_own(model, method, options):
    """Given as a processor it is called as it is as an argument."""
    inputs = batch(*TWO)
    prompt, seen = inputs["input_ids"], []

    def allowed(row, ids):
        assert torch.equal(ids[: prompt.shape[1]], prompt[row])
        seen.append(len(ids))
        return [7, 8, EOS]

    processor = PrefixConstrainedLogitsProcessor(allowed, options.get("num_beams", 1))
    with ficoco_ext.attach(model, method, **METHODS[method]):
        out = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, logits_processor=LogitsProcessorList([processor]), **options
        )
        wanted = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, prefix_allowed_tokens_fn=allowed, **options
        )
    assert min(seen) == prompt.shape[1]
    assert torch.equal(out, wanted)


@every
def test_a_streamer_gets_the_callers_prompt_first(model, method):
    inputs, put = one_image(), []

    class Streamer:
        def put(self, value):
            put.append(value)

        def end(self):
            put.append(None)

    with ficoco_ext.attach(model, method, **METHODS[method]):
        out = model.generate(**inputs, **GREEDY, streamer=Streamer())
    assert torch.equal(put[0], inputs["input_ids"]) and put[-1] is None
    assert torch.equal(torch.cat([put[0][0], *(one.reshape(-1) for one in put[1:-1])]), out[0])


@every
def test_lengths_of_transformers_own(model, method):
    """They keep their type, by which generate finds that it made one like it, and are not written."""
    inputs = one_image()
    length = inputs["input_ids"].shape[1]
    stops, least = MaxLengthCriteria(length + 2), MinLengthLogitsProcessor(length + 4, EOS)
    penalty = RepetitionPenaltyLogitsProcessor(50.0, prompt_ignore_length=length)
    with ficoco_ext.attach(model, method, **METHODS[method]):
        free = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        said = {"max_new_tokens": 6, "do_sample": False}
        out = model.generate(**inputs, **said, stopping_criteria=StoppingCriteriaList([stops]))
        assert torch.equal(out, free[:, : length + 2])
        ends = {"eos_token_id": int(free[0, length]), "pad_token_id": 0}
        assert model.generate(**inputs, **said, **ends).shape[1] == length + 1
        least = MinLengthLogitsProcessor(length + 4, ends["eos_token_id"])
        out = model.generate(**inputs, **said, **ends, logits_processor=LogitsProcessorList([least]))
        assert out.shape[1] >= length + 4
        out = model.generate(**inputs, **said, logits_processor=LogitsProcessorList([penalty]))
        assert len(set(out[0, length:].tolist())) == 6  # what was said is not said again
        inside = free[0, length] in inputs["input_ids"]  # what the prompt says may be
        assert inside or out[0, length] == free[0, length]
    assert stops.max_length == length + 2 and least.min_length == length + 4
    assert penalty.prompt_ignore_length == length


@every
def test_a_conversation_that_goes_on(model, method):
    inputs, seen = one_image(), []

    class Criterion(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    with ficoco_ext.attach(model, method, **METHODS[method]):
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([words(7, 8)])], 1)
        cache = {"past_key_values": first.past_key_values}
        model.generate(ids, **cache, **GREEDY, stopping_criteria=StoppingCriteriaList([Criterion()]))
    assert len(seen) == 3 and all(torch.equal(one[:, : ids.shape[1]], ids) for one in seen)


@every
@pytest.mark.parametrize("how", ["argument", "config"])
def test_a_prompt_as_long_as_max_length(model, method, how):
    """As without reduction it is an error, in the caller's numbers."""
    inputs = one_image()
    length = inputs["input_ids"].shape[1]

    def options(longest):
        if how == "argument":
            return {"max_length": longest}
        config = copy.deepcopy(model.generation_config)
        config.max_length = longest
        return {"generation_config": config}

    for longest in (length - 5, length):
        with pytest.raises(ValueError, match=str(length)):
            model.generate(**inputs, do_sample=False, **options(longest))
        with ficoco_ext.attach(model, method, **METHODS[method]):
            message = rf"generate: max_length must be more than {length}, the length of input_ids, got {longest}; raise"
            with pytest.raises(ValueError, match=message):
                model.generate(**inputs, do_sample=False, **options(longest))
            assert model.generate(**inputs, do_sample=False, **options(length + 2)).shape[1] == length + 2


@every
def test_a_row_that_ones_own_criterion_ended_is_padded(model, method):
    """generate pads it if the criterion has an end token, which it looks for on what we put in its place."""

    class Ends(StoppingCriteria):
        eos_token_id = torch.tensor([EOS])

        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([True, False])

    with ficoco_ext.attach(model, method, **METHODS[method]):
        said = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [PAD]}
        out = model.generate(**batch(*TWO), **said, stopping_criteria=StoppingCriteriaList([Ends()]))
    assert out[0, -3:].tolist() == [PAD] * 3 and (out[1, -3:] != PAD).all()


LONG, SHORT = 20, 8  # the caller's prompt and the inner one
COUNTS = {
    "max_length": lambda: MaxLengthCriteria(LONG + 4),
    "min_length": lambda: MinLengthLogitsProcessor(LONG + 4, EOS),
    "prompt_length_to_skip": lambda: MinNewTokensLengthLogitsProcessor(LONG, 4, EOS),
    "prompt_ignore_length": lambda: RepetitionPenaltyLogitsProcessor(2.0, prompt_ignore_length=LONG),
    "regulation_start": lambda: ExponentialDecayLengthPenalty((4, 1.5), EOS, LONG),
    "begin_index": lambda: SuppressTokensAtBeginLogitsProcessor([EOS], LONG),
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_length_of_transformers_own_is_moved(name):
    """By as much as the prompt got shorter, in a copy."""
    given = COUNTS[name]()
    wanted = getattr(given, name)
    options = {"stopping_criteria" if name == "max_length" else "logits_processor": [given]}
    ((moved,),) = Callbacks(torch.zeros(1, LONG, dtype=torch.long), SHORT).wrapped(options, 1).values()
    assert type(moved) is type(given)
    assert wanted >= LONG and getattr(moved, name) == wanted - (LONG - SHORT)
    assert getattr(given, name) == wanted
