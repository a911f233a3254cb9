"""attach and detach: exact restoration, failures, wrappers, copies."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from helpers.models import (
    PATCHES,
    answers,
    close,
    hooked,
    one_image,
    one_thread,  # noqa: F401
    snapshot,
    tiny_llava,
)

import ficoco_ext
from ficoco_ext import Method, Schedule
from ficoco_ext.stages import Correlate

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():
    return tiny_llava(seed=5)


def test_detach_is_exact(model):
    plain = answers(model)
    before, config = snapshot(model), model.config.to_dict()
    for _ in range(3):
        handle = ficoco_ext.attach(model, keep_ratio=0.25, layers=(0, 2, 4))
        assert not torch.equal(answers(model)[0][:, -1], plain[0][:, -1])
        assert model.config.to_dict() == config
        handle.detach()
        handle.detach()
        assert snapshot(model) == before
        assert all(map(torch.equal, answers(model), plain))


def test_handle(model):
    with ficoco_ext.attach(model, keep_ratio=0.25) as handle:
        assert isinstance(handle.schedule, Schedule) and handle.schedule.final == 9 and handle.attached
        assert "36 -> 9" in repr(handle) and "ficoco-v" in repr(handle)
        assert [method.name for method in handle.methods] == ["ficoco-v"] * 2
        with torch.no_grad():
            model(**one_image())
        records = handle.reductions
    assert not handle.attached and handle.reductions == records and len(records) == 2


def test_the_body_of_a_with_may_fail(model):
    before = snapshot(model)
    with pytest.raises(KeyError), ficoco_ext.attach(model, keep_ratio=0.5):
        raise KeyError
    assert snapshot(model) == before


@pytest.mark.parametrize("where", ["mlp", "self_attn", "language_model"])
def test_an_exception_in_a_forward_leaves_nothing_behind(model, where):
    layer = model.model.vision_tower.encoder.layers[3]
    part = model.model.language_model if where == "language_model" else getattr(layer, where)
    plain = answers(model)
    before = snapshot(model)
    with ficoco_ext.attach(model, r=6, layers=(2, 3, 4)) as handle:
        reduced = answers(model)

        def fail(*_):
            raise RuntimeError("broken on purpose")

        hook = part.register_forward_pre_hook(fail)
        for call in (model, model.generate):
            with pytest.raises(RuntimeError, match="on purpose"), torch.no_grad():
                call(**one_image(seed=8))
        hook.remove()
        assert where == "language_model" or handle.reductions == ()
        assert all(map(torch.equal, answers(model), reduced)) and len(handle.reductions) == 3
        hook = part.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="on purpose"), torch.no_grad():
            model(**one_image())
        hook.remove()
    assert snapshot(model) == before and all(map(torch.equal, answers(model), plain))


def unhooked(model):
    from accelerate.hooks import remove_hook_from_module

    return remove_hook_from_module(model, recurse=True)


def test_accelerate_before_attach(model):
    plain = answers(model)
    with ficoco_ext.attach(model, keep_ratio=0.25) as handle:
        reduced = answers(model)
    wrapped = hooked(copy.deepcopy(model))
    before = snapshot(wrapped)
    with ficoco_ext.attach(wrapped, keep_ratio=0.25) as handle:
        assert all(map(torch.equal, answers(wrapped), reduced)) and len(handle.reductions) == 2
    assert snapshot(wrapped) == before and all(map(torch.equal, answers(wrapped), plain))


@pytest.mark.parametrize("unwrap_first", [True, False])
def test_accelerate_after_attach(model, unwrap_first):
    plain, other = answers(model), copy.deepcopy(model)
    handle = ficoco_ext.attach(other, keep_ratio=0.25)
    reduced = answers(other)
    hooked(other)
    assert all(map(torch.equal, answers(other), reduced))
    for step in (unhooked, lambda _: handle.detach())[:: 1 if unwrap_first else -1]:
        step(other)
    assert all(map(torch.equal, answers(other), plain))
    ficoco_ext.attach(other, keep_ratio=0.25).detach()


def test_accelerate_unwrapped_while_attached(model):
    plain, other = answers(model), hooked(copy.deepcopy(model))
    handle = ficoco_ext.attach(other, keep_ratio=0.25)
    unhooked(other)
    assert not torch.equal(answers(other)[0][:, -1], plain[0][:, -1])
    handle.detach()
    assert all(map(torch.equal, answers(other), plain))


def test_a_deep_copy_is_attached_by_itself(model):
    plain = answers(model)
    with ficoco_ext.attach(model, keep_ratio=0.25) as handle:
        reduced = answers(model)
        other = copy.deepcopy(model)
        assert all(map(torch.equal, answers(other), reduced))
        with torch.no_grad():
            for weight in other.parameters():
                weight.mul_(0.5)
        changed = answers(other)
        assert not torch.equal(changed[0], reduced[0])  # it runs its own weights
        assert all(map(torch.equal, answers(model), reduced))
        assert other.ficoco_handle is not handle
        other.ficoco_handle.detach()
        assert answers(other)[1].shape[0] == PATCHES and not hasattr(other, "ficoco_handle")
        assert all(map(torch.equal, answers(model), reduced))
    assert all(map(torch.equal, answers(model), plain))


def test_a_pickled_model_is_attached_too():
    model = tiny_llava(seed=5)  # transformers' own capture hooks, installed by a first forward, cannot be pickled
    with ficoco_ext.attach(model, keep_ratio=0.25):
        other = pickle.loads(pickle.dumps(model))
        reduced = answers(model)
    assert all(map(torch.equal, answers(other), reduced))


def test_saved_model_knows_nothing(model, tmp_path):
    with ficoco_ext.attach(model, keep_ratio=0.25):
        model.save_pretrained(tmp_path)
    assert not any("ficoco" in path.read_text(errors="ignore") for path in tmp_path.iterdir() if path.suffix == ".json")
    loaded = type(model).from_pretrained(tmp_path)
    loaded.generation_config = model.generation_config
    assert all(map(torch.equal, answers(loaded.eval()), answers(model)))


def test_detach_refuses_if_it_cannot_be_exact(model):
    handle = ficoco_ext.attach(model, keep_ratio=0.25)
    ours = model.generate
    model.generate = lambda **options: ours(**options)
    with pytest.raises(RuntimeError, match=r"detach: generate of LlavaForConditionalGeneration was replaced"):
        handle.detach()
    assert handle.attached and hasattr(model, "ficoco_handle")
    model.generate = ours
    handle.detach()


def test_a_stage_of_ones_own_need_not_know_its_targets(model):
    class Nowhere(Correlate):
        def count(self, candidates):
            return None

        def __call__(self, attn, selection, *, class_token):
            return Correlate(targets=0)(attn, selection, class_token=class_token)

    base = ficoco_ext.get_method("ficoco-v")
    mine = Method("mine", base.filter, Nowhere(), base.compress)
    with ficoco_ext.attach(model, mine, keep_ratio=0.25), torch.no_grad():
        pruned = answers(model)
    with ficoco_ext.attach(model, "ficoco-v", targets=0, keep_ratio=0.25), torch.no_grad():
        assert close(answers(model)[1], pruned[1])


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_does_not_import_transformers():
    assert run("import sys, ficoco_ext, ficoco_ext.models; assert 'transformers' not in sys.modules").returncode == 0
