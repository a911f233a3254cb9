"""Several reductions of one model: at most one in each of its parts."""

from __future__ import annotations

from typing import Any

from ..stages.frozen import value
from .base import AnyMethod, FeatureMethod, LanguageMethod, TowerMethod

PARTS = {"tower": "vision tower", "projector": "projector", "language_model": "language model"}  # as they act


@value
class Combined(AnyMethod):
    """Several reductions of one model: at most one in its vision tower, after its projector, in its language model.

    Args:
        tower_method, projector_method, language_method: the methods, two of them at least. How much each removes unless
            ``amount`` says so is not taken from them.
        amount: what attach and cost take for ``keep_ratio`` or ``tokens`` of all together where they are given none.

    Raises:
        ValueError: fewer than two. TypeError: one that does not act in its part.

    Example:
        >>> from ficoco_ext.methods import Combined
        >>> from ficoco_ext import get_method
        >>> both = Combined(tower_method=get_method("topk"), language_method=get_method("fastv"))
        >>> both.name
        'topk + fastv'
    """

    tower_method: TowerMethod | None = None
    projector_method: FeatureMethod | None = None
    language_method: LanguageMethod | None = None
    amount: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        fields = {"tower_method": "tower", "projector_method": "projector", "language_method": "language_model"}
        for field, part in fields.items():
            got = getattr(self, field)
            if got is not None and getattr(got, part, None) is not got:
                raise TypeError(f"Combined: {field} must be a method of the {PARTS[part]} alone, or None, got {got!r}")
        if len(self._methods) < 2:
            raise ValueError(
                "Combined: two or three of tower_method, projector_method and language_method are needed, got "
                f"{len(self._methods)}; use a single method as it is"
            )

    @classmethod
    def of(cls, *methods: AnyMethod, amount: tuple[tuple[str, Any], ...] = ()) -> Combined:
        """The parts of all ``methods``, in any order.

        Raises:
            TypeError: one that is no method, such as a name.
            ValueError: two of them act in one part, or all together in one part only.

        Example:
            >>> from ficoco_ext.methods import Combined
            >>> from ficoco_ext import get_method
            >>> Combined.of(get_method("ficoco-l"), get_method("divprune")).name
            'divprune + ficoco-l'
        """
        found: dict[str, Any] = {}
        for method in methods:
            if not isinstance(method, AnyMethod):
                named = f"get_method({method!r})" if isinstance(method, str) else "get_method('fastv')"
                raise TypeError(f"Combined.of: methods must be methods, got {method!r}; pass {named}")
            for part, words in PARTS.items():
                own = getattr(method, part)
                if own is None:
                    continue
                if part in found:
                    raise ValueError(
                        f"method: {found[part].name} and {own.name} both act in the {words}, and each part has at most "
                        "one method; leave one of them out"
                    )
                found[part] = own
        return cls(found.get("tower"), found.get("projector"), found.get("language_model"), amount)

    @property
    def _methods(self) -> tuple[AnyMethod, ...]:
        """Those there are, in the order in which they act."""
        every = self.tower_method, self.projector_method, self.language_method
        return tuple(one for one in every if one is not None)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The names of all, once each."""
        return " + ".join(dict.fromkeys(one.name for one in self._methods))

    @property
    def source(self) -> str:
        """Where they come from."""
        return "; ".join(dict.fromkeys(one.source for one in self._methods))

    @property
    def members(self) -> tuple[AnyMethod, ...]:
        """Those of all."""
        return tuple(member for one in self._methods for member in one.members)

    @property
    def tower(self) -> TowerMethod | None:
        """The method of the vision tower."""
        return self.tower_method

    @property
    def projector(self) -> FeatureMethod | None:
        """The method between the projector and the language model."""
        return self.projector_method

    @property
    def language_model(self) -> LanguageMethod | None:
        """The method of the language model."""
        return self.language_method
