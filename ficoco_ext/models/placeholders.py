"""The image placeholders of a prompt: as many as visual tokens are left. Pure functions of tensors, without a model.

A processor writes ``before`` placeholders for each image; after reduction the model has ``after`` features for it. The
first ``after`` placeholders of each image stay, the others go, and shorter rows are padded on the left.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from . import tracing


class Prompt(NamedTuple):
    """What has one entry for each token.

    Ids (B, L), attention mask (B, past + L), position ids (B or 1, L), labels (B, L), and ``indices`` (B, L): the
    position of each token in the caller's prompt, -1 for padding that was added.
    """

    ids: Tensor
    mask: Any = None
    position_ids: Tensor | None = None
    labels: Tensor | None = None
    indices: Tensor | None = None


@dataclass(frozen=True)
class Placeholders:
    """Which id is a placeholder, how many an image has before and after reduction, and what fills a masked position."""

    token: int
    before: int
    after: int
    filler: int = 0


def embedded_placeholders(embeddings: Tensor, tokens: tuple[int, ...], embed: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, L) True where ``embeddings`` (B, L, C) are those of a placeholder: where the model itself puts features.

    Args:
        embeddings: of the prompt. tokens: ids of placeholders. embed: the model's embedding of ids.
    """
    found = embeddings.new_zeros(embeddings.shape[:2], dtype=torch.bool)
    for token in tokens:
        wanted = embed(torch.full((), token, dtype=torch.long, device=embeddings.device))
        found = found | (embeddings == wanted).all(-1)
    return found


def shrink(
    prompt: Prompt, rule: Placeholders, *, images: int, past: int = 0, whole: bool = False, op: str = "forward"
) -> Prompt:
    """The prompt with ``rule.after`` placeholders for each image.

    Positions become contiguous, as if the removed placeholders had never been there. Left padding that not all rows
    have is dropped as far as the rows allow. A mask of None stays None unless rows come to differ in length.

    Args:
        prompt: as the processor made it. A prompt that already has ``rule.after`` placeholders for each image comes
            back as it is.
        rule: the numbers.
        images: images that come with this call; the prompt of a continued conversation may hold more.
        past: tokens in the KV cache, 0 without one.
        whole: ids begin with the tokens that are in the cache (``generate``), not after them (``forward``).
        op: name of the caller, for messages.

    Raises:
        ValueError: placeholders do not fit the images, a mask that is not 2-D, a cache that does not fit the prompt,
            missing positions where the caller alone can know them.

    Cost: two device reads of B numbers (they decide the shape), two more if ``whole`` ids continue from a cache.
    """
    ids, mask = prompt.ids, prompt.mask
    b, n = ids.shape
    cached = mask.shape[-1] - n if isinstance(mask, Tensor) else 0  # the mask covers cached tokens that are not in ids
    whole = whole and past > 0 and not cached
    visual = ids == rule.token
    tracing.require_counts(op, visual, _TOWER_ALONE)
    flat = isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[0] == b and cached in (0, past)
    facts = [visual.sum(1)] + ([torn(visual, mask[:, -n:] != 0, rule.before)] if flat else [])
    counts = torch.stack(facts, 1).tolist()
    if not _fits([row[0] for row in counts], rule, images, whole, op):
        return prompt
    if mask is not None and not flat:
        wanted = f"({b}, {n})" + (f" or ({b}, {past + n}) with {past} tokens in the cache" if past else "")
        checks.fail(op, "attention_mask", wanted, mask, "pass the 2-D mask that the processor made")
    require_whole_images(counts, op)
    keep = ~visual | ((visual.cumsum(1) - 1) % rule.before < rule.after)
    if mask is not None and not cached:
        leading = mask.cumsum(1) == 0
        # Padding of all rows stays, as without images. A hidden image stays: its features need their positions.
        keep &= visual | ~(leading & ~leading.all(0))
    lengths = keep.sum(1).tolist()
    if past and not whole and prompt.position_ids is None and op == "forward" and len(set(lengths)) > 1:
        remedy = "padding comes between the cached and the new tokens, so say where the new ones are, or use generate"
        wanted = f"({b}, {n}) when rows lose unequally many placeholders after a cache"
        checks.fail(op, "position_ids", wanted, "None", remedy)
    if whole:
        split = _split(keep, past, op)
        regions = [(keep[:, :split], past), (keep[:, split:], max(keep[:, split:].sum(1).tolist()))]
    else:
        split, regions = 0, [(keep, max(lengths))]
    order = torch.cat([_right(part, width) + at for (part, width), at in zip(regions, (0, split), strict=False)], dim=1)
    return _gather(prompt, order, keep, rule, cached=0 if whole else past, ragged=len(set(lengths)) > 1)


def restore(prompt: Tensor, short: int, sequences: Tensor) -> Tensor:
    """Generated ``sequences`` (B * n, L' + new) with the caller's ``prompt`` (B, L) for the ``short`` = L' ids."""
    prompt = prompt.to(sequences.device).repeat_interleave(sequences.shape[0] // prompt.shape[0], dim=0)
    return torch.cat([prompt, sequences[:, short:]], dim=1)


def after_the_first(labels: Tensor, real: Tensor | None) -> Tensor:
    """``labels`` (B, L), with -100 up to the first True of ``real`` (B, L): no token before it predicts it.

    The model's own loss compares each position with the label of the next one, so that the label of the first token
    never counts. It must not begin to because padding or an empty position came to stand before that token.
    """
    return labels if real is None else labels.masked_fill(real.cumsum(1) - real.long() == 0, -100)


def moved(indices: Tensor, asked: Tensor, length: int) -> Tensor:
    """(k,) the new positions of the positions ``asked`` (k,) of a prompt of ``length``, the same in every row.

    Args:
        indices: (B, L') the old position of each token.
        asked: integers, negative ones counted from the end, or (L,) bool.

    Raises:
        ValueError: one of them was removed, or its new position differs between rows. Reads the device once.
    """
    asked = asked.nonzero()[:, 0] if asked.dtype == torch.bool else asked
    asked = torch.where(asked < 0, asked + length, asked).to(indices.device)
    found = indices[:, None] == asked[None, :, None]
    position = found.to(torch.uint8).argmax(-1)
    if not bool((found.any(-1) & (position == position[:1])).all()):
        wanted = "positions of text, which move to the same position in every row"
        got = "one that was removed, or that moves differently in different rows"
        checks.fail("forward", "logits_to_keep", wanted, got, "pass the number of last positions, or 0 for all")
    return position[0]


def require_whole_images(counts: list[list[int]], op: str) -> None:
    """Raise if the mask hides a part of an image, as the second number of a row of ``counts`` shows."""
    for number, row in enumerate(counts):
        if any(row[1:]):
            wanted = "one that shows all placeholders of an image or none"
            got = f"a mask that hides a part of an image in row {number}"
            remedy = "a token that is left stands for several patches; pass the mask that the processor made"
            checks.fail(op, "attention_mask", wanted, got, remedy)


def torn(visual: Tensor, unmasked: Tensor, before: int) -> Tensor:
    """(B,) how many neighbours in one image of ``before`` placeholders differ in whether the mask shows them."""
    order = visual.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # placeholders first, in order
    shown, present = unmasked.gather(1, order), visual.gather(1, order)
    rank = torch.arange(visual.shape[1], device=visual.device)
    return ((shown[:, 1:] != shown[:, :-1]) & present[:, 1:] & (rank[1:] % before != 0)).sum(1)


def fits_images(op: str, token: int, images: int, each: int, total: int) -> None:
    """Raise unless ``total`` placeholders are as many as the features of ``images`` images.

    Raises:
        ValueError: with transformers' own words for it, and where such prompts come from.
    """
    if total != images * each:
        wanted = f"{images} x {each} placeholders (id {token}) for {images} images"
        got = f"{total} placeholders (Image features and image tokens do not match, tokens: {total}, "
        got += f"features: {images * each})"
        checks.fail(op, "input_ids", f"ids with {wanted}", got, REMEDY)


_TOWER_ALONE = "trace model.model.vision_tower alone, or take a method for the language model with static_counts"
REMEDY = (
    "pass the processor's input_ids and pixel_values of the same call; if they are, the prompt was truncated, or the "
    "processor's patch_size, num_additional_image_tokens or vision_feature_select_strategy do not fit the model"
)


def _fits(counts: list[int], rule: Placeholders, images: int, whole: bool, op: str) -> bool:
    """True if the rows hold ``before`` placeholders an image, False if they hold ``after``; raises otherwise."""
    total, remedy = sum(counts), "pass the processor's input_ids and pixel_values of the same call"
    if not whole and total == images * rule.after:
        return False
    if not whole:
        fits_images(op, rule.token, images, rule.before, total)
    for row, count in enumerate(counts):
        if count % rule.before:
            wanted = f"rows with {rule.before} placeholders (id {rule.token}) for each image"
            also = f"{remedy}; a generated placeholder id cannot stay"
            checks.fail(op, "input_ids", wanted, f"{count} in row {row}", also)
    if total < images * rule.before:
        wanted = f"at most {total // rule.before} images, as input_ids have"
        checks.fail(op, "pixel_values", wanted, f"{images}", remedy)
    return True


def _split(keep: Tensor, past: int, op: str) -> int:
    """How many positions of the whole prompt the cache holds: those that shrink to ``past`` tokens.

    After them comes a token that every row keeps (the last generated or the first new one), so the end is certain.
    """
    reach = keep.cumsum(1).amax(0).tolist()
    split = bisect_right(reach, past)
    if split == len(reach) or reach[split - 1] != past:
        checks.fail(
            op,
            "input_ids",
            f"a conversation that begins with the {past} tokens in the cache and continues",
            f"ids that shrink to {reach[-1]} tokens",
            "append to what generate returned (and to its attention_mask), or pass the new ids alone with an "
            f"attention_mask over {past} cached + the new tokens",
        )
    return split


def _right(keep: Tensor, width: int) -> Tensor:
    """(B, width) the kept positions in order, at the right; shorter rows are filled with removed ones on the left."""
    return keep.to(torch.uint8).argsort(dim=1, stable=True)[:, keep.shape[1] - width :]


def _gather(prompt: Prompt, order: Tensor, keep: Tensor, rule: Placeholders, cached: int, ragged: bool) -> Prompt:
    ids, mask, position_ids, labels, indices = prompt
    b, n = ids.shape
    valid = keep.gather(1, order)
    if mask is not None:
        tail = mask[:, -n:].gather(1, order)
        mask = torch.cat([mask[:, :-n], tail.masked_fill(~valid, 0)], dim=1)
    elif ragged:
        mask = torch.cat([ids.new_ones(b, cached), valid.to(ids.dtype)], dim=1)
    if position_ids is not None:
        removed = ((ids == rule.token) & ~keep).cumsum(1)
        position_ids = (position_ids.expand(b, -1) - removed).gather(1, order).masked_fill(~valid, 0)
    if labels is not None:
        real = valid if mask is None else mask[:, -order.shape[1] :] != 0
        labels = after_the_first(labels.gather(1, order).masked_fill(~valid, -100), real)
    if indices is not None:
        indices = indices.gather(1, order).masked_fill(~valid, -1)
    return Prompt(ids.gather(1, order).masked_fill(~valid, rule.filler), mask, position_ids, labels, indices)
