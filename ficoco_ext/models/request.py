"""What the caller of ``attach`` asked for, checked as far as that is possible without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..methods import AnyMethod, get_method
from ..ops import checks
from ..resolve import Amount, DecoderMethods, TowerMethods, equal_shares, require_shareable

OP = "attach"  # in messages


@dataclass(frozen=True)
class Request:
    """Methods and amounts.

    Attributes:
        tower: of the vision tower: a method for all its layers, or a tuple with one for each; None: it is left alone.
        decoder: the same for the language model.
        amount: what the one part removes, or both together.
        tower_amount, decoder_amount: what each of two parts removes; None: ``amount`` is divided.
        static_counts: as ``attach`` takes it.
    """

    tower: TowerMethods | None
    decoder: DecoderMethods | None
    amount: Amount
    tower_amount: Amount | None = None
    decoder_amount: Amount | None = None
    static_counts: Any = False

    @classmethod
    def of(
        cls,
        method: Any,
        hyperparameters: Mapping[str, Any],
        *,
        vision: Any,
        decoder: Any,
        static_counts: Any,
        **amount: Any,
    ) -> Request:
        """From the arguments of ``attach``; ``amount``: ``r``, ``keep_ratio``, ``tokens`` and ``layers``.

        Raises:
            ValueError, TypeError: a method or an argument that cannot be right for any model.
        """
        tower, language_model, own_amount = _parts(method, hyperparameters)
        whole = Amount.of(OP, **amount)
        each: tuple[Amount | None, Amount | None] = None, None
        if tower is None or language_model is None:
            for name, value in (("vision", vision), ("decoder", decoder)):
                if value is not None:
                    remedy = "pass r, keep_ratio, tokens and layers themselves"
                    checks.fail(OP, name, "None unless the method has two parts", value, remedy)
        elif vision is not None or decoder is not None:
            each = _amount_of_each(whole, vision, decoder)
        else:
            whole = whole if whole.given else Amount.of(OP, layers=whole.layers, **dict(own_amount))
            require_shareable(OP, whole)
        return cls(tower, language_model, whole, *each, static_counts)

    def promise(self) -> bool | int:
        """``static_counts``, checked.

        Raises:
            ValueError, TypeError: it is no promise about the language model's rows.
        """
        given = self.static_counts
        if given is False or (given is True and self.decoder is not None):
            return given
        if self.decoder is None:
            remedy = "a tower's counts are always known"
            checks.fail(OP, "static_counts", "False without a method for the language model", given, remedy)
        if not isinstance(given, int) or given < 1:
            remedy = "pass the number of visual tokens in each row"
            checks.fail(OP, "static_counts", "True, False or an integer >= 1", given, remedy, TypeError)
        return given

    def amounts(self, patches: int) -> tuple[Amount, Amount]:
        """What the tower, of ``patches`` patches, and the language model remove."""
        if self.tower is None or self.decoder is None:
            return self.amount, self.amount
        if self.tower_amount is not None and self.decoder_amount is not None:
            return self.tower_amount, self.decoder_amount
        return equal_shares(OP, patches, self.amount)


def _parts(method: Any, hyperparameters: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Methods of the tower and of the language model: one for all layers, or a tuple with one for each, or None.

    And the amount that a method with both parts names for itself.
    """
    if isinstance(method, (str, AnyMethod)):
        one = get_method(method, **hyperparameters)
        return one.tower, one.language_model, one.amount
    if not isinstance(method, Sequence):
        wanted = "a name, a Method, Split, Staged, DecoderMethod, or a sequence of these"
        checks.fail(OP, "method", wanted, method, "pass 'ficoco-v'", TypeError)
    chosen = tuple(get_method(one, **hyperparameters) for one in method)
    for one in chosen:
        if one.tower is not None and one.tower.varies:
            wanted, remedy = "one method for each layer", "pass it alone: it has a method for every layer itself"
            checks.fail(OP, "method", wanted, f"{one.name}, which is for all layers", remedy)
    if chosen and all(one.language_model is None for one in chosen):
        return chosen, None, ()
    if chosen and all(one.tower is None for one in chosen):
        return None, chosen, ()
    names = ", ".join(one.name for one in chosen) or "none"
    remedy = "for both, pass one VisionAndDecoder(vision, decoder)"
    checks.fail(OP, "method", "methods that are all for the tower or all for the decoder", names, remedy)


def _amount_of_each(whole: Amount, vision: Any, decoder: Any) -> tuple[Amount, Amount]:
    if vision is None or decoder is None or whole.given or whole.layers is not None:
        wanted = "both given, and no amount or layers besides"
        remedy = 'pass vision={"keep_ratio": 0.5}, decoder={"keep_ratio": 0.5}'
        checks.fail(OP, "vision and decoder", wanted, whole.given, remedy)
    return _amount_of("vision", vision), _amount_of("decoder", decoder)


def _amount_of(name: str, given: Any) -> Amount:
    known = ("r", "keep_ratio", "tokens", "layers")
    if not isinstance(given, Mapping) or not set(given) <= set(known):
        wanted = f"a dict with some of {', '.join(known)}"
        checks.fail(OP, name, wanted, given, f'pass {name}={{"keep_ratio": 0.5}}', TypeError)
    return Amount.of(OP, **given)
