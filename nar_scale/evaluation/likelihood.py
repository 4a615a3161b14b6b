"""How well a model predicts held-out data, in nats per token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nar_scale.data import Batch
from nar_scale.errors import DataError
from nar_scale.objectives import Objective

EVALUATION_SEED = 20_240_611
"""Of the masks; one for all evaluations, so that they can be compared."""


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of held-out data.

    Attributes:
        nats_per_token: exact for autoregressive models (over all tokens but the first of each sequence, or where
            batches say which document a token belongs to, the first of each document), an upper bound (NELBO) for
            non-autoregressive ones with the `mdlm` loss (over all tokens); MaskGIT's unweighted loss is neither.
        standard_error: of `nats_per_token`, over sequences.
        tokens: tokens that were counted.
        sequences: sequences that were seen.
        kind: `exact`, `bound` or `not a likelihood`.
        bytes_per_token: of the text behind the tokens, if known.
    """

    nats_per_token: float
    standard_error: float
    tokens: int
    sequences: int
    kind: str
    bytes_per_token: float | None = None

    @property
    def perplexity(self) -> float:
        """exp of the nats per token."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of text; None where the length of the text is unknown."""
        if self.bytes_per_token is None:
            return None
        return self.nats_per_token / math.log(2) / self.bytes_per_token

    def __str__(self) -> str:
        compression = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.3f} bits/byte"
        return f"{self.nats_per_token:.4f} ± {self.standard_error:.4f} nats/token ({self.kind}){compression}"


@torch.no_grad()
def evaluate_likelihood(
    objective: Objective,
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    *,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
    bytes_per_token: float | None = None,
    seed: int = EVALUATION_SEED,
) -> Likelihood:
    """Average the loss over `batches`, with masks stratified over the sequences and fixed by `seed`.

    Args:
        objective: a wrapper, or an engine around one.
        batches: held-out data; under ZeRO 3 every rank must pass as many.
        reduce: sums a float64 tensor over all ranks.
        bytes_per_token: length of the text behind the tokens.

    Raises:
        DataError: there is no token to evaluate.
    """
    was_training = objective.training
    objective.eval()
    totals = torch.zeros(6, dtype=torch.float64, device=device)
    for batch in batches:
        terms = objective(batch.to(device), seed=seed)
        sequences = (batch.lengths > 0).sum().to(device)
        totals[:3] += torch.stack((terms.sums[0], terms.counts[0], sequences)).double()
        totals[3:] += terms.moments.double()
    objective.train(was_training)
    total, tokens, sequences, loss_squared, loss_times_count, count_squared = reduce(totals).tolist()
    if tokens == 0:
        raise DataError("there is no token to evaluate; check the data, and that the limit is above 0")
    nats = total / tokens
    # of a ratio of sums over sequences of different lengths: the spread of loss - nats * count
    spread = max(loss_squared - 2 * nats * loss_times_count + nats * nats * count_squared, 0.0)
    error = math.sqrt(spread) / tokens
    return Likelihood(nats, error, int(tokens), int(sequences), objective.likelihood_kind, bytes_per_token)
