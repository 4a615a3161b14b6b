"""Samplers that reveal as many tokens in a call as the network is sure enough of."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from nar_scale.decoding.samplers.sampler import Call, Sampler, largest


class Adaptive(Sampler):
    """Reveals the tokens that are doubted least: those that suffice, one at least, and what the schedule asks for.

    Args:
        options: those of `Sampler`.
        bound: the threshold, factor or bound of the subclass.
    """

    def __init__(self, *options: Any, bound: float):
        super().__init__(*options)
        self.bound = bound

    @abstractmethod
    def doubts(self, call: Call) -> Tensor:
        """How much each token is doubted, float64 `[batch, n]`."""

    @abstractmethod
    def suffices(self, doubts: Tensor) -> Tensor:
        """Which of the least doubted tokens may be revealed together.

        Args:
            doubts: float64 `[batch, n]`, rising; infinite behind the last masked token.

        Returns:
            bool `[batch, n]`; tokens are revealed up to the first false.
        """

    def masked_after(self, call: Call) -> Tensor:
        """What does not suffice; see `Sampler`."""
        doubts = self.doubts(call)
        rising = doubts.masked_fill(~call.masked, torch.inf).sort(dim=1).values
        suffices = self.suffices(rising) & rising.isfinite()
        revealed = suffices.long().cumprod(dim=1).sum(dim=1)
        return largest(doubts, call.masked, torch.minimum(call.count - revealed, self.allowed(call)))


class Threshold(Adaptive):
    """All tokens whose probability reaches a threshold (Fast-dLLM, arXiv:2505.22618, section 3.3)."""

    statistic = "probability"

    def doubts(self, call: Call) -> Tensor:
        """One less the probability of each token."""
        return 1 - call.asked()

    def suffices(self, doubts: Tensor) -> Tensor:
        """1 - p <= 1 - threshold."""
        return doubts <= 1 - self.bound


class Factor(Threshold):
    """The j most probable tokens while 1 - p_j <= factor / (j + 1) (Fast-dLLM, arXiv:2505.22618, section 3.3)."""

    def suffices(self, doubts: Tensor) -> Tensor:
        """1 - p_j <= factor / (j + 1), with j counted from 1."""
        j = torch.arange(1, doubts.shape[1] + 1, device=doubts.device)
        return doubts <= self.bound / (j + 1)


class EntropyBound(Adaptive):
    """The positions of lowest entropy whose sum less the largest stays within a bound (arXiv:2505.24857).

    That sum bounds, in nats, how far the tokens are from independent of each other, given what is revealed.
    """

    statistic = "entropy"

    def doubts(self, call: Call) -> Tensor:
        """The entropy at each position in nats."""
        return call.asked().clamp(min=0.0)

    def suffices(self, doubts: Tensor) -> Tensor:
        """The sum of the entropies before each is at most the bound."""
        finite = doubts.masked_fill(doubts.isinf(), 0.0)
        return finite.cumsum(dim=1) - finite <= self.bound
