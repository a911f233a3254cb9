"""The schedules of the rows of FiCoCo's tables 3 and 5, each with where it is from and how well it is known."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..schedule import Schedule
from .schedules import Schedules

_NOTHING = Schedules()
OPERATIONS, MACS = "operations of the prompt", "multiply-adds of the visual tokens alone"

# How well the schedule of a row is known.
BASES = {
    "published": "layers and counts stand in the method's own paper or code",
    "nominal": "a round number that the table's authors or the method's give, without layers",
    "predicted": "another column of the paper fixes the count",
    "post_hoc": "one integer rule, found after a search, meets several printed cells: weak evidence",
    "fitted": "found from this very cell, so agreement proves nothing",
}

_FICOCO = "FiCoCo, arXiv 2411.17686; 192, 128 and 64 tokens by its maintainers (kawhiiiileo/FiCoCo, issue 3)"
_IVTP = "nominal 64 tokens: the table takes the row from another paper (its reference 14); the same maintainers"
_CACHE = "84 visual tokens: the cache of 488 MB that table 9 prints for FiCoCo-V"
_AS_V = "84 visual tokens, those of FiCoCo-V: the table's heading gives all of these rows 15.4 TFLOPs"


@dataclass(frozen=True)
class Preset:
    """One reading of a row's schedule.

    Attributes:
        said: in words. basis: a key of :data:`BASES`. source: of the schedule.
        attach: arguments of ``attach`` with the row's method that make the schedule; None: no method here makes it.
        leaves: the schedule, where it is not read off ``attach``.
        entering: visual tokens that enter the language model, where there is no schedule.
        unit: what is counted. printed: what it is compared with, if not the table's own TFLOPs.
    """

    said: str
    basis: str
    source: str
    attach: Mapping[str, Any] | None = None
    leaves: Schedules = _NOTHING
    entering: float | None = None
    unit: str = OPERATIONS
    printed: float | None = None


class Known(NamedTuple):
    """What is known of a row: our method's name, readings of its schedule, and why something is missing."""

    method: str | None
    presets: tuple[Preset, ...]
    reason: str = ""


def find(table: str, label: str, printed: float) -> Known:
    """What is known of the row ``label`` of ``table`` that prints so many TFLOPs.

    Raises:
        KeyError: a row that was not declared.
    """
    name = label.partition(" [")[0]
    return (_OF_7B if table == "3" else _OF_13B)[name, printed]


def _kept(tokens: int, source: str, basis: str = "nominal") -> Preset:
    return Preset(f"{tokens} enter the language model", basis, source, attach={"tokens": tokens})


def _enter(tokens: int, source: str, basis: str = "nominal") -> Preset:
    return Preset(f"{tokens} enter the language model", basis, source, entering=tokens)


def _runs(first: int, patches: int, *runs: tuple[int, int]) -> Schedule:
    """From layer ``first`` on, r and in how many layers."""
    r = tuple(itertools.chain.from_iterable((each,) * count for each, count in runs))
    return Schedule(patches, tuple(range(first, first + len(r))), r)


def _fastv(tokens: int) -> Known:
    mean = round((32 * tokens - 2 * 576) / 30)
    return Known(
        "fastv",
        (
            Preset(
                f"{tokens} from layer 2 on, as FastV counts", "published", "FastV, arXiv 2403.06764", {"tokens": tokens}
            ),
            Preset(f"{mean} from layer 2 on, {tokens} as a mean over layers", "nominal", _FICOCO, {"tokens": mean}),
        ),
        "the printed TFLOPs are those of a prompt with that many visual tokens in all layers, which FastV's layers 0 "
        "and 1 do not have; the accuracies are disputed (Gumpest/SparseVLMs, issue 12)",
    )


_SPARSEVLM = {192: (309, 204, 113), 128: (312, 117, 39), 64: (82, 32, 18)}  # what stays, and what is recycled


def _sparsevlm(tokens: int) -> Known:
    after = _SPARSEVLM[tokens]
    said = ", ".join(map(str, after))
    r = tuple(before - left for before, left in itertools.pairwise((576, *after)))
    source = "Gumpest/SparseVLMs 26a5f48, score.py: retention of version 1.5, recycled tokens added"

    def reading(where: str, layers: tuple[int, ...]) -> Preset:
        leaves = Schedules(decoder=Schedule(576, layers, r, before_attention=True))
        return Preset(f"{said} {where}", "published", source, leaves=leaves)

    readings = (
        reading("from layers 2, 6, 15 on", (2, 6, 15)),
        Preset(f"{said} from the MLP of layers 2, 6, 15 on", "published", source, {"average_tokens": tokens}),
        reading("after layers 2, 6, 15, as its code runs", (3, 7, 16)),
    )
    return Known("sparsevlm", readings, "1.5 is below 1.61, what 64 tokens in all layers cost" if tokens == 64 else "")


# FitPrune's released recipe for 60 %: tokens that leave in each layer.
_FITPRUNE = {
    **{0: 14, 1: 33, 2: 89, 3: 36, 4: 36, 5: 20, 6: 55, 7: 21, 8: 18, 9: 4, 10: 7, 11: 5, 12: 2, 13: 5, 14: 7, 15: 4},
    **{16: 26, 17: 5, 18: 11, 19: 24, 20: 4, 21: 18, 22: 2, 23: 1, 26: 1, 28: 1},
}


def _ficoco_v(r: int) -> Known:
    source = "of the integers, removed in each of the layers 12 to 22, the one whose TFLOPs round to what is printed"
    return Known("ficoco-v", (Preset(f"r = {r} in layers 12 to 22", "post_hoc", source, {"r": r}),))


_SPREAD = "as many a layer as cost this"


def _fitted(said: str, leaves: Schedules) -> Preset:
    there = {name: one for name, one in leaves._asdict().items() if one is not None}
    each = {name: {"r": list(one.r), "layers": list(one.layers)} for name, one in there.items()}
    attach = each if len(each) > 1 else next(iter(each.values()))
    return Preset(said, "fitted", "ficoco plan", attach, leaves)


def _ficoco_l(*runs: tuple[int, int]) -> Known:
    fitted = _fitted(_SPREAD, Schedules(decoder=_runs(4, 576, *runs)))
    reason = "the numbers for these rows are not published; the released one, 14 a layer, costs 6.1 TFLOPs"
    return Known("ficoco-l", (fitted,), reason)


def _ficoco_vl(first: int, tower: tuple[tuple[int, int], ...], decoder: tuple[tuple[int, int], ...]) -> Known:
    vision = _runs(12, 576, *tower)
    leaves = Schedules(vision=vision, decoder=_runs(first, vision.final, *decoder))
    fitted = _fitted("equal shares, " + _SPREAD, leaves)
    return Known("ficoco-vl", (fitted,), "how the two parts share the budget is not published")


_TRAINED = "not training-free: {}, whose weights this package has not"
_PROJECTOR = _TRAINED.format("a projector of its own instead of LLaVA's")
_TRIM = "not training-free, and it compares with a CLIP text encoder, which LLaVA does not load"
_TRIM_SOURCE = (
    "79 % fewer tokens (TRIM, arXiv 2409.10994, its model card), so 121 of 576; their number differs by picture"
)
_RECOVERABLE = (
    "its threshold is not published, and its code could not be had; about a tenth of the tokens stay, by its paper "
    "(arXiv 2409.01179)"
)
_PDROP = (
    "the printed value is PyramidDrop's own, which counts a multiply-add once and no text; the row's accuracies are "
    "those of a model that was trained with it"
)

_BASELINES = {"Random Sampling": "random", "TopK": "topk", "Spatial Pooling": "pool", "EViT": "evit", "ToMe": "tome"}
_OTHERS = ("Honeybee", "LLaMA-VID", "Qwen-VL")
_IVTP_OFF = _TRAINED.format("pruning that is learnt with the model")

_OF_7B: dict[tuple[str, float], Known] = {
    ("LLaVA-1.5", 8.5): Known(None, (Preset("all 576", "published", "no reduction", {}),)),
    ("FitPrune", 4.4): Known(
        "fitprune",
        (
            Preset(
                "the released recipe for 60 %",
                "published",
                "ywh187/FitPrune d28e418, the recipe in its code",
                {"recipe": 0.6},
                Schedules(decoder=Schedule(576, tuple(_FITPRUNE), tuple(_FITPRUNE.values()))),
            ),
        ),
        "which recipe the row has is not said: those released are for 60 % and 90 %",
    ),
    **{("FiCoCo-V", printed): _ficoco_v(r) for printed, r in ((4.2, 29), (3.3, 35), (2.4, 41), (1.5, 47))},
    ("FiCoCo-L", 4.2): _ficoco_l((28, 6), (27, 15), (2, 1)),
    ("FiCoCo-L", 3.3): _ficoco_l((44, 1), (43, 12), (15, 1)),
    ("FiCoCo-L", 2.4): _ficoco_l((101, 1), (100, 4), (74, 1)),
    ("FiCoCo-L", 1.5): Known(
        "ficoco-l",
        (),
        "no schedule in layers 4 to 31 costs less than 1.83 TFLOPs: up to layer 4 every visual token is there",
    ),
    ("FiCoCo-VL", 4.2): _ficoco_vl(4, ((23, 11),), ((6, 1), (5, 27))),
    ("FiCoCo-VL", 3.3): _ficoco_vl(4, ((30, 2), (29, 9)), ((6, 1), (5, 27))),
    ("FiCoCo-VL", 2.4): _ficoco_vl(4, ((36, 10), (35, 1)), ((5, 11), (4, 17))),
    ("FiCoCo-VL", 1.5): _ficoco_vl(4, ((45, 2), (44, 9)), ((3, 16), (2, 12))),
    **{("SparseVLM", printed): _sparsevlm(tokens) for printed, tokens in ((3.3, 192), (2.5, 128), (1.5, 64))},
    **{("FastV", printed): _fastv(tokens) for printed, tokens in ((3.3, 192), (2.5, 128), (1.6, 64))},
    **{
        ("ToMe", printed): Known("tome", (_kept(tokens, _FICOCO),))
        for printed, tokens in ((3.3, 192), (2.5, 128), (1.6, 64))
    },
    ("TRIM", 2.4): Known(None, (_enter(121, _TRIM_SOURCE),), _TRIM),
    **{(name, 1.6): Known(None, (_enter(64, _IVTP),), _PROJECTOR) for name in _OTHERS},
    ("IVTP", 1.6): Known(None, (_enter(64, _IVTP),), _IVTP_OFF),
    ("PyramidDrop", 1.8): Known(
        "pyramiddrop",
        (
            Preset(
                "288, 144, 72 from layers 8, 16, 24 on",
                "published",
                "PyramidDrop, arXiv 2410.17247, supplement: 1.78 in four stages, 3.82 unreduced",
                attach={},
                unit=MACS,
                printed=1.78,
            ),
            Preset("the same, in the unit of the table", "published", "arXiv 2410.17247", attach={}),
        ),
        _PDROP,
    ),
    **{(name, 1.6): Known(method, (_kept(64, _IVTP),)) for name, method in _BASELINES.items() if name != "ToMe"},
    ("LLaVA-PruMerge", 1.5): Known(
        "prumerge",
        (_kept(32, "5.5 % of 576 on average (LLaVA-PruMerge, arXiv 2403.15388); their number differs by picture"),),
        "the count of the printed 1.5 is not said: the published mean of 32 tokens costs 1.2",
    ),
    ("Recoverable Compression", 1.5): Known(None, (_enter(58, "a tenth of 576: arXiv 2409.01179"),), _RECOVERABLE),
}

_OF_13B: dict[tuple[str, float], Known] = {
    ("LLaVA-1.5", 28.6): Known(None, (Preset("all 576", "published", "no reduction", {}),)),
    ("TRIM", 16.4): Known(None, (_enter(121, _TRIM_SOURCE),), _TRIM),
    **{(name, 15.4): Known(None, (_enter(84, _AS_V),), _PROJECTOR) for name in _OTHERS},
    ("IVTP", 15.4): Known(None, (_enter(84, _AS_V),), _IVTP_OFF),
    **{(name, 15.4): Known(method, (_kept(84, _AS_V),)) for name, method in _BASELINES.items()},
    ("FiCoCo-V", 15.4): Known("ficoco-v", (_kept(84, _CACHE, "predicted"),)),
    ("FiCoCo-L", 15.4): Known(
        "ficoco-l",
        (_fitted(_SPREAD, Schedules(decoder=_runs(5, 576, (418, 1), (157, 1)))),),
        "the only schedules in layers 5 to 39 that cost this drop most of the picture in layer 5; none is published",
    ),
    ("FiCoCo-VL", 15.4): _ficoco_vl(5, ((41, 7), (40, 4)), ((3, 29), (2, 6))),
}
