"""A method after the projector with counts that the host knows: one graph, and no read of the device."""

from __future__ import annotations

import traceback

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import batch, image, one_thread, words  # noqa: F401

import ficoco_ext
from ficoco_ext.models import feature_cutter

pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.skipif(
        tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12),
        reason="torch 2.11 cannot trace the masked_scatter of transformers' LLaVA, reduced or not",
    ),
]

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
LONGER = [*words(1, 2, 6, 7), *image(), *words(3, 4, 5)]
TWO = [*words(1), *image(), *words(3), *image(), *words(4)]
METHODS = ("divprune+fastv", "topk+divprune+ficoco-l", "scope+fastv")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_prefill_traces_as_one_graph(method):
    model, inputs = tiny(seed=3), batch(ONE, ONE)
    with torch.no_grad(), ficoco_ext.attach(model, method, keep_ratio=0.25, static_counts=True):
        wanted = model(**inputs)
        out = torch.compile(model.forward, fullgraph=True, backend="aot_eager")(**inputs)
    assert torch.equal(out.logits, wanted.logits)
    lengths = [[layer.keys.shape[-2] for layer in one.past_key_values.layers] for one in (out, wanted)]
    assert lengths[0] == lengths[1] and lengths[0][-1] < lengths[0][0] < len(ONE)


@pytest.mark.slow
def test_rows_of_different_lengths_in_one_graph():
    model, inputs = tiny(seed=3), batch(ONE, LONGER)
    with torch.no_grad(), ficoco_ext.attach(model, "divprune+fastv", keep_ratio=0.25, static_counts=True):
        wanted = model(**inputs).logits
        compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(**inputs).logits, wanted)


@pytest.mark.parametrize("static", [True, False])
@torch.no_grad()
def test_static_counts_change_no_answer(static):
    """The same rows, alone and together."""
    model = tiny(seed=3)
    with ficoco_ext.attach(model, "divprune+fastv", keep_ratio=0.25, static_counts=static):
        both = model(**batch(ONE, LONGER)).logits
        alone = model(**batch(ONE)).logits
    assert both.shape[1] >= alone.shape[1]
    rows = batch(ONE, LONGER)["pixel_values"]
    assert torch.equal(rows[:1], batch(ONE)["pixel_values"])
    assert (both[0, -3:] - alone[0, -3:]).abs().max() < 1e-4


@torch.no_grad()
def test_a_promise_that_is_not_kept_is_noticed_where_reading_is_free():
    """Four images of 36 tokens in two rows: 44 tokens leave, but not 22 in each."""
    model = tiny(seed=3)
    with ficoco_ext.attach(model, "divprune+fastv", keep_ratio=0.5, static_counts=True):
        message = r"input_ids must be rows of which \d+ tokens each are left, as static_counts promises, got \["
        with pytest.raises(ValueError, match=message):
            model(**batch([*TWO, *image(), *words(2)], ONE))
        with pytest.raises(ValueError, match="images must be equally many tokens to leave each of 2 rows"):
            model(**batch(TWO, ONE))
        model(**batch(TWO, TWO))


@pytest.mark.parametrize(("method", "static", "wanted"), [("divprune+fastv", True, 0), ("divprune", False, 1)])
def test_a_prefill_reads_the_device_once_or_not_at_all(method, static, wanted, monkeypatch):
    model, inputs, reads = tiny(seed=3), batch(ONE, LONGER), []

    def counted(name, original):
        def wrapper(self, *args):
            caller = traceback.extract_stack(limit=2)[0]
            if "ficoco_ext/models" in caller.filename and not self.is_meta:
                reads.append(f"{name} in {caller.filename}:{caller.lineno}")
            return original(self, *args)

        return wrapper

    with torch.no_grad(), ficoco_ext.attach(model, method, keep_ratio=0.5, static_counts=static) as handle:
        monkeypatch.setattr(feature_cutter, "free_to_read", lambda tensor: False)  # as on a GPU
        if handle._decoder is not None:
            monkeypatch.setattr(handle._decoder.reader, "checks_promise", False)
        for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "cpu"):
            monkeypatch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
        model(**inputs)
        assert len(reads) == wanted, reads
