"""One line of a bill: what an operation costs, by a formula that is printed and computed from the same text."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..ops import costs
from ..ops.costs import Operation, evaluate
from .hardware import Hardware
from .precision import FP16, Precision

SYMBOLS = {
    "b": "sequences that go through together: crops in the tower, 1 in the language model",
    "n": "tokens that enter the attention of the layer",
    "q": "tokens that enter its MLP",
    "c": "keys that its queries meet: n in a prefill, the cached ones in decoding",
    "s": "pairs of query and key: n c, or those that a causal kernel visits",
    "h": "width of the hidden state",
    "i": "width of the MLP",
    "a": "attention heads",
    "k": "key-value heads",
    "d": "width of a head",
    "v": "vocabulary",
    "t": "positions whose logits are computed, or visual tokens that are projected",
    "p": "patches of a crop",
    "x": "numbers in a patch",
    "w": "width of the projector's hidden layer",
    "y": "width of what enters the projector",
    "f": "times that fused attention reads keys and values, ceil(n / tile)",
} | costs.SYMBOLS


@dataclass(frozen=True)
class Line:
    """One operation of one layer, counted.

    Attributes:
        part: ``"tower"``, ``"projector"``, ``"decoder"``, ``"head"`` or ``"reduction"``.
        layer: which layer of the tower or the decoder; None: of neither.
        name: what it does.
        formula: of its operations, see :data:`SYMBOLS`. bytes_formula: of the bytes that it moves.
        values: of the symbols.
        operations: floating point operations in the convention asked for.
        weight_bytes, activation_bytes, kv_bytes: moved between memory and chip.
        stored_bytes: of these the activations that it writes, which have to be held somewhere.
        seconds: by the roofline, None without hardware. bound: ``"compute"`` or ``"memory"``, None without hardware.
    """

    part: str
    layer: int | None
    name: str
    formula: str
    bytes_formula: str
    values: tuple[tuple[str, float], ...]
    operations: float
    weight_bytes: float
    activation_bytes: float
    kv_bytes: float
    stored_bytes: float
    seconds: float | None = None
    bound: str | None = None

    @property
    def bytes(self) -> float:
        """All bytes moved."""
        return self.weight_bytes + self.activation_bytes + self.kv_bytes

    @property
    def intensity(self) -> float:
        """Operations per byte; 0 if nothing is moved."""
        return self.operations / self.bytes if self.bytes else 0.0

    def explain(self) -> str:
        """The formula of its operations, with numbers in it, and what comes out.

        Example:
            >>> from ficoco_ext.cost import prefill
            >>> line = next(line for line in prefill("llava-1.5-7b").lines if line.name == "up_proj")
            >>> line.explain()
            'up_proj: 2*b*q*h*i = 2*1*636*4096*11008 = 57,352,912,896 (b=1, q=636, h=4096, i=11008)'
            >>> line.bytes_formula
            '2*(h*i) + 2*(b*q*h+b*q*i)'
        """
        return self._explained(self.formula, self.operations)

    def explain_bytes(self) -> str:
        """The formula of the bytes that it moves, weights, activations and cache entries, and what comes out."""
        return self._explained(self.bytes_formula, self.bytes)

    def _explained(self, formula: str, result: float) -> str:
        used = {name: value for name, value in self.values if name in _names(formula)}
        shown = "".join(_show(used[part]) if part in used else part for part in _parts(formula))
        named = ", ".join(f"{name}={_show(value)}" for name, value in used.items())
        return f"{self.name}: {formula} = {shown} = {result:,} ({named})"


@functools.cache
def _parts(formula: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z]+|[^a-z]+", formula))


@functools.cache
def _names(formula: str) -> frozenset[str]:
    return frozenset(part for part in _parts(formula) if part.isalpha())


@functools.cache
def _bytes_formula(operation: Operation, precision: Precision) -> str:
    """Bytes a number times numbers, of everything that is moved."""
    groups = (
        (precision.weights, (operation.weights,)),
        (precision.activations, (operation.loads, operation.stores)),
        (precision.kv, (operation.kv_loads, operation.kv_stores)),
    )
    moved = [(bits, "+".join(part for part in parts if part != "0")) for bits, parts in groups]
    return " + ".join(f"{bits / 8:g}*({numbers})" for bits, numbers in moved if numbers) or "0"


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and not value.is_integer() else str(value)


@dataclass(frozen=True)
class Rules:
    """How to count: which operations there are, in how many bits, on what."""

    convention: str = "matmul"
    precision: Precision = FP16
    hardware: Hardware | None = None
    fused: bool = True
    causal: bool = False

    @property
    def quirks(self) -> bool:
        """Whether to count like LLM-Viewer."""
        return self.convention == "llmviewer"

    def line(self, part: str, layer: int | None, operation: Operation, values: Mapping[str, Any]) -> Line:
        """One operation with these values, in bytes and seconds."""
        bits = self.precision

        def moved(formula: str, width: int) -> float:
            return evaluate(formula, values) * width / 8

        operations = evaluate(operation.operations, values)
        weights = moved(operation.weights, bits.weights)
        stored = moved(operation.stores, bits.activations)
        activations = moved(operation.loads, bits.activations) + stored
        kv = moved(operation.kv_loads, bits.kv) + moved(operation.kv_stores, bits.kv)
        seconds = bound = None
        if self.hardware is not None:
            compute = operations / self._peak(operation)
            memory = (weights + activations + kv) / self.hardware.bandwidth
            seconds, bound = max(compute, memory), "compute" if compute > memory else "memory"
        return Line(
            part,
            layer,
            operation.name,
            operation.operations,
            _bytes_formula(operation, bits),
            tuple(values.items()),
            operations,
            weights,
            activations,
            kv,
            stored,
            seconds,
            bound,
        )

    def _peak(self, operation: Operation) -> float:
        """LLM-Viewer takes the INT8 peak if nothing is wider, else FP16; honestly it is the wider operand's."""
        assert self.hardware is not None
        bits = self.precision
        if self.quirks:
            widest = max(bits.weights, bits.activations, bits.kv)
            return self.hardware.peak(8 if widest <= 8 else 16)
        other = bits.kv if operation.weights == "0" else bits.weights
        return self.hardware.peak(max(bits.activations, other))
