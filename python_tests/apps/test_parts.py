"""Parts of the applications by themselves, without a model: what is asked, counted, timed and refused."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.pictures import reduction

from ficoco_ext import Schedule, get_method
from ficoco_ext.apps import (
    attention_maps,
    checkpoint,
    demo,
    layer_tokens,
    loading,
    machine,
    one_reduction,
    operator_cases,
    questions,
    show,
    show_request,
    timing,
    word_spans,
)
from ficoco_ext.cost.flop_counter import Flops
from ficoco_ext.viz import page

NO_FLOPS = Flops(1, 1, 0, 0, 0, 0)


def _prefill(runs):
    return timing.MeasuredPrefill(1, 1, (1,), NO_FLOPS, sorted(runs)[len(runs) // 2], tuple(runs))


# ---- what is asked for


def test_a_colon_may_be_a_word():
    assert attention_maps.parse("word:a:b") == ("a:b", None)
    assert attention_maps.parse("word:a:b:3") == ("a:b", 3)


def test_a_word_is_found_in_capitals_too():
    spans = word_spans.WordSpans((), {"circle": (3, 4)})
    assert attention_maps._word("Circle", spans) == (3, 4)
    with pytest.raises(ValueError, match="the question has no word 'star'; it has circle"):
        attention_maps._word("star", spans)


def test_requests_are_checked_without_a_model():
    given = {"methods": ("topk", "ficoco-v", "fastv"), "layers": {"": (1,), "fastv": (2,)}}
    request = show_request.Request(
        "x", output=Path("o.html"), keep_ratios=(0.1, 0.5), hyperparameters={"lam": 1}, **given
    )
    task = show_request.checked(request)
    assert task.ratios == (0.5, 0.1)
    assert task.options == {
        "topk": {"layers": (1,)},
        "ficoco-v": {"layers": (1,), "lam": 1},
        "fastv": {"layers": (2,)},
    }
    assert show_request.checked(show_request.Request("x", attention=("class:3",))).attention == ((None, 3),)


def test_a_patch_is_on_the_grid():
    assert show_request.patch_of((1, 2), (4, 5)) == show_request.patch_of(7, (4, 5)) == 7
    for wrong in ((0, 5), (4, 0), (1, -1), 20, -1):
        with pytest.raises(ValueError, match=r"trace must be a patch of the grid of 4 x 5: ROW,COLUMN up to 3,4, or"):
            show_request.patch_of(wrong, (4, 5))


def test_precision_without_a_name_goes_by_the_device():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert checkpoint.parse_dtype(None, cpu) == torch.float32
    assert checkpoint.parse_dtype(None, cuda) == torch.bfloat16
    assert checkpoint.parse_dtype("float16", cpu) == checkpoint.parse_dtype("float16", cuda) == torch.float16


def test_a_scene_is_meant_by_its_bare_name_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = checkpoint.SCENES / "scene_4.png"
    assert checkpoint.find_image("scene_4") == checkpoint.find_image("scene_4.png") == scene
    for path in ("pictures/scene_4.png", "/nowhere/scene_4"):
        with pytest.raises(FileNotFoundError, match=f"image not found: {path}"):
            checkpoint.find_image(path)
    (tmp_path / "scene_4").write_text("")
    assert checkpoint.find_image("scene_4") == Path("scene_4")  # a file of the user comes first


def test_capitals_that_are_words_stay():
    words = {word: index for index, word in enumerate(("A", "B", "what", "word", "?", ":"))}
    processor = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: words))
    asked = "What word? A: Taxi B: zoo"
    assert checkpoint.Checkpoint(None, processor, "x", True).spelled(asked) == "what word ? A : taxi B : zoo"
    assert checkpoint.Checkpoint(None, processor, "x", False).spelled(asked) == asked


# ---- what a checkpoint must hold


def test_weights_are_named_once_for_all_layers():
    keys = ["a.10.w", "a.2.w", "a.11.w", "b.0.1.w", "c"]
    assert loading._names(keys) == "a.*.w (3 of them), b.*.*.w, c"


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ({"missing_keys": {"x.0.w"}}, r"missing, so they would be drawn at random: x\.\*\.w"),
        ({"unexpected_keys": {"stray"}}, "unexpected, so they would be left out: stray"),
        ({"mismatched_keys": [("w", (2, 3), (3, 3))]}, r"of another shape: w is \(2, 3\) and should be \(3, 3\)"),
        ({"error_msgs": ["a line of theirs"]}, "a line of theirs"),
    ],
)
def test_what_does_not_fit_is_said_of_every_kind(report, said):
    with pytest.raises(ValueError, match=f"the weights of mine are not those of its config: {said}"):
        loading.require_weights(report, "mine")
    loading.require_weights({name: [] for name in report}, "mine")


def test_every_token_needs_a_row():
    def given(largest):
        words = {"a": 0, "<image>": 1, "b": largest}
        tokenizer = SimpleNamespace(get_vocab=lambda: words, convert_tokens_to_ids=words.get)
        facts = {"image_token": "<image>", "patch_size": 14, "vision_feature_select_strategy": "default"}
        return SimpleNamespace(tokenizer=tokenizer, image_processor=object(), **facts)

    config = SimpleNamespace(
        image_token_id=1,
        vision_config=SimpleNamespace(patch_size=14),
        vision_feature_select_strategy="default",
        text_config=SimpleNamespace(vocab_size=8),
    )
    loading.require_processor(given(7), config, "mine")
    with pytest.raises(ValueError, match="tokens up to 8, and its config has a vocab_size of 8"):
        loading.require_processor(given(8), config, "mine")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (MemoryError("no room"), MemoryError, r"\Ano room\Z"),
        (FileNotFoundError("x"), FileNotFoundError, "cannot load the weights of mine: x"),
        (PermissionError("x"), OSError, "cannot load the weights of mine: x"),
        (KeyError("x"), ValueError, "cannot load the weights of mine: 'x'"),
    ],
)
def test_errors_keep_their_kind(error, kind, said):
    with pytest.raises(kind, match=said), loading.reading("weights", "mine"):
        raise error


# ---- what was done


def test_a_method_has_its_own_amount():
    assert demo.default_amount("ficoco-v", {}) == {"keep_ratio": 0.25}
    for name in ("fastv", "fast"):
        assert demo.default_amount(name, {}) == dict(get_method(name).amount) != {"keep_ratio": 0.25}


def test_the_verdict_counts_the_pairs_that_were_faster():
    kernels = machine.Platform("cpu", "float32", 2, "2", "kernels", None)
    said = demo._verdict((_prefill([2.0] * 5), _prefill([1.0] * 4 + [3.0])), kernels, tiny=False)
    assert "faster in 4 of 5 pairs" in said


def test_a_staircase_of_the_language_model():
    vision = (layer_tokens.LayerTokens(0, 144, 0, 144), layer_tokens.LayerTokens(1, 144, 44, 100))
    stairs = layer_tokens.Staircase(144, vision, 4, Schedule(100, (1, 2), (10, 0)), 100)
    assert (stairs.vision_removes, stairs.text_removes) == ((1,), (1,))
    found = stairs.text_tokens((9, 9, 9, 9), (9, 8, 7, 7))
    assert [(one.layer, one.attention, one.removed, one.mlp) for one in found] == [
        (0, 100, 0, 100),
        (1, 100, 10, 90),
        (2, 90, 0, 90),
        (3, 90, 0, 90),
    ]
    assert [(one.kv_bytes_all, one.kv_bytes) for one in found] == [(9, 9), (9, 8), (9, 7), (9, 7)]
    plain = layer_tokens.Staircase(144, vision, 2, None, 100)
    assert plain.text_removes == () and [one.mlp for one in plain.text_tokens((1, 1), (1, 1))] == [100, 100]


def test_a_staircase_with_tokens_that_leave_after_the_projector():
    vision = (layer_tokens.LayerTokens(0, 144, 0, 144), layer_tokens.LayerTokens(1, 144, 44, 100))
    stairs = layer_tokens.Staircase(144, vision, 2, Schedule(30, (1,), (10,)), 30, 100)
    assert stairs.steps == (("vision", 1), ("projector", 0), ("text", 1)) and stairs.kept == 30
    assert [(one.attention, one.mlp) for one in stairs.text_tokens((9, 9), (9, 9))] == [(30, 30), (30, 20)]
    plain = layer_tokens.Staircase(144, vision, 2, None, 101)  # with a class token
    assert plain.steps == (("vision", 1),) and plain.kept == 100
    assert [layer_tokens.step_name(*step) for step in stairs.steps] == ["vision layer 1", "projector", "text layer 1"]


def test_layers_for_all_go_to_methods_that_act_in_layers():
    request = show.Request("x", methods=("topk", "divprune", "divprune+fastv"), layers={"": (2, 3)})
    assert {name: one["layers"] for name, one in show.checked(request).options.items()} == {
        "topk": (2, 3),
        "divprune": None,
        "divprune+fastv": (2, 3),
    }
    with pytest.raises(ValueError, match=r"or several joined by '.', got 'divprune.nope'"):
        show.checked(show.Request("x", methods=("divprune+nope",)))


def test_a_platform_says_why_there_are_no_kernels(monkeypatch):
    info = {"cpu": "kernels", "cuda": "reference", "reasons": {"cpu": "of old", "cuda": "none"}}
    monkeypatch.setattr(machine, "build_info", lambda: info)
    model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
    found = machine.platform_of(model)
    assert (found.device, found.dtype, found.operators, found.reason) == ("cpu", "bfloat16", "kernels", None)
    info["cpu"] = "reference"
    assert machine.platform_of(model).reason == "of old"


def test_a_quarter_of_what_may_leave():
    def r(tokens, **given):
        return one_reduction._arguments(one_reduction.Request(**given), tokens)["r"]

    assert r(16) == 3  # of 15: the class token stays
    assert r(16, class_token=False) == 4
    assert r(16, method="fastv") == 3 and r(16, method="fastv", visual=(1, 8)) == 2
    assert r(16, r=5) == 5


def test_lost_tokens_are_noticed():
    def kept(*sizes):
        record = SimpleNamespace(source_map=torch.tensor([[0, 0, -1, 1]]), size=torch.tensor([sizes])[..., None])
        return one_reduction.conservation(record)

    assert kept(2.0, 1.0) == one_reduction.Conservation(3.0, 3.0, 1, True)
    assert kept(2.0, 1.0001).ok and not kept(2.0, 0.5).ok and not kept(2.0, 1.5).ok


def test_each_question_is_asked_with_all_tokens_and_with_few():
    inside = []

    @contextlib.contextmanager
    def attached():
        inside.append(None)
        yield
        inside.clear()

    answer = lambda image, question, length: f"{'few' if inside else 'all'} {image} {length}"  # noqa: E731
    steps = []
    asked = [("a", questions.Question("x ?", "kind", "all a 3")), ("b", questions.Question("y ?"))]
    fake = SimpleNamespace(answer=answer, embedded=True)
    found = questions.ask(fake, attached, asked, 3, lambda *counts: steps.append(counts))
    assert found == [
        questions.Answer("x ?", "kind", "all a 3", "all a 3", "few a 3", True, False),
        questions.Answer("y ?", "free", None, "all b 3", "few b 3", None, None),
    ]
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4)] and not inside


def test_samples_are_counted_on_their_side(monkeypatch):
    verdicts = [(True, True), (True, None), (False, None), (True, False), (None, False)]
    found = [questions.Answer("", "", "", "", "", full, few) for full, few in verdicts]
    monkeypatch.setattr(questions, "ask", lambda *given: found)
    assert questions.ask_all_samples(None, None, 1) == questions.Samples(5, 3, 1, 1, 2)


def test_what_the_first_patch_holds_is_merged():
    stairs = layer_tokens.Staircase(6, (layer_tokens.LayerTokens(0, 6, 3, 3),), 1, None, 3)
    case = show._Case("mine", 0.5, {"keep_ratio": 0.5, "layers": None, "lam": 1}, stairs)
    found = show._result(case, [reduction(((4, 0), (5, 0), (2, -1)), (0, 1, 3))], 4, page.Answer("yes", True))
    assert found.layers == (show.Layer("vision", 0, merged=2, dropped=1, left=3),)
    assert (found.left, found.merged, found.dropped, found.kept) == (3, 2, 1, (0, 1, 3))
    assert found.holders == (0, 1, -1, 3, 0, 0) and found.hyperparameters == {"lam": 1}
    assert found.trace.shares == {0: 1.0} and found.trace.steps[0].layer == "vision layer 0"


def test_a_method_that_is_refused_everywhere_is_an_error(monkeypatch):
    def case(model, name, ratio, given, *picture):
        if name == "never" or ratio < given["least"]:
            raise ValueError(f"{name}: r must be at most 3")
        return name, ratio

    monkeypatch.setattr(show, "_case", case)
    task = show_request.Task((0.5, 0.1), {"tome": {"least": 0.3}, "topk": {"least": 0.0}}, ())
    cases, refused = show._cases(None, task, None, {}, several=True)
    assert cases == [("tome", 0.5), ("topk", 0.5), ("topk", 0.1)]
    assert refused == [show.Refused("tome", 0.1, "r must be at most 3")]
    with pytest.raises(ValueError, match="tome: r must be"):
        show._cases(None, task, None, {}, several=False)
    with pytest.raises(ValueError, match="never: r must be"):
        show._cases(None, show_request.Task((0.5, 0.1), {"never": {}}, ()), None, {}, several=True)


def test_a_written_reduction_says_what_it_is_of(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    one_reduction.save(reduction(tokens=torch.ones(1, 4, 8)), tmp_path / "out", {"method": "mine"})
    with safetensors.safe_open(tmp_path / "out", "pt") as file:
        assert file.metadata() == {"method": "mine", "class_token": "False", "grid": "2,3"}
        assert file.get_tensor("kept").tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("begins", "bos", "added"), [("<s>", "<s>", False), ("", "<s>", True), ("", None, True), ("<s>", None, True)]
)
def test_a_prompt_begins_once(begins, bos, added):
    """A template may write the token that begins a text, which most tokenizers put there too."""
    asked = {}

    class Batch(dict):
        def to(self, *given):
            return self

    class Processor:
        chat_template, image_token, tokenizer = "theirs", "<image>", SimpleNamespace(bos_token=bos)

        def apply_chat_template(self, turns, add_generation_prompt):
            return f"{begins}<image>{turns[0]['content'][1]['text']}"

        def __call__(self, **given):
            asked.update(given)
            return Batch()

    model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    checkpoint.Checkpoint(model, Processor(), "theirs", False).inputs(torch.zeros(4, 4), "why ?")
    assert (asked["text"], asked["add_special_tokens"]) == (f"{begins}<image>why ?", added)


def test_attention_of_the_class_token_is_where_the_last_layer_reduces(monkeypatch):
    seen = []
    values = torch.tensor([[0.25, 0.5]])
    monkeypatch.setattr(attention_maps, "class_attention", lambda model, pixels, layer: seen.append(layer) or values)
    shape, who = SimpleNamespace(used=7, extra=0), SimpleNamespace(model=None)

    def found(reducing, layer=None):
        given = (
            who,
            {"pixel_values": torch.zeros(1, 3, 2, 2)},
            "why ?",
            shape,
            reducing,
            None,
            layer,
            lambda *words: None,
        )
        return attention_maps.attention_map(*given)

    assert found([3, 5, 4]) == attention_maps.AttentionMap("class token", "vision", 5, 0.75, (0.25, 0.5))
    assert (found([]).layer, found([3, 5], layer=2).layer) == (6, 2)
    assert seen == [5, 6, 2]


@pytest.mark.parametrize("name", ["compress", "attention_stats", "reduce"])
def test_what_is_wanted_of_an_operator_is_computed_in_double_precision(name):
    for probe in operator_cases.probes(operator_cases.SMALL[0], torch.float16, torch.device("cpu"), name):
        assert {one.dtype for one in probe.wanted() if one.is_floating_point()} == {torch.float64}


def test_words_that_touch_have_tokens_of_their_own():
    class Tokenizer:
        is_fast, bos_token = True, None

        def __call__(self, text, **how):
            assert text == "<image>red?"
            return {"input_ids": [9, 1, 2], "offset_mapping": [(0, 7), (7, 10), (10, 11)]}

    theirs = SimpleNamespace(
        prompt=lambda question: f"<image>{question}",
        processor=SimpleNamespace(tokenizer=Tokenizer()),
        model=SimpleNamespace(config=SimpleNamespace(image_token_id=9)),
    )
    found = word_spans.find_words(theirs, {"input_ids": torch.tensor([[9, 9, 9, 1, 2]])}, "red?")
    assert found == word_spans.WordSpans((0, 1, 2), {"red": (3,), "?": (4,)})
    with pytest.raises(ValueError, match="cannot be found in the model's prompt as it is"):
        word_spans.find_words(theirs, {"input_ids": torch.tensor([[9, 9, 9, 2, 2]])}, "red?")
