"""The released formulations, in our own words: what their authors' code asks of torch, one operation after the other.

FiCoCo-V (arXiv 2411.17686) forms the N x N map of logits averaged over heads, handles one image at a time, and learns
the number of targets from the data: a quantile per row, a comparison, a count, and a read of it by the host. Its bugs
are left out, so that the results are those of ``ficoco_ext.reduce`` with ``variant="released"``. ToMe (arXiv
2210.09461) is batched and needs no host; its tokens leave in its own order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LAM, EPS, PENALTY = 0.65, 0.998, 2.0


def attention_map(query: Tensor, key: Tensor) -> Tensor:
    """(N, N) mean over heads of one image's logits; query and key (H, N, d)."""
    return (torch.bmm(query, key.transpose(1, 2)) * query.shape[-1] ** -0.5).mean(0)


def statistics(query: Tensor, key: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Patch attention (row means) and class attention (P,) of one image, through the map."""
    attn = attention_map(query, key)
    if first:
        return attn[1:, 1:].mean(dim=-1), attn[0, 1:]
    keys = key.mean(0)
    return attn.mean(dim=-1), -F.cosine_similarity(keys.mean(0, keepdim=True), keys, dim=-1)


def select(
    patch_attention: Tensor, class_attention: Tensor, r: int, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Redundancy (P,), sources (r,) and kept patches of one image."""
    score = LAM * patch_attention / patch_attention.norm() - (1 - LAM) * class_attention / class_attention.norm()
    width = grid[1]
    cells = score.view(grid).unfold(0, 2, 2).unfold(1, 2, 2)
    rows, columns = cells.shape[:2]
    best = cells.reshape(rows, columns, 4).argmax(dim=-1)
    top = torch.arange(rows, device=score.device)[:, None] * 2 + best // 2
    left = torch.arange(columns, device=score.device)[None, :] * 2 + best % 2
    winners = (top * width + left).flatten()
    high = score[winners]
    score = score.clone()
    score[winners] = torch.where(high > 0, high * PENALTY, high / PENALTY)
    order = score.argsort(descending=True, stable=True)
    return score, order[:r].sort().values, order[r:].sort().values


def correlate(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and targets of correlations (r, P'); how many targets is read from the device."""
    threshold = torch.quantile(rows.float(), EPS, dim=-1, keepdim=True)
    k = int((rows.float() >= threshold).sum(dim=-1).max().item())
    values, targets = rows.softmax(dim=-1).topk(k, dim=-1)
    return values / values.sum(dim=-1, keepdim=True), targets


def compress(tokens: Tensor, sources: Tensor, kept: Tensor, weights: Tensor, targets: Tensor, first: int) -> Tensor:
    """Merged tokens (M, C) of one image."""
    patches, k = tokens[first:], targets.shape[-1]
    moved = patches[sources].unsqueeze(1) * weights.unsqueeze(-1)
    index = targets.reshape(-1)
    out = patches[kept].index_add(0, index, moved.reshape(-1, tokens.shape[-1]).to(tokens.dtype))
    total = tokens.new_ones(kept.shape[0]).index_add(0, index, weights.reshape(-1).to(tokens.dtype))
    assert moved.shape[1] == k
    return torch.cat([tokens[:first], out / total.unsqueeze(-1)])


def reduce(tokens: Tensor, query: Tensor, key: Tensor, r: int, first: int, grid: tuple[int, int]) -> Tensor:
    """(B, N, C) -> (B, N - r, C), image by image."""
    out = []
    for x, q, k in zip(tokens, query, key, strict=True):
        attn = attention_map(q, k)
        if first:
            patch, cls = attn[1:, 1:].mean(dim=-1), attn[0, 1:]
        else:
            keys = k.mean(0)
            patch, cls = attn.mean(dim=-1), -F.cosine_similarity(keys.mean(0, keepdim=True), keys, dim=-1)
        _, sources, kept = select(patch, cls, r, grid)
        out.append(compress(x, sources, kept, *correlate(attn[sources + first][:, kept + first]), first))
    return torch.stack(out)


def tome(tokens: Tensor, key: Tensor, r: int, class_token: bool) -> Tensor:
    """ToMe's bipartite matching by the head-mean keys, and its merge with sizes of 1: (B, N - r, C)."""
    b, n, c = tokens.shape
    metric = key.mean(1)
    metric = metric / metric.norm(dim=-1, keepdim=True)
    scores = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
    if class_token:
        scores[:, 0] = -torch.inf
    best, node = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    stays, leaves = order[:, r:], order[:, :r]
    if class_token:
        stays = stays.sort(dim=1).values
    target = node.gather(1, leaves).unsqueeze(-1)

    def merge(x: Tensor) -> Tensor:
        width = x.shape[-1]
        even, odd = x[:, ::2], x[:, 1::2]
        held = even.gather(1, stays.unsqueeze(-1).expand(-1, -1, width))
        moved = even.gather(1, leaves.unsqueeze(-1).expand(-1, -1, width))
        return torch.cat([held, odd.scatter_reduce(1, target.expand(-1, -1, width), moved, reduce="sum")], dim=1)

    size = tokens.new_ones(b, n, 1)
    out = merge(tokens * size) / merge(size)
    assert out.shape == (b, n - r, c)
    return out
