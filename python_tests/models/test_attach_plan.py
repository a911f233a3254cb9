"""The plan of attach: a value, made without touching the model, with the same rules as the cost model's schedules."""

from __future__ import annotations

import dataclasses
import pickle
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers.families import tiny_next, tiny_qwen, tiny_siglip
from helpers.models import (
    PATCHES,
    one_thread,  # noqa: F401
    snapshot,
    tiny_llava,
)

import ficoco_ext
from ficoco_ext import cost, get_method
from ficoco_ext.cost import schedules
from ficoco_ext.methods import Combined
from ficoco_ext.models import AttachPlan, resolve
from ficoco_ext.models.families import FAMILIES, LANGUAGE_MODELS

pytest.importorskip("transformers")

BOTH = Combined.of(get_method("topk"), get_method("fastv"))


@pytest.fixture(scope="module")
def model():
    return tiny_llava(seed=5)


@pytest.fixture(scope="module")
def deep():
    """Twelve layers in the tower, of which eleven are used."""
    return tiny_llava(seed=5, layers=12)


def test_what_is_planned_is_what_is_attached(model):
    plan = resolve(model, "ficoco-vl", keep_ratio=0.25)
    with ficoco_ext.attach(model, "ficoco-vl", keep_ratio=0.25) as handle:
        assert handle.attach_plan == plan and hash(handle.attach_plan) == hash(plan)
        assert (handle.schedule, handle.methods) == (plan.schedule, plan.methods)
        assert (handle.plan, handle.decoder_methods) == (plan.plan, plan.decoder_methods)
        wrapped = [
            index for index, layer in enumerate(model.model.vision_tower.encoder.layers) if "forward" in vars(layer)
        ]
        assert tuple(wrapped) == plan.schedule.layers
    assert handle.attach_plan == plan  # also after detach
    assert plan != resolve(model, "ficoco-vl", keep_ratio=0.3)


def test_resolve_does_not_touch_the_model(model):
    before = snapshot(model)
    for method, given in (("ficoco-vl", {"keep_ratio": 0.25}), ("tome", {"r": 4}), ("fastv", {"static_counts": True})):
        resolve(model, method, **given)
    assert snapshot(model) == before and not hasattr(model, "ficoco_handle")


def test_a_plan_is_a_value(model):
    plan = resolve(model, "ficoco-vl", keep_ratio=0.25)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.static_counts = True
    assert pickle.loads(pickle.dumps(plan)) == plan
    seen, left = [], [plan]
    while left:
        one = left.pop()
        assert not isinstance(one, (torch.nn.Module, torch.Tensor))
        seen.append(one)
        if dataclasses.is_dataclass(one):
            left += [getattr(one, field.name) for field in dataclasses.fields(one)]
        elif isinstance(one, tuple):
            left += one
    assert len(seen) > 40


def test_a_plan_prints_both_staircases_with_their_methods(model):
    plan = resolve(model, "ficoco-vl", keep_ratio=0.25)
    assert str(plan).splitlines() == [
        "LLaVA-1.5: 6 x 6 = 36 patches of an image, 6 layers in the vision tower (5 used), 3 layers in the language "
        "model",
        "vision tower, for every image:",
        "  layer   3:    36 -    9 =    27  ficoco-v",
        "  layer   4:    27 -    9 =    18  ficoco-v",
        "  18 of 36 patches left (keep ratio 0.500)",
        "language model, for a prompt with one image:",
        "  layer   1:    18 -    5 =    13  ficoco-l",
        "  layer   2:    13 -    4 =     9  ficoco-l",
        "  9 of 18 visual tokens left (keep ratio 0.500)",
    ]
    wanted = "<AttachPlan for LLaVA-1.5: ficoco-v, 36 -> 18 patches; ficoco-l in 2 layers of the language model>"
    assert repr(plan) == wanted
    mixed = str(resolve(model, ["topk", "tome"], layers=(1, 3), r=(4, 5)))
    assert re.search(r"layer +1: +36 - +4 = +32  topk\n.*layer +3: +32 - +5 = +27  tome\n", mixed)


def test_a_plan_says_what_is_left_alone_and_why(model):
    tower = "the vision tower is left alone: "
    assert resolve(model, "fastv").left_alone == (tower + "the method has no part in it",)
    nothing = resolve(model, "topk", r=0)
    assert nothing.left_alone[0] == tower + "nothing is to be removed" and len(nothing.left_alone) == 2
    assert str(nothing).splitlines()[1:] == list(nothing.left_alone)
    assert resolve(model, "ficoco-vl", keep_ratio=0.25).left_alone == ()


def test_facts_of_the_model(model):
    plan = resolve(model, "ficoco-l", keep_ratio=0.5, static_counts=True)
    assert plan.facts.family == "LLaVA-1.5" and plan.facts.tower.grid == (6, 6) and plan.facts.tower.used == 5
    assert (plan.per_image, plan.picture, plan.static_counts) == (PATCHES, (6, 6), True)
    assert "all rows of a prompt are promised to have equally many visual tokens" in str(plan)
    both = resolve(model, "ficoco-vl", keep_ratio=0.25)
    assert (both.per_image, both.picture) == (18, None)
    full = resolve(tiny_llava(strategy="full"), "ficoco-l", keep_ratio=0.5)
    assert (full.per_image, full.picture) == (PATCHES + 1, None) and "and its class token" in str(full)
    for make in (tiny_next, tiny_qwen):
        other = resolve(make(), "ficoco-l", r=3, static_counts=24)
        assert (other.facts.tower is None) == (other.facts.crops is None) == (make is tiny_qwen)
        assert other.per_image is None and other.picture is None
        assert "for a prompt with 576 visual tokens, as an example" in str(other)
        assert "promised to have 24 visual tokens" in str(other)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"method": "tome", "r": 30}, ValueError),
        ({"method": "ficoco-v", "keep_ratio": 0.5, "layers": (5,)}, ValueError),
        ({"method": "ficoco-v", "keep_ratio": 0.5, "layers": 3}, TypeError),
        ({"method": "ficoco-vl", "r": 3}, ValueError),
        ({"method": "nope", "r": 3}, ValueError),
        ({"method": "fastv", "static_counts": 0}, TypeError),
        ({"method": "topk", "keep_ratio": 0.5, "static_counts": True}, ValueError),
    ],
)
def test_resolve_refuses_what_attach_refuses(model, given, error):
    before = snapshot(model)
    with pytest.raises(error) as planned:
        resolve(model, **given)
    with pytest.raises(error) as attached:
        ficoco_ext.attach(model, **given)
    assert str(planned.value) == str(attached.value)
    assert snapshot(model) == before


def test_resolve_refuses_an_attached_model(model):
    with ficoco_ext.attach(model, "fastv"), pytest.raises(ValueError, match="model must be one without reduction"):
        resolve(model, "fastv")


def test_the_warning_about_an_untested_release_names_the_caller_of_both(model, monkeypatch):
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.99.0")
    for call in (resolve, ficoco_ext.attach):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            made = call(model, "fastv")
        if call is ficoco_ext.attach:
            made.detach()
        assert [one.filename for one in found if "5.99.0" in str(one.message)] == [__file__]


SPECIFICATIONS = [
    ("ficoco-v", {"keep_ratio": 0.5}),
    ("ficoco-v", {"tokens": 9}),
    ("ficoco-v", {"r": 3, "layers": (0, 4, 9)}),
    ("ficoco-v", {"r": [1, 2, 3], "layers": [8, 9, 10]}),
    ("tome", {"keep_ratio": 0.4}),
    ("tome", {"r": 2}),
    ("prune-then-merge", {"keep_ratio": 0.1}),
    ("prune-then-merge", {"tokens": 7, "layers": range(2, 8)}),
    ("balanced", {}),
    ("quality", {"tokens": 20}),
    ("topk", {"keep_ratio": [0.8, 0.3], "layers": (3, 5)}),
    ("evit", {"keep_ratio": 0.6}),
    ("pool", {"keep_ratio": 0.25}),
    ("pool", {"tokens": 9, "layers": (4,)}),
    ("prumerge", {"keep_ratio": 0.25}),
    ("random", {"r": 1}),
    ("ficoco-l", {"keep_ratio": 0.3}),
    ("ficoco-l", {"r": 40}),
    ("ficoco-l", {"tokens": 5, "layers": (1, 2)}),
    ("fastv", {}),
    ("fastv", {"keep_ratio": 0.7}),
    ("pyramiddrop", {"keep_ratio": 0.3, "layers": (1, 2)}),
    ("pyramiddrop", {"r": 3}),
    ("ficoco-vl", {"keep_ratio": 0.25}),
    ("ficoco-vl", {"tokens": 5}),
    (BOTH, {"keep_ratio": 0.35}),
    ("divprune", {"keep_ratio": 0.3}),
    ("divprune", {"tokens": 9}),
    ("scope", {"tokens": lambda grid: 2 * grid[0]}),
    ("divprune+ficoco-l", {"keep_ratio": 0.35}),
    ("divprune+fastv", {"tokens": 7}),
    ("topk+divprune", {"keep_ratio": 0.2}),
    ("tome+stride", {"tokens": 10}),
    ("topk+divprune+pyramiddrop", {"keep_ratio": 0.1}),
    ("topk+stride+ficoco-l", {"tokens": 5}),
]


@pytest.mark.parametrize(("method", "given"), SPECIFICATIONS)
@pytest.mark.parametrize("images", [1, 3])
def test_cost_makes_the_schedules_of_attach(deep, method, given, images):
    plan = resolve(deep, method, **given)
    vision, projector, decoder = schedules.build(
        cost.architecture(deep.config), get_method(method), images=images, **{**given, **_tuples(given)}
    )
    assert vision == plan.schedule
    assert (projector is None) == (plan.projector is None)
    if projector is not None:
        assert projector == plan.per_image < PATCHES
    assert (decoder is None) == (plan.plan is None)
    if plan.plan is not None:
        assert decoder == plan.plan.schedule(images * plan.per_image)
    assert projector or any(one is not None and sum(one.r) > 0 for one in (vision, decoder))


def _tuples(given):
    return {name: tuple(value) for name, value in given.items() if isinstance(value, list)}


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("ficoco-v", {"keep_ratio": 0.5, "layers": (11,)}),
        ("ficoco-v", {"keep_ratio": 0.5, "layers": ()}),
        ("ficoco-v", {"keep_ratio": 0.5, "layers": (3, 2)}),
        ("ficoco-v", {"keep_ratio": 0.5, "layers": 3}),
        ("ficoco-v", {"keep_ratio": 0.5, "layers": (True,)}),
        ("ficoco-v", {"keep_ratio": 2.0}),
        ("ficoco-v", {}),
        ("tome", {"tokens": 3, "layers": (4,)}),
        ("pool", {"r": 4, "layers": (3, 4)}),
        ("ficoco-v", {"keep_ratio": 0.25, "targets": 30}),
        ("ficoco-l", {"keep_ratio": 0.5, "layers": (3,)}),
        ("pyramiddrop", {"r": 1, "layers": (0, 1)}),
        ("fastv", {"keep_ratio": 0.5, "layers": (0,)}),
        ("ficoco-vl", {"r": 3}),
        ("ficoco-vl", {"keep_ratio": 0.5, "layers": (1,)}),
        ("ficoco-l", {"r": "x"}),
        ("divprune", {}),
        ("divprune", {"r": 3}),
        ("divprune", {"keep_ratio": 0.5, "layers": (1,)}),
        ("divprune", {"keep_ratio": [0.5, 0.2]}),
        ("divprune", {"tokens": 0}),
        ("divprune+fastv", {"r": 3}),
        ("topk+divprune+fastv", {"keep_ratio": 0.5, "layers": (1,)}),
    ],
)
def test_cost_refuses_what_attach_refuses_in_the_same_words(deep, method, given):
    hyperparameters = {name: given[name] for name in ("targets",) if name in given}
    amount = {name: value for name, value in given.items() if name not in hyperparameters}
    with pytest.raises((ValueError, TypeError)) as attached:
        resolve(deep, method, **given)
    with pytest.raises(type(attached.value)) as priced:
        schedules.build(cost.architecture(deep.config), get_method(method, **hyperparameters), **amount)
    assert str(priced.value) == str(attached.value).replace("ficoco::attach", "ficoco::cost")


def test_a_served_model_is_declared_in_one_file():
    """To add one, families.py is edited: no other file of models/ names its classes.

    What its tower looks at is declared apart, by the name of the family.
    """
    names = {name for family in FAMILIES for name in (family.model, family.inner, family.name)}
    names |= {name for one in LANGUAGE_MODELS.values() for name in (one.model, one.layer)}
    folder = Path(ficoco_ext.models.__file__).parent
    found = {}
    for path in folder.glob("*.py"):
        code = re.sub(r'"""(?:.|\n)*?"""', "", path.read_text())
        found[path.name] = sorted(name for name in names if re.search(rf'["\'.]{re.escape(name)}\b', code))
    assert {name for name, spelled in found.items() if spelled} == {"families.py", "tower_families.py"}
    assert set(found["tower_families.py"]) <= {family.name for family in FAMILIES}
    assert len(found["families.py"]) == len(names)


def test_public_names():
    assert isinstance(resolve(tiny_llava(), "fastv"), AttachPlan)
    assert {"AttachPlan", "Handle", "attach", "resolve", "template_ids"} == set(ficoco_ext.models.__all__)


@pytest.mark.parametrize(("r", "refused"), [((0, 5), False), ((5, 0), True), ((5, 5), True)])
def test_a_kernel_must_take_a_bias_only_where_something_is_merged(model, r, refused):
    """Of two methods the first has proportional attention."""
    config = model.model.vision_tower.config
    config._attn_implementation_internal = "flash_attention_2"
    try:
        if refused:
            with pytest.raises(NotImplementedError, match="must be sdpa or eager for proportional attention"):
                resolve(model, ["tome", "topk"], r=r, layers=(1, 3))
        else:
            assert resolve(model, ["tome", "topk"], r=r, layers=(1, 3)).schedule.r == r
    finally:
        config._attn_implementation_internal = "sdpa"


def test_facts_of_a_model_whose_tower_cannot_be_reduced():
    """Its images need not have the grid of a CLIP tower, so nothing is said of them."""
    for model in (tiny_llava(feature_layer=[-2, -3]), tiny_siglip(strategy="default")):
        plan = resolve(model, "ficoco-l", keep_ratio=0.5)
        assert (plan.facts.tower, plan.facts.tower_attention, plan.per_image, plan.picture) == (None, "", None, None)
        assert "the number of visual tokens depends on the image" in str(plan)


def test_hyperparameters_reach_every_method_of_a_list(model):
    plan = resolve(model, ["ficoco-v", "ficoco-v"], r=3, layers=(1, 3), lam=0.2)
    assert plan.methods == (get_method("ficoco-v", lam=0.2),) * 2


def test_two_parts_may_name_their_amount(model):
    """It counts where none is given, for attach and for the cost model."""
    named = dataclasses.replace(BOTH, amount=(("keep_ratio", 0.25),))
    wanted = resolve(model, BOTH, keep_ratio=0.25)
    assert (resolve(model, named).schedule, resolve(model, named).plan) == (wanted.schedule, wanted.plan)
    assert resolve(model, named, keep_ratio=0.5).schedule == resolve(model, BOTH, keep_ratio=0.5).schedule
    shape = cost.architecture(model.config)
    assert schedules.build(shape, named) == schedules.build(shape, BOTH, keep_ratio=0.25)


@pytest.mark.parametrize("given", [{"tokens": 7}, {"keep_ratio": 0.3}])
def test_cost_divides_between_parts_as_attach_does_without_a_class_token(given):
    siglip = tiny_siglip()
    plan = resolve(siglip, "divprune+fastv", **given)
    leaves = schedules.build(cost.architecture(siglip.config), get_method("divprune+fastv"), **given)
    assert leaves.projector == plan.per_image
    assert leaves.decoder == plan.plan.schedule(plan.per_image)
