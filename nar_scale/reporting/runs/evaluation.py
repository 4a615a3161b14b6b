"""What `nar-scale evaluate --output RUN/evaluation.json` has written beside a run, for the page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

EVALUATION_FILE = "evaluation.json"
MASKED = re.compile(r"masked_([\d.]+)_to_([\d.]+)")
"""Name of a loss by the fraction that is masked."""


class _MeanLoss(BaseModel):
    nats_per_token: float
    tokens: int


class _Likelihood(BaseModel):
    """As `describe_likelihood` has it."""

    nats_per_token: float
    standard_error: float
    tokens: int
    sequences: int
    kind: str
    bits_per_byte: float | None = None
    estimator: str = ""
    by_masked_fraction: Mapping[str, _MeanLoss] = {}
    bound: _MeanLoss | None = None


class Evaluation(_Likelihood):
    """A likelihood of all sources, and of each.

    Attributes:
        checkpoint: its directory.
        step: optimizer steps that it has taken.
        weights: `model` or `ema`.
        split: the part of the data that was evaluated.
        by_source: the likelihood by name of the data set.
    """

    checkpoint: str
    step: int
    weights: str = "model"
    split: str = "validation"
    by_source: Mapping[str, _Likelihood] = {}


def parse_evaluation(content: bytes) -> Evaluation:
    """The content of the file.

    Raises:
        ValueError: it is none that `evaluate` has written.
    """
    return Evaluation.model_validate_json(content)


def rows_of_evaluation(evaluation: Evaluation | None) -> dict[str, str]:
    """The numbers of an evaluation by what they are; none if there is none."""
    if evaluation is None:
        return {}
    moving_average = ", moving average of the weights" if evaluation.weights == "ema" else ""
    rows = {
        "checkpoint": f"{evaluation.checkpoint}, step {evaluation.step:,}{moving_average}",
        **dict(_likelihood_rows(evaluation, f"{evaluation.split}, ")),
        "estimator": evaluation.estimator,
    }
    if len(evaluation.by_source) > 1:
        for name, likelihood in evaluation.by_source.items():
            rows |= dict(_likelihood_rows(likelihood, f"{name}, "))
    return rows


def _likelihood_rows(likelihood: _Likelihood, prefix: str) -> Iterator[tuple[str, str]]:
    size = f"{likelihood.tokens:,} tokens of {likelihood.sequences:,} sequences"
    kind = "upper bound" if likelihood.kind == "bound" else likelihood.kind
    value = f"{likelihood.nats_per_token:.4f} ± {likelihood.standard_error:.4f}"
    yield f"{prefix}nats/token", f"{value} ({kind}; standard error over {size})"
    if likelihood.bits_per_byte is not None:
        yield f"{prefix}bits/byte", f"{likelihood.bits_per_byte:.3f}"
    if likelihood.bound is not None:
        yield f"{prefix}diffusion bound, nats/token", f"{likelihood.bound.nats_per_token:.4f}"
    for name, loss in likelihood.by_masked_fraction.items():
        found = MASKED.fullmatch(name)
        share = f"{100 * float(found[1]):.0f}-{100 * float(found[2]):.0f} % are masked" if found else name
        yield f"{prefix}nats per masked token where {share}", f"{loss.nats_per_token:.3f} ({loss.tokens:,} tokens)"
