"""The likelihood of several data sets together: those of a mixture, each a source of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nar_scale.errors import UserError
from nar_scale.evaluation.likelihood import Likelihood, MeanLoss


def pool_likelihoods(sources: Mapping[str, Likelihood]) -> Likelihood:
    """The likelihood of all sources together, each with the weight of its tokens.

    The sources are strata: the variances of their sums add up. The length of the text behind a token is known where it
    is for all of them.

    Args:
        sources: by name of the source.

    Raises:
        UserError: no source, or likelihoods of different estimators.
    """
    parts = list(sources.values())
    if not parts:
        raise UserError("there is no source to evaluate")
    if len({part.estimator for part in parts}) > 1:
        raise UserError(f"the sources {', '.join(sources)} have likelihoods of different estimators")
    tokens = sum(part.tokens for part in parts)
    lengths = [part.bytes_per_token for part in parts if part.bytes_per_token is not None]
    bytes_per_token = None
    if len(lengths) == len(parts):
        bytes_per_token = sum(length * part.tokens for length, part in zip(lengths, parts)) / tokens
    return Likelihood(
        sum(part.nats_per_token * part.tokens for part in parts) / tokens,
        math.sqrt(sum((part.standard_error * part.tokens) ** 2 for part in parts)) / tokens,
        tokens,
        sum(part.sequences for part in parts),
        parts[0].kind,
        bytes_per_token,
        parts[0].estimator,
        _pool_fractions(parts),
        _pool([part.bound for part in parts if part.bound is not None]),
    )


def _pool_fractions(parts: list[Likelihood]) -> dict[str, MeanLoss]:
    pooled = {}
    for name in sorted({name for part in parts for name in part.by_masked_fraction}):
        mean = _pool([part.by_masked_fraction[name] for part in parts if name in part.by_masked_fraction])
        if mean is not None:
            pooled[name] = mean
    return pooled


def _pool(means: list[MeanLoss]) -> MeanLoss | None:
    """The mean over the tokens of all; None of none."""
    tokens = sum(mean.tokens for mean in means)
    return MeanLoss(sum(mean.nats_per_token * mean.tokens for mean in means) / tokens, tokens) if means else None
