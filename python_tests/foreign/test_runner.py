"""The runner of transformers' tests: it goes red for what is new and for what is stale, and attaches every model."""

import copy
import io
import tarfile

import pytest
import torch
from helpers.models import answers, tiny_llava

from foreign import modes, tree
from foreign.expected import EXPECTED
from foreign.modes import CLASSES, MODES, Attached
from foreign.outcomes import Expected, Outcome, judge, of_those, without_parameters
from foreign.report import UNMODIFIED, Run, report

PASSED, FAILED, SKIPPED = Outcome("passed"), Outcome("failed", "ValueError: labels"), Outcome("skipped")
ENTRY = Expected(("tower",), ("llava",), ("test_labels",), "Labels are refused.")


def runs(**attached):
    base = {"test_labels": PASSED, "test_shape": PASSED, "test_hub": SKIPPED}
    return [Run(UNMODIFIED, "llava", 0, base), Run("tower", "llava", 3, base | attached)]


def test_a_listed_difference_is_no_fault_and_its_reason_is_printed():
    lines, faults = report(runs(test_labels=FAILED), [ENTRY], "5.24")
    assert faults == []
    assert lines[1].split() == ["llava", "unmodified", "2", "0", "1"]
    assert lines[2].split() == ["llava", "tower", "1", "1", "1", "1", "3"]
    assert lines[3:] == ["", "Labels are refused.", "  llava tower: test_labels"]


def test_a_new_failure_is_a_fault():
    _, faults = report(runs(test_labels=FAILED, test_shape=FAILED), [ENTRY], "5.24")
    assert faults == ["llava tower: test_shape failed: ValueError: labels"]


def test_a_listed_test_that_no_longer_differs_is_a_fault():
    _, faults = report(runs(), [ENTRY], "5.24")
    assert faults == ["llava tower: test_labels is listed and does not differ; take it off the list"]


@pytest.mark.parametrize("field", [{"modes": ("other",)}, {"families": ("qwen2_vl",)}, {"releases": ("5.17", "5.23")}])
def test_an_entry_speaks_of_its_modes_families_and_releases_alone(field):
    entry = Expected(**(vars(ENTRY) | field))
    assert report(runs(), [entry], "5.24")[1] == []
    assert report(runs(test_labels=FAILED), [entry], "5.24")[1] == [
        "llava tower: test_labels failed: ValueError: labels"
    ]


def test_a_test_that_did_not_run_or_was_skipped_differs():
    unmodified, attached = runs(test_shape=SKIPPED)
    del attached.results["test_labels"]
    verdict = judge(unmodified.results, attached.results, [])
    assert {name: one.result for name, one in verdict.unexpected.items()} == {
        "test_labels": "missing",
        "test_shape": "skipped",
    }
    assert "new" in judge({}, {"new": FAILED}, []).unexpected


def test_a_name_stands_for_its_parameters():
    names = ["test_sdpa_00_fp16", "test_sdpa_01_fp32", "test_sdpa"]
    assert {without_parameters(name) for name in names} == {"test_sdpa"}
    assert without_parameters("test_flash_attn_2") == "test_flash_attn"
    base = dict.fromkeys(names[:2], PASSED)
    entry = Expected(("tower",), ("llava",), ("test_sdpa",), "Rounding.")
    verdict = judge(base, base | {"test_sdpa_01_fp32": FAILED}, [entry])
    assert verdict.reasons == {"test_sdpa_01_fp32": "Rounding."} and not verdict.stale and not verdict.unexpected
    assert judge(base, base, [entry]).stale == ("test_sdpa",)


def test_what_random_weights_decide_is_never_stale():
    base, sometimes = {"test_labels": PASSED}, Expected(**vars(ENTRY) | {"always": False})
    assert judge(base, base, [sometimes]).stale == ()
    verdict = judge(base, {"test_labels": FAILED}, [sometimes])
    assert verdict.reasons == {"test_labels": "Labels are refused."} and not verdict.unexpected


def test_where_only_some_tests_ran_the_others_are_not_stale():
    two = Expected(("tower",), ("llava",), ("test_labels", "test_gone", "test_sdpa"), "Refused.")
    [left] = of_those([two], ["test_labels", "test_sdpa_00_fp16"])
    assert left.tests == ("test_labels", "test_sdpa")
    assert judge({"test_labels": PASSED}, {"test_labels": PASSED}, of_those([two], ["test_shape"])).stale == ()


def test_a_run_that_tested_nothing_is_a_fault():
    nothing = [Run(UNMODIFIED, "llava", 0, {}), Run("tower", "llava", 0, {})]
    assert report(nothing, [], "5.24")[1] == ["llava unmodified: no test passed", "llava tower: no model was attached"]


def test_the_list_names_what_there_is():
    assert all(set(entry.modes) <= set(MODES) and set(entry.families) <= set(CLASSES) for entry in EXPECTED)
    for entry in EXPECTED:
        assert entry.reason.endswith(".") and len(entry.reason) <= 160 and "\n" not in entry.reason
        assert all(set(entry.families) & set(MODES[mode][1]) for mode in entry.modes)


def sdist(path, *names):
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(f"transformers-5.24.0/{name}")
            info.size = 4
            archive.addfile(info, io.BytesIO(b"x=1\n"))
    return path


def test_tests_are_unpacked_and_only_what_is_missing_is_made(tmp_path):
    path = sdist(
        tmp_path / "transformers-5.24.0.tar.gz",
        "src/transformers/x.py",
        "tests/test_modeling_common.py",
        "tests/../../outside.py",
    )
    assert tree.version(path) == "5.24.0"
    tests = tree.unpack(path, tmp_path / "out")
    made = {str(file.relative_to(tests)) for file in tests.rglob("*.py")}
    assert made == {"test_modeling_common.py", *tree.STAND_INS}
    assert (tests / "test_modeling_common.py").read_text() == "x=1\n"
    assert not (tmp_path / "outside.py").exists()


def test_what_has_no_model_tests_is_refused(tmp_path):
    with pytest.raises(ValueError, match="test_modeling_common"):
        tree.unpack(sdist(tmp_path / "transformers-5.24.0.tar.gz", "setup.py"), tmp_path / "out")
    with pytest.raises(ValueError, match="transformers-VERSION"):
        tree.version(tmp_path / "transformers-5.24.0-py3-none-any.whl")


@pytest.fixture
def attached(monkeypatch):
    """LLaVA's class as the runner leaves it, with models attached by ``idle_language_model``; undone afterwards."""
    from transformers import LlavaForConditionalGeneration as Llava

    monkeypatch.setattr(Llava, "__init__", Llava.__init__)
    monkeypatch.setattr(Llava, "from_pretrained", vars(Llava).get("from_pretrained", Llava.from_pretrained))
    found = Attached(modes.idle_language_model)
    found.wrap(Llava)
    return found


def test_models_are_attached_once_however_they_are_made(attached, tmp_path):
    model = tiny_llava()
    assert model.ficoco_handle.attached and attached.count == 1
    assert copy.deepcopy(model).ficoco_handle is not model.ficoco_handle
    model.save_pretrained(tmp_path)
    loaded, _ = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.ficoco_handle.attached and attached.count == 2
    assert type(model)._from_config(model.config).ficoco_handle.attached and attached.count == 3


@pytest.mark.parametrize("name", ["idle-language-model", "idle-tower"])
def test_idle_modes_install_hooks_and_change_no_bit(name):
    model = tiny_llava()
    wanted = answers(model)
    MODES[name][0](model)
    handle = model.ficoco_handle
    assert len(handle._changes._changes) > 3
    for got, want in zip(answers(model), wanted, strict=True):
        assert torch.equal(got, want)
    handle.detach()
    assert not hasattr(model, "ficoco_handle")


@pytest.mark.parametrize("name", ["language-model", "tower"])
def test_reducing_modes_remove_tokens(name):
    model = tiny_llava()
    wanted = answers(model)
    MODES[name][0](model)
    assert not any(torch.equal(got, want) for got, want in zip(answers(model)[:1], wanted, strict=False))
    assert model.ficoco_handle.reductions or model.ficoco_handle.decoder_reductions[0]
