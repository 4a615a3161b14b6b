"""What a sampler is: a policy that decides, call by call, which tokens are revealed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nar_scale.decoding.categorical import Statistic
from nar_scale.masking import Noise, Schedule

_ROUNDING = 1e-6  # in tokens, so that (1 - 5/6) * 6 counts as 1 and not as a little less


@dataclass(frozen=True)
class Call:
    """What a sampler knows when it decides about a network call.

    Attributes:
        number: of the call, from 0.
        tokens: int64 `[batch, n]`; once they are drawn, drawn tokens in the place of the masked ones.
        masked: bool `[batch, n]`, the tokens that the network saw masked.
        generated: bool `[batch, n]`, the tokens that are not given: only they may ever be masked.
        request_noise: of the sequences, the same in all calls.
        noise: of the sequences in this call.
        statistics: float64 `[batch, n]`, what the sampler asked of the positions in `Sampler.asked_of`.
        judgement: float64 `[batch, n]`, the critic's logit that each token is wrong; None without a critic.
    """

    number: int
    tokens: Tensor
    masked: Tensor
    generated: Tensor
    request_noise: Noise
    noise: Noise
    statistics: Tensor | None = None
    judgement: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """Tokens to fill in, int64 `[batch]`."""
        return self.generated.sum(dim=1)

    @property
    def count(self) -> Tensor:
        """Masked tokens, int64 `[batch]`."""
        return self.masked.sum(dim=1)

    def asked(self) -> Tensor:
        """The statistics.

        Raises:
            RuntimeError: there are none.
        """
        if self.statistics is None:
            raise RuntimeError("a sampler decides before it has what it asks for")
        return self.statistics


class Sampler(ABC):
    """A policy that decides which tokens a network call reveals; it keeps nothing from one call to the next.

    Each call reveals more tokens than it masks again, so that a sequence takes at most as many calls as it has tokens
    to fill in, and at most `steps`.

    Args:
        schedule: the masked fraction that remains after each of the steps.
        steps: network calls for a sequence at most; None for as many as it has tokens to fill in.

    Attributes:
        statistic: what it asks of each position; None if it decides without the network, and then only tokens that are
            revealed are predicted.
        shadows: whether revealed tokens are asked about as if they were masked, see `Network.embed`.
    """

    statistic: Statistic | None = None
    shadows: bool = False

    def __init__(self, schedule: Schedule, steps: int | None):
        self.schedule, self.steps = schedule, steps

    @property
    def uses_critic(self) -> bool:
        """Whether it needs the critic's judgement of the sequence with all drawn tokens in their places."""
        return False

    @abstractmethod
    def masked_after(self, call: Call) -> Tensor:
        """The tokens that are masked after the call, bool `[batch, n]`; the others keep what was drawn."""

    def asked_of(self, call: Call) -> Tensor:
        """The positions that the statistic is wanted of, bool `[batch, n]`, which comprise the masked ones."""
        return call.masked

    def temperature(self, call: Call, start: float) -> float | Tensor:
        """The temperature of the call, one or float64 `[batch]`.

        Args:
            call: what is known.
            start: the temperature that was asked for.
        """
        return start

    def allowed(self, call: Call) -> Tensor:
        """How many tokens may be masked after the call at most, int64 `[batch]`: fewer than before it."""
        fewer = (call.count - 1).clamp(min=0)
        if self.steps is None:
            return fewer
        progress = torch.tensor((call.number + 1) / self.steps, dtype=torch.float64, device=call.tokens.device)
        left = (self.schedule.masked_fraction(progress.clamp(max=1.0)) * call.total + _ROUNDING).floor().long()
        return torch.minimum(left, fewer) * (call.number + 1 < self.steps)


def largest(scores: Tensor, among: Tensor, counts: Tensor) -> Tensor:
    """The `counts[i]` largest scores of row i among some, bool `[batch, n]`; of equal ones the first.

    Args:
        scores: float64 `[batch, n]`.
        among: bool `[batch, n]`.
        counts: int64 `[batch]`, at most the number of candidates of the row.
    """
    order = scores.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) < counts[:, None]
