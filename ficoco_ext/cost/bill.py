"""The result of counting: lines, and what they add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from .architecture import Architecture
from .hardware import Hardware
from .lines import Line
from .precision import Precision

PARTS = ("tower", "projector", "decoder", "head", "reduction")


class Tokens(NamedTuple):
    """Visual tokens on the three bases that papers count on.

    Attributes:
        entering: those that the language model gets.
        average: mean over its layers of those that enter the layer's attention.
        final: those that leave its last layer.
    """

    entering: float
    average: float
    final: float


@dataclass(frozen=True)
class Sum:
    """Lines added up: of a part, of a layer, or of all.

    Attributes:
        operations; weight_bytes, activation_bytes, kv_bytes: moved. seconds: None without hardware.
        compute_seconds: of these what compute-bound lines take.
    """

    operations: float
    weight_bytes: float
    activation_bytes: float
    kv_bytes: float
    seconds: float | None
    compute_seconds: float | None

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Sum:
        """The sum of ``lines``."""
        held = tuple(lines)
        timed = [line for line in held if line.seconds is not None]
        return cls(
            sum(line.operations for line in held),
            sum(line.weight_bytes for line in held),
            sum(line.activation_bytes for line in held),
            sum(line.kv_bytes for line in held),
            sum(line.seconds or 0.0 for line in timed) if timed else None,
            sum(line.seconds or 0.0 for line in timed if line.bound == "compute") if timed else None,
        )

    @property
    def bytes(self) -> float:
        """All bytes moved."""
        return self.weight_bytes + self.activation_bytes + self.kv_bytes

    @property
    def intensity(self) -> float:
        """Operations per byte; 0 if nothing is moved."""
        return self.operations / self.bytes if self.bytes else 0.0

    @property
    def bound(self) -> str | None:
        """What most of the time is spent on: ``"compute"`` or ``"memory"``; None without hardware."""
        if self.seconds is None or self.compute_seconds is None:
            return None
        return "compute" if self.compute_seconds > self.seconds / 2 else "memory"


@dataclass(frozen=True)
class LayerCost:
    """One layer of the tower or of the language model, its reduction included.

    Attributes:
        part: ``"tower"`` or ``"decoder"``. layer: its index.
        tokens: that enter its attention, class token or text included, of all crops. tokens_in_mlp: that enter its MLP.
        total: what it costs. kv_bytes: what its cache holds afterwards.
    """

    part: str
    layer: int
    tokens: float
    tokens_in_mlp: float
    total: Sum
    kv_bytes: float


@dataclass(frozen=True)
class AfterProjector:
    """What a method removes after the projector.

    Attributes:
        pictures: of the prompt, each reduced on its own. before, after: visual tokens of each.
        total: what choosing and merging them costs, the measuring of saliency in the tower included; nothing if the
            reduction's own cost is not counted.
    """

    pictures: int
    before: int
    after: int
    total: Sum


@dataclass(frozen=True)
class Cost:
    """What one prefill, or one new token, costs.

    Attributes:
        architecture, convention, precision, hardware: what was counted, and how.
        stage: ``"prefill"`` or ``"decode"``.
        lines: every operation of every layer.
        layers: tower layers, then decoder layers.
        tokens: visual tokens, on three bases. text_tokens: the others.
        kv_bytes: size of the KV cache afterwards, of an output-aware one once it is cut.
        resident_bytes: weights of the parts counted, cache (uncut, of a prefill), and the most activations that one
            layer writes.
        after_projector: what leaves there; None if no method acts there, and of a decode.
    """

    architecture: Architecture
    convention: str
    precision: Precision
    hardware: Hardware | None
    stage: str
    lines: tuple[Line, ...]
    layers: tuple[LayerCost, ...]
    tokens: Tokens
    text_tokens: float
    kv_bytes: float
    resident_bytes: float
    after_projector: AfterProjector | None = None

    @cached_property
    def total(self) -> Sum:
        """All lines."""
        return Sum.of(self.lines)

    @cached_property
    def parts(self) -> dict[str, Sum]:
        """Each part that was counted. ``"reduction"`` is in none of the others."""
        there = {line.part for line in self.lines}
        return {part: Sum.of(line for line in self.lines if line.part == part) for part in PARTS if part in there}

    @property
    def tflops(self) -> float:
        """Operations / 1e12, in the convention asked for; they are the same in every precision."""
        return self.total.operations / 1e12

    @property
    def bit_scaled_tflops(self) -> float:
        """``tflops`` times the weights' bits / 16: what papers print for quantised models. No count of operations."""
        return self.tflops * self.precision.weights / 16

    @property
    def kv_mb(self) -> float:
        """KV cache / 1e6 bytes."""
        return self.kv_bytes / 1e6

    @property
    def memory_access_gb(self) -> float:
        """Bytes moved / 1e9: the papers' "total memory". No memory of that size is ever held."""
        return self.total.bytes / 1e9

    @property
    def resident_gb(self) -> float:
        """Bytes held at once / 1e9."""
        return self.resident_bytes / 1e9

    @property
    def ttft_ms(self) -> float | None:
        """Milliseconds to the first token by the roofline: a lower bound. None without hardware, or of a decode."""
        return self._milliseconds("prefill")

    @property
    def tpot_ms(self) -> float | None:
        """Milliseconds per new token by the roofline. None without hardware, or of a prefill."""
        return self._milliseconds("decode")

    def _milliseconds(self, stage: str) -> float | None:
        seconds = self.total.seconds
        return None if seconds is None or self.stage != stage else seconds * 1e3

    @property
    def selection_share(self) -> float:
        """Operations of choosing and merging after the projector, as a share of all that are counted."""
        found = self.after_projector
        return 0.0 if found is None else found.total.operations / self.total.operations

    @property
    def reduction_share(self) -> float:
        """Operations of the reduction itself, in every part, as a share of all that are counted."""
        own = self.parts.get("reduction")
        return 0.0 if own is None else own.operations / self.total.operations

    def _selection(self) -> dict[str, Any] | None:
        found = self.after_projector
        if found is None:
            return None
        counts = {"pictures": found.pictures, "before": found.before, "after": found.after}
        return {**counts, **_plain(found.total), "share_of_operations": self.selection_share}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        total = self.total
        return {
            "model": self.architecture.name,
            "stage": self.stage,
            "convention": self.convention,
            "precision": self.precision.name,
            "hardware": None if self.hardware is None else self.hardware.name,
            "tflops": self.tflops,
            "bit_scaled_tflops": self.bit_scaled_tflops,
            "kv_mb": self.kv_mb,
            "memory_access_gb": self.memory_access_gb,
            "resident_gb": self.resident_gb,
            "ttft_ms": self.ttft_ms,
            "tpot_ms": self.tpot_ms,
            "intensity": total.intensity,
            "bound": total.bound,
            "text_tokens": self.text_tokens,
            "visual_tokens": self.tokens._asdict(),
            "after_projector": self._selection(),
            "parts": {name: _plain(part) for name, part in self.parts.items()},
            "layers": [
                {
                    "part": one.part,
                    "layer": one.layer,
                    "tokens": one.tokens,
                    "tokens_in_mlp": one.tokens_in_mlp,
                    "kv_cache_bytes": one.kv_bytes,
                    **_plain(one.total),
                }
                for one in self.layers
            ],
        }


def _plain(one: Sum) -> dict[str, Any]:
    return {
        "operations": one.operations,
        "weight_bytes": one.weight_bytes,
        "activation_bytes": one.activation_bytes,
        "kv_bytes": one.kv_bytes,
        "intensity": one.intensity,
        "seconds": one.seconds,
        "bound": one.bound,
    }
