"""Muon for the matrices of the blocks, AdamW for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor

from nar_scale.training.optimizers.sharded_matrices import ShardedMatrices

MOMENTUM = "momentum_buffer"
"""Key of Muon's average of gradients in the optimizer's state of a parameter."""

_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.AdamW):
    """Momentum orthogonalised by Newton-Schulz iterations (https://kellerjordan.github.io/posts/muon/).

    Groups with `use_muon` hold matrices, or the flat shards of ZeRO that hold parts of them; for those `sharded` says
    how to put them together. Momentum and decay are elementwise and work on shards; of a matrix that is spread over
    ranks one of them computes the orthogonal step and gives each its part. In this it differs from DeepSpeed's
    Muon, which clips the norm of the steps instead of that of the gradients, and whose momentum has a
    layout of its own. The state of a weight is `momentum_buffer`, of its shape, and `step`.

    A step has singular values near lr * sqrt(max(1, rows / columns)), decoupled decay on top.

    Args:
        params: groups; those with `use_muon` have a `momentum`.

    Attributes:
        sharded: for the flat shards among the parameters.
    """

    def __init__(self, params: Iterable[dict[str, Any]], **adamw: Any):
        super().__init__(params, **adamw)
        self.sharded: MutableMapping[Tensor, ShardedMatrices] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; where matrices are sharded, on all ranks that share them."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group.get("use_muon")]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            for weight in group["params"] if group.get("use_muon") else ():
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)
        return loss

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if MOMENTUM not in state:
            state["step"] = torch.tensor(0.0)
            state[MOMENTUM] = torch.zeros_like(weight)
        state["step"] += 1
        momentum = state[MOMENTUM].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(momentum, group["momentum"])  # Nesterov's
        sharded = self.sharded.get(weight)
        step = muon_step(ahead) if sharded is None else sharded.map(muon_step, ahead)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(step, alpha=group["lr"])


def muon_step(direction: Tensor) -> Tensor:
    """The orthogonal matrix nearest to a direction `[rows, columns]`, times sqrt(max(1, rows / columns))."""
    rows, columns = direction.shape
    return orthogonalize(direction) * math.sqrt(max(1.0, rows / columns))


def orthogonalize(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix `[rows, columns]` near 1, between 0.7 and 1.2, and keep its directions.

    Singular values below a thousandth of the matrix' norm come less far. Computed in bfloat16 on GPUs, float32 on CPUs.
    """
    a, b, c = _COEFFICIENTS
    dtype = torch.bfloat16 if matrix.is_cuda else torch.float32
    wide = matrix.float() if matrix.shape[0] <= matrix.shape[1] else matrix.float().mT
    x = (wide / wide.norm().clamp(min=1e-30)).to(dtype)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if matrix.shape[0] <= matrix.shape[1] else x.mT).to(matrix.dtype)
