"""A method that chooses by the question: what it leaves of a picture is that of one question, and is never shared."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import torch
from helpers.embedded import embedded, grid, one_thread  # noqa: F401

import ficoco_ext
from ficoco_ext import get_method
from ficoco_ext.evaluation import Asking, Prompts, Setting, answers, asking, evaluate, markdown, questions
from ficoco_ext.evaluation.asking import exact
from ficoco_ext.evaluation.sharing import SharedPictures
from ficoco_ext.methods import FeatureMethod
from ficoco_ext.stages import needs

ASKED = questions(grid(scenes=2, per_scene=4))


class ByQuestion(FeatureMethod):
    """Keeps the tokens from an index on that the words of the question decide."""

    name = "by-question"

    def __init__(self):
        self.question, self.calls = None, []

    @property
    def members(self):
        return (self,)

    @property
    def needs(self):
        return (needs.TEXT,)

    def __call__(self, visual, count, planes=()):
        result = get_method("stride")(visual, count, planes)
        rows = self.question or [[]] * len(visual.features)
        assert len(rows) == len(visual.features) and visual.text.shape[0] == len(rows)
        first = torch.tensor([sum(row) % 60 for row in rows])
        kept = first.unsqueeze(1) + torch.arange(count)
        self.calls += zip(map(tuple, rows), first.tolist(), visual.features.mean((1, 2)).tolist(), strict=True)
        features = visual.features.gather(1, kept.unsqueeze(-1).expand(-1, -1, visual.features.shape[2]))
        return result._replace(kept=kept, features=features)


@pytest.fixture
def by_question(monkeypatch):
    method, generated = ByQuestion(), asking._generated

    def asked(checkpoint, inputs, length):
        mask = inputs["attention_mask"].bool()
        rows = zip(inputs["input_ids"], mask, strict=True)
        method.question = [row[real].tolist() for row, real in rows]
        return generated(checkpoint, inputs, length)

    monkeypatch.setattr(asking, "_generated", asked)
    return method


@pytest.mark.parametrize("batch", [1, 3])
def test_every_question_gets_what_was_chosen_for_it(by_question, batch):
    prompts = Prompts(embedded(), ASKED)
    assert prompts.shares
    passed = []
    hook = embedded().model.model.vision_tower.embeddings.register_forward_hook(
        lambda module, args, out: passed.append(out.shape[0])
    )
    try:
        with ficoco_ext.attach(embedded().model, by_question, tokens=30):
            said = answers(prompts, Asking(exact, 2, batch))
    finally:
        hook.remove()
    assert sum(passed) == len(ASKED.items)  # a picture is encoded for each question
    met, by_question.calls = sorted(by_question.calls), []
    assert [row for row, _, _ in met] == sorted(map(tuple, prompts.ids))
    assert len({first for _, first, _ in met}) > 1
    with ficoco_ext.attach(embedded().model, by_question, tokens=30):
        for number, item in enumerate(ASKED.items):
            by_question.question = [prompts.ids[number]]
            alone = embedded().answer(ASKED.open(item.picture), embedded().spelled(item.question), 2)
            assert said[number] == alone
    for one, wanted in zip(met, sorted(by_question.calls), strict=True):  # the same question about the same picture
        assert one[:2] == wanted[:2] and one[2] == pytest.approx(wanted[2], rel=1e-3, abs=1e-6)


def test_reduced_pictures_are_not_shared(by_question):
    pixels = Prompts(embedded(), ASKED).pixels([0])
    inner = embedded().model.model
    with ficoco_ext.attach(embedded().model, by_question, tokens=30):
        encoder = inner.get_image_features
        with (
            pytest.raises(ValueError, match="encoded again for each question, as by-question"),
            SharedPictures(embedded().model, pixels),
        ):
            pass
        assert inner.get_image_features is encoder and not by_question.calls
    with ficoco_ext.attach(embedded().model, "divprune", tokens=30), SharedPictures(embedded().model, pixels):
        pass


def test_a_key_set_is_read_for_each_question():
    """It is of the tower's own run, which shared features do not have; answers are those of each question alone."""
    model, pixels = embedded().model, Prompts(embedded(), ASKED).pixels([0])
    with ficoco_ext.attach(model, "mustdrop"):
        with pytest.raises(ValueError, match="reads the vision tower in each call"), SharedPictures(model, pixels):
            pass
        together = answers(Prompts(embedded(), ASKED), Asking.of(embedded(), batch=4))
        alone = answers(Prompts(embedded(), ASKED), Asking.of(embedded(), batch=1))
    assert together == alone and len(together) == len(ASKED.items)


def test_results_say_that_it_reads_the_question(by_question):
    found = evaluate(embedded(), grid(), [Setting(by_question, {"tokens": 30}), Setting("divprune", {"tokens": 30})])
    summary = found.summary()
    assert [line.reads_text for line in summary.lines] == [False, True, False]
    assert [line.get("reads_text") for line in summary.to_dict()["lines"]] == [None, True, None]
    (said,) = [text for text in markdown.legend(found, summary) if "chooses by the question" in text]
    assert said.startswith("by-question: ") and "divprune" not in said
    assert summary.lines[1].remark.startswith("no cost")


def test_what_the_template_writes_is_no_word_of_a_question():
    """Of a checkpoint with a chat template, and of one that is asked in the words of LLaVA-1.5."""
    checkpoint = embedded()
    ids = checkpoint.processor.tokenizer(checkpoint.prompt("what color is the ring ?")).input_ids
    question = checkpoint.processor.tokenizer("what color is the ring ?", add_special_tokens=False).input_ids
    assert set(ids) - set(checkpoint.template_ids) == set(question)
    with Setting("cdpruner", {"tokens": 30}).attach(checkpoint, 0) as handle:
        assert handle.attach_plan.words == checkpoint.template_ids
    with Setting("divprune", {"tokens": 30}).attach(checkpoint, 0) as handle:
        assert handle.attach_plan.words is None
    processor = copy.copy(checkpoint.processor)
    processor.chat_template = None
    plain = replace(checkpoint, processor=processor)
    words = {plain.processor.tokenizer.decode([one]) for one in plain.template_ids}
    assert "<image>" in words and len(plain.template_ids) < 8
