"""Samplers that reveal a scheduled number of tokens in each call: by confidence, entropy, margin or at random."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from nar_scale.decoding.samplers.sampler import Call, Sampler, largest


class Scheduled(Sampler):
    """Masks again what it doubts most, ever fewer tokens, as the schedule says.

    Args:
        options: those of `Sampler`.
        can_mask_revealed: whether tokens that were revealed in earlier calls may be masked again.
    """

    def __init__(self, *options: Any, can_mask_revealed: bool = False):
        super().__init__(*options)
        self.can_mask_revealed = can_mask_revealed

    @abstractmethod
    def doubts(self, call: Call) -> Tensor:
        """How much each token is doubted, float64 `[batch, n]`."""

    def masked_after(self, call: Call) -> Tensor:
        """The most doubted tokens; see `Sampler`."""
        return largest(self.doubts(call), self.asked_of(call), self.allowed(call))

    def asked_of(self, call: Call) -> Tensor:
        """The tokens that may be masked after the call; see `Sampler`."""
        return call.generated if self.can_mask_revealed else call.masked


class Confidence(Scheduled):
    """The most probable of the drawn tokens first, while the temperature falls to 0 (MaskGIT, arXiv:2202.04200).

    With a critic, the tokens that it trusts first (Token-Critic, arXiv:2209.04439).

    Args:
        options: those of `Scheduled`.
        critic_noise: scale of the Gumbel noise on the critic's logits, which falls linearly to 0; None without critic.
    """

    def __init__(self, *options: Any, critic_noise: float | None = None, **more: Any):
        super().__init__(*options, **more)
        self.critic_noise = critic_noise
        self.statistic = "probability" if critic_noise is None else None

    @property
    def uses_critic(self) -> bool:
        """Whether there is a critic."""
        return self.critic_noise is not None

    def doubts(self, call: Call) -> Tensor:
        """One less the probability of each token, or the critic's logit that it is wrong, with noise."""
        if call.judgement is None or self.critic_noise is None:
            return 1 - call.asked()
        noise = call.noise.derive(0).gumbel(call.tokens.shape[1])
        return call.judgement + self.critic_noise * self._left(call) * noise

    def temperature(self, call: Call, start: float) -> float | Tensor:
        """Falls linearly to 0; see `Sampler`."""
        left = self._left(call)
        return start * (left[:, 0] if isinstance(left, Tensor) else left)

    def _left(self, call: Call) -> float | Tensor:
        """The fraction of the calls that is still to come, one or float64 `[batch, 1]`."""
        if self.steps is not None:
            return max(0.0, (self.steps - 1 - call.number) / self.steps)
        total = call.total.double().clamp(min=1)[:, None]
        return ((total - 1 - call.number) / total).clamp(min=0.0)


class Entropy(Scheduled):
    """The positions with the lowest entropy first."""

    statistic = "entropy"

    def doubts(self, call: Call) -> Tensor:
        """The entropy at each position in nats."""
        return call.asked()


class Margin(Scheduled):
    """The positions first at which the two most probable tokens differ most in probability (arXiv:2502.06768)."""

    statistic = "margin"

    def doubts(self, call: Call) -> Tensor:
        """One less the margin at each position."""
        return 1 - call.asked()


class Random(Scheduled):
    """Positions in random order; with one a call this draws from the model's distribution (MDLM, arXiv:2406.07524)."""

    def doubts(self, call: Call) -> Tensor:
        """Random numbers."""
        return call.noise.derive(0).uniform(call.tokens.shape[1])
