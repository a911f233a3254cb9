"""A results file that anybody may have written: every fault is an error that names its place, at once."""

import copy
import json
import time

import pytest
from helpers.paths import RESULTS

from ficoco_ext.evaluation import Results, document

GOOD = {
    "format": "ficoco eval 1",
    "model": "tiny",
    "run": {"seeds": [0, 1], "asking": {"judge": "exact"}, "data": {"questions": "ab", "gridvqa": {"split": "test"}}},
    "platform": {"device": "cpu", "dtype": "float32", "torch": "2.13.0", "processor": None, "commit": None},
    "settings": [
        {
            "name": "unreduced",
            "budget": "all tokens",
            "seeds": [0],
            "cost": {
                "flops_ratio": 1.0,
                "kv_ratio": 1.0,
                "visual_tokens": {"entering": 4.0, "average": 4.0, "final": 4.0},
                "flops": 3,
                "flops_parts": {"tower": 1, "language_model": 2, "selection": 0},
            },
            "remark": None,
            "impossible": None,
        },
        {
            "name": "no",
            "budget": "keep",
            "seeds": [0],
            "cost": None,
            "remark": None,
            "impossible": "cannot",
            "group": "some",
            "goal": {"equal": "flops", "tokens": 1},
        },
    ],
    "tables": [
        {"seed": 0, "questions": "ab", "kinds": ["exist"], "kind": [0, 0], "scene": [0, 1], "truth": [0, 1], "bad": []}
    ],
    "words": ["yes", "no"],
    "cells": [{"setting": 0, "seed": 0, "seconds": 1.5, "threads": 1, "answers": [0, 0], "right": "10"}],
    "first_token": [
        {
            "batch": 8,
            "runs": 5,
            "platform": {"device": "cpu", "dtype": "float32", "torch": "2.13.0", "processor": None, "threads": 1},
            "cells": [
                {"setting": 0, "seconds": 0.5, "least": 0.4, "most": 0.6, "judged": "noise", "selection": 0.1},
                {"setting": 1, "seconds": 0.5, "least": 0.4, "most": 0.6, "judged": None, "selection": None},
            ],
        }
    ],
    "summary": None,
}
FAULTS = {
    "model": (None, 7),
    "run": (None, []),
    "run.seeds": (None, [], [-1], [10**30], "0"),
    "run.asking.judge": (None, 1),
    "run.data": (None, "grid"),
    "run.data.gridvqa.split": (None,),
    "platform.dtype": (None, 3),
    "platform.commit": (5,),
    "settings": (None, [], [1]),
    "settings.0.name": (None, 3),
    "settings.0.seeds": (None, [], [0, 0], [0.5]),
    "settings.0.cost": (None, "free"),
    "settings.0.cost.flops_ratio": (None, "all", float("nan"), float("inf"), -1, 10**400, True),
    "settings.0.cost.visual_tokens": (None, {}),
    "settings.1.impossible": (None, 3),
    "tables": (None, {}),
    "tables.0.seed": (None, "0", 7),
    "tables.0.kinds": (None, [], ["exist", "exist"], [["exist"]], [3]),
    "tables.0.kind": (None, [True, 0], [0, 1], [0, -1]),
    "tables.0.scene": (None, [0], [0, 2], [0, 10**12], [0, -1]),
    "tables.0.truth": (None, [0, 2]),
    "tables.0.bad": (None, [[1, "image"]], ["row"]),
    "words": (None, [1, "no"]),
    "cells": (None, [3], "none"),
    "cells.0.setting": (None, 2, -1, True),
    "cells.0.seed": (None, 1, "0"),
    "cells.0.seconds": (None, "long", float("nan")),
    "cells.0.threads": (None, 0, 1.5),
    "cells.0.answers": (None, [0], [0, 2], [0, -1]),
    "cells.0.right": (None, "1", "1x", [1, 0]),
    "settings.0.cost.flops": (None, "many"),
    "settings.0.cost.flops_parts.selection": (None, -1),
    "settings.0.cost.flops_parts": ([],),
    "settings.1.group": (3,),
    "settings.1.goal": ("flops",),
    "settings.1.goal.equal": (None, 3),
    "first_token": ({}, [1]),
    "first_token.0.batch": (None, 0),
    "first_token.0.runs": (None, 0.5),
    "first_token.0.platform.device": (None, 3),
    "first_token.0.platform.threads": (None, 0),
    "first_token.0.cells": (None, [3]),
    "first_token.0.cells.0.setting": (None, 2),
    "first_token.0.cells.0.seconds": (None, float("nan")),
    "first_token.0.cells.1.most": (None, "long"),
    "first_token.0.cells.0.judged": (3,),
    "first_token.0.cells.0.selection": ("short",),
}
CASES = [(path, value) for path, values in FAULTS.items() for value in values]


def damaged(path, value):
    found = copy.deepcopy(GOOD)
    *parts, last = path.split(".")
    at = found
    for part in parts:
        at = at[int(part) if part.isdecimal() else part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return found


def test_a_good_one_is_read(tmp_path):
    file = tmp_path / "out.json"
    file.write_text(json.dumps(GOOD))
    assert Results.load(file).summary().lines[0].mean.value == 0.5


@pytest.mark.parametrize(("path", "value"), CASES, ids=lambda one: str(one)[:30])
def test_a_fault_is_named(tmp_path, path, value):
    file = tmp_path / "out.json"
    file.write_text(json.dumps(damaged(path, value)))
    start = time.process_time()
    with pytest.raises(ValueError) as told:
        Results.load(file).summary()
    assert time.process_time() - start < 1
    place = path.replace(".0", "[0]").replace(".1", "[1]")
    assert str(told.value).startswith(f"results file {file}: ") and len(str(told.value)) < 400
    first = place.removesuffix("]").rpartition(".")[2].partition("[")[0]
    # A seed that is no table's, or no setting's, is named where it is used.
    assert first in str(told.value) or path == "tables.0.seed"


@pytest.mark.parametrize("text", ["[" * 10**5, '{"format": ' + "9" * 10**4 + "}", "\xff", "", "[]", '{"format": 1}'])
def test_what_is_no_document_is_said_to_be_none(tmp_path, text):
    file = tmp_path / "out.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="ficoco eval"):
        Results.load(file)


def test_a_setting_that_was_answered_twice(tmp_path):
    file = tmp_path / "out.json"
    file.write_text(json.dumps({**GOOD, "cells": GOOD["cells"] * 2}))
    with pytest.raises(ValueError, match=r"cells\[1\]\.seed must be answered once by a setting, got 0"):
        Results.load(file)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("accuracy_*.json")))
def test_the_committed_ones_are_read(file):
    Results.load(file)


def test_kinds_have_an_end(tmp_path):
    file = tmp_path / "out.json"
    for count in (1000, 1001, 200_000):
        file.write_text(json.dumps(damaged("tables.0.kinds", [f"kind {one}" for one in range(count)])))
        if count <= 1000:
            Results.load(file)
            continue
        start = time.process_time()
        with pytest.raises(ValueError, match=rf"tables\[0\]\.kinds must be at most 1,000 names, got {count}"):
            Results.load(file)
        assert time.process_time() - start < 1
    halves = copy.deepcopy(GOOD)
    table = halves["tables"][0]
    halves["tables"] = [
        {**table, "seed": seed, "kinds": [f"kind {seed} {one}" for one in range(600)]} for seed in (0, 1)
    ]
    file.write_text(json.dumps(halves))
    with pytest.raises(ValueError, match="tables must be of at most 1,000 different kinds, got 1200"):
        Results.load(file)


def test_tables_of_one_seed_are_refused(tmp_path):
    file = tmp_path / "out.json"
    file.write_text(json.dumps({**GOOD, "tables": GOOD["tables"] * 2}))
    with pytest.raises(ValueError, match=r"tables must be of different seeds, got \[0, 0\]"):
        Results.load(file)


def test_scenes_times_kinds_have_an_end(tmp_path, monkeypatch):
    file = tmp_path / "out.json"
    file.write_text(json.dumps(damaged("tables.0.kinds", ["exist", "attr", "text"])))  # and two scenes
    monkeypatch.setattr(document, "_MOST_CELLS", 6)
    Results.load(file)
    monkeypatch.setattr(document, "_MOST_CELLS", 5)
    with pytest.raises(ValueError, match="tables must be of scenes times kinds of at most 5, got '2 times 3'"):
        Results.load(file)
