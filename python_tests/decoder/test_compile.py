"""With counts that the host knows nothing is read from the device, so that the whole model traces as one graph."""

import traceback

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import batch, image, one_thread, words  # noqa: F401

import ficoco_ext

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("fresh_compiler")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
LONGER = [*words(1, 2, 6, 7), *image(), *words(3, 4, 5)]
METHODS = {
    "ficoco-l": {"method": "ficoco-l", "r": 5},
    "logits": {"method": "ficoco-l", "r": 5, "variant": "released"},
    "pyramiddrop": {"method": "pyramiddrop"},
    "sparsevlm": {"method": "sparsevlm"},
    "fitprune": {"method": "fitprune", "r": 5},
    "output-aware": {"method": "pyramiddrop", "cache": "output-aware"},
    "mustdrop": {"method": "mustdrop", "part": "language_model", "r": 5, "layers": (1, 3)},
    "mustdrop in both parts": {  # a prompt that is cut by counting alone is read
        "method": "mustdrop",
        "vision": {"r": 16},
        "decoder": {"r": 5, "layers": (1, 3)},
        "positions": "original",
    },
}


follows_transformers = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12),
    reason="torch 2.11 cannot trace the masked_scatter of transformers' LLaVA, reduced or not",
)


@pytest.mark.slow
@follows_transformers
@pytest.mark.parametrize("method", METHODS)
def test_prefill_traces_as_one_graph(method):
    model, inputs = tiny(seed=3), batch(ONE, ONE)
    with torch.no_grad(), ficoco_ext.attach(model, static_counts=True, **METHODS[method]):
        wanted = model(**inputs)
        out = torch.compile(model.forward, fullgraph=True, backend="aot_eager")(**inputs)
    assert torch.equal(out.logits, wanted.logits)
    lengths = [[layer.keys.shape[-2] for layer in one.past_key_values.layers] for one in (out, wanted)]
    assert lengths[0] == lengths[1] and lengths[0][-1] < lengths[0][0]


@pytest.mark.slow
@follows_transformers
def test_state_of_a_call_survives_graph_breaks():
    """transformers' check of placeholders ends a graph between reading the prompt and the layers."""
    model, inputs = tiny(seed=3, layers=2), batch(ONE, ONE)
    with torch.no_grad(), ficoco_ext.attach(model, "fastv", layer=1, static_counts=True):
        wanted = model(**inputs).logits
        compiled = torch.compile(model, backend="eager")
        assert wanted.shape[1] < len(ONE) and torch.equal(compiled(**inputs).logits, wanted)


def caches(model):
    from transformers import DynamicCache, StaticCache

    config = model.config.get_text_config()
    return {"dynamic": DynamicCache(config=config), "static": StaticCache(config=config, max_cache_len=64)}


def decoded(model, inputs, cache, prefill, step):
    """Logits of the prompt and of three greedy tokens behind it."""
    mask = inputs["attention_mask"]
    logits = [prefill(**inputs, past_key_values=cache).logits[:, -1]]
    for _ in range(3):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        ids = logits[-1].argmax(-1, keepdim=True)
        logits.append(step(input_ids=ids, attention_mask=mask, past_key_values=cache).logits[:, -1])
    return torch.stack(logits)


@pytest.mark.slow
@follows_transformers
@pytest.mark.parametrize("keep", ["staircase", "output-aware"])
@pytest.mark.parametrize(("kind", "rows"), [("static", (ONE, LONGER)), ("dynamic", (ONE, ONE))])
def test_prefill_and_decoding_compiled_equal_eager(kind, rows, keep):
    model, inputs = tiny(seed=3), batch(*rows)
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", r=5, layers=(1, 2), static_counts=True, cache=keep):
        wanted = decoded(model, inputs, caches(model)[kind], model, model)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
        assert (decoded(model, inputs, caches(model)[kind], compiled, model) - wanted).abs().max() <= 2e-5
        assert (decoded(model, inputs, caches(model)[kind], model, compiled) - wanted).abs().max() <= 2e-5


ALIKE = [(ONE,), (ONE, LONGER)]  # rows that static counts may promise


@pytest.mark.parametrize("keep", ["staircase", "output-aware"])
@pytest.mark.parametrize(
    ("rows", "static"), [*((rows, static) for rows in ALIKE for static in (False, True)), ((ONE, words(1, 2)), False)]
)
def test_a_prefill_reads_the_device_once_or_not_at_all(rows, static, keep, monkeypatch):
    model, inputs = tiny(seed=3), batch(*rows)
    reads = []

    def counted(name, original):
        def wrapper(self, *args):
            caller = traceback.extract_stack(limit=2)[0]
            specified = caller.name in ("specification", "best_targets", "_check_values")  # reads values on a CPU
            ours = "ficoco_ext" in caller.filename and not specified
            if ours and not self.is_meta:
                reads.append(f"{name} in {caller.filename}:{caller.lineno}")
            return original(self, *args)

        return wrapper

    with (
        torch.no_grad(),
        ficoco_ext.attach(model, "ficoco-l", r=5, layers=(1, 2, 3), static_counts=static, cache=keep) as handle,
    ):
        monkeypatch.setattr(
            handle._decoder.reader, "checks_promise", False
        )  # the CPU's courtesy, where reading is free
        for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "cpu"):
            monkeypatch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
        cache = model(**inputs).past_key_values
        assert len(reads) == (0 if static else 1), reads
        reads.clear()
        mask = torch.cat([inputs["attention_mask"], torch.ones(len(rows), 1, dtype=torch.int64)], 1)
        model(input_ids=torch.ones(len(rows), 1, dtype=torch.int64), attention_mask=mask, past_key_values=cache)
        assert not reads
