"""What became of tests, and whether that is what is expected. Knows nothing of transformers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Outcome:
    """``result`` is "passed", "failed", "skipped" or "missing"; ``message`` says why, in one line."""

    result: str
    message: str = ""


Results = Mapping[str, Outcome]  # test: what became of it


@dataclass(frozen=True)
class Expected:
    """Tests that end otherwise than with the unmodified model, all for one reason.

    Attributes:
        modes, families: where they do.
        tests: names; one that transformers runs with several parameters stands for those that differ, at least one.
        reason: one sentence, for a user.
        releases: the releases of transformers of which that is true, as "5.17"; empty: all.
        always: False where random weights decide whether they do: such an entry is never stale.
    """

    modes: tuple[str, ...]
    families: tuple[str, ...]
    tests: tuple[str, ...]
    reason: str
    releases: tuple[str, ...] = ()
    always: bool = True

    def applies(self, mode: str, family: str, release: str) -> bool:
        """Whether it speaks of this mode, family and release."""
        return mode in self.modes and family in self.families and (not self.releases or release in self.releases)


@dataclass(frozen=True)
class Verdict:
    """Of one mode and family.

    Attributes:
        unexpected: tests that differ and are not listed.
        stale: listed names of which no test differs.
        reasons: test that differs and is listed: its reason.
    """

    unexpected: dict[str, Outcome]
    stale: tuple[str, ...]
    reasons: dict[str, str]


def without_parameters(test: str) -> str:
    """``test_x_03_fp16``, as ``parameterized`` names it, is ``test_x``."""
    return re.sub(r"_\d+(?:_\w+)?$", "", test)


def of_those(expected: Iterable[Expected], ran: Iterable[str]) -> list[Expected]:
    """The list as it is where only some tests ran: the names of the others are left out."""
    names = {one for name in ran for one in (name, without_parameters(name))}
    return [replace(entry, tests=tuple(one for one in entry.tests if one in names)) for entry in expected]


def differing(unmodified: Results, attached: Results) -> dict[str, Outcome]:
    """Tests that end otherwise than with the unmodified model, those that ran only once too."""
    missing = Outcome("missing", "it did not run")
    pairs = {name: (unmodified.get(name, missing), attached.get(name, missing)) for name in {**unmodified, **attached}}
    return {name: found for name, (wanted, found) in pairs.items() if found.result != wanted.result}


def judge(unmodified: Results, attached: Results, listed: Iterable[Expected]) -> Verdict:
    """What differs, held to the entries of the list that apply."""
    found = differing(unmodified, attached)
    reasons: dict[str, str] = {}
    stale: list[str] = []
    for entry in listed:
        for wanted in entry.tests:
            hits = [name for name in found if wanted in (name, without_parameters(name))]
            reasons |= dict.fromkeys(hits, entry.reason)
            stale += [] if hits or not entry.always else [wanted]
    return Verdict({name: found[name] for name in found if name not in reasons}, tuple(stale), reasons)
