"""`LossTerms`, the loss of a batch as sums that are not divided yet, and what they are computed with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LossTerms(NamedTuple):
    """Loss sums of a part of a batch, to be divided by what the whole batch counts.

    A mean of local means is wrong wherever parts hold different numbers of tokens, so an objective never
    divides: whoever knows the whole batch does.

    Attributes:
        sums: float32 `[terms]`, differentiable; each the sum of one kind of loss.
        counts: float32 `[terms]`, what each sum is divided by, from this part of the batch.
        weights: float32 `[terms]`, of the terms in the total loss.
        metrics: name to float32 `[2]`, a sum and a count, without gradient.
        moments: float64 `[3]`, sums over sequences of loss squared, loss times count, and count squared, of the
            first term and without gradient: what a standard error needs. Where ranks share sequences, their parts are
            the sequences.
    """

    sums: Tensor
    counts: Tensor
    weights: Tensor
    metrics: dict[str, Tensor]
    moments: Tensor

    def total(self, counts: Tensor | None = None) -> Tensor:
        """The weighted loss, a scalar; over the `counts` of the whole batch or else of this part alone.

        A term that counts nothing contributes 0.
        """
        counts = self.counts if counts is None else counts
        return (self.weights * self.sums / counts.clamp(min=1)).sum()


class Losses(NamedTuple):
    """What `NonAutoregressiveWrapper.forward` returns: scalars in nats per token, None where a part is not trained.

    Attributes:
        loss: what is to be minimised.
        generator_loss: of the prediction of masked tokens.
        critic_loss: of the token critic, if there is one.
    """

    loss: Tensor
    generator_loss: Tensor | None
    critic_loss: Tensor | None


class HybridLosses(NamedTuple):
    """What `HybridWrapper.forward` returns: scalars in nats per token.

    Attributes:
        loss: the weighted sum of the others, which is to be minimised.
        token_loss: of the next token, the negative log-likelihood.
        diffusion_loss: block diffusion's bound on it.
    """

    loss: Tensor
    token_loss: Tensor
    diffusion_loss: Tensor


@torch.no_grad()
def sequence_moments(losses: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
    """The `moments` of `LossTerms`, from losses `[m]` of the rows `[m]` they belong to and counts `[batch]`."""
    counts = counts.double()
    totals = torch.zeros_like(counts).index_add_(0, rows, losses.double())
    return torch.stack(((totals * totals).sum(), (totals * counts).sum(), (counts * counts).sum()))


def on_device(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers as a tensor of the dtype and on the device of `like`, without a copy that the host waits for."""
    return torch.stack([like.new_full((), value) for value in values])


def length_mask(lengths: Tensor, n: int) -> Tensor:
    """True at the first `lengths[i]` of the n positions of row i; bool `[batch, n]`, from int64 `[batch]`."""
    import einx  # not at the top: it imports torch's compiler, which takes seconds

    return einx.less("n, b -> b n", torch.arange(n, device=lengths.device), lengths)


def require(condition: Tensor, message: str) -> None:
    """Refuse data: a ValueError, or on a GPU, where asking at once would make every step wait, a RuntimeError later."""
    if condition.device.type != "cpu":
        torch._assert_async(condition, message)
    elif not condition:
        raise ValueError(message)
