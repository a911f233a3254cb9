"""What every select of projected features has to hold to, whatever it chooses by."""

from __future__ import annotations

import torch

from ficoco_ext.stages import VisualFeatures

OF_TOKENS = ("features", "mask", "saliency", "keys", "tower_features", "early_saliency")
OF_WORDS = ("text", "text_mask")


def _of_each(visual, names, change):
    found = {name: getattr(visual, name) for name in names}
    return visual._replace(**{name: change(one) for name, one in found.items() if one is not None})


def alone(visual: VisualFeatures, item: int) -> VisualFeatures:
    """Picture ``item`` without what its masks hide."""
    one = _of_each(visual, (*OF_TOKENS, *OF_WORDS), lambda given: given[item : item + 1])
    if one.mask is not None:
        there = one.mask[0]
        one = _of_each(one, OF_TOKENS, lambda given: given[:, there])._replace(mask=None)
    if one.text_mask is not None:
        there = one.text_mask[0]
        one = _of_each(one, OF_WORDS, lambda given: given[:, there])._replace(text_mask=None)
    return one


def check_padding(method, visual: VisualFeatures, where: str) -> None:
    """Pictures of fewer real tokens each keep what they keep alone, whatever the others hold."""
    b, n, _ = visual.features.shape
    mask = torch.zeros(b, n, dtype=torch.bool)
    for item in range(b):
        count = n - 9 * item
        place = {"after": torch.arange(count), "before": torch.arange(n - count, n), "among": torch.randperm(n)}
        mask[item, place[where][:count]] = True
    for name in OF_TOKENS:
        given = getattr(visual, name)
        if given is not None:
            given[~mask] = float("nan")
    visual = visual._replace(mask=mask)
    for count in (1, 5, n - 9 * (b - 1)):
        kept = method.keep(visual, count)
        for item in range(b):
            wanted = mask[item].nonzero().squeeze(1)[method.keep(alone(visual, item), count)[0]]
            assert torch.equal(kept[item], wanted)


def exact(method, visual: VisualFeatures, count: int) -> None:
    """Compiled as a whole it keeps the same, and what it was given is as it was."""
    before = [one.clone() if isinstance(one, torch.Tensor) else one for one in visual]
    kept = method.keep(visual, count)
    for one, other in zip(visual, before, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    torch._dynamo.reset()
    compiled = torch.compile(lambda visual: method.select(visual, count), backend="eager", fullgraph=True)
    assert torch.equal(compiled(visual), kept)
