"""How many bits weights, activations and the KV cache have."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

_LEGAL = (4, 8, 16, 32)


@dataclass(frozen=True)
class Precision:
    """Bits of weights, activations and KV cache.

    Example:
        >>> from ficoco_ext.cost import Precision
        >>> Precision.parse("W4A16KV4"), Precision.parse("int8").name
        (Precision(weights=4, activations=16, kv=4), 'INT8')
    """

    weights: int = 16
    activations: int = 16
    kv: int = 16

    def __post_init__(self) -> None:
        for field in fields(self):
            bits = getattr(self, field.name)
            if isinstance(bits, bool) or bits not in _LEGAL:
                raise ValueError(f"Precision: {field.name} must be one of {', '.join(map(str, _LEGAL))}, got {bits!r}")

    @classmethod
    def parse(cls, text: str | Precision) -> Precision:
        """``"FP16"``, ``"INT8"``, ``"INT4"``, ``"FP32"`` or a mix such as ``"W4A16KV4"``; case does not matter.

        Raises:
            ValueError: anything else.
        """
        if isinstance(text, Precision):
            return text
        name = str(text).upper()
        if name in _NAMED:
            return _NAMED[name]
        mix = re.fullmatch(r"W(\d+)A(\d+)(?:KV(\d+))?", name)
        if mix is None:
            raise ValueError(f"precision must be one of {', '.join(_NAMED)} or a mix such as W4A16KV4, got {text!r}")
        weights, activations, kv = (None if bits is None else int(bits) for bits in mix.groups())
        assert weights is not None and activations is not None
        return cls(weights, activations, activations if kv is None else kv)

    @property
    def name(self) -> str:
        """``"FP16"`` and the like, or ``"W4A16KV4"``."""
        for name, one in _NAMED.items():
            if one == self:
                return name
        return f"W{self.weights}A{self.activations}KV{self.kv}"

    def __str__(self) -> str:
        return self.name


FP32, FP16, INT8, INT4 = Precision(32, 32, 32), Precision(16, 16, 16), Precision(8, 8, 8), Precision(4, 4, 4)
_NAMED = {"FP32": FP32, "FP16": FP16, "BF16": FP16, "INT8": INT8, "INT4": INT4}
