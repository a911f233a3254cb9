"""What a model's language model reduces, against the attention weights that the model itself returns."""

from types import SimpleNamespace

import pytest
import torch
from helpers.decoder import decoder_by_hand, tiny, watch
from helpers.models import (
    PATCHES,
    batch,
    close,
    image,
    one_thread,  # noqa: F401
    words,
)
from helpers.scores import correlations, heirs, redundancy, split

import ficoco_ext

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
LONG = [*words(1, 2, 3, 4), *image(), *words(5, 6, 7, 8, 9)]
FIRST = 2


@pytest.fixture(scope="module")
def model():
    return tiny(attention="eager", seed=11)


def attentions(model, inputs):
    """For each layer the head-mean weights (B, L, L) that eager attention returns."""
    with torch.no_grad():
        return [weights.double().mean(1) for weights in model(**inputs, output_attentions=True).attentions]


def columns(inputs, row):
    """Visual columns, text columns behind them, real columns of a row."""
    visual = (inputs["input_ids"][row] == 3).nonzero()[:, 0].tolist()
    real = inputs["attention_mask"][row].bool()
    text = [k for k in range(visual[-1] + 1, len(real)) if real[k]]
    return visual, text, real


def reductions(model, inputs, *method, **options):
    with ficoco_ext.attach(model, *method, **options) as handle, torch.no_grad():
        model(**inputs)
        return handle.decoder_reductions


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_fastv_keeps_what_the_last_token_attends_to_most(model, layer):
    inputs = batch(ONE, LONG)
    weights = attentions(model, inputs)[layer - 1]
    found = reductions(model, inputs, "fastv", layer=layer, keep_ratio=0.25)
    for row, (reduction,) in enumerate(found):
        visual, _, _ = columns(inputs, row)
        best = weights[row, -1, visual].topk(PATCHES // 4).indices.sort().values + visual[0]
        left = [k for k in reduction.kept[0].tolist() if k in visual]
        assert left == best.tolist()


def test_the_attached_model_returns_these_weights_too(model):
    inputs = batch(LONG)
    with ficoco_ext.attach(model, "fastv", keep_ratio=0.25) as handle:
        kept = attentions(model, inputs)
        ((reduction,),) = handle.decoder_reductions
    plain = attentions(model, inputs)
    assert [len(weights[0]) for weights in kept] == [len(LONG)] * 2 + [len(LONG) - 27] * 2
    assert all(map(torch.equal, kept[:2], plain[:2]))
    assert reduction.kept.shape == (1, len(LONG) - 27)


def test_pyramiddrop_reads_the_layer_that_it_reduces(model):
    """Before the first stage nothing has gone, so the plain model's weights of that very layer say who leaves."""
    inputs = batch(ONE, LONG)
    weights = attentions(model, inputs)[2]
    found = reductions(model, inputs, "pyramiddrop", layers=(2, 3), keep_ratio=(0.5, 0.25))
    for row, stages in enumerate(found):
        visual, _, _ = columns(inputs, row)
        best = weights[row, -1, visual].topk(PATCHES // 2).indices.sort().values + visual[0]
        assert [k for k in stages[0].kept[0].tolist() if k in visual] == best.tolist()
        assert stages[1].kept.shape[1] == stages[0].kept.shape[1] - PATCHES // 4


CASES = [{}, {"beta": 0.1}, {"eps": 0.8}, {"gamma": 0.1, "eps": 0.8}]


@pytest.mark.parametrize("options", [*CASES, {"targets": 2, "alpha": "softmax"}], ids=str)
def test_ficoco_l_of_probabilities_by_the_weights_of_the_model(model, options):
    inputs = batch(ONE, LONG)
    weights = attentions(model, inputs)[FIRST]
    found = reductions(model, inputs, "ficoco-l", variant="paper", r=8, layers=(FIRST,), **options)
    for row, (reduction,) in enumerate(found):
        visual, text, _ = columns(inputs, row)
        assert_chosen(reduction, weights[row], visual, text, probs=True, **options)


def assert_chosen(reduction, attn, visual, text, *, probs, beta=0.6, gamma=0.6, **options):
    """Sources, targets and weights of one row are those of loops over its attention."""
    sources, left, gap = split(redundancy(attn, visual, text, probs=probs, beta=beta), visual, 8)
    assert gap > 1e-6
    assert reduction.sources[0].tolist() == sources
    alpha, targets = options.get("alpha", "ratio" if probs else "softmax"), options.get("targets", "adaptive")
    kept = reduction.kept[0].tolist()
    for i, row in enumerate(correlations(attn, sources, left, text, probs=probs, gamma=gamma)):
        wanted = {left[j]: share for j, share in heirs(row, options.get("eps", 0.998), targets, alpha).items()}
        got = zip(reduction.targets[0, i].tolist(), reduction.weights[0, i].tolist(), strict=True)
        assert {kept[j]: share for j, share in got} == pytest.approx(wanted, abs=1e-4)


def logits_by_hand(model, inputs, layer):
    """Head-mean logits (B, L, L) of one layer of the plain model, from its own projections and rotary embedding."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    with torch.no_grad():
        seen, out = watch(model, lambda: model(**inputs, output_hidden_states=True))
        language_model = model.model.language_model
        block, hidden = language_model.layers[layer], out.hidden_states[layer]
        positions = torch.arange(hidden.shape[1])[None] if seen.positions is None else seen.positions
        normed = block.input_layernorm(hidden)
        projections = block.self_attn.q_proj, block.self_attn.k_proj
        width = block.self_attn.head_dim
        q, k = (project(normed).unflatten(-1, (-1, width)).transpose(1, 2) for project in projections)
        q, k = apply_rotary_pos_emb(q, k, *language_model.rotary_emb(hidden, positions))
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        return (q.double() @ k.double().mT * block.self_attn.scaling).mean(1)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_ficoco_l_of_logits_by_projections_of_the_model(model, options):
    inputs = batch(ONE, LONG)
    logits = logits_by_hand(model, inputs, FIRST)
    for before in (False, True):
        method = {"r": 8, "layers": (FIRST,), "before_attention": before}
        found = reductions(model, inputs, "ficoco-l", variant="released", **method, **options)
        for row, (reduction,) in enumerate(found):
            visual, text, _ = columns(inputs, row)
            assert_chosen(reduction, logits[row], visual, text, probs=False, **options)


def test_sdpa_chooses_as_eager_does():
    inputs = batch(ONE, LONG)
    for method, options in (("fastv", {"layer": 3}), ("ficoco-l", {"layers": (2,)}), ("pyramiddrop", {"layers": (2,)})):
        found = [
            reductions(tiny(attention=kind, seed=11), inputs, method, keep_ratio=(0.5,), **options)
            for kind in ("eager", "sdpa")
        ]
        for one, other in zip(*found, strict=True):
            assert torch.equal(one[0].kept, other[0].kept) and torch.equal(one[0].targets, other[0].targets)


@pytest.mark.parametrize("keep", [0.5, 0.25])
def test_fastv_is_hiding_columns_chosen_by_the_weights(model, keep):
    """An oracle that shares nothing with the package: weights of the plain model choose, a mask hides."""
    inputs = batch(LONG)
    visual, _, real = columns(inputs, 0)
    weights = attentions(model, inputs)[1]
    best = weights[0, -1, visual].topk(round(PATCHES * keep)).indices + visual[0]
    kept = torch.tensor(sorted({*range(len(LONG))} - {*visual} | {*best.tolist()}))[None]
    nobody, place = torch.zeros(1, 0, 0), torch.zeros(1, len(LONG))
    chosen = SimpleNamespace(
        kept=kept, sources=torch.zeros(1, 0).long(), targets=nobody.long(), weights=nobody, source_map=place
    )
    with torch.no_grad():
        seen, plain = watch(model, lambda: model(**inputs))
        positions = torch.arange(len(LONG))[None]
        wanted = decoder_by_hand(model, seen.embeds, positions, real, [chosen], [1])
        with ficoco_ext.attach(model, "fastv", keep_ratio=keep):
            logits = model(**inputs).logits[0]
    assert close(logits, wanted[kept[0]])
    assert not close(logits[-1], plain.logits[0, -1], 1e-2)
