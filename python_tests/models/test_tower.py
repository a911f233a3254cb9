"""FiCoCo-V inside the CLIP tower: identity, oracles written by hand, scores, records."""

import pytest
import torch
from helpers.models import (
    LAYERS,
    PATCHES,
    batch,
    close,
    features,
    image,
    one_image,
    one_thread,  # noqa: F401
    pixels,
    tiny_llava,
    tower_by_hand,
    with_unlike_norms,
    words,
)

import ficoco_ext
from ficoco_ext import Method
from ficoco_ext.stages import Compress, Correlate, Filter

pytest.importorskip("transformers")

LAST = LAYERS - 2  # vision_feature_layer = -2


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def everything(model, inputs):
    return model(**inputs).logits, model.generate(**inputs, max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_nothing_to_remove_is_bit_identical(attention):
    model = tiny_llava(attention=attention)
    inputs = batch([*words(1), *image(), *words(2, 3)], [*words(5), *image(), *words(6), *image(), *words(7)])
    with torch.no_grad():
        plain = everything(model, inputs)
        for options in ({"r": 0}, {"keep_ratio": 1.0}, {"tokens": PATCHES, "layers": (0, 2)}):
            with ficoco_ext.attach(model, **options) as handle:
                assert all(map(torch.equal, plain, everything(model, inputs)))
                assert handle.reductions == () and "generate" not in vars(model)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hooked_layers_that_keep_all_tokens_are_bit_identical(attention):
    """The body and the capture themselves: a method that returns its tokens as they are, in every layer."""

    class Same(Method):
        def __call__(self, tokens, attn, r, **options):
            assert attn.query.shape[2] == tokens.shape[1]
            return super().__call__(tokens, attn, 0, **options)

    model, picture = tiny_llava(attention=attention), pixels(2)
    same = Same("same", Filter(), Correlate(), Compress())
    from ficoco_ext.models import vision_tower
    from ficoco_ext.models.facts import tower_facts
    from ficoco_ext.models.model_changes import ModelChanges

    with torch.no_grad():
        plain = model.model.vision_tower(picture, output_hidden_states=True).hidden_states
        changes, facts = ModelChanges(), tower_facts(model)
        schedule = ficoco_ext.Schedule(PATCHES, tuple(range(LAYERS)), (1,) * LAYERS)
        vision_tower.install(model.model.vision_tower, schedule, [same] * LAYERS, facts, changes)
        for layer in model.model.vision_tower.encoder.layers:
            layer.forward.__self__.step = ficoco_ext.schedule.Step(0, PATCHES, 1, PATCHES)
        hooked = model.model.vision_tower(picture, output_hidden_states=True).hidden_states
        changes.undo()
        assert all(map(torch.equal, plain, hooked)) and len(plain) == LAYERS + 1


def masked_after(model, handle, picture):
    """Oracle: tokens dropped in a layer stay in the tensor, but no token may attend to them in later layers."""
    steps = [step for step in handle.schedule.steps if step.r]
    dropped, hidden = torch.zeros(len(picture), PATCHES + 1, dtype=torch.bool), {}
    for index in range(LAYERS):
        hidden[index] = dropped
        for step, reduction in zip(steps, handle.reductions, strict=True):
            if step.layer == index:
                dropped = torch.ones_like(dropped).scatter(1, reduction.kept, False)
    return tower_by_hand(model, picture, hidden_keys=lambda index: hidden[index])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", [(LAST,), (0, 1), (1, 2, 3, 4)])
def test_pruning_equals_masking(layers, attention):
    model, picture = tiny_llava(attention=attention), pixels(3)
    with torch.no_grad():
        plain = features(model, picture)  # also lets transformers install its capture hooks
        with ficoco_ext.attach(model, "ficoco-v", r=5, layers=layers, targets=0) as handle:
            pruned = features(model, picture)
            places = handle.reductions[-1].patch_ids.unsqueeze(-1).expand(-1, -1, pruned.shape[-1])
            oracle = masked_after(model, handle, picture)
        assert pruned.shape[1] == PATCHES - 5 * len(layers)
        assert close(pruned, oracle[:, 1:].gather(1, places))
        moved = (pruned - plain.gather(1, places)).abs().max()
        assert moved == 0 if layers == (LAST,) else moved > 1e-2  # the test can see a difference


def test_dropping_moves_the_logits(model):
    inputs = one_image()
    with torch.no_grad():
        plain = model(**inputs).logits[:, -1]
        with ficoco_ext.attach(model, keep_ratio=0.5):
            assert (model(**inputs).logits[:, -1] - plain).abs().max() > 1e-2


@pytest.mark.parametrize(
    "options", [{}, {"variant": "paper"}, {"targets": 3, "alpha": "average"}, {"correlation": "key"}]
)
def test_merging_equals_a_matrix_between_attention_and_mlp(model, options):
    """Every layer's reduction as one matrix M (B, N - r, N) in a tower written by hand."""
    picture, layers = pixels(2), tuple(range(LAST + 1))
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-v", r=[4, 3, 2, 5, 6], layers=layers, **options) as handle:
        merged, records = features(model, picture), handle.reductions
        alive = torch.arange(PATCHES + 1).repeat(2, 1)
        matrices = []
        for record in records:
            m = torch.zeros(2, record.kept.shape[1], alive.shape[1])
            for b in range(2):
                column = {int(token): place for place, token in enumerate(alive[b])}
                for row, token in enumerate(record.kept[b]):
                    m[b, row, column[int(token)]] = 1
                for source, targets, weights in zip(
                    record.sources[b], record.targets[b], record.weights[b], strict=True
                ):
                    m[b, targets, column[int(source)]] = weights
            matrices.append(m / m.sum(-1, keepdim=True))
            alive = record.kept
        oracle = tower_by_hand(model, picture, after_attention=lambda index, hidden: matrices[index] @ hidden)
    assert merged.shape[1] == PATCHES - 20
    assert close(merged, oracle[:, 1:])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_selection_is_that_of_the_eager_attention(attention, variant):
    """The captured query and key give the redundancy that the attention map of eager attention gives."""
    model, eager, picture = tiny_llava(attention=attention), tiny_llava(attention="eager"), pixels(2)
    probs = variant == "paper"
    with torch.no_grad(), ficoco_ext.attach(model, r=7, layers=(2,), variant=variant) as handle:
        features(model, picture)
        record = handle.reductions[0]
        attn = eager.model.vision_tower(picture, output_attentions=True).attentions[2]
        if not probs:  # logits up to a constant a row: take them from the layer's own projections
            hidden = eager.model.vision_tower(picture, output_hidden_states=True).hidden_states[2]
            layer = eager.model.vision_tower.encoder.layers[2]
            x = layer.layer_norm1(hidden)
            q, k = (
                f(x).unflatten(-1, (4, -1)).transpose(1, 2) for f in (layer.self_attn.q_proj, layer.self_attn.k_proj)
            )
            attn = q @ k.mT * layer.self_attn.head_dim**-0.5
        by_map = ficoco_ext.reduce(torch.zeros(2, PATCHES + 1, 1), attn, 7, variant=variant, return_reduction=True)
    assert torch.equal(record.kept, by_map.kept) and torch.equal(record.sources, by_map.sources)
    assert torch.equal(record.targets, by_map.targets)
    torch.testing.assert_close(record.weights, by_map.weights, rtol=1e-4, atol=1e-6)


def test_records_speak_of_original_tokens(model):
    with torch.no_grad(), ficoco_ext.attach(model, r=[5, 0, 7], layers=(1, 2, 4)) as handle:
        assert handle.reductions == () and len(handle.methods) == 3 and handle.schedule.final == PATCHES - 12
        features(model, pixels(3))
        first, last = handle.reductions  # layer 2 removes nothing
        assert first.tokens is None and last.tokens is None
        assert (
            model.model.vision_tower.encoder.layers[4].self_attn._ficoco_capture._captured is None
        )  # keys do not live on
        assert first.grid == last.grid == (6, 6) and first.kept.shape == (3, 32) and last.kept.shape == (3, 25)
        for b in range(3):
            left, gone = set(last.kept[b].tolist()), {*first.sources[b].tolist(), *last.sources[b].tolist()}
            assert left | gone == set(range(PATCHES + 1)) and not left & gone
        assert torch.all(last.kept.diff() > 0) and last.source_map.shape == (3, PATCHES + 1)
        torch.testing.assert_close(last.size.sum((1, 2)), torch.full((3,), PATCHES + 1.0))
        features(model, pixels(1, seed=5))
        assert handle.reductions[-1].kept.shape == (1, 25)


def test_images_do_not_see_each_other(model):
    pictures = pixels(3)
    with torch.no_grad(), ficoco_ext.attach(model, keep_ratio=0.3, layers=(1, 3)):
        together = features(model, pictures)
        alone = torch.cat([features(model, one[None]) for one in pictures])
    assert close(together, alone)


def test_another_method_in_each_layer(model):
    prune = Method("mine", Filter(lam=0.0, penalty=1.0), Correlate(targets=0), Compress())
    with torch.no_grad(), ficoco_ext.attach(model, ["ficoco-v", prune, "topk"], r=4, layers=(1, 2, 3)) as handle:
        features(model, pixels(1))
        assert [method.name for method in handle.methods] == ["ficoco-v", "mine", "topk"]
        assert [record.targets.shape[2] > 0 for record in handle.reductions] == [True, False, False]


@pytest.mark.parametrize(
    ("feature_layer", "layers", "last"),
    [(-2, 6, (3, 4)), (-1, 6, (3, 4, 5)), (-3, 8, (4, 5)), (4, 7, (3,)), (5, 5, (2, 3, 4))],
)
def test_default_layers_are_the_second_half_up_to_the_feature_layer(feature_layer, layers, last):
    model = tiny_llava(feature_layer=feature_layer, layers=layers)
    with torch.no_grad(), ficoco_ext.attach(model, tokens=20) as handle:
        assert handle.schedule.layers == last
        assert features(model, pixels(1)).shape[1] == 20


def test_hidden_states_have_the_lengths_of_the_staircase(model):
    with torch.no_grad(), ficoco_ext.attach(model, r=5, layers=(1, 3, 4)) as handle:
        out = model.model.vision_tower(pixels(2), output_hidden_states=True)
        lengths = [state.shape[1] for state in out.hidden_states]
        entering = handle.schedule.tokens_entering(LAYERS + 1)
        assert lengths == [1 + count for count in entering]


def test_attention_implementation_may_change_while_attached(model):
    with torch.no_grad(), ficoco_ext.attach(model, r=5, layers=(2, 3)):
        sdpa = features(model, pixels(1))
        model.set_attn_implementation("eager")
        try:
            weights = model.model.vision_tower(pixels(1), output_attentions=True).attentions
            assert close(features(model, pixels(1)), sdpa)
        finally:
            model.set_attn_implementation("sdpa")
    assert [w.shape[-1] for w in weights] == [37, 37, 37, 32, 27, 27]


def test_kernels_see_the_configuration_of_the_model(model):
    """Flash attention looks up its own name in module.config: while a kernel runs it must not find ours."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    names = []

    def spy(module, *args, **kwargs):
        names.append(module.config._attn_implementation)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)

    AttentionInterface.register("ficoco_test_spy", spy)
    with torch.no_grad(), ficoco_ext.attach(model, r=5, layers=(2, 3)):
        tower = model.model.vision_tower
        tower.config._attn_implementation = "ficoco_test_spy"
        try:
            features(model, pixels(1))
        finally:
            tower.config._attn_implementation = "sdpa"
    assert names == ["ficoco_test_spy"] * LAYERS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = tiny_llava(dtype=dtype)
    with torch.no_grad(), ficoco_ext.attach(model, keep_ratio=0.5):
        out = features(model, pixels(1).to(dtype))
    assert out.dtype == dtype and out.isfinite().all()


def test_gradients_reach_the_pixels(model):
    picture = pixels(1).requires_grad_()
    with ficoco_ext.attach(model, keep_ratio=0.5):
        features(model, picture).square().sum().backward()
    assert picture.grad is not None and picture.grad.abs().sum() > 0


def test_tower_compiles_without_graph_breaks(model):
    picture = pixels(2)
    with torch.no_grad(), ficoco_ext.attach(model, r=5, layers=(2, 4)) as handle:
        tower = model.model.vision_tower
        eager = tower(picture).last_hidden_state
        torch._dynamo.reset()
        compiled = torch.compile(tower, fullgraph=True, backend="aot_eager")(picture).last_hidden_state
        assert close(compiled, eager)
        assert len(handle.reductions) == 2


def test_a_tower_whose_norms_differ_from_layer_to_layer():
    """Norms of a new model are alike, so that a layer that takes another's would not be noticed."""
    model, picture, layers = with_unlike_norms(tiny_llava()), pixels(2), (1, 3)
    with torch.no_grad(), ficoco_ext.attach(model, "topk", r=5, layers=layers) as handle:
        pruned = features(model, picture)
        oracle = masked_after(model, handle, picture)
        places = handle.reductions[-1].patch_ids.unsqueeze(-1).expand(-1, -1, pruned.shape[-1])
    assert close(pruned, oracle[:, 1:].gather(1, places))


def test_a_mask_over_patches_is_refused(model):
    """It would be one over all patches, also in layers where some have left."""
    layer, tokens = model.model.vision_tower.encoder.layers[3], torch.randn(1, PATCHES + 1, 32)
    mask = torch.zeros(1, 1, PATCHES + 1, PATCHES + 1)
    with torch.no_grad(), ficoco_ext.attach(model, r=5, layers=(3,)) as handle:
        with pytest.raises(ValueError, match=r"vision layer 3 must be .* without a mask, got 37 tokens with a mask"):
            layer(tokens, attention_mask=mask)
        assert handle.reductions == ()
        assert layer(tokens, attention_mask=None).shape == (1, PATCHES + 1 - 5, 32)


def test_dropout_of_attention_follows_the_mode():
    """What the kernel gets is a copy of the module, made at attach: it must be in the module's own mode."""
    model, picture = tiny_llava(attention="eager"), pixels(1)
    tower = model.model.vision_tower
    tower.encoder.layers[3].self_attn.dropout = 0.5
    with torch.no_grad(), ficoco_ext.attach(model, r=5, layers=(3,)):
        plain = tower(picture).last_hidden_state
        tower.train()
        assert not torch.equal(tower(picture).last_hidden_state, tower(picture).last_hidden_state)
        tower.eval()
        assert torch.equal(tower(picture).last_hidden_state, plain)
