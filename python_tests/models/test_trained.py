"""The small trained model of the package: processor and generate unchanged, answers that survive reduction."""

import json

import pytest
import torch
from helpers.models import TRAINED, one_thread  # noqa: F401

import ficoco_ext

pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.skipif(
    not (TRAINED / "model.safetensors").exists(), reason="the trained model is not in the package"
)


@pytest.fixture(scope="module")
def loaded():
    from transformers import (
        CLIPImageProcessorPil,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    model = LlavaForConditionalGeneration.from_pretrained(TRAINED, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TRAINED, padding_side="left")
    pictures = CLIPImageProcessorPil.from_pretrained(TRAINED)  # the other backend wants torchvision
    settings = json.loads((TRAINED / "processor_config.json").read_text())
    known = ("patch_size", "vision_feature_select_strategy", "image_token", "num_additional_image_tokens")
    return model, LlavaProcessor(pictures, tokenizer, **{name: settings[name] for name in known})


@pytest.fixture(scope="module")
def questions():
    return json.loads((TRAINED / "samples" / "questions.json").read_text())


def right(loaded, questions):
    model, processor = loaded
    inputs = processor(
        images=[Image.open(TRAINED / "samples" / question["image"]) for question in questions],
        text=[f"<s> user : <image> {question['question']} assistant :" for question in questions],
        return_tensors="pt",
        padding=True,
    )
    out = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    prompt = inputs["input_ids"].shape[1]
    assert torch.equal(out[:, :prompt], inputs["input_ids"])
    said = processor.batch_decode(out[:, prompt:], skip_special_tokens=True)
    return sum(text.strip() == question["answer"] for text, question in zip(said, questions, strict=True))


def test_answers_survive_reduction(loaded, questions):
    model, _ = loaded
    plain = right(loaded, questions)
    assert plain >= 42 and len(questions) == 48
    scores = {}
    for name, options in {
        "released": {"keep_ratio": 0.5},
        "paper": {"keep_ratio": 0.5, "variant": "paper"},
        "one": {"tokens": 1},
    }.items():
        with ficoco_ext.attach(model, **options) as handle:
            scores[name] = right(loaded, questions)
            assert handle.schedule.layers == (4, 5, 6) and handle.reductions[-1].kept.shape[0] == 48
    assert scores["released"] >= plain - 8 and scores["paper"] >= plain - 8
    assert scores["one"] <= plain - 12  # reduction is really there
    assert right(loaded, questions) == plain


def test_the_processor_may_write_the_short_prompt_itself(loaded, questions):
    model, processor = loaded
    with ficoco_ext.attach(model, tokens=36) as handle:
        whole = right(loaded, questions[:12])
        processor.num_additional_image_tokens = 1 - (handle.schedule.patches - handle.schedule.final)
        try:
            assert right(loaded, questions[:12]) == whole
        finally:
            processor.num_additional_image_tokens = 1


def test_it_holds_no_code_and_no_pickle_and_is_small():
    files = [path for path in TRAINED.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".jinja", ".md", ".png"}
    assert sum(path.stat().st_size for path in files if path.parent == TRAINED) <= 8e6
    config = json.loads((TRAINED / "config.json").read_text())
    assert "auto_map" not in config and config["model_type"] == "llava"
