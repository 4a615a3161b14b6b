"""Synthetic sources of known entropy."""

from __future__ import annotations

import torch
from torch import Tensor


class MarkovSource:
    """Sequences of a first-order Markov chain with random transitions.

    Args:
        symbols: size of the alphabet.
        concentration: of the Dirichlet distribution that transitions are drawn from; small is predictable.
    """

    def __init__(self, symbols: int = 6, concentration: float = 0.3, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self._generator = torch.Generator().manual_seed(seed + 1)
        gammas = torch._standard_gamma(torch.full((symbols, symbols), concentration), generator=generator)
        self.transitions = (gammas + 1e-3).double() / (gammas + 1e-3).double().sum(dim=1, keepdim=True)
        self.start = torch.linalg.matrix_power(self.transitions, 1000)[0]  # the stationary distribution

    def sample(self, batch: int, n: int) -> Tensor:
        """Fresh sequences, int64 `[batch, n]`."""
        tokens = [torch.multinomial(self.start.expand(batch, -1), 1, generator=self._generator)]
        for _ in range(n - 1):
            tokens.append(torch.multinomial(self.transitions[tokens[-1][:, 0]], 1, generator=self._generator))
        return torch.cat(tokens, dim=1)

    def entropy(self, n: int) -> float:
        """Nats per token of sequences of n tokens."""
        first = torch.special.entr(self.start).sum()
        each = (self.start * torch.special.entr(self.transitions).sum(dim=1)).sum()
        return float((first + (n - 1) * each) / n)
