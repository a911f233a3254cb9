"""Every operator and every whole reduction as a call of tensors alone."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

import ficoco_ext
from ficoco_ext import Method, QueryKey
from ficoco_ext.methods import Split
from ficoco_ext.ops import _reduce, _reduce_sequence
from ficoco_ext.stages import Crops, Match, VisualFeatures, needs
from helpers.backends import BACKENDS
from helpers.ops import assert_close, double, query_key
from helpers.samples import operator, samples


class Call:
    """An operator or a reduction as a function of tensors alone, so that they can be moved, rewritten and captured."""

    def __init__(self, run, tensors):
        self.run, self.tensors = run, tensors

    def __call__(self):
        return tuple(self.run(*self.tensors))

    def on(self, device):
        return Call(self.run, [tensor.to(device) for tensor in self.tensors])


def of_operator(run, args):
    """``run(*args)``; what is no tensor stays as it is."""
    places = [place for place, arg in enumerate(args) if isinstance(arg, torch.Tensor)]

    def call(*tensors):
        given = list(args)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return run(*given)

    return Call(call, [args[place] for place in places])


def of_method(tensors, method, r=11, **options):
    """A whole reduction; everything that it tells."""

    def call(tokens, query, key):
        attn = QueryKey(query, key)
        made = ficoco_ext.reduce(tokens, attn, r, method=method, return_reduction=True, **options)
        values = [getattr(made, field.name) for field in fields(made)]
        return [value for value in values if isinstance(value, torch.Tensor)]

    return Call(call, tensors)


def layer(b, n, c, dtype, h=4, d=8):
    return [torch.randn(b, n, c).to(dtype), *query_key(b, h, h, n, d, dtype, "transposed")]


def on_grid(tensors, method):
    """A whole reduction with the patches' grid."""
    return of_method(tensors, method, grid=(6, 8))


def in_windows(tensors, method):
    """Two of the four windows of the patches' grid merge."""
    return of_method(tensors, method, r=16, grid=(6, 8))


def of_features(tensors, method, count=11):
    """A whole reduction after the projector: padded features with a plane beside them, and any numbers as readings."""

    def call(features, query, plane):
        mask = torch.arange(features.shape[1], device=features.device) < 40
        readings = {
            "saliency": query[:, 0, :, 0].abs(),
            "early_saliency": query[:, 0, :, 1].abs(),
            "keys": query[:, 1],
            "tower_features": query[:, 2],
            "text": features[:, :7],
        }
        if needs.CROPS in method.needs:  # a thumbnail of 5 x 5 patches, and 4 x 6 valid ones of two crops
            readings |= {"crops": Crops(5, (1, 2), (0, 4, 2, 8)), "class_logits": query[:, 0, :, 2]}
        visual = VisualFeatures(features, mask.expand(len(features), -1), **readings)
        made = method(visual, count, [plane[:, 0]])
        values = [getattr(made.reduction, field.name) for field in fields(made.reduction)]
        return [made.features, *made.planes, *(value for value in values if isinstance(value, torch.Tensor))]

    return Call(call, tensors)


def of_video(tensors, method, count=13):
    """A whole reduction of a video of 7 frames of 7 tokens."""

    def call(features, query, key):
        made = method(VisualFeatures(features, saliency=query[:, 0, :, 0].abs(), frames=7), count)
        values = [getattr(made.reduction, field.name) for field in fields(made.reduction)]
        return [made.features, *(value for value in values if isinstance(value, torch.Tensor))]

    return Call(call, tensors)


def of_layers(tensors, method, counts=(12, 8, 5)):
    """Reductions in a row, one a layer of ``method``; the later ones read the beginning of query and key."""

    def call(tokens, query, key):
        made, values = None, []
        for one, r in zip(method.of_layers(len(counts)), counts, strict=True):
            n = tokens.shape[1]
            attn, given = QueryKey(query[:, :, :n], key[:, :, :n]), {"grid": (6, 8)} if made is None else {}
            made = ficoco_ext.reduce(tokens, attn, r, method=one, previous=made, return_reduction=True, **given)
            tokens = made.tokens
            values += [value for field in fields(made) if isinstance(value := getattr(made, field.name), torch.Tensor)]
        return values

    return Call(call, tensors)


def of_map(tensors, method, r=11):
    """A whole reduction from a map of probabilities, one for each head, made beforehand."""
    tokens, query, key = tensors
    probs = (query.double() @ key.double().mT * query.shape[-1] ** -0.5).softmax(-1).to(query.dtype)

    def call(tokens, probs):
        made = ficoco_ext.reduce(tokens, probs, r, method=method, grid=(6, 8), return_reduction=True)
        return [value for field in fields(made) if isinstance(value := getattr(made, field.name), torch.Tensor)]

    return Call(call, [tokens, probs])


OPERATORS = [f"{name}-{index}" for index, (name, _) in enumerate(samples())]

METHODS = [
    *(name for name in ficoco_ext.methods.distinct() if name not in ("ficoco-vl", "downsample", "mustdrop")),
    "ficoco-v paper",
    "ficoco-l released",
]

MERGE = ficoco_ext.get_method("ficoco-v", targets=2)

PRUNE, TOME = ficoco_ext.get_method("topk"), ficoco_ext.get_method("tome")

WEIGHED = Method("weighed", Match(weigh=0.5), None, TOME.compress)

OTHERS = {  # what no name of the registry is alone: stages with other options, two methods in a layer, others by layer
    "windows": (in_windows, ficoco_ext.get_method("mustdrop", part="tower")),
    "evit mean": (on_grid, ficoco_ext.get_method("evit", fuse="mean")),
    "prumerge mean": (on_grid, ficoco_ext.get_method("prumerge+", normalize=True, neighbours=5)),
    "weighed": (on_grid, WEIGHED),
    "split": (on_grid, Split("prune, merge", PRUNE, WEIGHED, 0.5)),
    "split that loses": (on_grid, Split("merge, prune", MERGE, PRUNE, 0.5)),
    "split of a map": (of_map, Split("prune, merge", PRUNE, MERGE, 0.5)),
    "divprune merged": (of_features, ficoco_ext.get_method("divprune", merge=True)),
    "scope merged": (of_features, ficoco_ext.get_method("scope", merge=True)),
    "random after the projector": (of_features, ficoco_ext.get_method("random", part="projector")),
    "vidcom2 of a video": (of_video, ficoco_ext.get_method("vidcom2")),
    "flashvid of a video": (of_video, ficoco_ext.get_method("flashvid", scenes=2, cut=-1.0, link=0.0)),
    "topk after the projector": (of_features, ficoco_ext.get_method("topk", part="projector")),
    "staged": (of_layers, ficoco_ext.get_method("prune-then-merge", weigh=0.5)),
}

EVERYTHING = [pytest.param(name, id=name) for name in (*OPERATORS, *METHODS, *OTHERS)]

every_call = pytest.mark.parametrize("name", EVERYTHING)


def make(name, seed=0, b=2, dtype=torch.float32, oracle=False):
    """The call of that name with the inputs of that seed, on the CPU; ``oracle``: the specification in float64."""
    torch.manual_seed(seed)
    if name in OTHERS:
        of, method = OTHERS[name]
        call = of(layer(b, 49, 12, dtype), method)
        return Call(call.run, double(call.tensors)) if oracle else call
    if name in METHODS:
        method, _, variant = name.partition(" ")
        tensors = layer(b, 49, 12, dtype)
        made = ficoco_ext.get_method(method)
        if made.projector is not None:
            return of_features(double(tensors) if oracle else tensors, made)
        options = {"variant": variant} if variant else {}
        decodes = isinstance(made, ficoco_ext.methods.DecoderMethod)
        options |= {"visual": (9, 30)} if decodes else {"grid": (6, 8)}
        return of_method(double(tensors) if oracle else tensors, method, **options)
    op, args = list(samples(b=b, dtype=dtype))[OPERATORS.index(name)]
    # One sample has all patches in one place of the grid; which of them counts there is open. Here each has its own.
    args = [
        torch.arange(arg.shape[1]).repeat(b, 1) if isinstance(arg, torch.Tensor) and 0 in arg.stride()[1:] else arg
        for arg in args
    ]
    if not oracle:
        return of_operator(operator(op), args)
    composed = {
        "reduce": _reduce.composed,
        "reduce.map": _reduce.composed_map,
        "reduce_sequence": _reduce_sequence.composed,
    }
    return of_operator(composed.get(op) or BACKENDS["reference"].find(op), double(args))


def check(got, wanted, device):
    """``got``, on ``device``, is ``wanted``: integers exactly, floats (infinities among them) within the tolerance."""
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.device.type == device
        assert one.is_contiguous()
        assert one.shape == other.shape
        if one.is_floating_point():
            assert_close(one.cpu(), other.double(), 4096, scale=1.0)
        else:
            assert torch.equal(one.cpu(), other)
