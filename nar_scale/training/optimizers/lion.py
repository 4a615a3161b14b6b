"""Lion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """Steps of one size along the sign of an average of gradients (arXiv:2302.06675, algorithm 2).

    Elementwise, so it works on the flat shards of ZeRO as on whole weights. The state of a weight is `exp_avg`, of its
    shape, and `step`.

    Args:
        params: parameters or groups of them.
        lr: size of a step.
        betas: fractions of the average of gradients that are kept for a step, and for the next average.
        weight_decay: decoupled; a step shrinks weights by this times `lr`.
    """

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                state, gradient = self.state[weight], weight.grad
                if "exp_avg" not in state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(weight)
                state["step"] += 1
                average = state["exp_avg"]
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(average.lerp(gradient, 1 - beta1).sign_(), alpha=group["lr"])
                average.lerp_(gradient, 1 - beta2)
        return loss
