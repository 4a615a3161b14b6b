"""Losses and times that are summed between two reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nar_scale.training.metrics.accumulator import MetricAccumulator
from nar_scale.training.metrics.stragglers import OwnTime
from nar_scale.training.metrics.throughput import Stopwatch, timed


class IntervalMetrics:
    """Losses and times of a rank, which the trainer and its callbacks write and a report reads.

    Args:
        device: where the steps are computed.

    Attributes:
        losses: sums of losses and metrics.
        stopwatch: of the steps, without callbacks.
        own_time: what this rank took for its own part of the steps.
        tokens: of the samples that this rank has taken since the last report, without padding; where ranks share
            sequences, the first of them counts.
        timings: what callbacks took since the last report, in seconds by name.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.losses = MetricAccumulator(device)
        self.stopwatch = Stopwatch()
        self.own_time = OwnTime(device)
        self.tokens = 0
        self.timings: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A `with` block whose seconds are added to the timing of a name."""
        with timed(self.timings, name):
            yield

    def reset(self) -> None:
        """Begin anew after a roll-back; the times of this rank are kept for the next report."""
        self.losses = MetricAccumulator(self._device)
        self.tokens = 0
        self.stopwatch.lap()
