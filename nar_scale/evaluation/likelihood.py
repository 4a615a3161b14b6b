"""The likelihood of validation data under a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nar_scale.data import Batch
from nar_scale.errors import DataError
from nar_scale.objectives import LossTerms, Objective, evaluating

EVALUATION_SEED = 20_240_611
"""Seed of the masks; all evaluations have the same, so that they can be compared."""


@dataclass(frozen=True)
class Likelihood:
    """The negative log-likelihood of validation data.

    Attributes:
        nats_per_token: exact for autoregressive models (over all tokens except the first of each sequence, or of each
            document where batches have document numbers), an upper bound (NELBO) for non-autoregressive models (over
            all tokens), whatever loss they were trained with.
        standard_error: of `nats_per_token`, over the sequences as a random sample.
        tokens: number of tokens in the mean.
        sequences: number of sequences.
        kind: `exact` or `bound`.
        bytes_per_token: mean length of the text behind a token, in bytes; None if it is unknown.
        bound_nats_per_token: the upper bound of a `hybrid` model's diffusion side (over all tokens); None for others.
    """

    nats_per_token: float
    standard_error: float
    tokens: int
    sequences: int
    kind: str
    bytes_per_token: float | None = None
    bound_nats_per_token: float | None = None

    @property
    def perplexity(self) -> float:
        """exp(`nats_per_token`), with an exponent of at most 700."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of text; None where `bytes_per_token` is."""
        if self.bytes_per_token is None:
            return None
        return self.nats_per_token / math.log(2) / self.bytes_per_token

    def __str__(self) -> str:
        compression = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.3f} bits/byte"
        bound = "" if self.bound_nats_per_token is None else f", diffusion bound {self.bound_nats_per_token:.4f}"
        return f"{self.nats_per_token:.4f} ± {self.standard_error:.4f} nats/token ({self.kind}{bound}){compression}"


@torch.no_grad()
def evaluate_likelihood(
    objective: Objective,
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    *,
    loss_terms: Callable[..., LossTerms] | None = None,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
    bytes_per_token: float | None = None,
    seed: int = EVALUATION_SEED,
) -> Likelihood:
    """Average the loss of a model over batches, with masks that are stratified over the sequences.

    Args:
        objective: the model, which is put in eval mode meanwhile.
        batches: the data; under ZeRO 3 every rank must pass the same number of them.
        device: of the model.
        loss_terms: what computes `objective.loss_terms` where an engine is around the model, from a batch and a `seed`.
        reduce: sums a float64 tensor over all ranks.
        bytes_per_token: mean length of the text behind a token, in bytes.
        seed: of the masks.

    Raises:
        DataError: there is no token to evaluate.
    """
    loss_terms = loss_terms or objective.loss_terms
    totals = torch.zeros(8, dtype=torch.float64, device=device)
    with evaluating(objective):
        for batch in batches:
            terms = loss_terms(batch.to(device), seed=seed)
            sequences = (batch.lengths > 0).sum().to(device)
            totals[:3] += torch.stack((terms.sums[0], terms.counts[0], sequences)).double()
            totals[3:6] += terms.moments.double()
            if objective.bound_term is not None:
                totals[6:] += torch.stack((terms.sums, terms.counts))[:, objective.bound_term].double()
    total, tokens, sequences, loss_squared, loss_times_count, count_squared, *bound = reduce(totals).tolist()
    if tokens == 0:
        raise DataError("there is no token to evaluate; check the data, and that the limit is above 0")
    nats = total / tokens
    # the nats are a ratio of sums over sequences: their error is the spread of loss - nats * count (delta method)
    spread = max(loss_squared - 2 * nats * loss_times_count + nats * nats * count_squared, 0.0)
    error = math.sqrt(spread) / tokens
    return Likelihood(
        nats,
        error,
        int(tokens),
        int(sequences),
        objective.likelihood_kind,
        bytes_per_token,
        bound_nats_per_token=bound[0] / bound[1] if bound[1] else None,
    )
