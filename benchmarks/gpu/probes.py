"""Every operator with inputs that exercise it: the calls of first contact and of the sanitizers.

The operators' probes are those of ``ficoco doctor``; here are whole methods besides, and the real shapes of a CLIP
ViT-L/14-336 layer and of a 7B decoder that reads five crops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ficoco_ext
from ficoco_ext import QueryKey
from ficoco_ext.apps.operator_cases import DECODER_OPERATORS, Case, Maker, Results
from ficoco_ext.apps.operator_cases import SMALL as SMALL  # the small cases, for the programs beside this one
from ficoco_ext.apps.operator_cases import probes as operator_probes
from ficoco_ext.methods import describe

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FULL = (
    Case("ViT-L/14-336", 2, 16, 16, 577, 64, 1024, 42, True, (24, 24)),
    Case("decoder 7B", 1, 32, 32, 3392, 128, 4096, 210, False, (48, 60), sequence=2880),
    Case("decoder grouped", 2, 28, 4, 700, 128, 3584, 60, False, (24, 24), sequence=576),
)


@dataclass(frozen=True)
class Method:
    """A whole reduction, with what :class:`ficoco_ext.apps.operator_cases.Probe` has of one operator."""

    group: str
    case: str
    dtype: torch.dtype
    run: Callable[[Any], Results]
    wanted: Callable[[], Results]

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.case}, {str(self.dtype).removeprefix('torch.')}"


def probes(case: Case, dtype: torch.dtype, device: torch.device, group: str) -> Iterator[Any]:
    """The probes of one group (an operator, or "methods") for one case."""
    if group == "methods":
        yield from _methods(Maker(case, dtype, device))
    else:
        yield from operator_probes(case, dtype, device, group)


def _methods(make: Maker) -> Iterator[Method]:
    """Whole reductions, from query and key: what each stage found, and the tokens."""
    c, dtype = make.case, make.dtype
    first = int(c.class_token)
    tokens, attn = make.normal(c.b, c.n, c.c), QueryKey(make.heads(c.h, 0.0), make.heads(c.hk, 1.0))
    names = [(name, {}) for name in ficoco_ext.METHODS] + [("ficoco-v", {"variant": "paper"})]
    for name, settings in names:
        needs, method = describe(name).needs, ficoco_ext.get_method(name, **settings)
        in_decoder = isinstance(method, ficoco_ext.methods.DecoderMethod)
        if isinstance(method, ficoco_ext.methods.Combined) or in_decoder != (c.sequence is not None):
            continue  # a pair of methods is both of them; each is called where it belongs
        if method.projector is not None:
            continue  # it has no layer's query and key
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
        yield Method(
            "methods",
            what,
            dtype,
            lambda _, call=call: call(tokens, attn),
            lambda call=call: call(tokens.double(), QueryKey(attn.query.double(), attn.key.double())),
        )


DECODER_GROUPS = tuple(DECODER_OPERATORS)
GROUPS = (
    "attention_stats",
    "attention_stats.map",
    "filter",
    "correlate",
    "correlate.map",
    "correlate.key",
    "compress",
    "match",
    "cosines",
    "greedy_select",
    "greedy_cover",
    "bipartite_thin",
    "window_similarity",
    "top_of_segments",
    *DECODER_GROUPS,
    "methods",
)
