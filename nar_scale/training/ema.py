"""AdamW that also keeps an exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EMA = "ema"
"""Key of the average in the optimizer's state of a parameter."""


class AveragingAdamW(torch.optim.AdamW):
    """AdamW (arXiv:1711.05101) with an average of each parameter in its state, float32.

    ZeRO hands its shards of the weights to the optimizer and saves and restores the optimizer's state, so the average
    is sharded, checkpointed and resumed like the moments are.

    The average starts from the initial weights; after step t it moves by 1 - min(decay, (1 + t) / (10 + t)) of the way
    to the weights (the warm-up of TensorFlow's ExponentialMovingAverage).

    Args:
        decay: what of the average stays in a step, below 1.
    """

    def __init__(self, *args: Any, decay: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.decay = decay

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step, then move the averages."""
        stepped = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        # AdamW takes a state that is not empty for one of its own, so the first averages are put there afterwards
        averages = [self._average(weight) for weight in stepped]
        loss = super().step(closure)
        for weight, average in zip(stepped, averages):
            state = self.state[weight]
            step = float(state["step"])
            average.lerp_(weight.float(), 1.0 - min(self.decay, (1.0 + step) / (10.0 + step)))
            state[EMA] = average
        return loss

    def _average(self, weight: Tensor) -> Tensor:
        average = self.state[weight].get(EMA) if weight in self.state else None
        return weight.detach().to(torch.float32, copy=True) if average is None else average
