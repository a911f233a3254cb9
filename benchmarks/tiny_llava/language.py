"""Stage 2: projector and language model learn to answer, on the frozen tower's features.

Many questions of one scene come after its picture in one sequence; each sees the picture and itself, not the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ficoco_ext.gridvqa.questions import questions
from ficoco_ext.gridvqa.scene import Scene, draw, generator
from ficoco_ext.gridvqa.vocabulary import EOS, KINDS

from .model import IDS, PATCHES, PREFIX, SUFFIX, features, pixels

BATCH, QUESTIONS, CACHED = 10, 14, 4000
_SCENES = 10**7  # the first number of this stage's scenes, far above the tower's
_SQUEEZED = 0.25  # share of pictures whose positions are squeezed, as they are after a reduction in the tower
_START = len(PREFIX) + PATCHES

Asked = list[tuple[str, str, str]]


class Packed(NamedTuple):
    """The questions after a picture: ids (B, L), positions, which question a token is of, label or -100, kind or -1."""

    ids: Tensor
    positions: Tensor
    question: Tensor
    label: Tensor
    kind: Tensor


def cache(model: torch.nn.Module, seed: int, split: str, number: int) -> tuple[Tensor, list[Scene]]:
    """The tower's features (number, P, C), in half precision on its device, of scenes of this stage."""
    seen: list[Tensor] = []
    device = next(model.parameters()).device
    scenes: list[Scene] = []
    for start in range(0, number, 20):
        rngs = [generator(seed, split, _SCENES + i) for i in range(start, min(start + 20, number))]
        some = [draw(rng, split) for rng in rngs]
        pictures = torch.from_numpy(np.stack([scene.pixels for scene in some])).to(device)
        with torch.no_grad():
            seen.append(features(model, pixels(pictures))[0].half())
        scenes += some
    return torch.cat(seen), scenes


def pack(asked: list[Asked], device: torch.device) -> Packed:
    """Rows of different length are padded with tokens that no label counts and no question sees."""
    rows = []
    for one in asked:
        row: list[list[int]] = [[], [], [], [], []]
        for number, (kind, question, answer) in enumerate(one):
            head = [IDS[word] for word in (*question.split(), *SUFFIX)]
            tail = [IDS[answer], IDS[EOS]]
            length = len(head) + 1
            row[0] += [*head, tail[0]]
            row[1] += range(_START, _START + length)
            row[2] += [number] * length
            row[3] += [-100] * (len(head) - 1) + tail
            row[4] += [-1] * (len(head) - 1) + [KINDS.index(kind), -1]
        rows.append(row)
    longest = max(len(row[0]) for row in rows)
    filled = [
        np.array([row[field] + [fill] * (longest - len(row[0])) for row in rows], np.int64)
        for field, fill in enumerate((0, _START, -1, -100, -1))
    ]
    return Packed(*(torch.from_numpy(one).to(device) for one in filled))


def answers(model: torch.nn.Module, seen: Tensor, packed: Packed, squeeze: Tensor | None = None) -> Tensor:
    """Logits (labels, vocabulary) of all positions that have a label."""
    b, device = len(seen), seen.device
    language, prefix = model.model.language_model, len(PREFIX)
    words = language.get_input_embeddings()
    before = torch.tensor([[IDS[word] for word in PREFIX]], device=device).expand(b, -1)
    picture = model.model.multi_modal_projector(seen)
    everything = torch.cat([words(before), picture, words(packed.ids)], 1)
    patch = torch.arange(PATCHES, device=device).expand(b, -1)
    shift = torch.zeros(b, 1, dtype=torch.long, device=device)
    if squeeze is not None:
        patch = (patch * squeeze[:, None]).long()
        shift = (PATCHES * squeeze[:, None]).long() - PATCHES
    positions = [torch.arange(prefix, device=device).expand(b, -1), prefix + patch, packed.positions + shift]
    output = language(
        inputs_embeds=everything,
        attention_mask=_mask(packed.question, everything.dtype),
        position_ids=torch.cat(positions, 1),
        use_cache=False,
    )
    return model.lm_head(output.last_hidden_state[:, _START:][packed.label >= 0])


def _mask(question: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, n, n) to add: causal, and no question sees another."""
    b, length = question.shape
    n = _START + length
    seen = torch.ones(n, n, dtype=torch.bool, device=question.device).tril().repeat(b, 1, 1)
    seen[:, _START:, _START:] &= question[:, :, None] == question[:, None, :]
    return torch.zeros(b, 1, n, n, dtype=dtype, device=question.device).masked_fill(~seen[:, None], -1e9)


def loss(
    model: torch.nn.Module, cached: tuple[Tensor, list[Scene]], seed: int, step: int, ending: float
) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    """One step's loss, and of each kind how many were right and asked. ``ending``: weight of the end of an answer."""
    rng = np.random.default_rng([seed, 2, step])
    chosen = rng.integers(0, len(cached[1]), BATCH)
    packed = pack([questions(rng, cached[1][i], QUESTIONS) for i in chosen], cached[0].device)
    squeezed = np.where(rng.random(BATCH) < _SQUEEZED, rng.uniform(0.1, 1, BATCH), 1.0).astype(np.float32)
    seen = cached[0][torch.from_numpy(chosen).to(cached[0].device)].float()
    logits = answers(model, seen, packed, torch.from_numpy(squeezed).to(seen.device))
    label, kind = packed.label[packed.label >= 0], packed.kind[packed.label >= 0]
    weight = torch.where(kind >= 0, 1.0, ending)
    total = (F.cross_entropy(logits, label, reduction="none") * weight).sum() / (kind >= 0).sum()
    return total, tally(logits, label, kind)


def tally(logits: Tensor, label: Tensor, kind: Tensor) -> dict[str, tuple[int, int]]:
    """Of each kind how many were right and asked."""
    right = logits.argmax(-1) == label
    return {name: (int(right[kind == index].sum()), int((kind == index).sum())) for index, name in enumerate(KINDS)}


@torch.no_grad()
def examine(
    model: torch.nn.Module, cached: tuple[Tensor, list[Scene]], seed: int, wrong_picture: bool = False
) -> dict[str, float]:
    """Accuracy of each kind. ``wrong_picture``: ask about another scene: what is right without the picture."""
    seen, scenes = cached
    seen = seen.roll(1, 0) if wrong_picture else seen
    right = dict.fromkeys(KINDS, 0)
    asked = dict.fromkeys(KINDS, 0)
    for start in range(0, len(scenes), 20):
        rngs = [np.random.default_rng([seed, 3, i]) for i in range(start, min(start + 20, len(scenes)))]
        packed = pack([questions(rng, scenes[start + i], QUESTIONS) for i, rng in enumerate(rngs)], seen.device)
        logits = answers(model, seen[start : start + 20].float(), packed)
        there = packed.label >= 0
        for name, (hit, number) in tally(logits, packed.label[there], packed.kind[there]).items():
            right[name] += hit
            asked[name] += number
    return {name: right[name] / max(asked[name], 1) for name in KINDS}
