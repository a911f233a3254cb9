"""Every operator with inputs that show what it does, and its specification in float64 on the same inputs.

Shared by ``ficoco doctor`` and by the checks of a GPU in ``benchmarks/gpu``. A case is one set of shapes; a probe is
one call of one overload of ``torch.ops.ficoco``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops import library
from ..ops._greedy_select import OBJECTIVES

Results = tuple[Tensor, ...]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """B images, H heads of width d (Hk of the keys), N tokens, C channels, r sources; ``sequence`` for a decoder: the
    visual tokens are the middle of N, and only the decoder's operators are called."""

    name: str
    b: int
    h: int
    hk: int
    n: int
    d: int
    c: int
    r: int
    class_token: bool
    grid: tuple[int, int]
    sequence: int | None = None


SMALL = (
    Case("odd", 2, 3, 3, 37, 8, 13, 7, True, (6, 6)),
    Case("grouped", 1, 4, 2, 131, 64, 70, 33, True, (10, 13)),
    Case("no class token", 3, 2, 1, 66, 24, 5, 64, False, (6, 11)),
    Case("two tokens", 1, 1, 1, 2, 3, 1, 1, False, (1, 2)),
)


@dataclass(frozen=True)
class Probe:
    """One call.

    Attributes:
        group: the operator, with its overload.
        case: shapes and settings in words.
        dtype: of the inputs.
        args: the arguments of the operator.
    """

    group: str
    case: str
    dtype: torch.dtype
    args: tuple[Any, ...]

    @property
    def key(self) -> str:
        """Its name in results."""
        return f"{self.case}, {str(self.dtype).removeprefix('torch.')}"

    def run(self, namespace: Any) -> Results:
        """What the operator of ``namespace`` gives."""
        packet, _, overload = self.group.partition(".")
        return results(getattr(getattr(namespace, packet), overload or "default")(*self.args))

    def wanted(self, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Results:
        """The specification in float64, after ``change`` of each floating argument."""
        wide = [
            change(arg.double()) if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in self.args
        ]
        return results(library.operator(self.group, torch.empty(0, dtype=torch.float64))(*wide))


def results(given: Any) -> Results:
    """What an operator returns, as a tuple of tensors."""
    return (given,) if isinstance(given, Tensor) else tuple(given)


class Maker:
    """Random inputs of one case; keys share a direction, so that attention is as uneven as in a trained model."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        self.case, self.dtype, self.device = case, dtype, device
        self.generator = torch.Generator(device).manual_seed(case.n)

    def probe(self, name: str, what: str, *args: Any) -> Probe:
        """A call of the operator ``name``."""
        return Probe(name, f"{self.case.name}{what}", self.dtype, args)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers, by default in the dtype of the case."""
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype or self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """float32 numbers in [0, 1)."""
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def heads(self, h: int, shared: float) -> Tensor:
        """(B, h, N, d), tokens first in memory, as Hugging Face has it."""
        c = self.case
        values = self.normal(c.b, c.n, h, c.d, dtype=torch.float32)
        values += shared * self.normal(c.b, 1, h, c.d, dtype=torch.float32)
        return values.to(self.dtype).transpose(1, 2)

    def partition(self, n: int, r: int, first: int) -> tuple[Tensor, Tensor]:
        """Random ascending sources (B, r) and kept (B, n - r), token 0 kept if ``first``."""
        order = self.uniform(self.case.b, n - first).argsort(1) + first
        zero = torch.zeros(self.case.b, first, dtype=torch.int64, device=self.device)
        return order[:, :r].sort(1).values, torch.cat([zero, order[:, r:]], 1).sort(1).values


def probes(case: Case, dtype: torch.dtype, device: torch.device, group: str) -> Iterator[Probe]:
    """The probes of one operator for one case; none for an operator that is not known here."""
    if group in OPERATORS and (case.sequence is None or group in DECODER_OPERATORS):
        yield from OPERATORS[group](Maker(case, dtype, device), group)


def _attention_stats(make: Maker, group: str) -> Iterator[Probe]:
    c, query, key = make.case, make.heads(make.case.h, 0.0), make.heads(make.case.hk, 1.0)
    for probs, column, patches in ((0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1), (1, 0, 0)):
        flags = bool(probs), bool(column), bool(patches)
        what = f", {'probs' if probs else 'logits'} {'column' if column else 'row'}{'' if patches else ' no patches'}"
        yield make.probe(group, what, query, key, c.d**-0.5, c.class_token, *flags)


def _map(make: Maker) -> Tensor:
    """(B, H, N, N) probabilities."""
    c, query, key = make.case, make.heads(make.case.h, 0.0), make.heads(make.case.hk, 1.0)
    logits = query.float() @ key.float().repeat_interleave(c.h // c.hk, 1).mT * c.d**-0.5
    return logits.softmax(-1).to(make.dtype)


def _attention_stats_map(make: Maker, group: str) -> Iterator[Probe]:
    given = _map(make)
    for column in (False, True):
        yield make.probe(group, f", {'column' if column else 'row'}", given, make.case.class_token, column, True)


def _filter(make: Maker, group: str) -> Iterator[Probe]:
    c, patches = make.case, make.case.n - int(make.case.class_token)
    scores = [make.normal(c.b, patches) for _ in range(2)]
    ids = torch.arange(patches, device=make.device).flip(0).repeat(c.b, 1)
    for what, positions, penalty in ((", plain", None, 1.0), (", penalty", None, 2.0), (", penalty, ids", ids, 2.0)):
        yield make.probe(group, what, *scores, positions, c.r, 0.65, True, penalty, 2, *c.grid, c.class_token)


def _counts(make: Maker) -> list[int]:
    """Targets per source that are tried."""
    most = make.case.n - make.case.r - int(make.case.class_token)
    return sorted({min(2, most), min(5, most)} - {0})


def _correlate(make: Maker, group: str) -> Iterator[Probe]:
    c, query, key = make.case, make.heads(make.case.h, 0.0), make.heads(make.case.hk, 1.0)
    sources, kept = make.partition(c.n, c.r, int(c.class_token))
    for k in _counts(make):
        for alpha, probs in (("softmax", False), ("ratio", True), ("average", True)):
            what = f", {'probs' if probs else 'logits'} {alpha}, k {k}"
            yield make.probe(group, what, query, key, sources, kept, k, c.d**-0.5, alpha, c.class_token, probs)


def _correlate_given(make: Maker, group: str) -> Iterator[Probe]:
    """By a map, or by keys."""
    c, given = make.case, _map(make) if group == "correlate.map" else make.heads(make.case.hk, 1.0)
    sources, kept = make.partition(c.n, c.r, int(c.class_token))
    for k in _counts(make):
        yield make.probe(group, f", k {k}", given, sources, kept, k, "softmax", c.class_token)


def _compress(make: Maker, group: str) -> Iterator[Probe]:
    c, first = make.case, int(make.case.class_token)
    sources, kept = make.partition(c.n, c.r, first)
    for k in _counts(make):
        tokens, weights = make.normal(c.b, c.n, c.c + 1)[..., 1:], make.uniform(c.b, c.r, k)
        targets = make.uniform(c.b, c.r, c.n - c.r - first).argsort(-1)[..., :k] + first  # distinct for a source
        size = torch.randint(1, 5, (c.b, c.n, 1), generator=make.generator, device=make.device).float()
        weights = weights / weights.sum(-1, keepdim=True)
        for what, sizes, weighted in (("", None, False), (", sizes", size, False), (", weighted", size, True)):
            yield make.probe(group, f"{what}, k {k}", tokens, sources, kept, targets, weights, sizes, weighted)


def _match(make: Maker, group: str) -> Iterator[Probe]:
    c, key = make.case, make.heads(make.case.hk, 1.0)
    yield make.probe(group, "", key, min(c.r, (c.n - int(c.class_token)) // 2), c.class_token, False)
    yield make.probe(group, ", no class token", key, min(c.r, c.n // 2), False, False)


def _greedy_select(make: Maker, group: str) -> Iterator[Probe]:
    """Few picks among features that differ in kind, so that float32 leaves no doubt."""
    c = make.case
    features, saliency = make.normal(c.b, c.n, c.c), make.uniform(c.b, c.n) + 0.5
    count = min(6, c.n, c.c)
    for objective in OBJECTIVES:
        yield make.probe(group, f", {objective}", features, count, objective, saliency, None, 0.5)
    mask = torch.arange(c.n, device=make.device).repeat(c.b, 1) < max(c.n - 3, 1)
    yield make.probe(group, ", masked", features, min(count, max(c.n - 3, 1)), "coverage", None, mask, 0.5)


def _cosines(make: Maker, group: str) -> Iterator[Probe]:
    c = make.case
    features = make.normal(c.b, c.n, c.c)
    yield make.probe(group, "", features, make.normal(c.b, c.r + 3, c.c + 1)[..., 1:])
    yield make.probe(group, ", with themselves", features, features)


def _greedy_cover(make: Maker, group: str) -> Iterator[Probe]:
    """Few picks, of a picture's tokens and some words."""
    c = make.case
    cover, left = make.uniform(c.b, c.n, c.n + 5), max(c.n - 3, 1)
    yield make.probe(group, "", cover, min(6, c.n), None)
    mask = torch.arange(c.n, device=make.device).repeat(c.b, 1) < left
    yield make.probe(group, ", masked", cover, min(6, left), mask)


def _bipartite_thin(make: Maker, group: str) -> Iterator[Probe]:
    c = make.case
    features = make.normal(c.b, c.n, c.c)
    order = make.uniform(c.b, c.n).argsort(1)
    mask = torch.arange(c.n, device=make.device).repeat(c.b, 1) < max(c.n - 3, 1)
    yield make.probe(group, "", features, order[:, 1:], max(c.n // 3, 1), 8, None)
    yield make.probe(group, ", masked", features, order, max(c.n // 4, 1), 3, mask)


def _window_similarity(make: Maker, group: str) -> Iterator[Probe]:
    """The patches of the grid, which share a direction as those of a picture do."""
    c, (height, width) = make.case, make.case.grid
    tokens = make.normal(c.b, height * width, c.c) + make.normal(c.b, 1, c.c)
    for window in (2, 3):
        yield make.probe(group, f", window {window}", tokens, height, width, window)


def _top_of_segments(make: Maker, group: str) -> Iterator[Probe]:
    """Some of each of up to four segments, whose tokens lie between each other."""
    c, groups = make.case, min(4, make.case.n)
    segments = torch.arange(c.n, device=make.device) % groups
    sizes = torch.bincount(segments, minlength=groups)
    for what, counts in (("", (sizes + 1) // 2), (", one segment", sizes * (sizes.cumsum(0) == sizes))):
        total = int(counts.sum())
        yield make.probe(group, what, make.normal(c.b, c.n), segments, counts.repeat(c.b, 1), total)


def _reduce(make: Maker, group: str) -> Iterator[Probe]:
    """The composition of the four stages, as FiCoCo-V sets them in both readings, and by keys."""
    c, k = make.case, min(2, make.case.n - make.case.r - int(make.case.class_token))
    tokens = make.normal(c.b, c.n, c.c)
    by_map = group == "reduce.map"
    given = (_map(make),) if by_map else (make.heads(c.h, 0.0), make.heads(c.hk, 1.0), c.d**-0.5)
    for correlation, lam in (("logits", 0.65), ("probs", 0.35), ("key", 0.65))[: 2 if by_map else 3]:
        probs = correlation == "probs"
        column = probs or by_map  # rows of probabilities have equal means, so nothing would decide
        settings = (c.class_token, lam, probs, column, not probs, 2.0, 2, *c.grid, correlation, "softmax", False)
        yield make.probe(group, f", {correlation}", tokens, *given, None, None, c.r, k, *settings)


@dataclass(frozen=True)
class _Sequence:
    """Which tokens of a decoder's sequence are visual, which of them leave, and the text after them."""

    visual: Tensor
    text: Tensor
    gone: Tensor
    left: Tensor

    @property
    def chosen(self) -> tuple[Tensor, Tensor]:
        """Sources and candidates as positions in the sequence."""
        return self.visual.gather(1, self.gone), self.visual.gather(1, self.left)

    @classmethod
    def make(cls, make: Maker) -> _Sequence:
        """The visual tokens are the middle of the tokens, or those of ``case.sequence``."""
        c, device = make.case, make.device
        count = c.sequence or max(c.n // 2, 1)
        begin = (c.n - count) // 3
        visual = torch.arange(begin, begin + count, device=device).repeat(c.b, 1)
        text = torch.arange(begin + count, c.n, device=device)
        text = (text if len(text) else torch.tensor([c.n - 1], device=device)).repeat(c.b, 1)
        return cls(visual, text, *make.partition(count, min(c.r, count - 1), 0))


def _mask(make: Maker, sequence: _Sequence) -> Tensor:
    """(B, N) the last row begins with padding."""
    mask = torch.ones(make.case.b, make.case.n, dtype=torch.bool, device=make.device)
    mask[-1, : int(sequence.visual[0, 0]) // 2] = False
    return mask


_READINGS = ((False, False), (False, True), (True, False), (True, True))


def _token_attention(make: Maker, group: str) -> Iterator[Probe]:
    c, s = make.case, _Sequence.make(make)
    query, key, mask = make.heads(c.h, 0.0), make.heads(c.hk, 1.0), _mask(make, s)
    for probs, column in _READINGS:
        what = f", {'probs' if probs else 'logits'} {'column' if column else 'row'}"
        how = (mask if probs else None, c.d**-0.5, probs, column, True)
        each = make.uniform(c.b, 2, s.text.shape[1]) / s.text.shape[1]
        yield make.probe(group, f"{what}, text", query, key, s.visual, s.text, each, *how)
        last = make.uniform(c.b, 1, 1) + 0.5
        yield make.probe(group, f"{what}, last", query, key, s.visual, s.text[:, -1:], last, *how)


def _received_from(make: Maker, group: str) -> Iterator[Probe]:
    """One row of text does not count."""
    c, s = make.case, _Sequence.make(make)
    query, key, mask = make.heads(c.h, 0.0), make.heads(c.hk, 1.0), _mask(make, s)
    chosen = torch.ones_like(s.text, dtype=torch.bool)
    chosen[0, 0] = False
    for probs in (False, True):
        how = (mask if probs else None, c.d**-0.5, probs, True)
        yield make.probe(group, f", {'probs' if probs else 'logits'}", query, key, s.visual, s.text, chosen, *how)


def _correlate_tokens(make: Maker, group: str) -> Iterator[Probe]:
    c, s = make.case, _Sequence.make(make)
    query, key, mask = make.heads(c.h, 0.0), make.heads(c.hk, 1.0), _mask(make, s)
    sources, candidates = s.chosen
    for probs, column in _READINGS:
        what = f", {'probs' if probs else 'logits'} {'column' if column else 'row'}"
        each = make.uniform(c.b, s.text.shape[1]) / s.text.shape[1]
        k, alpha = min(2, candidates.shape[1]), "ratio" if probs else "softmax"
        how = (mask if probs else None, k, c.d**-0.5, 0.6, alpha, probs, column, True)
        yield make.probe(group, what, query, key, sources, candidates, s.text, each, *how)


def _to_sequence(make: Maker, group: str) -> Iterator[Probe]:
    s = _Sequence.make(make)
    (b, r), left = s.gone.shape, s.left.shape[1]
    for k in (0, min(2, left)):
        targets = make.uniform(b, r, left).argsort(-1)[..., :k]
        yield make.probe(group, f", k {k}", s.visual, s.gone, s.left, targets, make.case.n)


def _reduce_sequence(make: Maker, group: str) -> Iterator[Probe]:
    """As FiCoCo-L sets it in both readings, and as FastV does."""
    c, s = make.case, _Sequence.make(make)
    tokens, query, key = make.normal(c.b, c.n, c.c), make.heads(c.h, 0.0), make.heads(c.hk, 1.0)
    (b, count), r, mask = s.visual.shape, s.gone.shape[1], _mask(make, s)
    size = torch.randint(1, 5, (b, c.n, 1), generator=make.generator, device=make.device).float()
    after = c.n - int(s.visual[0, -1]) - 1
    for ranking, alpha, k in (("logits", "softmax", 2), ("probs", "ratio", 2), ("last", "softmax", 0)):
        counts = (r, min(k, count - r), after)
        ranked = (ranking, 0.6, "mean", "mean", 1.0, 2, 0, 0)
        linked = ("logits" if ranking == "last" else ranking, 0.6, "sum", alpha, False)
        scale = c.d**-0.5
        args = (tokens, query, key, scale, s.visual, mask, None, size, *counts, *ranked, *linked)
        yield make.probe(group, f", {ranking}", *args)


DECODER_OPERATORS: dict[str, Callable[[Maker, str], Iterator[Probe]]] = {
    "token_attention": _token_attention,
    "received_from": _received_from,
    "correlate.tokens": _correlate_tokens,
    "to_sequence": _to_sequence,
    "reduce_sequence": _reduce_sequence,
}
OPERATORS: dict[str, Callable[[Maker, str], Iterator[Probe]]] = {
    "attention_stats": _attention_stats,
    "attention_stats.map": _attention_stats_map,
    "filter": _filter,
    "correlate": _correlate,
    "correlate.map": _correlate_given,
    "correlate.key": _correlate_given,
    "compress": _compress,
    "match": _match,
    "cosines": _cosines,
    "greedy_select": _greedy_select,
    "greedy_cover": _greedy_cover,
    "bipartite_thin": _bipartite_thin,
    "window_similarity": _window_similarity,
    "top_of_segments": _top_of_segments,
    "reduce": _reduce,
    "reduce.map": _reduce,
    **DECODER_OPERATORS,
}
