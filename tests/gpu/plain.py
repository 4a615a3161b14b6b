"""What a run must compute, written as anybody would: one device, whole batches, no engine."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nar_scale.checkpoint import load_consolidated
from nar_scale.config import Config
from nar_scale.training.optimizers.learning_rate import learning_rate_factor
from tests.distributed.test_zero_options import Plain
from tests.distributed.whole_batches import whole_batches

from .corpora import VOCABULARY

Weights = dict[str, Tensor]


class Trained(NamedTuple):
    """Losses of the steps, and on the CPU the weights after them and their moving average, if there is one."""

    losses: list[float]
    weights: Weights
    averages: Weights


class PlainOnDevice(Plain):
    """The optimizers by their papers, Muon's iterations in the precision that is used on the device."""

    @torch.no_grad()
    def orthogonal(self, name: str, rate: float) -> None:
        weight, momentum = self.weights[name], self.settings.muon_momentum
        assert weight.grad is not None
        average = self.averages[name] = momentum * self.averages[name] + (1 - momentum) * weight.grad
        ahead = momentum * average + (1 - momentum) * weight.grad
        x = (ahead / ahead.norm()).to(torch.bfloat16 if weight.is_cuda else torch.float32)
        for _ in range(5):  # an odd polynomial of the matrix, which is that of its singular values
            x = 3.4445 * x - 4.7750 * x @ x.mT @ x + 2.0315 * x @ x.mT @ x @ x.mT @ x
        rows, columns = weight.shape
        weight -= rate * (x.float() * math.sqrt(max(1, rows / columns)) + self.decay[name] * weight)


def plain_loop(config: Config, weights: Path, device: torch.device, steps: Collection[int] | None = None) -> Trained:
    """Train from a consolidated checkpoint.

    In bf16 the model computes with rounded copies of weights that are kept in float32; in fp16 this is the loop in
    float32.

    Args:
        steps: those to take, from 1 on; the batches of the others are left out. All if not given.
    """
    training = config.training
    wrapper = load_consolidated(weights, device).wrapper.train()
    computing = copy.deepcopy(wrapper).bfloat16() if training.precision == "bf16" else wrapper
    optimizer = PlainOnDevice(config, wrapper)
    averages = {name: weight.detach().clone() for name, weight in wrapper.named_parameters()}
    losses: list[float] = []
    for step, batch in zip(range(training.steps or 0), whole_batches(config, VOCABULARY)):
        if steps is not None and step + 1 not in steps:
            continue
        loss = computing.loss_terms(batch.to(device), seed=training.seed).total()
        computing.zero_grad()
        loss.backward()
        for weight, copied in zip(wrapper.parameters(), computing.parameters()):
            weight.grad = None if copied.grad is None else copied.grad.float()
        torch.nn.utils.clip_grad_norm_(wrapper.parameters(), config.optimizer.gradient_clipping)
        optimizer.step(learning_rate_factor(config.schedule, step, training.steps or 0))
        stays = min(training.ema_decay or 0.0, (2 + len(losses)) / (11 + len(losses)))
        with torch.no_grad():
            for weight, copied in zip(wrapper.parameters(), computing.parameters()):
                copied.copy_(weight)
            for name, weight in wrapper.named_parameters():
                averages[name] = stays * averages[name] + (1 - stays) * weight
        losses.append(loss.item())
    return Trained(losses, _on_cpu(dict(wrapper.named_parameters())), _on_cpu(averages))


def _on_cpu(weights: Weights) -> Weights:
    return {name: weight.detach().cpu() for name, weight in weights.items()}
