"""What a model says of a prompt from which visual tokens were taken by hand, after the projector.

Nothing here knows ``ficoco_ext``: the model's own encoder runs, its features, planes, prompt and positions are cut, and
its own language model reads what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helpers.tiny_configs import PAD
from helpers.tiny_families import TinyFamily
from helpers.tiny_prompts import Prompt, Visual

# By kind: the function that encodes, its first argument's names, and the others that belong to the pixels.
_ENCODERS = {
    "picture": (
        "get_image_features",
        ("pixel_values", "pixel_values_images"),
        ("image_sizes", "image_grid_thw", "pixel_attention_mask", "batch_num_images"),
    ),
    "video": ("get_video_features", ("pixel_values_videos",), ("video_grid_thw",)),
}


@dataclass(frozen=True)
class Features:
    """What the encoder made of one kind of visual.

    Attributes:
        projected: (n, D) of the projector.
        planes: (n, D) of each other level.
        newlines: whether the model adds a newline after each video itself, which the encoder knows nothing of.
    """

    projected: Tensor
    planes: tuple[Tensor, ...] = ()
    newlines: bool = False


@dataclass(frozen=True)
class HandCut:
    """A prompt without some of its visual tokens, padded on the left again.

    Attributes:
        family: whose it is.
        columns: (B, M) of the full prompt, -1 for padding.
        embeds: (B, M, D) what the language model reads.
        mask: (B, M), 0 for padding.
        positions: (B, M) or (3, B, M).
        last: (B, 1) or (3, B, 1) after which the positions of new tokens go on: that of the full prompt's last column.
        visual: (B, M) whether a column is of a picture or video.
        blocks: (B, M) columns of one number >= 0 see each other; None: all see only what is before them.
        planes: (n, D) each, of the visual columns in their order.
    """

    family: TinyFamily
    columns: Tensor
    embeds: Tensor
    mask: Tensor
    positions: Tensor
    last: Tensor
    visual: Tensor
    blocks: Tensor | None
    planes: tuple[Tensor, ...]

    def of(self, full: Tensor, padding: int) -> Tensor:
        """(B, M) of a tensor of the full prompt (B, L): ids, types, labels."""
        return full.gather(1, self.columns.clamp(min=0)).masked_fill(self.columns < 0, padding)

    def logits(self, model: Any, new: Tensor | None = None) -> Tensor:
        """(B, M + steps, V) of what is left and of ``new`` (B, steps) tokens after it, without a cache."""
        embeds, mask, positions, visual = self.embeds, self.mask, self.positions, self.visual
        blocks = self.blocks
        if new is not None and new.shape[1]:
            embeds = torch.cat([embeds, model.get_input_embeddings()(new)], 1)
            steps = torch.ones_like(new)
            mask = torch.cat([mask, steps], 1)
            positions = torch.cat([positions, self.last + steps.cumsum(1)], -1)
            visual = torch.cat([visual, steps > 1], 1)
            blocks = None if blocks is None else torch.cat([blocks, -steps], 1)
        more: dict[str, Any] = {}
        if self.planes:
            more = {"visual_pos_masks": visual, "deepstack_visual_embeds": list(self.planes)}
        attention = mask if blocks is None else _masks(model, mask, blocks)
        out = self.family.language_model(model)(
            inputs_embeds=embeds, attention_mask=attention, position_ids=positions, use_cache=False, **more
        )
        return model.lm_head(out.last_hidden_state)

    def loss(self, model: Any, labels: Tensor) -> Tensor:
        """The mean loss over the labels (B, L) of the full prompt that are left; never of a first token."""
        left = self.of(labels, -100)
        first = self.mask.argmax(1)
        left = left.scatter(1, first[:, None], -100)
        logits = self.logits(model)
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), left[:, 1:].flatten())


def _masks(model: Any, mask: Tensor, blocks: Tensor) -> Any:
    """Who sees whom, additive (B, 1, M, M); by kind of layer where the language model has several."""
    columns = torch.arange(mask.shape[1])
    before = columns[None, :] <= columns[:, None]
    together = (blocks[:, :, None] == blocks[:, None, :]) & (blocks[:, :, None] >= 0)
    seen = (before | together) & mask[:, None, :].bool()
    text = model.config.get_text_config()

    def additive(allowed: Tensor) -> Tensor:
        allowed = allowed | torch.eye(mask.shape[1], dtype=torch.bool)  # padding sees itself and is not read
        return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]

    if "sliding_attention" not in (getattr(text, "layer_types", None) or ()):
        return additive(seen)
    near = columns[None, :] > columns[:, None] - text.sliding_window
    return {"full_attention": additive(seen), "sliding_attention": additive(seen & near)}


@torch.no_grad()
def features(model: Any, full: Prompt) -> dict[str, Features]:
    """What the model's own encoder makes of all pictures and of all videos, by kind."""
    found = {}
    for kind, (name, pixels, others) in _ENCODERS.items():
        if not any(one.kind == kind for one in full.visuals):
            continue
        first = next(full.inputs[one] for one in pixels if one in full.inputs)
        named = {one: full.inputs[one] for one in others if one in full.inputs}
        out = getattr(model.model, name)(first, **named, return_dict=True)
        planes = tuple(_flat(one) for one in getattr(out, "deepstack_features", None) or ())
        made, newlines = out.pooler_output, _newlines_outside(full, kind, out.pooler_output)
        if newlines:
            made = [torch.cat([one, model.model.image_newline[None]]) for one in made]
        found[kind] = Features(_flat(made), planes, newlines)
    return found


def _newlines_outside(full: Prompt, kind: str, made: Any) -> bool:
    """Whether each has one placeholder more than features: LLaVA-OneVision's videos with older transformers."""
    own = [one for one in full.visuals if one.kind == kind]
    return sum(len(one.columns) for one in own) == sum(one[..., 0].numel() for one in made) + len(own)


def _flat(made: Any) -> Tensor:
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in made])


def everything(full: Prompt) -> list[Tensor]:
    """The indices that keep all tokens of every picture and video."""
    return [torch.arange(len(one.columns)) for one in full.visuals]


def some(full: Prompt, ratio: float = 0.5, seed: int = 0) -> list[Tensor]:
    """Random indices of a part of every picture and video, at least one, ascending."""
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for one in full.visuals:
        n = len(one.columns)
        kept.append(torch.randperm(n, generator=generator)[: max(1, int(n * ratio))].sort().values)
    return kept


def kept_of(full: Prompt, projections: Sequence[Any]) -> list[Tensor]:
    """What a call kept, for every picture and video of the prompt.

    Args:
        full: the prompt of the call.
        projections: of a handle. Each says of which ``modality`` it is, how many tokens it had ``before``, and which it
            ``kept``; several of them may be one picture of the prompt, or one several.
    """
    found = []
    for kind, modality in (("picture", "image"), ("video", "video")):
        own = [one for one in full.visuals if one.kind == kind]
        entries = [one for one in projections if one.modality == modality]
        missing = sum(len(one.columns) for one in own) - sum(one.before for one in entries)
        assert missing in (0, len(own)), f"{missing} placeholders of {modality}s are in no projection"
        starts = [sum(one.before for one in entries[:index]) for index in range(len(entries))]
        kept = [one.kept + start for one, start in zip(entries, starts, strict=True)]
        first = 0
        for one in own:
            last = first + len(one.columns) - bool(missing)
            every = torch.cat(kept)
            assert bool((every.diff() > 0).all()), "kept indices must be ascending"
            found.append(every[(every >= first) & (every < last)] - first)
            first = last
    return found


def visuals_of(full: Prompt, kept: Sequence[Tensor]) -> tuple[Visual, ...]:
    """What ``kept`` has an entry for each of: pictures and videos, or what the encoder returns apart of them."""
    for found in (full.visuals, full.parts()):
        if len(found) == len(kept):
            return found
    raise AssertionError(
        f"the prompt has {len(full.visuals)} pictures and videos, {len(full.parts())} parts; kept has {len(kept)}"
    )


@torch.no_grad()
def cut(model: Any, full: Prompt, kept: Sequence[Tensor], positions: str = "original") -> HandCut:
    """The prompt with only ``kept`` indices of each picture and video.

    Args:
        model: of the family, without changes.
        full: the prompt.
        kept: for every picture, then every video, (T,) ascending indices into its tokens; or for every tile and frame.
        positions: "original", those of the full prompt; or "contiguous", of one dimension, without gaps.
    """
    family, made = full.family, features(model, full)
    stays, visual = full.mask.bool(), torch.zeros_like(full.mask, dtype=torch.bool)
    for one, indices in zip(visuals_of(full, kept), kept, strict=True):
        visual[one.row, one.columns] = True
        gone = torch.ones(len(one.columns), dtype=torch.bool)
        gone[indices] = False
        gone[-1] &= not made[one.kind].newlines
        stays[one.row, one.columns[gone]] = False
    lengths = stays.sum(1).tolist()
    columns = torch.full((len(lengths), max(lengths)), -1)
    for row, length in enumerate(lengths):
        columns[row, columns.shape[1] - length :] = stays[row].nonzero()[:, 0]
    held, real = columns.clamp(min=0), columns >= 0
    rows = torch.arange(len(lengths))[:, None]
    embeds, planes = _read(model, full, visual, made)
    where = full.positions(model)
    if positions == "contiguous":
        where = (real.cumsum(1) - 1).clamp(min=0) + (1 if family.bidirectional == "prompt" else 0)
        where = where.expand(3, -1, -1) if family.mrope else where
        last = where[..., -1:]
    else:
        last = where[..., -1:]
        where = where[..., rows, held].masked_fill(~real, 0)
    visual_left = visual[rows, held] & real
    flat = torch.full(visual.shape, -1)
    flat[visual] = torch.arange(int(visual.sum()))
    left = flat[rows, held][visual_left]
    return HandCut(
        family,
        columns,
        embeds[rows, held],
        real.long(),
        where,
        last,
        visual_left,
        _blocks(full, rows, held, real),
        tuple(one[left] for one in planes),
    )


def _read(model: Any, full: Prompt, visual: Tensor, made: dict[str, Features]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Embeddings of the full prompt with features in them (B, L, D), and planes of its visual columns (n, D)."""
    embeds = model.get_input_embeddings()(full.ids).clone()
    planes = [torch.zeros(*full.ids.shape, embeds.shape[-1]) for _ in range(full.family.planes)]
    for kind, found in made.items():
        own = [one for one in full.visuals if one.kind == kind]
        where = (torch.cat([torch.full_like(one.columns, one.row) for one in own]), torch.cat([x.columns for x in own]))
        embeds[where] = found.projected.to(embeds.dtype)
        assert len(found.planes) == len(planes)
        for plane, one in zip(planes, found.planes, strict=True):
            plane[where] = one
    return embeds, tuple(one[visual] for one in planes)


def _blocks(full: Prompt, rows: Tensor, held: Tensor, real: Tensor) -> Tensor | None:
    if full.family.bidirectional is None:
        return None
    blocks = torch.zeros_like(full.ids) if full.family.bidirectional == "prompt" else torch.full_like(full.ids, -1)
    if full.family.bidirectional == "picture":
        for index, one in enumerate(full.visuals):
            blocks[one.row, one.columns] = index
    return blocks[rows, held].masked_fill(~real, -1)


def worst(cut: HandCut, hand: Tensor, got: Tensor) -> float:
    """The largest difference of (B, M, V) logits in columns that are not padding; ``got`` may have more padding."""
    real = cut.mask.bool()
    return float((hand - got[:, -hand.shape[1] :])[real].abs().max())


def placeholders_of_padding(cut: HandCut, full: Prompt) -> Tensor:
    """(B, M) ids that are left, the pad token for padding."""
    return cut.of(full.ids, PAD)
