"""The second table of each budget: tokens, FLOPs and time."""

from __future__ import annotations

from typing import Any

from .summary import Line, Summary

PARTS = {"tower": "tower", "language_model": "language model", "selection": "selection"}


def _parts(line: Line) -> dict[str, float]:
    return (line.cost or {}).get("flops_parts", {})


def _shows_parts(summary: Summary) -> bool:
    """A run of an earlier version has none."""
    return any(map(_parts, summary.lines))


def _batches(summary: Summary) -> list[str]:
    return sorted({batch for line in summary.lines for batch in line.first_token or {}}, key=int)


def headings(summary: Summary) -> list[str]:
    """Of the columns of :func:`row`."""
    return [
        "method",
        "tokens in",
        "tokens mean",
        "tokens out",
        "FLOPs",
        *(PARTS.values() if _shows_parts(summary) else ()),
        "KV cache",
        "s",
        "questions/s",
        *(f"{what}, batch {batch}" for batch in _batches(summary) for what in ("first token ms", "of it selection")),
    ]


def row(summary: Summary, line: Line) -> list[str]:
    """One setting: tokens; FLOPs and cache in percent of the unreduced model's; seconds, a rate and milliseconds."""
    cost, parts = line.cost or {}, _parts(line)
    tokens, whole = cost.get("visual_tokens", {}), (summary.lines[0].cost or {}).get("flops")
    return [
        line.name,
        *(f"{tokens[name]:.4g}" if tokens else "-" for name in ("entering", "average", "final")),
        _percent(cost.get("flops_ratio")),
        *(_percent(parts[name] / whole if parts and whole else None, 2) for name in PARTS if _shows_parts(summary)),
        _percent(cost.get("kv_ratio")),
        "-" if line.seconds is None else f"{line.seconds:.1f}",
        "-" if line.rate is None else f"{line.rate:.0f}",
        *(cell for batch in _batches(summary) for cell in _times((line.first_token or {}).get(batch))),
    ]


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _times(found: dict[str, Any] | None) -> tuple[str, str]:
    """Milliseconds, and a word where they prove no difference from all tokens."""
    if found is None:
        return "-", "-"
    noise = " (noise)" if found["judged"] == "noise" else ""
    selection = found["selection"]
    return f"{1e3 * found['seconds']:.4g}{noise}", "-" if selection is None else f"{1e3 * selection:.3g}"


def legend(summary: Summary) -> list[str]:
    """What numbers of this table mean that not every run has, in sentences."""
    said = []
    if _shows_parts(summary):
        said.append(
            "FLOPs by part, all in percent of the unreduced model's: tower with projector, language model with head, "
            "and selection, which is choosing and merging."
        )
    if _batches(summary):
        said.append(
            "first token ms: median from pixels to the logits of the first new token, all that the method does "
            "included; noise: not proven to differ from all tokens. of it selection: within the method alone, in runs "
            "of their own; what the tower measures for it is in the first number only."
        )
    return said
