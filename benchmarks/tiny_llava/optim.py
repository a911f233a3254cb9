"""Optimisers: Muon for the matrices of layers, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_STEPS = 4
_A, _B, _C = 3.4445, -4.7750, 2.0315  # quintic iteration towards an orthogonal matrix (Keller Jordan's Muon)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made nearly orthogonal, in float32: torch's own works in bfloat16, slow on a CPU.

    Matrices of one shape are treated together.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.02) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of all matrices that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                update = weight.grad + group["momentum"] * state["momentum"]
                by_shape.setdefault(tuple(weight.shape), []).append((weight, update))
            for shape, pairs in by_shape.items():
                updates = orthogonal(torch.stack([update for _, update in pairs]))
                scale = 0.2 * max(shape) ** 0.5  # the RMS that AdamW's updates have
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonal(x: Tensor) -> Tensor:
    """(n, a, b) -> matrices with the same singular vectors and singular values near 1."""
    flip = x.shape[1] > x.shape[2]
    x = x.mT if flip else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        square = x @ x.mT
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x.mT if flip else x


class Optimizers:
    """Both, with one schedule: warm-up, plateau, linear decay to a fiftieth. By steps, never by the clock."""

    def __init__(
        self, module: nn.Module, *, adam: float, muon: float, steps: int, warmup: int, decay_from: float
    ) -> None:
        matrices = [weight for name, weight in module.named_parameters() if weight.ndim == 2 and _in_a_layer(name)]
        known = {id(weight) for weight in matrices}
        others = [weight for weight in module.parameters() if id(weight) not in known]
        self.module, self.steps, self.warmup, self.decay_from = module, steps, warmup, decay_from
        self.both: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.AdamW(others, lr=adam, betas=(0.9, 0.98), weight_decay=0.02, foreach=True),
            Muon(matrices, lr=muon),
        )
        self.rates = (adam, muon)

    def step(self, loss: Tensor, step: int) -> None:
        """Gradient of ``loss``, clipped, and one update with the rates of ``step``."""
        done = step / self.steps
        falling = max(0.02, 1 - max(0.0, done - self.decay_from) / (1 - self.decay_from))
        for optimizer, rate in zip(self.both, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / self.warmup) * falling
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimizer in self.both:
            optimizer.step()

    def state(self) -> list[dict[str, Any]]:
        """For a later ``restore``."""
        return [optimizer.state_dict() for optimizer in self.both]

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Go on from ``state()``."""
        for optimizer, state in zip(self.both, states, strict=True):
            optimizer.load_state_dict(state)


def _in_a_layer(name: str) -> bool:
    return "layers." in name or "projector" in name
