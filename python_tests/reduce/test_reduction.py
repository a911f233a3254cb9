"""Reduction: what is left, where everything went, and back."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from helpers.reductions import C, N, inputs, record

from ficoco_ext import Reduction
from ficoco_ext.ops import reference


def small(**changes):
    """One item: of tokens 0..4 token 1 went to 2, token 3 was dropped; 0 is the class token."""
    fields = {
        "tokens": torch.tensor([[[10.0], [12.0], [14.0]]]),
        "size": torch.tensor([[[1.0], [2.0], [1.0]]]),
        "kept": torch.tensor([[0, 2, 4]]),
        "sources": torch.tensor([[1, 3]]),
        "source_map": torch.tensor([[0, 1, 1, -1, 2]]),
        "targets": torch.tensor([[[1], [1]]]),
        "weights": torch.ones(1, 2, 1),
        "class_token": True,
        "grid": (2, 2),
    }
    return Reduction(**(fields | changes))


def test_unmerge():
    result = small()
    assert result.unmerge().flatten().tolist() == [10, 12, 12, 0, 14]
    assert result.unmerge(fill=-1.0).flatten().tolist() == [10, 12, 12, -1, 14]
    later = torch.arange(6.0).view(1, 3, 2)
    assert result.unmerge(later, fill=9.0).tolist() == [[[0, 1], [2, 3], [2, 3], [9, 9], [4, 5]]]
    assert result.unmerge(later.half()).dtype == torch.float16
    assert result.without_tokens().unmerge(later).shape == (1, 5, 2)


def test_patch_ids():
    assert small().patch_ids.tolist() == [[1, 3]]
    assert small(class_token=False).patch_ids.tolist() == [[0, 2, 4]]


def test_after():
    """Of the survivors 0, 2, 4 of the first step token 2 (place 1) goes to place 2 in the second."""
    first = small()
    second = small(
        tokens=torch.tensor([[[10.0], [13.0]]]),
        size=torch.tensor([[[1.0], [3.0]]]),
        kept=torch.tensor([[0, 2]]),
        sources=torch.tensor([[1]]),
        source_map=torch.tensor([[0, 1, 1]]),
        targets=torch.tensor([[[1]]]),
        weights=torch.ones(1, 1, 1),
        grid=None,
    ).after(first)
    assert second.kept.tolist() == [[0, 4]]
    assert second.sources.tolist() == [[2]]
    assert second.source_map.tolist() == [[0, 1, 1, -1, 1]]
    assert second.grid == (2, 2)
    assert second.targets.tolist() == [[[1]]]
    assert second.unmerge().flatten().tolist() == [10, 13, 13, 0, 13]


def test_after_a_pruning():
    pruned = small(
        kept=torch.tensor([[0]]), sources=torch.tensor([[1, 2]]), source_map=torch.tensor([[0, -1, -1]]), tokens=None
    )
    assert pruned.after(small()).source_map.tolist() == [[0, -1, -1, -1, -1]]


def test_is_frozen():
    with pytest.raises(FrozenInstanceError):
        small().tokens = None
    assert small().without_tokens().tokens is None


def test_round_trip():
    """Every place of the picture holds the survivor that took the token in, through three reductions."""
    tokens, attn = inputs()
    previous = record(tokens, attn, 20)
    for seed, n in ((1, 45), (2, 30)):
        previous = record(previous.tokens, inputs(n=n, seed=seed)[1], 15, previous=previous)
    back = previous.unmerge()
    assert back.shape == (2, N, C)
    for b in range(2):
        for token, place in enumerate(previous.source_map[b].tolist()):
            assert torch.equal(back[b, token], previous.tokens[b, place])
    assert torch.equal(back.gather(1, previous.kept.unsqueeze(-1).expand(-1, -1, C)), previous.tokens)
    counts = torch.zeros(2, 15).scatter_add(1, previous.source_map, torch.ones(2, N))
    assert torch.allclose(counts, previous.size[..., 0])  # one target each, so sizes are counts


def test_unmerge_has_a_gradient():
    survivors = torch.ones(1, 3, 1, requires_grad=True)
    small().unmerge(survivors).sum().backward()
    assert survivors.grad.flatten().tolist() == [1, 2, 1]


def test_unmerge_errors():
    for tokens in (torch.zeros(1, 4, 2), torch.zeros(1, 3), torch.zeros(2, 3, 2), torch.zeros(3, 2)):
        with pytest.raises(
            ValueError, match=r"Reduction.unmerge: tokens must be \(1, 3, C\), got .*; pass the survivors"
        ):
            small().unmerge(tokens)
    with pytest.raises(ValueError, match="this record holds no tokens"):
        small(tokens=None).unmerge()


@pytest.mark.parametrize("size_weighted", [False, True])
def test_conservation_through_several_layers(size_weighted):
    """T1, T2: sizes always sum to N; size-weighted merging conserves the sum of all tokens."""
    tokens, _ = inputs()
    start, previous, size, now = tokens.double().sum(1), None, None, tokens
    if size_weighted:
        size = torch.ones(2, N, 1)
    for layer in range(4):
        _, attn = inputs(n=now.shape[1], seed=layer)
        previous = record(now, attn, 12, previous=previous, size=size)
        now, size = previous.tokens, previous.size if size_weighted else None
        assert torch.allclose(previous.size.sum(1), torch.full((2, 1), float(N)))
        if size_weighted:
            assert torch.allclose((previous.size * now).double().sum(1), start, atol=1e-4)
    assert (now.amax((1, 2)) <= tokens.amax((1, 2))).all()
    assert (now.amin((1, 2)) >= tokens.amin((1, 2))).all()


def test_eleven_layers_of_42():
    """T5: original ids ascend, no source is a target, the class token is untouched, |alive| = 576 - 42 l."""
    tokens, _ = inputs(n=577)
    now, previous, gone = tokens, None, []
    for layer in range(11):
        _, attn = inputs(n=now.shape[1], seed=layer)
        assert previous is None or previous.grid == (24, 24)
        before = previous
        previous = record(now, attn, 42, previous=previous)
        now = previous.tokens
        assert now.shape[1] == 577 - 42 * (layer + 1)
        assert (previous.kept.diff() > 0).all()
        assert torch.equal(now[:, 0], tokens[:, 0])
        assert (previous.kept[:, 0] == 0).all()
        assert (previous.targets > 0).all()
        assert (previous.targets < now.shape[1]).all()
        gone.append(previous.sources)
        everyone = torch.cat([previous.kept, *gone], dim=1).sort(1).values
        assert torch.equal(everyone, torch.arange(577).expand(2, -1))
        if before is not None:  # who was held by a survivor of both is held by the same token
            for b in range(2):
                step = {int(token): place for place, token in enumerate(previous.kept[b])}
                for token, place in enumerate(before.source_map[b].tolist()):
                    holder = int(before.kept[b, place])
                    if holder in step:
                        assert int(previous.source_map[b, token]) == step[holder]
    assert now.shape[1] == 115


def test_penalty_follows_the_original_grid():
    """After a reduction the windows are those of the original places, not of the survivors'."""
    tokens, attn = inputs()
    first = record(tokens, attn, 24)
    _, later = inputs(n=first.tokens.shape[1], seed=3)
    second = record(first.tokens, later, 10, previous=first)
    stats = reference.attention_stats(later.query.double(), later.key.double(), 8**-0.5, True, False, False, True)
    ids = first.patch_ids
    _, sources, _ = reference.filter(stats[1], stats[0], ids, 10, 0.65, True, 2.0, 2, 8, 8, True)
    assert torch.equal(second.sources, first.kept.gather(1, sources))


def test_pruned_tokens_stay_pruned():
    tokens, attn = inputs()
    first = record(tokens, attn, 20, targets=0)
    assert torch.equal(first.tokens, tokens.gather(1, first.kept.unsqueeze(-1).expand(-1, -1, C)))
    assert (first.source_map.gather(1, first.sources) == -1).all()
    assert (first.size == 1).all()
    second = record(first.tokens, inputs(n=45, seed=1)[1], 10, previous=first)
    assert (second.source_map.gather(1, first.sources) == -1).all()
    assert (second.source_map.gather(1, second.sources) >= 0).all()
    assert second.size.sum((1, 2)).tolist() == pytest.approx([45, 45])
    third = record(second.tokens, inputs(n=35, seed=2)[1], 0, previous=second)
    assert torch.equal(third.source_map, second.source_map)
    assert torch.equal(third.kept, second.kept)
