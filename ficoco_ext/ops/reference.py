"""THE SPECIFICATION: every operator in plain PyTorch, any floating dtype including float64.

Kernels are only faster. A float64 input is computed and returned in float64, everything else in float32 (weights,
statistics) or the input's dtype (tokens). Equation numbers refer to FiCoCo, arXiv 2411.17686.

Shapes: B batch, H heads, Hk key heads, N tokens in, P = N - class_token patches, M = N - r tokens out, r sources,
k targets per source, C channels, d head width. A class token, if there is one, is token 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks

_TINY = 1e-12  # below this a norm counts as zero, as in torch.nn.functional.normalize


def _accumulate(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, r) of ``matrix`` (B, N, X): (B, r, X)."""
    return matrix.gather(1, index.unsqueeze(-1).expand(-1, -1, matrix.shape[-1]))


def attention_map(query: Tensor, key: Tensor, scale: float, probs: bool) -> Tensor:
    """Mean over heads of the logits or of their softmax: (B, N, N). The oracle; no fast path forms it."""
    q, k = _accumulate(query), _accumulate(key)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q @ k.mT * scale
    return (logits.softmax(-1) if probs else logits).mean(1)


def head_mean(attn: Tensor) -> Tensor:
    """(B, N, N) of an attention map with or without heads."""
    return _accumulate(attn).mean(1) if attn.dim() == 4 else _accumulate(attn)


def attention_rows(query: Tensor, key: Tensor, scale: float, probs: bool, index: Tensor) -> Tensor:
    """Rows ``index`` (B, r) of :func:`attention_map`: (B, r, N), one head at a time so that nothing N x N is formed."""
    b, h, n, _ = query.shape
    out = _accumulate(query).new_zeros(b, index.shape[1], n)
    for head in range(h):
        q = _rows(_accumulate(query[:, head]), index)
        logits = q @ _accumulate(key[:, head * key.shape[1] // h]).mT * scale
        out += logits.softmax(-1) if probs else logits
    return out / h


def key_metric(key: Tensor) -> Tensor:
    """Unit-length mean over heads of the keys: (B, N, d)."""
    return torch.nn.functional.normalize(_accumulate(key).mean(1), dim=-1, eps=_TINY)


def attention_stats(
    query: Tensor, key: Tensor, scale: float, class_token: bool, probs: bool, column: bool, patches: bool
) -> tuple[Tensor, Tensor]:
    """Class attention (B, P) and patch attention (B, P) of A = ``attention_map`` (eq. 1).

    Class attention is A[0, i]. Patch attention is the mean over the patches j of A[i, j] (row) or A[j, i] (column).
    Without a class token its place is taken by -cos(mean key, key_i) of the head-mean keys (eq. 9-13): a token whose
    key is unlike the mean is important, as one that the class token looks at. Without ``patches`` patch attention is
    not computed and returned as zeros.
    """
    op = "attention_stats"
    checks.query_key(op, query, key)
    checks.has_patches(op, "query", query, query.shape[2], class_token)
    first = int(class_token)
    h = query.shape[1]
    group = h // key.shape[1]
    q, k = _accumulate(query), _accumulate(key).repeat_interleave(group, dim=1)
    if probs:
        mean = q.new_zeros(q.shape[0], q.shape[2])
        class_row = torch.zeros_like(mean)
        for head in range(h):  # one head at a time: (B, N, N), never (B, H, N, N)
            attn = (q[:, head] @ k[:, head].mT * scale).softmax(-1)
            class_row += attn[:, 0]
            if patches:
                mean += attn[:, first:].mean(1) if column else attn[:, :, first:].mean(2)
        class_attention, patch_attention = class_row[:, first:] / h, mean[:, first:] / h
    else:  # a mean of inner products is an inner product with the mean
        many, one = (k, q) if column else (q, k)
        patch_attention = torch.einsum("bhd,bhnd->bn", one[:, :, first:].mean(2), many[:, :, first:]) * (scale / h)
        class_attention = torch.einsum("bhd,bhnd->bn", q[:, :, 0], k[:, :, first:]) * (scale / h)
    if not patches:
        patch_attention = torch.zeros_like(patch_attention)
    if not class_token:
        keys = _accumulate(key).mean(1)
        class_attention = -torch.cosine_similarity(keys.mean(1, keepdim=True), keys, dim=-1, eps=_TINY)
    return class_attention, patch_attention


def attention_stats_map(attn: Tensor, class_token: bool, column: bool, patches: bool) -> tuple[Tensor, Tensor]:
    """:func:`attention_stats` of a given map, whose values are used as they are.

    Without a class token class attention is returned as zeros: a map holds no keys to replace it with.
    """
    op = "attention_stats"
    checks.attention_map(op, attn)
    checks.has_patches(op, "attn", attn, attn.shape[-1], class_token)
    first = int(class_token)
    attn = head_mean(attn)
    patch_attention = attn[:, first:, first:].mean(1 if column else 2)
    if not patches:
        patch_attention = torch.zeros_like(patch_attention)
    class_attention = attn[:, 0, first:].clone() if class_token else torch.zeros_like(patch_attention)
    return class_attention, patch_attention


def local_penalty(redundancy: Tensor, ids: Tensor, grid: tuple[int, int], window: int, penalty: float) -> Tensor:
    """The highest score of each ``window`` x ``window`` cell of the grid moves ``penalty`` times towards removal.

    Positive scores are multiplied, negative ones divided. Only tokens that are alive count; ties go to the lowest id;
    rows and columns that do not fill a window are left alone (FiCoCo section 3.2).
    """
    height, width = grid
    rows, columns, b = height // window, width // window, redundancy.shape[0]
    if rows * columns == 0:  # no window fits
        return redundancy
    canvas = redundancy.new_full((b, height * width), float("-inf")).scatter(1, ids, redundancy)
    cells = canvas.view(b, height, width)[:, : rows * window, : columns * window]
    cells = cells.reshape(b, rows, window, columns, window).transpose(2, 3).reshape(b, rows, columns, window * window)
    best = cells.amax(-1, keepdim=True)
    highest = (cells == best) & (best > float("-inf"))
    highest &= highest.cumsum(-1) == 1  # the cell is in raster order, so the first is the lowest id
    factor = torch.where(highest, torch.where(cells > 0, penalty, torch.where(cells < 0, 1 / penalty, 1.0)), 1.0)
    factor = factor.view(b, rows, columns, window, window).transpose(2, 3)
    factors = canvas.new_ones(canvas.shape).view(b, height, width)
    factors[:, : rows * window, : columns * window] = factor.reshape(b, rows * window, columns * window)
    return redundancy * factors.view(canvas.shape).gather(1, ids)


def filter(
    patch_attention: Tensor,
    class_attention: Tensor,
    ids: Tensor | None,
    r: int,
    lam: float,
    normalize: bool,
    penalty: float,
    window: int,
    grid_height: int,
    grid_width: int,
    class_token: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Redundancy (B, P), sources (B, r) and kept (B, M), the last two as ascending token indices (eq. 1).

    redundancy = lam * patch_attention - (1 - lam) * class_attention, each scaled to unit L2 norm over the patches if
    ``normalize``; a term of weight 0 is not read. Then the local penalty, then the r highest are sources; equal scores
    go to the lowest index. ``ids`` (B, P) are the places on the grid of the patches still alive, None for all of them.
    """
    op = "filter"
    checks.floating(op, "patch_attention", patch_attention)
    checks.shape(op, "patch_attention", patch_attention, "(B, P)", patch_attention.dim() == 2, "pass one score a patch")
    b, p = patch_attention.shape
    same = class_attention.shape == patch_attention.shape and class_attention.dtype == patch_attention.dtype
    checks.shape(op, "class_attention", class_attention, lambda: f"({b}, {p}) like patch_attention", same, "pass both")
    checks.same_device(op, "patch_attention", patch_attention, class_attention=class_attention, ids=ids)
    if not 0 <= r <= max(p - 1, 0):
        checks.fail(op, "r", f"in [0, {max(p - 1, 0)}] for {p} patches", r, "at least one patch stays")
    if not (penalty >= 1 and window >= 1):
        checks.fail(op, "penalty, window", "at least 1", f"{penalty}, {window}", "1 switches the penalty off")
    patch_attention, class_attention = _accumulate(patch_attention), _accumulate(class_attention)

    def term(scores: Tensor) -> Tensor:
        return torch.nn.functional.normalize(scores, dim=-1, eps=_TINY) if normalize else scores

    redundancy = torch.zeros_like(patch_attention)
    if lam != 0:
        redundancy = redundancy + lam * term(patch_attention)
    if lam != 1:
        redundancy = redundancy - (1 - lam) * term(class_attention)
    if penalty != 1:
        checks.grid(grid_height, grid_width)
        if ids is None:
            if grid_height * grid_width != p:
                checks.fail(op, "grid", f"of {p} cells", f"({grid_height}, {grid_width})", "pass the grid or penalty=1")
            ids = torch.arange(p, device=redundancy.device).expand(b, p)
        checks.indices(op, "ids", ids, lambda: f"({b}, {p})", tuple(ids.shape) == (b, p))
        redundancy = local_penalty(redundancy, ids, (grid_height, grid_width), window, penalty)
    if redundancy.device.type == "cpu" and not torch.isfinite(redundancy).all():  # free here, a sync elsewhere
        checks.fail(op, "redundancy", "finite", "NaN or infinity among the scores", "check the attention it is made of")
    order = redundancy.sort(dim=1, descending=True, stable=True).indices
    first = int(class_token)
    sources = order[:, :r].sort(1).values + first
    kept = order[:, r:].sort(1).values + first
    if class_token:
        kept = torch.cat([kept.new_zeros(b, 1), kept], dim=1)
    return redundancy, sources, kept


def _best_targets(scores: Tensor, k: int, alpha: str, first: int) -> tuple[Tensor, Tensor]:
    """Targets (B, r, k) and weights (B, r, k) from correlations ``scores`` (B, r, kept patches).

    The k highest, ties to the lowest index. Weights sum to 1: softmax of the chosen, their ratio, or 1 / k each, which
    is also the ratio of chosen ones that are all 0.
    """
    values, targets = scores.sort(dim=-1, descending=True, stable=True)
    values, targets = values[..., :k], targets[..., :k]
    if k and values.device.type == "cpu" and not values[..., 0].isfinite().all():  # free here, a sync elsewhere
        checks.fail("correlate", "correlations", "finite", "NaN or infinity among them", "check the attention")
    if alpha == "softmax":
        weights = values.softmax(-1)
    else:
        weights = torch.full_like(values, 1 / max(k, 1))
        if alpha == "ratio":
            if values.device.type == "cpu" and (values < 0).any():
                checks.fail(
                    "correlate", "attn", "non-negative for alpha='ratio'", "a negative correlation", "use softmax"
                )
            total = values.sum(-1, keepdim=True)
            weights = torch.where(total > 0, values / total, weights)
    return targets + first, weights


def correlate(
    query: Tensor,
    key: Tensor,
    sources: Tensor,
    kept: Tensor,
    k: int,
    scale: float,
    alpha: str,
    class_token: bool,
    probs: bool,
) -> tuple[Tensor, Tensor]:
    """Targets (B, r, k), as places in ``kept``, and weights (B, r, k) by attention from source to kept patch.

    Correlation is row ``source`` of A over the kept patches; the class token is never a target (FiCoCo section 3.3).
    """
    checks.query_key("correlate", query, key)
    first = int(class_token)
    checks.selection("correlate", query.shape[0], query.shape[2], sources, kept)
    checks.same_device("correlate", "query", query, sources=sources, kept=kept)
    checks.target_count("correlate", k, kept.shape[1] - first, alpha)
    if alpha == "ratio" and not probs:
        checks.fail("correlate", "alpha", "softmax or average with logits", "ratio", "use probs, never negative")
    rows = attention_rows(query, key, scale, probs, sources)
    columns = kept[:, None, first:].expand(-1, sources.shape[1], -1)
    return _best_targets(rows.gather(2, columns), k, alpha, first)


def correlate_map(
    attn: Tensor, sources: Tensor, kept: Tensor, k: int, alpha: str, class_token: bool
) -> tuple[Tensor, Tensor]:
    """:func:`correlate` from a given map, whose values are used as they are."""
    checks.attention_map("correlate", attn)
    first = int(class_token)
    checks.selection("correlate", attn.shape[0], attn.shape[-1], sources, kept)
    checks.same_device("correlate", "attn", attn, sources=sources, kept=kept)
    checks.target_count("correlate", k, kept.shape[1] - first, alpha)
    columns = kept[:, None, first:].expand(-1, sources.shape[1], -1)
    return _best_targets(_rows(head_mean(attn), sources).gather(2, columns), k, alpha, first)


def correlate_key(
    key: Tensor, sources: Tensor, kept: Tensor, k: int, alpha: str, class_token: bool
) -> tuple[Tensor, Tensor]:
    """:func:`correlate` by cosine of the head-mean keys (B, Hk, N, d), as ToMe measures similarity."""
    checks.key("correlate", key)
    first = int(class_token)
    checks.selection("correlate", key.shape[0], key.shape[2], sources, kept)
    checks.same_device("correlate", "key", key, sources=sources, kept=kept)
    checks.target_count("correlate", k, kept.shape[1] - first, alpha)
    if alpha == "ratio":
        checks.fail("correlate", "alpha", "softmax or average with keys", "ratio", "a cosine can be negative")
    metric = key_metric(key)
    return _best_targets(_rows(metric, sources) @ _rows(metric, kept[:, first:]).mT, k, alpha, first)


def match(key: Tensor, r: int, class_token: bool, distill_token: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Redundancy (B, P), sources (B, r), kept (B, M), targets and weights (B, r, 1): ToMe's bipartite matching.

    Every token at an even place has an edge to the one at an odd place whose head-mean key has the highest cosine with
    its own, the lowest of equal ones. The r edges of highest cosine are merged, equal ones by lowest source. Class
    token (place 0) and distillation token (place 1) have no edges. Redundancy is the cosine of a patch's edge, -inf
    without one (ToMe, arXiv 2210.09461, section 3).
    """
    checks.key("match", key)
    b, _, n, _ = key.shape
    checks.matching(n, r, class_token, distill_token)
    first, metric, rest = int(class_token), key_metric(key), torch.arange(n, device=key.device)
    even, odd = rest[2 * first :: 2], rest[1 + 2 * distill_token :: 2]
    scores = metric[:, even] @ metric[:, odd].mT
    if scores.device.type == "cpu" and not scores.isfinite().all():  # free here, a sync elsewhere
        checks.fail("match", "key", "finite", "NaN or infinity among the keys", "check the layer they come from")
    redundancy = scores.new_full((b, max(n - first, 0)), float("-inf"))
    if not scores.numel():
        scores = scores.new_full((b, even.shape[0], 1), float("-inf"))
    nearest = scores.argmax(-1, keepdim=True)  # of equal ones the first
    best = scores.gather(2, nearest).squeeze(-1)
    redundancy[:, even - first] = best
    edges = best.sort(dim=1, descending=True, stable=True).indices[:, :r].sort(1).values
    sources = even[edges]
    leaves = torch.zeros(b, n, dtype=torch.bool, device=key.device).scatter(1, sources, True)
    kept = leaves.sort(dim=1, stable=True).indices[:, : n - r].contiguous()
    places = (~leaves).cumsum(1) - 1
    targets = places.gather(1, 1 + 2 * distill_token + 2 * nearest.squeeze(-1).gather(1, edges))
    return redundancy, sources, kept, targets.unsqueeze(-1), redundancy.new_ones(b, r, 1)


def compress(
    tokens: Tensor,
    sources: Tensor,
    kept: Tensor,
    targets: Tensor,
    weights: Tensor,
    size: Tensor | None,
    size_weighted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, M, C), size (B, M, 1) and source_map (B, N) after every source went into its targets (eq. 2).

    x_j <- (z_j x_j + sum_i w_ij z_i x_i) / (z_j + sum_i w_ij z_i), all at once, with z = ``size`` if ``size_weighted``
    and 1 otherwise; the new size is z_j + sum_i w_ij z_i with z = ``size`` (or 1) either way. A kept token that
    receives nothing is copied. ``source_map`` is the place in ``kept`` that holds a token: its own, or the target of
    largest weight (the first among equals), or -1 if it was dropped (k = 0).
    """
    op = "compress"
    checks.floating(op, "tokens", tokens)
    checks.shape(op, "tokens", tokens, "(B, N, C)", tokens.dim() == 3, "pass hidden states")
    b, n, _ = tokens.shape
    checks.selection(op, b, n, sources, kept)
    r, m = sources.shape[1], kept.shape[1]
    checks.indices(
        op, "targets", targets, lambda: f"({b}, {r}, k)", targets.dim() == 3 and tuple(targets.shape[:2]) == (b, r)
    )
    checks.floating(op, "weights", weights)
    checks.shape(
        op,
        "weights",
        weights,
        lambda: f"{tuple(targets.shape)} like targets",
        weights.shape == targets.shape,
        "pass both",
    )
    if size is not None:
        checks.floating(op, "size", size)
        checks.shape(op, "size", size, lambda: f"({b}, {n}, 1)", tuple(size.shape) == (b, n, 1), "one count a token")
    checks.same_device(op, "tokens", tokens, sources=sources, kept=kept, targets=targets, weights=weights, size=size)
    k = targets.shape[2]
    x, w = _accumulate(tokens), _accumulate(weights)
    z = x.new_ones(b, n, 1) if size is None else _accumulate(size).to(x.dtype)
    # Targets of one source are distinct, so the scatter writes each cell once: deterministic on every device.
    flow = x.new_zeros(b, r, m).scatter(2, targets, w.to(x.dtype)).mT  # (B, M, r)
    mass_in, mass_kept = _rows(z, sources), _rows(z, kept)
    size_out = mass_kept + flow @ mass_in
    if not size_weighted:
        mass_in, mass_kept = torch.ones_like(mass_in), torch.ones_like(mass_kept)
    survivors = _rows(x, kept)
    leaving = _rows(x, sources)
    finite = leaving.nan_to_num(0, 0, 0)  # 0 * inf of other survivors' sources is no part of the sum
    merged = (mass_kept * survivors + flow @ (mass_in * finite)) / (mass_kept + flow @ mass_in)
    edges = (flow != 0).to(x.dtype)
    for value, there in (
        (float("inf"), leaving.isposinf()),
        (-float("inf"), leaving.isneginf()),
        (float("nan"), leaving.isnan()),
    ):
        merged = torch.where(edges @ there.to(x.dtype) > 0, merged + value, merged)
    receives = torch.zeros(b, m, dtype=torch.bool, device=x.device).scatter(1, targets.flatten(1), True)
    out = torch.where(receives.unsqueeze(-1), merged, survivors).to(tokens.dtype)
    holder = targets.new_full((b, r), -1)
    if k:
        largest = w == w.amax(-1, keepdim=True)
        holder = targets.gather(2, largest.int().argmax(-1, keepdim=True)).squeeze(-1)
    places = torch.arange(m, device=x.device).expand(b, m)
    source_map = sources.new_full((b, n), -1).scatter(1, kept, places).scatter(1, sources, holder)
    return out.contiguous(), size_out, source_map


def compress_backward(
    grad: Tensor,
    sources: Tensor,
    kept: Tensor,
    targets: Tensor,
    weights: Tensor,
    size: Tensor | None,
    size_weighted: bool,
    tokens: int,
) -> Tensor:
    """Gradient with respect to ``tokens`` of :func:`compress`; the selection, weights and sizes are constants."""
    b, r, _ = targets.shape
    m, g = kept.shape[1], _accumulate(grad)
    z = g.new_ones(b, tokens, 1) if size is None or not size_weighted else _accumulate(size).to(g.dtype)
    flow = g.new_zeros(b, r, m).scatter(2, targets, _accumulate(weights).to(g.dtype))
    mass_in, mass_kept = _rows(z, sources), _rows(z, kept)
    g = g / (mass_kept + flow.mT @ mass_in)
    out = g.new_zeros(b, tokens, g.shape[-1])
    out.scatter_(1, kept.unsqueeze(-1).expand(-1, -1, g.shape[-1]), mass_kept * g)
    out.scatter_(1, sources.unsqueeze(-1).expand(-1, -1, g.shape[-1]), mass_in * (flow @ g))
    return out.to(grad.dtype)
