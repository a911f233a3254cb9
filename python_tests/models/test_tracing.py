"""``torch.export``, fake tensors, ``torch.jit.trace`` and ``make_fx``: every line of the table in docs/clients.md."""

import re

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import batch, image, one_thread, pixels, words  # noqa: F401
from helpers.paths import DOCS
from helpers.reductions import inputs
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_all, tree_map

import ficoco_ext

pytest.importorskip("transformers", "5.24")
pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::FutureWarning"
    ),
]

PAGE = (DOCS / "clients.md").read_text()
ROW = [*words(1, 2), *image(), *words(3, 4, 5)]


class Reduce(nn.Module):
    def forward(self, tokens, query, key):
        reduction = ficoco_ext.reduce(tokens, ficoco_ext.QueryKey(query, key), 16, return_reduction=True)
        return reduction.tokens, reduction.kept


class Tower(nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, picture):
        return self.tower(picture).last_hidden_state


class Model(nn.Module):
    """A cache is no output that a graph can have, with or without reduction."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, pixel_values):
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}
        return self.model(**given, use_cache=False).logits


def prompts(seed=1):
    return tuple(batch(ROW, ROW, seed=seed).values())


def attached(method, **options):
    model = tiny(seed=3, layers=2)
    ficoco_ext.attach(model, method, **options)
    return model


def reductions(seed=0):
    tokens, attn = inputs(seed=seed)
    return tokens, attn.query, attn.key


def equal(found, wanted):
    return tree_all(lambda same: same, tree_map(torch.equal, found, wanted))


def fake(module, args):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return module(*[mode.from_tensor(one) for one in args])


WAYS = {  # by the heads of the page's table: a function (module, args) that makes a graph; None: fake tensors
    "`torch.export`": lambda module, args: torch.export.export(module, args, strict=False).module(),
    "with `strict=True`": lambda module, args: torch.export.export(module, args, strict=True).module(),
    "`make_fx`": lambda module, args: make_fx(module, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*args),
    "`torch.jit.trace`": lambda module, args: torch.jit.trace(module, args, check_trace=False),
    "fake tensors": None,
}
SUBJECTS = {  # by its rows: a module, arguments to record it with, and others of these shapes
    "`ficoco_ext.reduce` and its operators": lambda: (Reduce(), reductions(), reductions(5)),
    "an attached tower, `model.model.vision_tower`": lambda: (
        Tower(attached("ficoco-v", keep_ratio=0.5).model.vision_tower),
        (pixels(2),),
        (pixels(2, seed=9),),
    ),
    "a model with a method in the language model, `static_counts` promised": lambda: (
        Model(attached("fastv", static_counts=True)),
        prompts(),
        prompts(4),
    ),
    "the same without a promise": lambda: (Model(attached("fastv")), prompts(), prompts(4)),
    "a model with a method in the tower": lambda: (Model(attached("topk", keep_ratio=0.5)), prompts(), prompts(4)),
}
ROWS = [line.strip("| ").split(" | ") for line in PAGE[PAGE.index("| what is recorded") :].splitlines() if "|" in line]
CELLS = [(row[0], way, said) for row in ROWS[2:] for way, said in zip(ROWS[0][1:], row[1:], strict=True)]
SENTENCES = dict(re.findall(r"^- \*(\w+)\*: (.*)$", PAGE, re.MULTILINE))


def test_the_page_says_everything():
    assert ROWS[0][1:] == list(WAYS) and [row[0] for row in ROWS[2:]] == list(SUBJECTS)
    assert {said for *_, said in CELLS} == {"yes", *(f"no: {why}" for why in SENTENCES)}


@pytest.mark.parametrize(("subject", "way", "said"), CELLS)
@torch.no_grad()
def test_what_the_page_says(subject, way, said):
    module, args, others = SUBJECTS[subject]()
    wanted = module(*others)
    if said != "yes":
        why = said.removeprefix("no: ")
        ours = why != "transformers"  # dynamo wraps what we raise in a strict export
        kind, sentence = (
            (Exception, SENTENCES[why].strip('".')) if ours else (DataDependentOutputException, "_local_sc")
        )
        with pytest.raises(kind, match=re.escape(sentence)):
            fake(module, args) if WAYS[way] is None else WAYS[way](module, args)
    elif WAYS[way] is None:
        assert tree_map(torch.Tensor.size, fake(module, args)) == tree_map(torch.Tensor.size, wanted)
    else:
        assert equal(WAYS[way](module, args)(*others), wanted)
    assert equal(module(*others), wanted)  # nothing of the recording is left


@torch.no_grad()
def test_fake_tensors_of_a_model_without_reduction_fail_too():
    with pytest.raises(DataDependentOutputException):
        fake(Model(tiny(layers=2)), prompts())


@torch.no_grad()
@pytest.mark.parametrize("subject", list(SUBJECTS)[:2])
def test_the_batch_may_be_dynamic(subject):
    module, args, _ = SUBJECTS[subject]()
    sizes = tuple({0: torch.export.Dim("batch", min=2, max=9)} for _ in args)
    graph = torch.export.export(module, args, dynamic_shapes=sizes).module()
    more = tuple(torch.cat([one, one.flip(0)[:1]]) for one in args)
    assert equal(graph(*more), module(*more))
