"""The tower of a case against itself at full length: removed patches masked, merged ones replaced."""

from __future__ import annotations

import torch
from helpers.models import IMAGE, tower_by_hand
from property.cases import Case
from property.layout import Row
from torch import Tensor

from ficoco_ext import QueryKey

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1.5e-1}  # of the largest value, after all layers


def assert_close(case: Case, got: Tensor, wanted: Tensor, what: str, scale: float = 0.0) -> None:
    """Equal up to rounding, measured against the largest value, or ``scale`` if that is larger."""
    assert got.shape == wanted.shape, f"{what}: {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
    if not wanted.numel():
        return
    got, wanted = got.double(), wanted.double()
    assert bool(got.isfinite().all()), f"{what}: not finite"
    error, largest = float((got - wanted).abs().max()), max(float(wanted.abs().max()), scale, 1.0)
    assert error <= TOLERANCES[case.dtype] * largest, f"{what}: off by {error:.3g} where values reach {largest:.3g}"


def specified(method, args, options):
    """What ``method`` gives in float64, for which every operator is its specification."""
    tokens, attn, *rest = args
    exact = QueryKey(attn.query.double(), attn.key.double(), attn.scale)
    return method(tokens.double(), exact, *rest, **options)


def tower_features(case: Case, model, pictures: Tensor, schedule, calls) -> tuple[Tensor, Tensor]:
    """Projected features (images, N, C) by hand, a class token first, and which of them are left (images, M).

    ``calls``: one for every layer that removes something, whose attention the same method is given again: what it
    chooses then is what it had chosen, and what it merges are the tokens at full length.
    """
    count = schedule.patches + (case.tower == "clip")
    alive, size = torch.arange(count).expand(len(pictures), -1), None
    by_layer = {call[0].layer: call for call in calls}
    assert sorted(by_layer) == [step.layer for step in schedule.steps if step.r]
    proportional = False

    def see(index, query, key):
        if index in by_layer:
            attn = by_layer[index][1][1]
            at = alive[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
            assert_close(case, attn.query, query.gather(2, at), f"query of vision layer {index}")
            assert_close(case, attn.key, key.gather(2, at), f"key of vision layer {index}")

    def hidden_keys(index):
        return torch.ones(len(pictures), count, dtype=torch.bool).scatter(1, alive, False)

    def key_bias(index):
        bias = pictures.new_zeros(len(pictures), count)
        return bias if not proportional else bias.scatter(1, alive, size[:, :, 0].log().to(bias.dtype))

    def after_attention(index, hidden):
        return reduced(index, hidden, after_mlp=False)

    def after_layer(index, hidden):
        return reduced(index, hidden, after_mlp=True)

    def reduced(index, hidden, after_mlp):
        nonlocal alive, size, proportional
        if index not in by_layer or by_layer[index][0].method.after_mlp != after_mlp:
            return hidden
        spy, (tokens, attn, r), options, result = by_layer[index]
        held = hidden.gather(1, alive.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))
        assert_close(case, tokens, held, f"tokens that vision layer {index} reduces")
        again = spy.method(held, attn, r, **options)
        assert torch.equal(again.kept, result.kept)
        assert len(again.kept[0]) == len(alive[0]) - r
        alive, size, proportional = again.kept, again.size, spy.method.proportional_attention
        return hidden.scatter(1, alive.unsqueeze(-1).expand(-1, -1, hidden.shape[2]), again.tokens)

    features = tower_by_hand(model, pictures, after_attention, hidden_keys, key_bias, see, after_layer)
    return features, alive


def check_tower(case: Case, model, rows: list[Row], schedule, calls, records, used) -> None:
    """The embeddings that the language model got: words, and for each picture what the tower by hand leaves of it."""
    pictures = used.pictures[0]
    features, left = tower_features(case, model, pictures, schedule, calls)
    assert len(records) == len(calls)
    for record, call in zip(records, calls, strict=True):
        assert torch.equal(record.kept, call[3].kept) and record.tokens is None
    assert left.shape[1] == schedule.final + (case.tower == "clip")
    left = left if case.strategy == "full" else left[:, 1:]
    features = features.gather(1, left.unsqueeze(-1).expand(-1, -1, features.shape[2]))
    repeated = len(pictures) // len(case.pictures)
    beams = len(used.seen.embeds) // len(rows)
    left_over = list(features[::repeated])
    for at, row in enumerate(rows):
        images = row.ids.count(IMAGE) // left.shape[1]
        mine, left_over = left_over[:images], left_over[images:]
        wanted = model.get_input_embeddings()(torch.tensor(row.ids))
        if mine:
            wanted = wanted.clone()
            wanted[torch.tensor(row.ids) == IMAGE] = torch.cat(mine)
        for beam in range(beams):
            got = used.seen.embeds[at * beams + beam][row.first : row.first + len(row.ids)]
            assert_close(case, got, wanted, f"embeddings of row {at}")
    assert not left_over
