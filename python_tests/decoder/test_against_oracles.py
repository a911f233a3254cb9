"""The methods inside a language model against references that another hand wrote from their papers."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from oracles import language, pivots
from oracles.basic import without_smallest
from torch import Tensor

from ficoco_ext import QueryKey, get_method
from ficoco_ext.apps import fitting
from ficoco_ext.methods import DecoderMethod
from ficoco_ext.stages import Compress
from ficoco_ext.stages.decoder import Layout
from ficoco_ext.stages.decoder_pivots import PivotFilter

COLUMNS, VISUAL, HEADS, GROUPS, WIDTH = 34, 20, 4, 2, 8


class Prompts(NamedTuple):
    """Three different prompts: pictures at different columns, no text after the second, padding in the third."""

    tokens: Tensor
    embeddings: Tensor
    attn: QueryKey
    layout: Layout

    def columns(self, index: int) -> tuple[list[int], list[int], list[bool]]:
        """Those of the picture, those of the text after it, and which are real."""
        visual = self.layout.visual[index].tolist()
        return visual, list(range(visual[-1] + 1, COLUMNS)), self.layout.real[index].tolist()

    def attention(self, index: int) -> Tensor:
        """(H, S, S) of one prompt."""
        return language.causal_attention(self.attn.query[index], self.attn.key[index], self.columns(index)[2])


def prompts(seed: int, dtype: torch.dtype = torch.float64) -> Prompts:
    draw = torch.Generator().manual_seed(seed)

    def leaning(*shape):
        """Vectors that lean to one direction, so that columns of the attention are uneven."""
        own = torch.randn(*shape, generator=draw, dtype=torch.float64)
        lean = torch.rand(*shape[:-1], 1, generator=draw, dtype=torch.float64)
        return own + 1.5 * lean * torch.randn(shape[0], *[1] * (len(shape) - 2), shape[-1], generator=draw)

    starts = torch.tensor([[3], [COLUMNS - VISUAL], [9]])
    attn = QueryKey(leaning(3, HEADS, COLUMNS, WIDTH).to(dtype), leaning(3, GROUPS, COLUMNS, WIDTH).to(dtype))
    real = torch.arange(COLUMNS) >= torch.tensor([[0], [0], [4]])
    layout = Layout.of(starts + torch.arange(VISUAL), COLUMNS, real)
    tokens, embeddings = (leaning(3, COLUMNS, 6).to(dtype) for _ in range(2))
    return Prompts(tokens, embeddings, attn, layout)


def left(method, given: Prompts, r: int) -> tuple[list[list[int]], Tensor]:
    """Of each prompt which of its visual tokens stay, indices among them, and their hidden states."""
    layout = replace(given.layout, marks=method.mark(given.embeddings, given.layout))
    record, places = method(given.tokens, given.attn, r, layout)
    columns = record.kept.gather(1, places)
    hidden = record.tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, record.tokens.shape[2]))
    return (columns - layout.visual[:, :1]).tolist(), hidden


seeds = pytest.mark.parametrize("seed", range(4))
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@seeds
@dtypes
def test_fitprune(seed, dtype):
    given = prompts(seed, dtype)
    for r in (1, 7, 13, VISUAL - 1):
        kept, hidden = left(get_method("fitprune"), given, r)
        for index in range(3):
            visual, text, _ = given.columns(index)
            wanted = language.fitprune(given.attention(index), visual, text, VISUAL - r)
            assert kept[index] == wanted
            assert torch.equal(hidden[index], given.tokens[index, [visual[i] for i in wanted]])


def rated(given: Prompts, index: int) -> Tensor:
    """What the raters of one prompt attend to."""
    visual, text, _ = given.columns(index)
    embeddings = given.embeddings[index]
    raters = [text[k] for k in language.text_raters(embeddings[visual], embeddings[text])]
    return language.rated_attention(given.attention(index), raters, visual)


@seeds
@dtypes
def test_sparsevlm_with_recycling(seed, dtype):
    """Kept tokens bit for bit, a mean for each cluster in its centre's column, nothing else."""
    given, method = prompts(seed, dtype), get_method("sparsevlm", version="1.5")
    for count in (2, 8, 15, VISUAL - 2):
        expected = [
            language.sparsevlm(given.tokens[index, given.columns(index)[0]], rated(given, index), count)
            for index in range(3)
        ]
        clusters = len(expected[0].features)
        kept, hidden = left(method, given, VISUAL - count - clusters)
        for index, one in enumerate(expected):
            centres = sorted(set(one.owner.values()))
            assert kept[index] == sorted(one.kept + centres)
            own = given.tokens[index, given.columns(index)[0]].double()
            means = dict(zip(centres, one.features, strict=True))
            wanted = torch.stack([means.get(token, own[token]) for token in kept[index]])
            tolerance = 1e-6 if dtype == torch.float64 else 1e-5
            assert torch.allclose(hidden[index].double(), wanted, rtol=tolerance, atol=tolerance)


@seeds
@dtypes
def test_sparsevlm_without_recycling(seed, dtype):
    given, method = prompts(seed, dtype), get_method("sparsevlm", version="2.0")
    for r in (1, 7, 13, VISUAL - 1):
        kept, hidden = left(method, given, r)
        for index in range(3):
            wanted = without_smallest(rated(given, index), VISUAL - r)
            assert kept[index] == wanted
            visual = given.columns(index)[0]
            assert torch.equal(hidden[index], given.tokens[index, [visual[i] for i in wanted]])


@seeds
@dtypes
def test_dart_in_a_layer(seed, dtype):
    """Pivots have the largest L1 norms of keys; cosines are of hidden states after the norm that the layout names."""
    given = prompts(seed, dtype)

    def norm(hidden):
        scale = torch.linspace(0.5, 2, hidden.shape[-1], dtype=hidden.dtype)
        return hidden / hidden.square().mean(-1, keepdim=True).add(1e-6).sqrt() * scale

    method = DecoderMethod("dart", PivotFilter(), None, Compress(), layers=lambda layers: (2,))
    layout = replace(given.layout, norm=norm)
    for count in (1, 3, 4, 5, 11, 12, 13, VISUAL - 1):
        kept, hidden = left(method, given._replace(layout=layout), VISUAL - count)
        for index in range(3):
            visual, text, _ = given.columns(index)
            keys = given.attn.key[index].transpose(0, 1).flatten(1)
            wanted = pivots.dart_in_a_layer(norm(given.tokens[index]), keys, visual, text, count)
            assert kept[index] == wanted
            assert torch.equal(hidden[index], given.tokens[index, [visual[i] for i in wanted]])


@seeds
def test_a_recipe_of_fitprune(seed):
    """How many tokens leave in each layer, from what they receive in prompts that nothing was taken from."""
    draw = torch.Generator().manual_seed(seed)
    samples = [tuple(torch.rand(2, 5, 30, generator=draw, dtype=torch.float64) ** 3) for _ in range(4)]
    for alpha in (0.0, 0.01, 0.1, 0.35, 0.7, 0.99, 1.0):
        wanted = language.fitted_counts(samples, alpha)
        assert list(fitting.counts([fitting.Sums(*one, words=9) for one in samples], alpha)) == wanted
