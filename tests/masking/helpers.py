"""Schedules, statistics of counts, and noise for so many requests."""

import torch
from torch import Tensor

from nar_scale.masking import Noise

SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "uniform_count": "uniform_count",
    "bell": "bell",
    "quadratic": lambda t: (1 - t) ** 2,
    "late": lambda t: 1 - t**3,
}


def requests(count: int, seed: int = 0) -> Noise:
    return Noise.of_requests(seed, torch.arange(count))


def rows_of(noise: Noise, rows: slice | Tensor) -> Noise:
    return Noise(noise.keys[rows], noise.strata[rows])


def chi_square_excess(values: Tensor, probabilities: Tensor) -> float:
    """Standard deviations by which Pearson's statistic of drawn indices exceeds its mean; above 5 is no accident."""
    observed = values.flatten().bincount(minlength=len(probabilities)).double()
    expected = probabilities.double() * observed.sum()
    assert not observed[expected == 0].any(), "drew what has probability 0"
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = len(expected) - 1
    return float((((observed - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5)
