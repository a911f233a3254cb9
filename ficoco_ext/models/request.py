"""What the caller of ``attach`` asked for, checked as far as that is possible without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..amounts import Amount, each_has_its_own, equal_shares, require_shareable
from ..methods import AnyMethod, FeatureMethod, LanguageMethod, get_method
from ..methods.base import CACHES
from ..ops import checks
from ..resolve import DecoderMethods, TowerMethods
from ..stages.needs import TEXT

OP = "attach"  # in messages

Words = Callable[[Any], Any] | tuple[int, ...] | None  # which ids of a prompt are its words

_EITHER = " or ".join(map(repr, CACHES))

PARTS = ("vision", "projector", "decoder")  # the arguments of attach that say how much each part removes


@dataclass(frozen=True)
class Request:
    """Methods and amounts.

    Attributes:
        tower: of the vision tower: a method for all its layers, or a tuple with one for each; None: it is left alone.
        projector: after the projector, or None.
        decoder: of the language model, as of the tower.
        amount: what the one part removes, or all together.
        each: what each part removes, by the names of :data:`PARTS`; empty: ``amount`` is divided.
        positions: ``"original"``, ``"contiguous"``, or None for the default.
        static_counts, words, padding: as ``attach`` takes them.
        cache: ``"staircase"``, ``"output-aware"``, or None for what the methods of the language model say.
    """

    tower: TowerMethods | None
    projector: FeatureMethod | None
    decoder: DecoderMethods | None
    amount: Amount
    each: tuple[tuple[str, Amount], ...] = ()
    positions: str | None = None
    static_counts: Any = False
    words: Words = None
    padding: str | None = None
    cache: str | None = None

    @classmethod
    def of(
        cls,
        method: Any,
        hyperparameters: Mapping[str, Any],
        *,
        parts: Mapping[str, Any],
        positions: Any,
        static_counts: Any,
        words: Any = None,
        padding: Any = None,
        cache: Any = None,
        **amount: Any,
    ) -> Request:
        """From the arguments of ``attach``.

        Args:
            method, hyperparameters, positions, static_counts, words, padding, cache: as of attach.
            parts: its arguments of :data:`PARTS`.
            **amount: ``r``, ``keep_ratio``, ``tokens`` and ``layers``.

        Raises:
            ValueError, TypeError: a method or an argument that cannot be right for any model.
        """
        tower, projector, language_model, own_amount = _parts(method, hyperparameters)
        whole = Amount.of(OP, **amount)
        there = dict(zip(PARTS, (tower, projector, language_model), strict=True))
        several = [name for name in PARTS if there[name] is not None]
        given = {name: value for name, value in parts.items() if value is not None}
        each: tuple[tuple[str, Amount], ...] = ()
        if len(several) == 1:
            for name, value in given.items():
                remedy = "pass r, keep_ratio, tokens and layers themselves"
                checks.fail(OP, name, "None unless the method has several parts", value, remedy)
        elif given:
            each = _amount_of_each(whole, several, given)
        elif each_has_its_own([there[name] for name in several], own_amount, whole):
            each = tuple((name, Amount()) for name in several)
        else:
            whole = whole if whole.given else Amount.of(OP, layers=whole.layers, **dict(own_amount))
            require_shareable(OP, whole)
        if positions not in (None, "original", "contiguous"):
            checks.fail(OP, "positions", "'original', 'contiguous' or None", positions, "pass one of them")
        if padding not in (None, "first", "after"):
            checks.fail(OP, "padding", "'first', 'after' or None", padding, "pass one of them")
        words = _words(words, projector)
        if cache not in (None, *CACHES):
            checks.fail(OP, "cache", f"{_EITHER}, or None", cache, "pass one of them")
        if cache is not None and language_model is None:
            remedy = "leave it out: without a method for the language model all layers keep the same tokens"
            checks.fail(OP, "cache", "None without a method for the language model", cache, remedy)
        return cls(tower, projector, language_model, whole, each, positions, static_counts, words, padding, cache)

    def kept_in_cache(self, methods: Sequence[LanguageMethod]) -> str:
        """``cache``, or where it is None what ``methods``, those of the language model's layers, say.

        Raises:
            ValueError: they disagree, or say something else.
        """
        said = tuple(dict.fromkeys(method.cache for method in methods)) or CACHES[:1]
        if self.cache is not None:
            return self.cache
        if len(said) > 1 or said[0] not in CACHES:
            got = f"None for methods that say {' and '.join(map(repr, said))}"
            checks.fail(OP, "cache", _EITHER, got, "pass one of them")
        return said[0]

    def promise(self) -> bool | int:
        """``static_counts``, checked.

        Raises:
            ValueError, TypeError: it is no promise about the language model's rows.
        """
        given = self.static_counts
        if given is False or (given is True and self.decoder is not None):
            return given
        if self.decoder is None:
            remedy = "leave it out: it is a promise to reductions inside the language model"
            checks.fail(OP, "static_counts", "False without a method for the language model", given, remedy)
        if not isinstance(given, int) or given < 1:
            remedy = "pass the number of visual tokens in each row"
            checks.fail(OP, "static_counts", "True, False or an integer >= 1", given, remedy, TypeError)
        return given

    def amounts(self, patches: int) -> dict[str, Amount]:
        """What each part removes, by the names of :data:`PARTS`. ``patches``: of an image; 0 where it depends on it."""
        if self.each:
            return dict(self.each)
        there = dict(zip(PARTS, (self.tower, self.projector, self.decoder), strict=True))
        several = [name for name in PARTS if there[name] is not None]
        if len(several) == 1:
            return {several[0]: self.amount}
        unit = 1 if self.tower is None or isinstance(self.tower, tuple) else self.tower.unit
        return dict(zip(several, equal_shares(OP, patches, self.amount, len(several), unit), strict=True))


def _words(words: Any, projector: Any) -> Words:
    """``words``, checked.

    Raises:
        ValueError, TypeError: something else than ids or a function, or no method reads it.
    """
    if words is None:
        return None
    if projector is None or TEXT not in projector.needs:
        remedy = "leave it out, or use a method after the projector that reads words, such as 'cdpruner'"
        checks.fail(OP, "words", "None for a method that reads none", words, remedy)
    if callable(words):
        return words
    held = tuple(words) if isinstance(words, Iterable) and not isinstance(words, str) else (None,)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in held):
        wanted = "ids that are not words, or a function (ids (B, L)) -> (B, L) bool that is True for words"
        checks.fail(OP, "words", wanted, words, "pass ficoco_ext.template_ids(processor)", TypeError)
    return held


def _parts(method: Any, hyperparameters: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Methods of tower, projector and language model: one, or a tuple with one for each layer, or None.

    And the amount that a method with several parts names for itself.
    """
    if isinstance(method, (str, AnyMethod)):
        one = get_method(method, **hyperparameters)
        return one.tower, one.projector, one.language_model, one.amount
    if not isinstance(method, Sequence):
        wanted = "a name, a method, or a sequence of these"
        checks.fail(OP, "method", wanted, method, "pass 'ficoco-v'", TypeError)
    chosen = tuple(get_method(one, **hyperparameters) for one in method)
    for one in chosen:
        if one.tower is not None and one.tower.varies:
            wanted, remedy = "one method for each layer", "pass it alone: it has a method for every layer itself"
            checks.fail(OP, "method", wanted, f"{one.name}, which is for all layers", remedy)
    if chosen and all(one.projector is None and one.language_model is None for one in chosen):
        return chosen, None, None, ()
    if chosen and all(one.tower is None and one.projector is None for one in chosen):
        return None, None, chosen, ()
    names = ", ".join(one.name for one in chosen) or "none"
    remedy = "for both, pass one Combined.of(get_method(vision), get_method(decoder))"
    checks.fail(OP, "method", "methods that are all for the tower or all for the decoder", names, remedy)


def _amount_of_each(whole: Amount, several: Sequence[str], given: Mapping[str, Any]) -> tuple[tuple[str, Amount], ...]:
    if set(given) != set(several) or whole.given or whole.layers is not None:
        wanted = "all given, and no amount or layers besides"
        example = ", ".join(f'{name}={{"keep_ratio": 0.5}}' for name in several)
        checks.fail(OP, " and ".join(several), wanted, whole.given or given, f"pass {example}")
    return tuple((name, _amount_of(name, given[name])) for name in several)


def _amount_of(name: str, given: Any) -> Amount:
    known = ("r", "keep_ratio", "tokens", "layers")
    if not isinstance(given, Mapping) or not set(given) <= set(known):
        wanted = f"a dict with some of {', '.join(known)}"
        checks.fail(OP, name, wanted, given, f'pass {name}={{"keep_ratio": 0.5}}', TypeError)
    return Amount.of(OP, **given)
