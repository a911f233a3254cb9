"""Random small models of every family, methods, schedules, batches, caches and uses against models by hand.

``FICOCO_PROPERTY_CASES`` says how many draws, ``FICOCO_PROPERTY_START`` from which on; ``long.py`` beside this file
does thousands and can be interrupted. A draw that fails leaves a script that repeats it, shrunk, in ``build/property``.
"""

from __future__ import annotations

import os

import pytest
from helpers.paths import ROOT

pytest.importorskip("transformers")
from property.checks import check
from property.draw import draw
from property.outcomes import write_script

CASES = int(os.environ.get("FICOCO_PROPERTY_CASES", "100"))
START = int(os.environ.get("FICOCO_PROPERTY_START", "0"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(START, START + CASES))
def test_a_draw_holds(number):
    case = draw(number)
    try:
        outcome = check(case)
    except Exception as error:
        path = write_script(case, error, ROOT / "build" / "property")
        print(path.read_text())
        raise AssertionError(f"draw {number} fails; {path}, printed above, repeats it: {error}") from error
    if outcome.kind == "not here":
        pytest.skip(outcome.reason)
