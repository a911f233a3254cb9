"""Batches say what one question alone says, a picture goes through the tower once, and the model is left as it was."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import torch
from helpers.embedded import METHODS, embedded, grid, one_thread  # noqa: F401
from helpers.models import snapshot

import ficoco_ext
from ficoco_ext.apps.checkpoint import EMBEDDED, load
from ficoco_ext.evaluation import Asking, Prompts, answers, asking, questions
from ficoco_ext.evaluation.asking import contained, exact, with_embedded_rules
from ficoco_ext.evaluation.sharing import SharedPictures, can_share
from ficoco_ext.gridvqa.vocabulary import vocabulary

ASKED = questions(grid(scenes=3, per_scene=5))


def _attached(method):
    return ficoco_ext.attach(embedded().model, method, **METHODS[method])


def _one_by_one(length=3):
    return [
        embedded().answer(ASKED.open(item.picture), embedded().spelled(item.question), length) for item in ASKED.items
    ]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_batches_answer_as_one_question_alone(method):
    prompts = Prompts(embedded(), ASKED)
    handle = None if method is None else _attached(method)
    try:
        wanted = _one_by_one()
        for batch in (1, 4, 64):
            assert answers(prompts, Asking(exact, 3, batch)) == wanted
        prompts.shares = False  # as the processor makes them, every row with its own picture
        assert answers(prompts, Asking(exact, 3, 4)) == wanted
    finally:
        if handle is not None:
            handle.detach()


def test_the_first_word_does_not_depend_on_how_many_may_follow():
    prompts = Prompts(embedded(), ASKED)
    short, long = (answers(prompts, Asking(exact, length)) for length in (1, 3))
    assert [text.split()[:1] for text in short] == [text.split()[:1] for text in long]


def test_prompts_are_what_the_processor_makes():
    prompts = Prompts(embedded(), ASKED)
    assert prompts.shares
    for number, item in enumerate(ASKED.items):
        wanted = embedded().inputs(ASKED.open(item.picture), embedded().spelled(item.question))
        assert prompts.ids[number] == wanted["input_ids"][0].tolist()
        assert torch.equal(prompts.pixels([item.picture]), wanted["pixel_values"])
    words = [len(ids) - prompts.visual for ids in prompts.ids]
    assert prompts.text_tokens == (round(sum(words) / len(words)), round(sum(words) / len(words)) - 3)


@pytest.mark.parametrize("method", [None, "ficoco-v", "fastv"], ids=str)
def test_a_picture_goes_through_the_tower_once(method):
    model, seen = embedded().model, []
    hook = model.model.vision_tower.embeddings.register_forward_hook(lambda m, args, out: seen.append(out.shape[0]))
    handle = None if method is None else _attached(method)
    try:
        answers(Prompts(embedded(), ASKED), Asking(exact, 2, 4))
    finally:
        hook.remove()
        if handle is not None:
            handle.detach()
    assert sum(seen) == len(ASKED.pictures) == 3


def test_the_model_is_left_as_it_was():
    model = embedded().model
    answers(Prompts(embedded(), ASKED), Asking(exact, 2))  # transformers hangs things on a model at its first use
    before = snapshot(model)
    answers(Prompts(embedded(), ASKED), Asking(exact, 2))
    assert snapshot(model) == before
    pixels = Prompts(embedded(), ASKED).pixels([0, 1])
    with pytest.raises(RuntimeError, match="stop"), SharedPictures(model, pixels):
        assert "get_image_features" in vars(model.model)
        raise RuntimeError("stop")
    assert snapshot(model) == before


def test_an_override_of_somebody_else_is_put_back():
    inner = embedded().model.model
    theirs = lambda *args, **kwargs: type(inner).get_image_features(inner, *args, **kwargs)  # noqa: E731
    inner.get_image_features = theirs
    try:
        with SharedPictures(embedded().model, Prompts(embedded(), ASKED).pixels([0])):
            assert inner.get_image_features is not theirs
        assert inner.get_image_features is theirs
    finally:
        del inner.get_image_features


def test_rows_get_the_features_of_their_own_picture():
    pixels = Prompts(embedded(), ASKED).pixels([0, 1])
    inner = embedded().model.model
    with torch.inference_mode():
        alone = [inner.get_image_features(pixel_values=one[None]).pooler_output[0] for one in pixels]
        with SharedPictures(embedded().model, pixels) as shared:
            shared.rows = [1, 0, 1]
            assert shared.pixel_values().shape[0] == 3
            found = inner.get_image_features(pixel_values=shared.pixel_values()).pooler_output
    for row, picture in enumerate((1, 0, 1)):
        assert torch.allclose(found[row], alone[picture], atol=1e-4)


AFTER = {
    "divprune": {"tokens": 30},
    "divprune, merge": {"method": "divprune", "tokens": 30, "merge": True},
    "scope": {"tokens": 30},
    "topk, original positions": {"method": "topk", "tokens": 30, "positions": "original"},
    "topk+divprune": {"tokens": 30},
}


@pytest.mark.parametrize("name", AFTER)
def test_rows_are_cut_by_what_was_kept_of_their_own_picture(name, monkeypatch):
    """Logits are those of the pictures themselves: with another picture's cut, positions would be wrong."""
    monkeypatch.setattr("ficoco_ext.evaluation.sharing._TOWER_BATCH", 2)
    model, prompts, rows = embedded().model, Prompts(embedded(), ASKED), [2, 0, 1, 2]
    pixels = prompts.pixels([0, 1, 2])
    ids = torch.tensor([prompts.ids[0]] * 4)
    with ficoco_ext.attach(model, **{"method": name, **AFTER[name]}) as handle, torch.inference_mode():
        wanted = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels[rows]).logits
        kept = [one.kept for one in handle.projections]
        assert not torch.equal(kept[0], kept[1])
        encoder = model.model.get_image_features
        with SharedPictures(model, pixels) as shared:
            shared.rows, empty = rows, torch.zeros_like(shared._pixels[:1]).expand(4, -1, -1, -1)
            found = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=empty).logits
            assert all(map(torch.equal, kept, [one.kept for one in handle.projections]))
        assert model.model.get_image_features is encoder and "run" not in vars(encoder)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_a_picture_is_reduced_once_after_the_projector():
    model, seen = embedded().model, []
    hook = model.model.vision_tower.embeddings.register_forward_hook(lambda m, args, out: seen.append(out.shape[0]))
    try:
        with ficoco_ext.attach(model, "divprune", tokens=30):
            answers(Prompts(embedded(), ASKED), Asking(exact, 2, 4))
    finally:
        hook.remove()
    assert sum(seen) == len(ASKED.pictures) == 3


def test_pictures_are_kept_up_to_a_limit(monkeypatch):
    prompts = Prompts(embedded(), ASKED)
    one = prompts.pixels([0])
    monkeypatch.setattr("ficoco_ext.evaluation.asking._CACHED_BYTES", 2 * one.nbytes)
    prompts.warm()
    assert sorted(prompts._pixels) == [0, 1]
    assert torch.equal(prompts.pixels([2]), prompts.pixels([2]))


def test_defaults_of_asking():
    assert Asking.of(embedded()) == Asking(exact, 1, 32)
    assert Asking.of(embedded(), "contained", 7, 5) == Asking(contained, 7, 5)
    mine = lambda answer, truth: True  # noqa: E731
    assert Asking.of(embedded(), mine).judge is mine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judge": "close"}, "judge must be one of exact, contained"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer >= 1, got 0"),
        ({"batch": True}, "batch must be an integer >= 1, got True"),
    ],
)
def test_asking_errors(change, message):
    with pytest.raises(ValueError, match=message):
        Asking.of(embedded(), **change)


def test_a_model_of_grid_scenes_is_known_by_its_words(tmp_path):
    for file in EMBEDDED.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    other = load(str(tmp_path), torch.float32, torch.device("cpu"))
    assert not other.embedded
    other.processor.tokenizer.get_vocab = lambda: {word: place for place, word in enumerate(vocabulary())}
    assert with_embedded_rules(other).embedded
    other.processor.tokenizer.get_vocab = lambda: {"red": 0}
    assert not with_embedded_rules(other).embedded
    assert Asking.of(other) == Asking(contained, 48, 32)


def test_more_pictures_than_are_held_at_once(monkeypatch):
    monkeypatch.setattr("ficoco_ext.evaluation.asking._CHUNK", 2)
    monkeypatch.setattr("ficoco_ext.evaluation.sharing._TOWER_BATCH", 1)
    prompts = Prompts(embedded(), ASKED)
    assert [pictures for pictures, _ in prompts.chunks()] == [[0, 1], [2]]
    assert answers(prompts, Asking(exact, 1)) == _one_by_one(1)


def test_without_sharing_the_text_is_as_long():
    prompts = Prompts(embedded(), ASKED)
    wanted = prompts.text_tokens
    prompts.shares = False
    assert prompts.text_tokens == wanted


def test_a_processor_that_gives_more_is_used_for_both(monkeypatch):
    given = Prompts.processed
    monkeypatch.setattr(Prompts, "processed", lambda self, which: {**given(self, which), "image_sizes": None})
    assert not Prompts(embedded(), ASKED).shares


def test_short_rows_are_masked_on_their_left():
    ids, mask = asking._padded([[1, 2, 3], [4]], 9)
    assert (ids.tolist(), mask.tolist()) == ([[1, 2, 3], [9, 9, 4]], [[1, 1, 1], [0, 0, 1]])


def test_pictures_are_shared_by_the_one_class_that_is_known():
    """A class of another package may ask for its features in another way."""
    known = type(embedded().model)
    assert can_share(embedded().model) and not can_share(object.__new__(type("Theirs", (known,), {})))
