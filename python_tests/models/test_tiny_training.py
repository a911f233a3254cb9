"""The training of the embedded model: a cut-off run goes on to the same weights, and what it saves can be loaded."""

import json
import sys

import pytest
from helpers.paths import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def training():
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.tiny_llava import language, model, optim, tower, train
    finally:
        sys.path.remove(str(ROOT))
    return type("Training", (), {"language": language, "model": model, "optim": optim, "tower": tower, "train": train})


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(training, tmp_path, monkeypatch, one_thread):
    train = training.train
    monkeypatch.setattr(training.tower, "BATCH", 2)
    monkeypatch.setattr(train, "_EVERY", 2)
    monkeypatch.setattr(train, "_TELL", 1)
    short = {
        "seed": 3,
        "tower_steps": 4,
        "language_steps": 4,
        "polish_steps": 2,
        "scenes": 20,
        "exam": 20,
        "threads": 1,
        "device": "cpu",
    }
    train.main(tmp_path / "whole", **short)

    class PowerCutError(Exception):
        pass

    for module in (training.tower, training.language):  # once in each stage, in its fourth step

        def cut(*args, loss=module.loss, calls=[]):  # noqa: B006
            calls.append(1)
            if len(calls) == 4:
                raise PowerCutError
            return loss(*args)

        monkeypatch.setattr(module, "loss", cut)
        with pytest.raises(PowerCutError):
            train.main(tmp_path / "cut", **short)
    train.main(tmp_path / "cut", **short)

    whole, cut = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    lines = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("stage") == "tower"] == [1, 2, 3, 3, 4]
    assert set(lines[-1]["accuracy"]) == set(lines[-1]["wrong_picture"])
    with pytest.raises(Exception, match="name a new folder"):
        train.main(tmp_path / "cut", **(short | {"seed": 4}))

    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "cut" / "model", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path / "cut" / "model", backend="pil")
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many shapes ?"}]}
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
    assert prompt == "<s> user : <image> how many shapes ? assistant :"
    size = sum(path.stat().st_size for path in (tmp_path / "cut" / "model").iterdir())
    assert size <= 8e6
    assert sum(p.numel() for p in model.parameters()) > 2.9e6


def test_packed_questions_are_what_each_question_is_alone(training, one_thread):
    language, model = training.language, training.model.build(0)
    torch.set_num_threads(1)
    seen, scenes = language.cache(model, 0, "dev", 2)
    numpy = pytest.importorskip("numpy")
    asked = [language.questions(numpy.random.default_rng(i), scene, 4) for i, scene in enumerate(scenes)]
    packed = language.pack(asked, seen.device)
    with torch.no_grad():
        together = language.answers(model, seen.float(), packed)
        alone = [
            language.answers(model, seen[i : i + 1].float(), language.pack([[one]], seen.device))
            for i, some in enumerate(asked)
            for one in some
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_an_update_of_muon_is_nearly_orthogonal(training):
    torch.manual_seed(0)
    for shape in ((3, 16, 16), (2, 8, 40), (2, 40, 8)):
        values = torch.linalg.svdvals(training.optim.orthogonal(torch.randn(shape)))
        assert values.min() > 0.3 and values.max() < 1.5
