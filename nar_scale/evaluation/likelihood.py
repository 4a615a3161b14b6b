"""The likelihood of validation data under a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nar_scale.data import Batch
from nar_scale.errors import DataError
from nar_scale.evaluation.estimator import estimator_of
from nar_scale.objectives import LossTerms, Objective, evaluating

MASKED_FRACTION = "masked_"
"""How the names of `LossTerms.metrics` by masked fraction begin."""

EVALUATION_SEED = 20_240_611
"""Seed of the masks; all evaluations have the same, so that they can be compared."""


@dataclass(frozen=True)
class MeanLoss:
    """A mean cross-entropy.

    Attributes:
        nats_per_token: the mean.
        tokens: number of tokens in it.
    """

    nats_per_token: float
    tokens: int


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
        estimator: what the number was estimated with, in words; "" if it is not stated.
        by_masked_fraction: the unweighted cross-entropy of masked tokens by the fraction of the sequence (or of the
            block, in block diffusion) that was masked, such as `masked_0.0_to_0.2`; empty for models that mask nothing.
        bound: the upper bound of a `hybrid` model's diffusion side, over all tokens; None for others.
    """

    nats_per_token: float
    standard_error: float
    tokens: int
    sequences: int
    kind: str
    bytes_per_token: float | None = None
    estimator: str = ""
    by_masked_fraction: Mapping[str, MeanLoss] = field(default_factory=dict)
    bound: MeanLoss | None = None

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
        bound = "" if self.bound is None else f", diffusion bound {self.bound.nats_per_token:.4f}"
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
    by_name: dict[str, Tensor] = {}
    with evaluating(objective):
        for batch in batches:
            terms = loss_terms(batch.to(device), seed=seed)
            sequences = (batch.lengths > 0).sum().to(device)
            totals[:3] += torch.stack((terms.sums[0], terms.counts[0], sequences)).double()
            totals[3:6] += terms.moments.double()
            if objective.bound_term is not None:
                totals[6:] += torch.stack((terms.sums, terms.counts))[:, objective.bound_term].double()
            for name, pair in terms.metrics.items():
                if name.startswith(MASKED_FRACTION):
                    by_name[name] = by_name.get(name, 0) + pair.double()
    names = sorted(by_name)  # the same on all ranks, since all pass as many batches
    reduced = reduce(torch.cat((totals, *(by_name[name] for name in names)))).tolist()
    total, tokens, sequences, *moments = reduced[:6]
    bound, bound_tokens = reduced[6:8]
    if tokens == 0:
        raise DataError("there is no token to evaluate; check the data, and that the limit is above 0")
    pairs = zip(names, reduced[8::2], reduced[9::2])
    return Likelihood(
        total / tokens,
        ratio_error(total, tokens, moments),
        int(tokens),
        int(sequences),
        objective.likelihood_kind,
        bytes_per_token,
        estimator_of(objective, seed),
        {name: MeanLoss(loss / count, int(count)) for name, loss, count in pairs if count},
        MeanLoss(bound / bound_tokens, int(bound_tokens)) if bound_tokens else None,
    )


def ratio_error(total: float, count: float, moments: Sequence[float]) -> float:
    """The standard error of a ratio of sums over independent sequences (delta method).

    Args:
        total: sum of the losses.
        count: sum of the counts, above 0.
        moments: sums over sequences of loss squared, loss times count, and count squared.
    """
    ratio = total / count
    spread = moments[0] - 2 * ratio * moments[1] + ratio * ratio * moments[2]
    return math.sqrt(max(spread, 0.0)) / count
