"""Methods of several parts: made of others, and by names joined by +."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ficoco_ext import describe, get_method
from ficoco_ext.methods import (
    Combined,
    Split,
    hyperparameters,
    joined_names,
)


def test_up_to_one_method_for_each_part():
    tower, projector, language = (get_method(name) for name in ("tome", "divprune", "fastv"))
    all_three = Combined.of(language, projector, tower)
    assert all_three == Combined(tower, projector, language) and all_three.name == "tome + divprune + fastv"
    assert (all_three.tower, all_three.projector, all_three.language_model) == (tower, projector, language)
    assert all_three.members == (tower, projector, language) and all_three.amount == ()
    assert Combined.of(get_method("ficoco-vl"), projector).members == (
        *get_method("ficoco-v").members,
        projector,
        *get_method("ficoco-l").members,
    )
    assert replace(all_three, language_method=None) == Combined.of(tower, projector)
    assert all_three.needs == tuple(dict.fromkeys((*tower.needs, *language.needs)))
    assert Combined.of(tower, projector, amount=(("tokens", 9),)).amount == (("tokens", 9),)
    assert set(all_three.source.split("; ")) == {tower.source, projector.source, language.source}


def test_parts_that_do_not_go_together():
    two = Split("half", get_method("topk"), get_method("tome"))
    with pytest.raises(ValueError, match="half and evit both act in the vision tower, and each part has at most one"):
        Combined.of(two, get_method("evit"))
    with pytest.raises(ValueError, match="divprune and scope both act in the projector"):
        get_method("divprune+scope")
    with pytest.raises(ValueError, match="random and topk both act in the vision tower"):
        get_method("random+topk", part="tower")
    with pytest.raises(ValueError, match=r"Combined: two or three of .* are needed, got 1"):
        Combined(get_method("tome"))
    with pytest.raises(TypeError, match="Combined: language_method must be a method of the language model alone, or N"):
        Combined(language_method=get_method("tome"))
    with pytest.raises(TypeError, match="Combined: tower_method must be a method of the vision tower alone, or None"):
        Combined(get_method("ficoco-vl"), get_method("divprune"))


def test_names_joined_by_plus():
    assert get_method("divprune+ficoco-l") == Combined.of(get_method("divprune"), get_method("ficoco-l"))
    assert get_method("ficoco-l + divprune") == get_method("divprune+ficoco-l")
    assert joined_names("prumerge++fastv") == ("prumerge+", "fastv") and joined_names("prumerge+") == ("prumerge+",)
    assert joined_names("divprune+prumerge+") == ("divprune", "prumerge+")
    both = get_method("divprune+ficoco-l", merge=True, gamma=0.3)
    assert both == Combined.of(get_method("divprune", merge=True), get_method("ficoco-l", gamma=0.3))
    assert get_method("ficoco-vl+divprune", lam=0.2).tower == get_method("ficoco-v", lam=0.2)
    assert hyperparameters("fastv+divprune") == {"layer": 2, "part": "projector", "merge": False}
    said = describe("divprune+fastv", layer=3)
    assert said.acts_in == "projector and language model" and said.hyperparameters["layer"] == 3
    assert said.summary == f"{describe('divprune').summary} {describe('fastv').summary}"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "divprune+fico-l",
            ValueError,
            r"joined by '\+', got 'divprune\+fico-l' with 'fico-l'; did you mean 'ficoco-l'",
        ),
        ("fico-l+divprune", ValueError, r"joined by '\+', got 'fico-l\+divprune' with 'fico-l'"),
        ("divprune+", ValueError, r"one of 'ficoco-v', .*, got 'divprune\+'"),
        ("+", ValueError, r"one of 'ficoco-v', .*, got '\+'"),
        ("", ValueError, "one of 'ficoco-v', .*, got ''"),
        (7, ValueError, "one of 'ficoco-v', .*, got 7"),
    ],
)
def test_names_that_are_none(name, kind, message):
    with pytest.raises(kind, match=message):
        get_method(name)


def test_a_hyperparameter_that_no_part_has():
    message = r"method 'divprune\+fastv' has no hyperparameter 'lyer'; it has part, merge, layer; did you mean 'layer'"
    with pytest.raises(TypeError, match=message):
        get_method("divprune+fastv", lyer=3)


@pytest.mark.parametrize(("wrong", "remedy"), [("fastv", r"get_method\('fastv'\)"), (None, "get_method")])
def test_names_are_not_methods(wrong, remedy):
    with pytest.raises(TypeError, match=rf"Combined.of: methods must be methods, got {wrong!r}; pass {remedy}"):
        Combined.of(get_method("divprune"), wrong)
