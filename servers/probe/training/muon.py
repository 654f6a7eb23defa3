"""Muon for stacks of matrices (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks")."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Approximately the nearest half-orthogonal matrix to each of a stack (matrices, rows, columns), in bfloat16.

    Quintic Newton-Schulz iteration with the coefficients of the source.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = stack.bfloat16()
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal; for parameters (matrices, rows, columns).

    ``lr`` is a scalar tensor, so that a captured CUDA graph follows its changes.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: Tensor,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        compiled: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._orthogonalise = torch.compile(orthogonalise, dynamic=False) if compiled else orthogonalise

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (the base class's signature)
        """One update (Nesterov momentum, decoupled weight decay)."""
        for group in self.param_groups:
            rate: Tensor = group["lr"]
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state["average"] = torch.zeros_like(param)
                state["average"].lerp_(param.grad, 1 - group["momentum"])
                update = self._orthogonalise(param.grad.lerp(state["average"], group["momentum"]))
                scale = max(1.0, param.size(1) / param.size(2)) ** 0.5
                param.mul_(1 - rate * group["weight_decay"]).sub_(update * (rate * scale))
