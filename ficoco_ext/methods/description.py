"""What a method does, in words, told from its stages: so the words change with its hyperparameters."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..stages import (
    Cells,
    Compress,
    Correlate,
    DecoderCorrelate,
    DecoderFilter,
    Filter,
    Fuse,
    LastTokenFilter,
    Match,
    Neighbours,
    RandomFilter,
    SingleHeadFilter,
)
from .base import Method
from .decoder import DecoderMethod, VisionAndDecoder
from .staged import Split, Staged

_SECOND_HALF = "the second half of the tower, up to the layer that is read"
_USED, _DEEP = 23, 32  # layers of LLaVA-1.5: those of its tower that are read, those of its language model


@dataclass(frozen=True)
class Description:
    """What a method does, in words.

    Attributes:
        name: of the method.
        acts_in: ``"tower"``, ``"language model"``, or both.
        summary: one sentence or a few.
        filter, correlate, compress: its stages.
        needs: what tokens and attention must have, besides query and key or a map.
        amount: what leaves if nothing is said. layers: which layers reduce if none are named.
        hyperparameters: names and values that this is told for. meanings: of each, where its documentation says so.
        source: where it comes from.
    """

    name: str
    acts_in: str
    summary: str
    filter: str
    correlate: str
    compress: str
    needs: tuple[str, ...]
    amount: str
    layers: str
    hyperparameters: dict[str, Any]
    meanings: dict[str, str]
    source: str


def _filter(stage: Any) -> str:
    if isinstance(stage, Filter):
        of_class, of_patches = "class attention", f"{'a patch gives' if stage.redundancy == 'row' else 'it receives'}"
        penalty = "" if stage.penalty == 1 else f", local penalty in windows of {stage.window} x {stage.window}"
        if stage.lam == 0:
            return f"least {of_class} ({stage.attention}){penalty}"
        less = "" if stage.lam == 1 else f", less {1 - stage.lam:g} of {of_class}"
        return f"{stage.lam:g} of what attention {of_patches} ({stage.attention}){less}{penalty}"
    if isinstance(stage, Match):
        weighed = f", less {stage.weigh:g} of the rank by class attention" if stage.weigh else ""
        return f"best pairs of neighbours by cosine of keys{weighed}"
    if isinstance(stage, SingleHeadFilter):
        samples = f", {stage.spatial:.0%} of the slots to even samples" if stage.spatial else ""
        return f"least class attention of one head of full width{samples}"
    if isinstance(stage, RandomFilter):
        return f"a hash of the place and seed {stage.seed}"
    if isinstance(stage, Cells):
        return "all but the first patch of each cell of the grid"
    if isinstance(stage, DecoderFilter):
        share = f"{stage.beta:g} of visual attention, less {1 - stage.beta:g} of attention with the text"
        return f"{share} ({stage.attention})"
    return "least attention of the last token" if isinstance(stage, LastTokenFilter) else type(stage).__name__


def _targets(stage: Correlate | DecoderCorrelate) -> str:
    if stage.targets == "adaptive":
        return "those above the quantile"
    return f"the {stage.targets} best" if stage.targets != 1 else "the best one"


def _correlate(method: Method | DecoderMethod) -> str:
    stage: Any = method.correlate
    if stage is None:
        return (
            "its pair"
            if isinstance(method.filter, Match)
            else ("the first patch of its cell" if isinstance(method.filter, Cells) else "nobody")
        )
    if isinstance(stage, Neighbours):
        borrow = f"; the others borrow from their {stage.nearest} nearest by keys" if stage.nearest else ""
        return f"one token for all{borrow}"
    if not isinstance(stage, (Correlate, DecoderCorrelate)):
        return type(stage).__name__
    if stage.targets == 0:
        return "nobody"
    if isinstance(stage, DecoderCorrelate):
        way = " and by way of the text" if stage.gamma < 1 else ""
        return f"{_targets(stage)} by attention{way} ({stage.attention})"
    if stage.by == "convergent":
        return "one token for all"
    return f"{_targets(stage)} by {'cosine of keys' if stage.by == 'key' else f'attention ({stage.attention})'}"


def _compress(method: Method | DecoderMethod) -> str:
    stage, drops = method.compress, _correlate(method) == "nobody"
    if isinstance(stage, Fuse):
        return f"{'mean' if stage.normalize else 'sum'} weighted by class attention"
    if isinstance(stage, Compress):
        how = "mean weighted by size" if stage.size_weighted else "mean, a target counting once"
        return "dropped" if drops else how
    return type(stage).__name__


def _needs(method: Method | DecoderMethod) -> list[str]:
    found, stage, correlate = [], method.filter, method.correlate
    reads_class = isinstance(stage, Filter) and stage.lam < 1
    if isinstance(method.compress, Fuse) or isinstance(stage, SingleHeadFilter):
        found.append("class token")
    elif reads_class or (isinstance(stage, Match) and stage.weigh):
        found.append("class token, or keys in its place")
    by_key = isinstance(correlate, Correlate) and correlate.by == "key"
    if by_key or isinstance(stage, (Match, SingleHeadFilter)) or isinstance(correlate, Neighbours):
        found.append("query and key")
    penalty = isinstance(stage, (Filter, DecoderFilter)) and stage.penalty != 1
    if penalty or isinstance(stage, Cells):
        found.append("whole grid" if isinstance(stage, Cells) else "grid")
    if getattr(method, "proportional_attention", False):
        found.append("SDPA or eager attention")
    return found


def _leaves(method: Any) -> list[Method | DecoderMethod]:
    """The methods that a method is made of, in the order in which they act in three layers."""
    if isinstance(method, VisionAndDecoder):
        return [*_leaves(method.vision), *_leaves(method.decoder)]
    if isinstance(method, Staged):
        return [leaf for one in method.of_layers(3) for leaf in _leaves(one)]
    if isinstance(method, Split):
        return [method.second] if method.share == 0 else [method.first, method.second]
    return [method]


def _joined(words: Iterable[str]) -> str:
    return "; then ".join(dict.fromkeys(words))


def _at(layers: tuple[int, ...]) -> str:
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} ... {layers[-1]}"
    return ", ".join(map(str, layers))


def _layers(method: Any) -> str:
    if isinstance(method, VisionAndDecoder):
        return f"{_layers(method.vision)}; {_layers(method.decoder)}"
    if isinstance(method, DecoderMethod):
        return f"{_at(method.layers(_DEEP))} of {_DEEP} of the language model"
    return _SECOND_HALF if method.layers is None else f"{_at(method.layers(_USED))} of {_USED} layers that are read"


def _acts_in(method: Any) -> str:
    parts = {"tower": method.tower, "language model": method.language_model}
    return " and ".join(name for name, part in parts.items() if part is not None)


def _plain(text: str) -> str:
    """One line without marks of a docstring."""
    return " ".join(re.sub(r":(?:func|class):`(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "").split())


def _summary(factory: Callable[..., Any]) -> str:
    return _plain((inspect.getdoc(factory) or "").split("\n\n")[0])


def _meanings(factory: Callable[..., Any]) -> dict[str, str]:
    """The text of each argument in the docstring of ``factory``."""
    block = re.search(r"^Args:\n((?:    .*\n?)+)", inspect.getdoc(factory) or "", re.MULTILINE)
    found: dict[str, str] = {}
    for names, text in re.findall(r"^    ([a-z_, ]+): ((?:.*\n?)(?:     .*\n?)*)", block[1] if block else "", re.M):
        found |= dict.fromkeys(names.split(", "), _plain(text))
    return found


def describe(name: str, **given: Any) -> Description:
    """The method ``name`` in words, with these hyperparameters.

    Raises:
        ValueError, TypeError: as :func:`ficoco_ext.get_method`.

    Example:
        >>> from ficoco_ext import describe
        >>> described = describe("evit")
        >>> described.filter, described.correlate, described.compress
        ('least class attention (probs)', 'one token for all', 'sum weighted by class attention')
        >>> describe("evit", fuse="mean").compress
        'mean weighted by class attention'
    """
    from . import METHODS, ficoco_l, ficoco_v, get_method, hyperparameters

    method: Any = get_method(name, **given)
    leaves, factory = _leaves(method), METHODS[name]
    amount = ", ".join(f"{key}={value}" for key, value in method.amount)
    several = (ficoco_l, ficoco_v) if isinstance(method, VisionAndDecoder) else (factory,)
    return Description(
        name=name,
        acts_in=_acts_in(method),
        summary=_summary(factory),
        filter=_joined(_filter(leaf.filter) for leaf in leaves),
        correlate=_joined(_correlate(leaf) for leaf in leaves),
        compress=_joined(_compress(leaf) for leaf in leaves),
        needs=tuple(dict.fromkeys(need for leaf in leaves for need in _needs(leaf))),
        amount=amount or "none: give keep_ratio, tokens or r",
        layers=_layers(method),
        hyperparameters=hyperparameters(name) | given,
        meanings={key: text for one in several for key, text in _meanings(one).items()},
        source=method.source,
    )
