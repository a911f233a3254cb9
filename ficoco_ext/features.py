"""``ficoco_ext.select`` and ``ficoco_ext.merge``: fewer visual tokens from projected features, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .methods import AnyMethod, FeatureMethod, Projected, distinct, get_method, joined_names, part_after_projector
from .methods import hyperparameters as defaults
from .ops import checks
from .stages import Crops
from .stages.features import VisualFeatures, check_planes, check_shapes


def select(
    features: Tensor,
    tokens: int,
    *,
    method: str | AnyMethod = "divprune",
    grid: tuple[int, int] | None = None,
    text: Tensor | None = None,
    text_mask: Tensor | None = None,
    saliency: Tensor | None = None,
    keys: Tensor | None = None,
    tower_features: Tensor | None = None,
    early_saliency: Tensor | None = None,
    frames: int = 1,
    crops: Crops | None = None,
    class_logits: Tensor | None = None,
    mask: Tensor | None = None,
    **hyperparameters: Any,
) -> Tensor:
    """Which ``tokens`` of each picture's projected features stay. The caller gathers them, and whatever goes with them.

    Args:
        features: (B, N, D), what the language model would get for B pictures; pictures of different size are padded,
            see ``mask``. float32, float16, bfloat16 or float64; any strides; any device.
        tokens: how many stay of each picture, in [1, N], a number of the host.
        method: a name (``ficoco methods`` describes them), or a method, with a part that acts after the projector,
            such as ``"divprune"``, ``"scope"``, ``"cdpruner"`` and ``"visionzip"``; ``"topk"`` and ``"random"`` act
            there when called from here.
        grid: (rows, columns) of the tokens of every picture, for methods that need it.
        text: (B, L, D) embeddings of the prompt's words, for methods that need them. text_mask: (B, L) bool, False for
            padding.
        saliency: (B, N), finite and at least 0: how much the vision tower looks at each token, for methods that need
            it, such as ``"scope"``. Its unit does not matter.
        keys: (B, N, K), tower_features: (B, N, C), early_saliency: (B, N): of the vision tower, for methods that need
            them; see :class:`ficoco_ext.stages.VisualFeatures`. What only merging needs, such as ``"visionzip"``'s
            keys, may be left out here.
        frames: of videos: the N tokens are those of so many frames, one frame after the other.
        crops: of pictures of a thumbnail and several crops, all of one size: where their tokens are, without line ends;
            class_logits: (B, N): what the tower's class token looks at, before the softmax, for ``"globalcom2"``.
        mask: (B, N) bool, False for padding and for tokens that may never stay, such as separators. Every picture has
            at least ``tokens`` others: checked on the CPU, a promise elsewhere.
        **hyperparameters: of the method, by name.

    Returns:
        (B, tokens) int64: distinct indices of real tokens, ascending.

    Raises:
        ValueError, TypeError: naming the argument, what was wanted, what came and what to do.

    A picture's result does not depend on the others of the batch, nor on padding. Deterministic, equal gains by lowest
    index. No device is waited for; ``torch.compile(fullgraph=True)`` and CUDA graphs record it. Cost of
    ``"divprune"``: N^2 D + 2 N tokens FLOPs a picture.

    Example:
        >>> import torch, ficoco_ext
        >>> features = torch.tensor([[[1., 0.], [1., .1], [0., 1.], [-1., 0.]]])
        >>> kept = ficoco_ext.select(features, 3)
        >>> kept
        tensor([[0, 2, 3]])
        >>> features.gather(1, kept.unsqueeze(-1).expand(-1, -1, 2)).shape
        torch.Size([1, 3, 2])
    """
    of_the_tower = (keys, tower_features, early_saliency)
    visual = VisualFeatures(features, mask, grid, saliency, text, text_mask, *of_the_tower, frames, crops, class_logits)
    chosen = _chosen("select", method, hyperparameters)
    check_shapes("select", visual, tokens, needs=chosen.needs_to_keep, count_name="tokens")
    return chosen.keep(visual, tokens)


def merge(
    features: Tensor,
    tokens: int,
    *,
    method: str | AnyMethod = "divprune",
    grid: tuple[int, int] | None = None,
    text: Tensor | None = None,
    text_mask: Tensor | None = None,
    saliency: Tensor | None = None,
    keys: Tensor | None = None,
    tower_features: Tensor | None = None,
    early_saliency: Tensor | None = None,
    frames: int = 1,
    crops: Crops | None = None,
    class_logits: Tensor | None = None,
    mask: Tensor | None = None,
    planes: Sequence[Tensor] = (),
    **hyperparameters: Any,
) -> Projected:
    """:func:`select`, and each token that leaves goes into the kept one that is most similar to it.

    Args:
        features, tokens, method, grid, mask: as of :func:`select`. Methods with a hyperparameter ``merge`` have it on;
            others drop, and are refused.
        text, text_mask, saliency, keys, tower_features, early_saliency, frames, crops, class_logits: as of
            :func:`select`.
        planes: other features of the same tokens, each (B, N, E), such as DeepStack's levels: merged with the same
            weights.
        **hyperparameters: of the method, by name.

    Returns:
        kept (B, tokens), as :func:`select` would give it; features (B, tokens, D), the mean of all that is in each
        token; planes, each (B, tokens, E); and a ``reduction`` that says how many tokens each stands for (``size``) and
        where every token went (``source_map``). Tokens that ``mask`` hides go nowhere.

    Raises:
        ValueError, TypeError: as :func:`select`.

    Gradients flow to features and planes. Cost besides that of :func:`select`: 2 (N - tokens) (tokens + 1) D FLOPs.

    Example:
        >>> import torch, ficoco_ext
        >>> merged = ficoco_ext.merge(torch.tensor([[[2., 0.], [2., .2], [0., 1.], [-1., 0.]]]), 3)
        >>> merged.features, merged.reduction.source_map
        (tensor([[[ 2.0000,  0.1000],
                 [ 0.0000,  1.0000],
                 [-1.0000,  0.0000]]]), tensor([[0, 0, 1, 2]]))
    """
    of_the_tower = (keys, tower_features, early_saliency)
    visual = VisualFeatures(features, mask, grid, saliency, text, text_mask, *of_the_tower, frames, crops, class_logits)
    chosen = _chosen("merge", method, hyperparameters, merge=True)
    if chosen.drops:
        able = ", ".join(repr(name) for name in _names() if "merge" in defaults(name))
        wanted, remedy = "one that merges what leaves", f"take one of {able}, or call select"
        checks.fail("merge", "method", wanted, f"{chosen.name!r}, which drops it", remedy)
    check_shapes("merge", visual, tokens, needs=chosen.needs, count_name="tokens")
    check_planes("merge", visual, planes)
    return chosen(visual, tokens, planes)


def _chosen(op: str, method: str | AnyMethod, given: dict[str, Any], **wanted: Any) -> FeatureMethod:
    """The method, acting after the projector, with what is ``wanted`` where it can be chosen and is not given."""
    if isinstance(method, str):
        known = [key for name in joined_names(method) for key in defaults(name)]
        given = part_after_projector(method) | {key: wanted[key] for key in wanted if key in known} | given
    chosen = get_method(method, **given)
    if chosen.projector is chosen and not chosen.projector.resizes:
        return chosen.projector
    others = {"inside the tower": chosen.tower, "inside the language model": chosen.language_model}
    where = " and ".join(words for words, part in others.items() if part is not None) or "before the tower"
    also = "" if chosen.projector in (None, chosen) else " too"
    remedy = f"use attach for it, or one of {', '.join(map(repr, _names()))}"
    got = f"{chosen.name}, which works {where}{also}"
    checks.fail(op, "method", "one that acts after the projector alone", got, remedy)


def _names() -> list[str]:
    """The methods that can act after the projector, in the order of tables."""
    acts = {name: get_method(name, **part_after_projector(name)).projector for name in distinct()}
    return [name for name, method in acts.items() if method is not None and not method.resizes]
