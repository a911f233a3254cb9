"""Every operator with inputs that show what it does: the calls of first contact and of the sanitizers.

A probe is an overload of ``torch.ops.ficoco`` with its arguments, or a whole method. Shapes: odd small ones, and the
real ones of a CLIP ViT-L/14-336 layer and of a 7B decoder that reads five crops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ficoco_ext
from ficoco_ext import QueryKey
from ficoco_ext.methods import describe
from ficoco_ext.ops import reference

Results = tuple[Tensor, ...]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


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
FULL = (
    Case("ViT-L/14-336", 2, 16, 16, 577, 64, 1024, 42, True, (24, 24)),
    Case("decoder 7B", 1, 32, 32, 3392, 128, 4096, 210, False, (48, 60), sequence=2880),
    Case("decoder grouped", 2, 28, 4, 700, 128, 3584, 60, False, (24, 24), sequence=576),
)


@dataclass(frozen=True)
class Probe:
    """One call. ``group`` is its operator; ``run`` takes the namespace of operators; ``wanted`` is the oracle."""

    group: str
    case: str
    dtype: torch.dtype
    run: Callable[[Any], Results]
    wanted: Callable[[], Results]

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.case}, {str(self.dtype).removeprefix('torch.')}"


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _tuple(results: Any) -> Results:
    return (results,) if isinstance(results, Tensor) else tuple(results)


def _operator(name: str, case: str, dtype: torch.dtype, *args: Any) -> Probe:
    packet, _, overload = name.partition(".")
    flat = name.replace(".", "_")
    specified = getattr(reference, flat)

    def run(namespace: Any) -> Results:
        return _tuple(getattr(getattr(namespace, packet), overload or "default")(*args))

    def wanted() -> Results:
        return _tuple(specified(*map(_wide, args)))

    return Probe(name, case, dtype, run, wanted)


class _Maker:
    """Random inputs of one case; keys share a direction, so that attention is as uneven as in a trained model."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        self.case, self.dtype, self.device = case, dtype, device
        self.generator = torch.Generator(device).manual_seed(case.n)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype or self.dtype)

    def uniform(self, *shape: int) -> Tensor:
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
    """The probes of one group (an operator, or "methods") for one case."""
    make = _Maker(case, dtype, device)
    chosen = _decoder if group in DECODER_GROUPS else _vision
    if group == "methods":
        yield from _methods(make)
    elif (case.sequence is None) or group in DECODER_GROUPS:
        yield from (probe for probe in chosen(make, group) if probe.group == group)


def _vision(make: _Maker, group: str) -> Iterator[Probe]:
    c, dtype = make.case, make.dtype
    first, scale = int(c.class_token), c.d**-0.5
    query, key = make.heads(c.h, 0.0), make.heads(c.hk, 1.0)

    def op(name: str, what: str, *args: Any) -> Probe:
        return _operator(name, f"{c.name}{what}", dtype, *args)

    if group == "attention_stats":
        for probs, column, patches in ((0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1), (1, 0, 0)):
            flags = bool(probs), bool(column), bool(patches)
            what = (
                f", {'probs' if probs else 'logits'} {'column' if column else 'row'}{'' if patches else ' no patches'}"
            )
            yield op("attention_stats", what, query, key, scale, c.class_token, *flags)
    if group in ("attention_stats.map", "correlate.map"):
        given = (query.float() @ key.float().repeat_interleave(c.h // c.hk, 1).mT * scale).softmax(-1).to(dtype)
    if group == "attention_stats.map":
        for column in (False, True):
            yield op(group, f", {'column' if column else 'row'}", given, c.class_token, column, True)
    if group == "filter":
        scores = [make.normal(c.b, c.n - first) for _ in range(2)]
        ids = torch.arange(c.n - first, device=make.device).flip(0).repeat(c.b, 1)
        for what, places, penalty in ((", plain", None, 1.0), (", penalty", None, 2.0), (", penalty, ids", ids, 2.0)):
            yield op("filter", what, *scores, places, c.r, 0.65, True, penalty, 2, *c.grid, c.class_token)
    sources, kept = make.partition(c.n, c.r, first)
    most = c.n - c.r - first
    for k in sorted({min(2, most), min(5, most)} - {0}):
        if group == "correlate":
            for alpha, probs in (("softmax", False), ("ratio", True), ("average", True)):
                what = f", {'probs' if probs else 'logits'} {alpha}, k {k}"
                yield op(group, what, query, key, sources, kept, k, scale, alpha, c.class_token, probs)
        if group == "correlate.map":
            yield op(group, f", k {k}", given, sources, kept, k, "softmax", c.class_token)
        if group == "correlate.key":
            yield op(group, f", k {k}", key, sources, kept, k, "softmax", c.class_token)
        if group == "compress":
            tokens, weights = make.normal(c.b, c.n, c.c), make.uniform(c.b, c.r, k)
            targets = make.uniform(c.b, c.r, most).argsort(-1)[..., :k] + first  # distinct for a source
            size = torch.randint(1, 5, (c.b, c.n, 1), generator=make.generator, device=make.device).float()
            weights = weights / weights.sum(-1, keepdim=True)
            for what, sizes, weighted in (("", None, False), (", sizes", size, False), (", weighted", size, True)):
                yield op(group, f"{what}, k {k}", tokens, sources, kept, targets, weights, sizes, weighted)
    if group == "match":
        r = min(c.r, (c.n - first) // 2)
        yield op("match", "", key, r, c.class_token, False)
        yield op("match", ", no class token", key, min(r, c.n // 2), False, False)


def _decoder(make: _Maker, group: str) -> Iterator[Probe]:
    c, dtype, device = make.case, make.dtype, make.device
    visual_tokens = c.sequence or max(c.n // 2, 1)
    begin = (c.n - visual_tokens) // 3
    r = min(c.r, visual_tokens - 1)
    visual = torch.arange(begin, begin + visual_tokens, device=device).repeat(c.b, 1)
    text = torch.arange(begin + visual_tokens, c.n, device=device)
    text = (text if len(text) else torch.tensor([c.n - 1], device=device)).repeat(c.b, 1)
    gone, left = make.partition(visual_tokens, r, 0)
    sources, candidates = visual.gather(1, gone), visual.gather(1, left)
    if group == "to_sequence":
        for k in (0, min(2, left.shape[1])):
            targets = make.uniform(c.b, r, left.shape[1]).argsort(-1)[..., :k]
            yield _operator(group, f"{c.name}, k {k}", dtype, visual, gone, left, targets, c.n)
        return
    query, key, scale = make.heads(c.h, 0.0), make.heads(c.hk, 1.0), c.d**-0.5
    mask = torch.ones(c.b, c.n, dtype=torch.bool, device=device)
    mask[-1, : begin // 2] = False
    for probs, column in ((False, False), (False, True), (True, False), (True, True)):
        what = f"{c.name}, {'probs' if probs else 'logits'} {'column' if column else 'row'}"
        if group == "token_attention":
            each = make.uniform(c.b, 2, text.shape[1]) / text.shape[1]
            how = (mask if probs else None, scale, probs, column, True)
            yield _operator(group, f"{what}, text", dtype, query, key, visual, text, each, *how)
            last = make.uniform(c.b, 1, 1) + 0.5
            yield _operator(group, f"{what}, last", dtype, query, key, visual, text[:, -1:], last, *how)
        else:
            each = make.uniform(c.b, text.shape[1]) / text.shape[1]
            k, alpha = min(2, candidates.shape[1]), "ratio" if probs else "softmax"
            how = (mask if probs else None, k, scale, 0.6, alpha, probs, column, True)
            yield _operator(group, what, dtype, query, key, sources, candidates, text, each, *how)


def _methods(make: _Maker) -> Iterator[Probe]:
    """Whole reductions, from query and key: what each stage found, and the tokens."""
    c, dtype = make.case, make.dtype
    first = int(c.class_token)
    tokens, attn = make.normal(c.b, c.n, c.c), QueryKey(make.heads(c.h, 0.0), make.heads(c.hk, 1.0))
    names = [(name, {}) for name in ficoco_ext.METHODS] + [("ficoco-v", {"variant": "paper"})]
    for name, settings in names:
        needs, method = describe(name).needs, ficoco_ext.get_method(name, **settings)
        in_decoder = isinstance(method, ficoco_ext.methods.DecoderMethod)
        if isinstance(method, ficoco_ext.methods.VisionAndDecoder) or in_decoder != (c.sequence is not None):
            continue  # a pair of methods is both of them; each is called where it belongs
        if "class token" in needs and not c.class_token:
            continue
        r, where = c.r, {"class_token": c.class_token, "grid": c.grid}
        if name == "tome":
            r = min(r, (c.n - first) // 2)
        if in_decoder:
            assert c.sequence is not None
            r, where = min(r, c.sequence - 1), {"visual": ((c.n - c.sequence) // 3, c.sequence)}

        def call(x: Tensor, a: QueryKey, method: Any = method, r: int = r, where: Any = where) -> Results:
            found = ficoco_ext.reduce(x, a, r, method=method, return_reduction=True, **where)
            assert found.tokens is not None
            return found.tokens, found.size, found.source_map, found.kept

        what = f"{c.name}, {name}{' paper' if settings else ''}"
        yield Probe(
            "methods",
            what,
            dtype,
            lambda _, call=call: call(tokens, attn),
            lambda call=call: call(tokens.double(), QueryKey(attn.query.double(), attn.key.double())),
        )


DECODER_GROUPS = ("token_attention", "correlate.tokens", "to_sequence")
GROUPS = (
    "attention_stats",
    "attention_stats.map",
    "filter",
    "correlate",
    "correlate.map",
    "correlate.key",
    "compress",
    "match",
    *DECODER_GROUPS,
    "methods",
)
