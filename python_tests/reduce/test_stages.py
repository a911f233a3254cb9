"""Stages as values, methods as declarations made of them."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from helpers.reductions import inputs, record, same
from torch.utils._python_dispatch import TorchDispatchMode

from ficoco_ext import METHODS, Method, QueryKey, get_method, reduce
from ficoco_ext.methods import ficoco_v, square_grid, topk
from ficoco_ext.stages import Compress, Correlate, Filter, Links, Selection


def test_stages_have_value_and_are_unhashable_without_it():
    """A trace of torch 2.11 hashes them while they are being made, and takes a TypeError only."""
    assert hash(Correlate()) == hash(Correlate()) and hash(Correlate()) != hash(Correlate(targets=2))
    with pytest.raises(TypeError, match="unhashable: a Method without its fields"):
        hash(object.__new__(Method))


def test_presets_are_declarations():
    released, paper = get_method("ficoco-v"), get_method("ficoco-v", variant="paper")
    assert released == ficoco_v() == get_method("ficoco-v", variant="released")
    assert released.filter == Filter(0.65, "logits", "row", True, 2.0, 2)
    assert released.correlate == Correlate("attention", "adaptive", 0.998, "softmax", "logits")
    assert paper.filter == Filter(0.35, "probs", "row", False, 2.0, 2)
    assert paper.correlate == Correlate("attention", "adaptive", 0.998, "ratio", "probs")
    assert released.compress == paper.compress == Compress(size_weighted=False)
    assert "2411.17686" in released.source
    assert get_method("topk") == topk()
    assert get_method("topk").correlate.targets == 0
    assert get_method("topk", attention="logits").filter.attention == "logits"
    assert set(METHODS) >= {"ficoco-v", "topk"}


def test_stages_are_frozen_values():
    assert Filter() == Filter()
    assert hash(Filter()) == hash(Filter())
    assert Filter(lam=0.2) != Filter()
    with pytest.raises(FrozenInstanceError):
        Filter().lam = 0.5
    assert replace(Filter(), lam=0.2).lam == 0.2
    with pytest.raises(ValueError, match="Filter: lam must be"):
        replace(Filter(), lam=2.0)


@pytest.mark.parametrize(
    ("stage", "field", "values"),
    [
        (Filter, "lam", (-0.01, 1.01, float("nan"), float("inf"), True, "1", None)),
        (Filter, "attention", ("logit", None, 1)),
        (Filter, "redundancy", ("col", None)),
        (Filter, "normalize", ("l2", None, 2)),
        (Filter, "penalty", (0.99, -1, float("nan"), float("inf"), True, "2", None)),
        (Filter, "window", (0, -1, 1.5, True, "2", None)),
        (Correlate, "by", ("query", None)),
        (Correlate, "alpha", ("mean", None)),
        (Correlate, "attention", ("logit", None)),
        (Correlate, "eps", (-0.01, 1.01, float("nan"), True, "1", None)),
        (Correlate, "targets", (-1, 1.5, "all", True, None)),
    ],
)
def test_bad_fields(stage, field, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"{stage.__name__}: {field} must be .*, got {value!r}"):
            stage(**{field: value})


@pytest.mark.parametrize("options", [{"attention": "logits"}, {"attention": "probs", "by": "key"}])
def test_ratio_needs_probabilities(options):
    with pytest.raises(ValueError, match="alpha='ratio'"):
        Correlate(alpha="ratio", **options)
    assert Correlate(alpha="ratio", targets=0, **options).targets == 0  # no targets, no ratio


def test_counts_of_targets():
    assert Correlate().count(576) == 2
    assert Correlate(eps=0.99).count(576) == 6
    assert Correlate(eps=1.0).count(576) == 1
    assert Correlate(eps=0.0).count(576) == 576
    assert Correlate(targets=3).count(576) == 3
    assert Correlate(targets=0).count(1) == 0


def test_square_grid():
    assert square_grid(576) == (24, 24)
    assert square_grid(1) == (1, 1)
    assert square_grid(577) is None
    assert square_grid(575) is None


def test_a_method_of_ones_own():
    """Prune by received attention in 3 x 3 windows: three lines, no subclass."""
    tokens, attn = inputs()
    mine = Method(
        "mine", Filter(lam=1.0, attention="probs", redundancy="column", window=3), Correlate(targets=0), Compress()
    )
    result = record(tokens, attn, method=mine)
    by_name = {"lam": 1.0, "attention": "probs", "redundancy": "column", "window": 3, "targets": 0, "normalize": True}
    assert same(result, record(tokens, attn, **by_name))
    assert torch.equal(mine(tokens, attn, 16).tokens, result.tokens)


def test_a_stage_is_anything_that_is_called_like_one():
    """The last r patches leave, and all of them go into the class token's neighbour."""

    def last(attn, r, *, class_token, ids, grid):
        index = torch.arange(attn.query.shape[2]).expand(attn.query.shape[0], -1)
        return Selection(torch.zeros(index.shape), index[:, -r:], index[:, :-r])

    def first(attn, selection, *, class_token):
        shape = (*selection.sources.shape, 1)
        return Links(torch.ones(shape, dtype=torch.int64), torch.ones(shape))

    tokens, attn = inputs()
    result = Method("odd", last, first, Compress())(tokens, attn, 16)
    assert torch.equal(result.kept, torch.arange(49).expand(2, -1))
    assert torch.allclose(result.tokens[:, 1], torch.cat([tokens[:, 1:2], tokens[:, 49:]], 1).mean(1), atol=1e-6)
    assert torch.equal(result.tokens[:, 2:], tokens[:, 2:49])


def test_compress_adds_to_the_callers_choice():
    tokens, attn = inputs()
    size = torch.randint(1, 6, (2, 65, 1)).float()
    first = record(tokens, attn, 0, size=size)
    method = get_method("ficoco-v")
    weighted = replace(method, compress=Compress(size_weighted=True))
    plain = record(tokens, attn, method=method, previous=first)  # sizes are known, and only counted
    assert torch.equal(plain.tokens, reduce(tokens, attn, 16))
    assert torch.allclose(plain.size.sum(1), size.sum(1))
    assert same(record(tokens, attn, method=weighted, previous=first), record(tokens, attn, method=method, size=size))


def test_permutation_with_ids():
    """T3, with the penalty: permuting patches together with their places permutes the result."""
    tokens, attn = inputs()
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(64)])
    shuffled = QueryKey(attn.query[:, :, order], attn.key[:, :, order])
    ids = torch.arange(64).expand(2, -1)
    chosen = Filter()(attn, 20, class_token=True, ids=ids, grid=(8, 8))
    moved = Filter()(shuffled, 20, class_token=True, ids=ids[:, order[1:] - 1], grid=(8, 8))
    assert torch.allclose(moved.redundancy, chosen.redundancy[:, order[1:] - 1], atol=1e-6)
    assert torch.equal(order[moved.sources].sort(1).values, chosen.sources)
    links, moved_links = (
        Correlate(targets=2)(a, s, class_token=True) for a, s in ((attn, chosen), (shuffled, moved))
    )  # fmt: skip
    out, *_ = Compress()(tokens, chosen, links, size=None, size_weighted=False)
    moved_out, *_ = Compress()(tokens[:, order], moved, moved_links, size=None, size_weighted=False)
    places = order[moved.kept].argsort(1).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    assert torch.allclose(moved_out.gather(1, places), out, atol=1e-5)


def test_filter_says_what_it_lacks():
    _, attn = inputs()
    with pytest.raises(ValueError, match="a map holds no keys; pass attn=QueryKey"):
        Filter()(torch.rand(2, 65, 65), 4, class_token=False, ids=None, grid=(5, 13))
    with pytest.raises(ValueError, match="the local penalty needs the patches' grid"):
        Filter()(attn, 4, class_token=True, ids=None, grid=None)
    assert Filter(penalty=1.0)(attn, 4, class_token=True, ids=None, grid=None).sources.shape == (2, 4)


def test_class_attention_that_is_not_used_is_not_needed():
    """lam = 1 needs no class token and no keys; lam = 0 reads no patch attention."""
    attn = torch.rand(2, 64, 64)
    assert Filter(lam=1.0)(attn, 4, class_token=False, ids=None, grid=(8, 8)).kept.shape == (2, 60)
    broken = torch.rand(2, 65, 65)
    broken[:, 1:] = float("nan")
    assert Filter(lam=0.0)(broken, 4, class_token=True, ids=None, grid=(8, 8)).redundancy.isfinite().all()


@pytest.mark.parametrize("r", range(1, 64, 9))
@pytest.mark.parametrize("class_token", [True, False])
def test_with_gradients_the_same_is_chosen(class_token, r):
    """Stage by stage as in one operator: the quantile is that of the kept patches, the class token not among them."""
    tokens, attn = inputs(n=64 + class_token)
    for eps in (0.5, 0.75, 0.9):
        plain = record(tokens, attn, r, eps=eps, class_token=class_token)
        traced = record(tokens.clone().requires_grad_(), attn, r, eps=eps, class_token=class_token)
        assert torch.equal(traced.sources, plain.sources) and torch.equal(traced.targets, plain.targets)
        assert torch.allclose(traced.weights, plain.weights, atol=1e-6)
        assert torch.allclose(traced.tokens, plain.tokens, atol=1e-6)


class Called(TorchDispatchMode):
    """Names of the operators of the package that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ficoco":
            self.names.add(func.name().removeprefix("ficoco::"))
        return func(*args, **(kwargs or {}))


def test_one_operator_where_no_gradient_is_needed():
    """Weights of a model require gradients in inference, too: what counts is whether they are recorded."""
    tokens, attn = inputs()
    separate = {"attention_stats", "filter", "correlate", "compress"}
    for wanted, enabled, requires in (({"reduce"}, True, False), ({"reduce"}, False, True), (separate, True, True)):
        with torch.set_grad_enabled(enabled), Called() as called:
            reduce(tokens.clone().requires_grad_(requires), attn, 16)
        assert called.names == wanted
