"""What is computed from a run: a row for every setting."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .statistics import Estimate, Spread


@dataclass(frozen=True)
class Line:
    """One setting's row in a table.

    Attributes:
        name, budget: of the setting, or of several that make a group, such as random dropping with three seeds.
        mean: mean accuracy over the chosen kinds. kinds: accuracy of each kind.
        difference: of the mean from that of the unreduced model, paired; None for the unreduced model itself. Of a
            method that draws by the run's seeds the scenes of a seed share one draw, so they are not independent: the
            errors of mean and difference are then at least the standard deviation over the seeds / sqrt(seeds), and
            their intervals at least as wide as a normal distribution's with that error. Those of kinds are as drawn.
        agreement: share of questions answered as the unreduced model answers them, right or wrong.
        undecided: answers that the judge could call neither right nor wrong; they do not count as right. None of a
            judge that always decides.
        seeds: the mean of each seed, and their spread.
        cost: see :func:`ficoco_ext.evaluation.costs.columns`; None with ``remark`` saying why.
        seconds: it took to answer, all seeds. rate: questions a second.
        remark: why there is no cost, or, with ``mean`` None, why the method cannot do this.
        members: names of the settings of a group: accuracies and agreement are then means over them, ``seeds`` has the
            mean of each, and errors are at least those of their spread, as of a method that draws by the run's seeds.
        reads_text: what it leaves of a picture before the language model depends on the question.
        first_token: by batch size, see :meth:`ficoco_ext.evaluation.first_token.add`; None: not measured.
    """

    name: str
    budget: str
    mean: Estimate | None
    kinds: dict[str, Estimate]
    difference: Estimate | None
    agreement: float | None
    seeds: Spread | None
    cost: dict[str, Any] | None
    seconds: float | None
    rate: float | None
    remark: str | None
    undecided: int | None = None
    members: tuple[str, ...] = ()
    reads_text: bool = False
    first_token: dict[str, dict[str, float | None]] | None = None


_IF_ANY = ("undecided", "members", "reads_text", "first_token")  # left out of plain values where there is nothing


@dataclass(frozen=True)
class Summary:
    """All settings.

    Attributes:
        lines: one a setting, and one after the last of each group. mean_of: kinds in the mean. kinds: all of them.
        questions, scenes: that were asked and drawn, of all seeds. bad: rows left out, and why.
    """

    lines: tuple[Line, ...]
    mean_of: tuple[str, ...]
    kinds: tuple[str, ...]
    questions: int
    scenes: int
    bad: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is not known is None. Lines have ``undecided`` if the judge may leave answers so."""
        found = _without_nan(asdict(self))
        for line in found["lines"]:
            for name in _IF_ANY:
                if line[name] is None or line[name] is False or line[name] == []:
                    del line[name]
        return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if value != value else value
