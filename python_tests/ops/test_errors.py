"""Bad values for every argument of every operator: the same error from the specification and from the kernels."""

import re

import pytest
import torch
from helpers.backends import BACKENDS
from helpers.ops import needs_kernels
from helpers.samples import samples
from torch._subclasses.fake_tensor import FakeTensorMode

from ficoco_ext.ops import checks

GOOD = {name: args for name, args in samples() if name != "correlate"}  # the last sample of each overload
GOOD["correlate"] = next(args for name, args in samples() if name == "correlate")  # logits
GOOD["filter"] = next(args for name, args in samples() if name == "filter" and args[2] is not None)  # 19 of 5 x 4
B, N, P, R = 2, 20, 19, 6


def empty(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def index(*shape):
    return empty(*shape, dtype=torch.int64)


QUERY_KEY = [
    ({"query": empty(B, N, 8)}, ValueError, "query"),
    ({"query": index(B, 4, N, 8)}, TypeError, "query"),
    ({"query": empty(B, 4, N, 8, dtype=torch.complex64)}, TypeError, "query"),
    ({"key": empty(B, N, 8)}, ValueError, "key"),
    ({"key": index(B, 2, N, 8)}, TypeError, "key"),
    ({"key": empty(B, 2, N, 8, dtype=torch.float16)}, TypeError, "key"),
    ({"key": empty(B, 3, N, 8)}, ValueError, "key"),
    ({"key": empty(B, 0, N, 8)}, ValueError, "key"),
    ({"key": empty(B + 1, 2, N, 8)}, ValueError, "key"),
    ({"key": empty(B, 2, N - 1, 8)}, ValueError, "key"),
    ({"key": empty(B, 2, N + 1, 8)}, ValueError, "key"),  # more keys than queries are for decoders
    ({"key": empty(B, 2, N, 9)}, ValueError, "key"),
    ({"query": empty(B, 0, N, 8)}, ValueError, "key"),
]
MAP = [
    ({"attn": empty(N, N)}, ValueError, "attn"),
    ({"attn": empty(B, 2, 3, N, N)}, ValueError, "attn"),
    ({"attn": index(B, N, N)}, TypeError, "attn"),
    ({"attn": empty(B, N, N - 1)}, ValueError, "attn"),
    ({"attn": empty(B, 0, N, N)}, ValueError, "attn"),
]
SELECTION = [
    ({"sources": index(R)}, ValueError, "sources"),
    ({"sources": index(B, R, 1)}, ValueError, "sources"),
    ({"sources": index(B + 1, R)}, ValueError, "sources"),
    ({"sources": index(B, R).int()}, TypeError, "sources"),
    ({"sources": empty(B, R)}, TypeError, "sources"),
    ({"kept": index(N - R)}, ValueError, "kept"),
    ({"kept": index(B, N - R + 1)}, ValueError, "kept"),
    ({"kept": index(B + 1, N - R)}, ValueError, "kept"),
    ({"kept": index(B, N - R).int()}, TypeError, "kept"),
    ({"sources": index(B, N + 3)}, ValueError, "kept"),
]
COUNT = [
    ({"k": -1}, ValueError, "k"),
    ({"k": N - R}, ValueError, "k"),  # one of them is the class token
    ({"k": 2**40}, ValueError, "k"),
    ({"alpha": "mean"}, ValueError, "alpha"),
    ({"alpha": ""}, ValueError, "alpha"),
]
CASES = {
    "attention_stats": [
        *QUERY_KEY,
        ({"query": empty(B, 4, 1, 8), "key": empty(B, 2, 1, 8)}, ValueError, "query"),
        ({"query": empty(B, 4, 0, 8), "key": empty(B, 2, 0, 8), "class_token": False}, ValueError, "query"),
    ],
    "attention_stats.map": [
        *MAP,
        ({"attn": empty(B, 1, 1), "class_token": True}, ValueError, "attn"),
        ({"attn": empty(B, 2, 0, 0)}, ValueError, "attn"),
    ],
    "filter": [
        ({"patch_attention": empty(P), "class_attention": empty(P)}, ValueError, "patch_attention"),
        ({"patch_attention": empty(B, P, 1)}, ValueError, "patch_attention"),
        ({"patch_attention": index(B, P)}, TypeError, "patch_attention"),
        ({"class_attention": empty(B, P - 1)}, ValueError, "class_attention"),
        ({"class_attention": empty(B, P, dtype=torch.float16)}, ValueError, "class_attention"),
        ({"class_attention": index(B, P)}, (ValueError, TypeError), "class_attention"),
        ({"ids": index(P)}, ValueError, "ids"),
        ({"ids": index(B, P - 1)}, ValueError, "ids"),
        ({"ids": index(B, P).int()}, TypeError, "ids"),
        ({"ids": empty(B, P)}, TypeError, "ids"),
        ({"r": -1}, ValueError, "r"),
        ({"r": P}, ValueError, "r"),
        ({"r": 2**40}, ValueError, "r"),
        ({"penalty": 0.5}, ValueError, "penalty"),
        ({"penalty": float("nan")}, ValueError, "penalty"),
        ({"window": 0}, ValueError, "window"),
        ({"window": -2}, ValueError, "window"),
        ({"ids": None, "grid_height": 4}, ValueError, "grid"),
        ({"ids": None, "grid_height": 0, "grid_width": 0}, ValueError, "grid"),
        ({"ids": None, "grid_height": -1, "grid_width": -P}, ValueError, "grid"),
        ({"grid_height": -5, "grid_width": -4}, ValueError, "grid"),
        ({"grid_height": 0, "grid_width": 4}, ValueError, "grid|ids"),
    ],
    "correlate": [*QUERY_KEY, *SELECTION, *COUNT, ({"alpha": "ratio"}, ValueError, "alpha")],
    "correlate.map": [*MAP, *SELECTION, *COUNT],
    "correlate.key": [
        *[(wrong, kind, "key") for wrong, kind, _ in QUERY_KEY if list(wrong) == ["key"] and wrong["key"].dim() == 3],
        ({"key": index(B, 2, N, 8)}, TypeError, "key"),
        ({"key": empty(B, 0, N, 8)}, ValueError, "key"),
        *SELECTION,
        *COUNT,
        ({"alpha": "ratio"}, ValueError, "alpha"),
    ],
    "compress": [
        ({"tokens": empty(N, 12)}, ValueError, "tokens"),
        ({"tokens": index(B, N, 12)}, TypeError, "tokens"),
        *SELECTION,
        ({"targets": index(B, R)}, ValueError, "targets"),
        ({"targets": index(B, R + 1, 2)}, ValueError, "targets"),
        ({"targets": index(B + 1, R, 2)}, ValueError, "targets"),
        ({"targets": index(B, R, 2).int()}, TypeError, "targets"),
        ({"weights": empty(B, R, 3)}, ValueError, "weights"),
        ({"weights": index(B, R, 2)}, TypeError, "weights"),
        ({"size": empty(B, N)}, ValueError, "size"),
        ({"size": empty(B, N - 1, 1)}, ValueError, "size"),
        ({"size": index(B, N, 1)}, TypeError, "size"),
    ],
}
GOOD["compress"] = next(args for name, args in samples() if name == "compress" and args[5] is not None)


def call(backend, name, **wrong):
    """The good call of ``name`` with some arguments replaced by name."""
    packet, _, overload = name.partition(".")
    schema = getattr(getattr(torch.ops.ficoco, packet), overload or "default")._schema
    names = [argument.name for argument in schema.arguments]
    assert set(wrong) <= set(names)
    args = dict(zip(names, GOOD[name], strict=True)) | wrong
    return BACKENDS[backend].find(name)(*args.values())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", CASES)
def test_the_good_call_is_good(backend, name):
    call(backend, name)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, case, id=f"{name}-{i}") for name in CASES for i, case in enumerate(CASES[name])],
)
def test_bad_argument(backend, name, case):
    wrong, kind, argument = case
    op = name.partition(".")[0]
    with pytest.raises(kind, match=rf"ficoco::{op}: [^:]*\b({argument})\b.*must be .*, got .*; .+"):
        call(backend, name, **wrong)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_every_argument_has_a_case(backend):
    never_wrong = {
        "scale",
        "probs",
        "column",
        "patches",
        "class_token",
        "lam",
        "normalize",
        "size_weighted",
        "grid_width",
    }
    for name, cases in CASES.items():
        packet, _, overload = name.partition(".")
        schema = getattr(getattr(torch.ops.ficoco, packet), overload or "default")._schema
        tried = {argument for wrong, _, _ in cases for argument in wrong}
        assert {argument.name for argument in schema.arguments} - never_wrong <= tried


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_largest_r_and_k_are_named(backend):
    with pytest.raises(ValueError, match=re.escape(f"r must be in [0, {P - 1}] for {P} patches, got {P}")):
        call(backend, "filter", r=P)
    for name in ("correlate", "correlate.map", "correlate.key"):
        with pytest.raises(
            ValueError, match=re.escape(f"k must be in [0, {N - R - 1}], the number of kept patches, got 14")
        ):
            call(backend, name, k=14)


FOREIGN = [
    ("attention_stats", "key"),
    ("filter", "class_attention"),
    ("filter", "ids"),
    *[(name, argument) for name in ("correlate", "correlate.map", "correlate.key") for argument in ("sources", "kept")],
    *[("compress", argument) for argument in ("sources", "kept", "targets", "weights", "size")],
]


@pytest.mark.parametrize(("name", "argument"), FOREIGN)
def test_other_device(name, argument):
    names = [one.name for one in getattr(torch.ops.ficoco, name.partition(".")[0]).default._schema.arguments]
    if "." in name:
        names = ["attn" if name == "correlate.map" else "key", "sources", "kept"]
    value = GOOD[name][names.index(argument)].to("meta")
    op = name.partition(".")[0]
    with pytest.raises(ValueError, match=rf"ficoco::{op}: {argument} must be on .*meta"):
        call("reference", name, **{argument: value})


def test_another_gpu_is_another_device():
    with FakeTensorMode():
        first, second = (torch.empty(1, device=f"cuda:{index}") for index in (0, 1))
        checks.same_device("compress", "tokens", first, size=first, weights=None)
        with pytest.raises(ValueError, match=r"size must be on tokens.s device cuda:0, got .* on cuda:1; move"):
            checks.same_device("compress", "tokens", first, size=second)


@needs_kernels
@pytest.mark.parametrize("value", [-1, -(2**62), "limit", 2**31, 2**62])
@pytest.mark.parametrize(
    ("name", "argument", "limit"),
    [
        ("filter", "ids", 20),
        *[
            (name, one, N)
            for name in ("correlate", "correlate.map", "correlate.key", "compress")
            for one in ("sources", "kept")
        ],
        ("compress", "targets", N - R),
    ],
)
def test_an_index_outside_its_tensor_is_found(name, argument, limit, value):
    """Kernels follow indices blindly, so they are read first: nothing outside may be touched."""
    names = [one.name for one in BACKENDS["cpu"].find(name)._schema.arguments]
    for place in ((0, 0), (-1, -1)):
        wrong = GOOD[name][names.index(argument)].clone()
        wrong[place] = limit if value == "limit" else value
        with pytest.raises(
            ValueError, match=rf"ficoco::{name.partition('.')[0]}: {argument} must be in \[0, {limit}\)"
        ):
            call("cpu", name, **{argument: wrong})


@needs_kernels
def test_a_grid_with_more_cells_than_can_be_counted():
    with pytest.raises(ValueError, match=r"ficoco::filter: (grid|ids) must be"):
        call("cpu", "filter", grid_height=2**33, grid_width=2**31)


def test_descriptions():
    assert checks.describe(torch.zeros(2, 3)) == "(2, 3) torch.float32 on cpu"
    assert checks.describe(3) == "3 (int)"
    with pytest.raises(TypeError, match=r"ficoco::op: x must be wanted, got 'y' \(str\); do this"):
        checks.fail("op", "x", "wanted", checks.describe("y"), "do this", TypeError)
