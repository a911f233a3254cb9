"""What is to be removed, as callers say it, and how several parts of a model share it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .methods import AnyMethod
from .ops import checks
from .schedule import Schedule


@dataclass(frozen=True)
class Amount:
    """``r``, ``keep_ratio`` and ``tokens``, of which one may be given, and ``layers``; as ``attach`` takes them.

    ``share_of``: of one of several parts the name and the value of what is given for all of them, for messages.
    """

    r: Any = None
    keep_ratio: Any = None
    tokens: Any = None
    layers: tuple[Any, ...] | None = None
    share_of: tuple[str, Any] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, op: str, *, layers: Any = None, **given: Any) -> Amount:
        """The amount, with lists as tuples, so that it cannot be changed from outside.

        Raises:
            TypeError: layers that are no sequence.
        """
        if layers is not None and not isinstance(layers, Iterable):
            checks.fail(op, "layers", "a sequence of layer indices", layers, "pass layers=(12, 13)", TypeError)
        held = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        return cls(**held, layers=None if layers is None else tuple(layers))

    @property
    def given(self) -> dict[str, Any]:
        """Those of the three that are not None."""
        three = {"r": self.r, "keep_ratio": self.keep_ratio, "tokens": self.tokens}
        return {name: value for name, value in three.items() if value is not None}


def shared_tokens(patches: int, final: int) -> int:
    """Patches that the tower leaves if ``final`` are left in the end and both parts keep the same share of their input.

    Example:
        >>> shared_tokens(576, 144)
        288
    """
    return math.floor(math.sqrt(patches * final) + 0.5)


def require_shareable(op: str, amount: Amount) -> None:
    """Raise a ValueError unless ``amount`` can be divided between two parts: ``keep_ratio`` or ``tokens`` alone."""
    given = amount.given
    if "r" in given or amount.layers is not None or len(given) != 1:
        got = ", ".join([*given, *(["layers"] if amount.layers is not None else [])]) or "nothing"
        wanted = "one of keep_ratio and tokens for all parts together"
        checks.fail(
            op, "amount", wanted, got, "or say it for each part, by vision={...}, projector={...} or decoder={...}"
        )


def each_has_its_own(parts: Sequence[AnyMethod], together: Sequence[Any], amount: Amount) -> bool:
    """Whether each of several parts removes its own amount: none is given for all, which have none ``together`` either.

    Example:
        >>> from ficoco_ext import get_method
        >>> from ficoco_ext.amounts import Amount, each_has_its_own
        >>> method = get_method("mustdrop")
        >>> each_has_its_own((method.tower, method.language_model), method.amount, Amount())
        True
    """
    if amount.given or amount.layers is not None or together:
        return False
    return all(one.amount or one.data_decides for one in parts)


def has_its_own(method: AnyMethod) -> bool:
    """Whether ``method`` removes an amount of its own, or each of its parts does.

    Example:
        >>> from ficoco_ext import get_method
        >>> from ficoco_ext.amounts import has_its_own
        >>> has_its_own(get_method("mustdrop")), has_its_own(get_method("fastv")), has_its_own(get_method("ficoco-vl"))
        (True, True, False)
    """
    parts = [one for one in (method.tower, method.projector, method.language_model) if one is not None]
    return bool(method.amount) or each_has_its_own(parts, (), Amount())


_DECIDED = {"projector": "globalcom2 with budget='exact'", "language_model": "mustdrop with thresholds=False"}


def require_numbers(what: str, method: AnyMethod, parts: Sequence[str] = tuple(_DECIDED)) -> None:
    """Raise if the data decide how many tokens one of the ``parts`` of ``method`` removes.

    ``what``: is not known for that reason, for the message.

    Example:
        >>> from ficoco_ext import get_method
        >>> from ficoco_ext.amounts import require_numbers
        >>> require_numbers("its cost", get_method("globalcom2"))
        >>> try:
        ...     require_numbers("its cost", get_method("globalcom2", budget="floor"))
        ... except ValueError as error:
        ...     print(str(error).partition("; ")[0])
        how many tokens globalcom2 removes is decided while a prompt is read, so its cost is not known before
    """
    for part in parts:
        one = getattr(method, part)
        if one is not None and one.data_decides:
            raise ValueError(
                f"how many tokens {one.name} removes is decided while a prompt is read, so {what} is not known before; "
                f"use a method of which r, keep_ratio or tokens decide it, such as {_DECIDED[part]}"
            )


def equal_shares(op: str, patches: int, amount: Amount, parts: int = 2, unit: int = 1) -> tuple[Amount, ...]:
    """The amounts of ``parts`` parts, each of which keeps the same share of what it gets, the last one as a ratio.

    Where the number of ``patches`` is not known (0), all of them are ratios. Where the first part removes patches in
    groups of ``unit``, it leaves the remainder.

    Raises:
        ValueError: not one of ``keep_ratio`` and ``tokens`` alone, a value out of range, or ``tokens`` where the number
            of patches is not known.
    """
    require_shareable(op, amount)
    if not patches:
        if "tokens" in amount.given:
            wanted = "keep_ratio, for the number of visual tokens depends on the picture"
            checks.fail(op, "amount", wanted, "tokens", "or say it for each part")
        ratio = Schedule.build(2**20, layers=(0,), **amount.given).keep_ratio
        (said,) = amount.given.items()
        return (Amount(keep_ratio=ratio ** (1 / parts), share_of=said),) * parts
    final = Schedule.build(patches, layers=(0,), **amount.given).final
    if parts == 2:
        left = [shared_tokens(patches, final)]
    else:
        left = [math.floor(patches * (final / patches) ** (part / parts) + 0.5) for part in range(1, parts)]
    left[0] += (patches - left[0]) % unit
    (said,) = amount.given.items()
    return *(Amount(tokens=tokens, share_of=said) for tokens in left), Amount(keep_ratio=final / left[-1])
