"""Samplers that mask revealed tokens again, so that mistakes can be mended."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nar_scale.decoding.samplers.sampler import Call, Sampler, largest


class Remask(Sampler):
    """Positions in random order, of which some are masked again so that mistakes can be mended (arXiv:2503.00307).

    With a of the tokens revealed before a call and b after it, a revealed token is masked again with a probability of
    at most (1 - b) / a, which leaves the fraction of masked tokens as it is scheduled (ReMDM, equation 7). `cap`
    limits it to an amount, `rescale` multiplies it by it (section 4.1). How many are masked again is drawn so; with a
    critic, those are the ones that it doubts most, without one any.

    Args:
        options: those of `Sampler`.
        rule: `cap` or `rescale`.
        amount: in (0, 1].
        critic: whether there is a critic.
    """

    def __init__(self, *options: Any, rule: str, amount: float, critic: bool):
        super().__init__(*options)
        self.rule, self.amount, self.critic = rule, amount, critic

    @property
    def uses_critic(self) -> bool:
        """Whether there is a critic."""
        return self.critic

    def masked_after(self, call: Call) -> Tensor:
        """Masked tokens that stay so, and revealed ones that are masked again; see `Sampler`."""
        n, left = call.tokens.shape[1], self.allowed(call)
        revealed = call.generated & ~call.masked
        limit = (left / revealed.sum(dim=1).clamp(min=1)).clamp(max=1.0)
        probability = limit.clamp(max=self.amount) if self.rule == "cap" else limit * self.amount
        drawn = (call.noise.derive(1).uniform(n) < probability[:, None]) & revealed
        again = torch.minimum(drawn.sum(dim=1), left)
        doubts = call.noise.derive(2).uniform(n) if call.judgement is None else call.judgement
        stay = largest(call.noise.derive(0).uniform(n), call.masked, left - again)
        return stay | largest(doubts, revealed, again)


class Wino(Sampler):
    """Tokens from a low threshold on; those are masked again that the others do not support (arXiv:2507.18578).

    One call drafts and verifies: tokens revealed earlier are asked about by shadows, mask tokens in their places that
    see all others but not the token itself. Where a critic is, it says instead how probable it is that they are right.
    Fewer are masked again than are revealed, the worst first, so that decoding ends.

    Args:
        options: those of `Sampler`.
        reveal: probability from which on a masked token is revealed.
        keep: probability from which on a revealed token stays so.
        critic: whether there is a critic.
    """

    statistic = "probability"

    def __init__(self, *options: Any, reveal: float, keep: float, critic: bool):
        super().__init__(*options)
        self.reveal, self.keep, self.critic, self.shadows = reveal, keep, critic, not critic

    @property
    def uses_critic(self) -> bool:
        """Whether there is a critic."""
        return self.critic

    def asked_of(self, call: Call) -> Tensor:
        """All that is not given, but with a critic masked tokens alone; see `Sampler`."""
        return call.masked if self.critic else call.generated

    def masked_after(self, call: Call) -> Tensor:
        """Masked tokens that stay so, and revealed ones that are masked again; see `Sampler`."""
        doubts, allowed = 1 - call.asked(), self.allowed(call)
        probable = (call.masked & (doubts <= 1 - self.reveal)).sum(dim=1)
        stay = largest(doubts, call.masked, torch.minimum(call.count - probable, allowed))
        if call.judgement is not None:
            doubts = call.judgement.sigmoid()
        revealed = call.generated & ~call.masked
        doubted = (revealed & (doubts > 1 - self.keep)).sum(dim=1)
        return stay | largest(doubts, revealed, torch.minimum(doubted, allowed - stay.sum(dim=1)))
