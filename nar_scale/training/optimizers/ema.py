"""An exponential moving average of the weights, kept by the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nar_scale.checkpoint import EMA


class Averaging(torch.optim.Optimizer):
    """Mixed into an optimizer, keeps an average of each parameter in its state, float32.

    ZeRO hands its shards of the weights to the optimizer and saves and restores the optimizer's state, so the average
    is sharded, checkpointed and resumed like the moments are.

    The average starts from the weights before the first step, or from those of a checkpoint that has none; after step t
    it moves by 1 - min(decay, (1 + t) / (10 + t)) of the way to the weights (the warm-up of TensorFlow's
    tf.train.ExponentialMovingAverage).

    Args:
        decay: fraction of the average that a step keeps, in [0, 1).
    """

    def __init__(self, *args: Any, decay: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.decay = decay

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step, then move the averages."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        stepped = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        # AdamW takes a state that is not empty for one of its own, so the first averages are put there afterwards
        averages = [self._average(weight) for weight in stepped]
        super().step()
        for weight, average in zip(stepped, averages):
            state = self.state[weight]
            fraction = (9.0 / (10.0 + state["step"])).clamp(min=1.0 - self.decay)
            # no copy of it between host and device, which would wait
            fraction = fraction.to(average) if fraction.is_cuda else average.new_full((), float(fraction))
            average.lerp_(weight.float(), fraction)
            state[EMA] = average
        return loss

    def _average(self, weight: Tensor) -> Tensor:
        average = self.state[weight].get(EMA) if weight in self.state else None
        return weight.detach().to(torch.float32, copy=True) if average is None else average


def averaging(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """A subclass of an optimizer that also keeps the average.

    Args:
        kind: whose state counts the steps of a parameter in the tensor `step`.
    """
    return type(f"Averaging{kind.__name__}", (Averaging, kind), {"__doc__": kind.__doc__})


def forget_averages(optimizer: torch.optim.Optimizer) -> None:
    """Drop the averages that a checkpoint has brought to an optimizer that keeps none: they would never change."""
    for state in optimizer.state.values():
        state.pop(EMA, None)
