"""Losses and metrics between two reports."""

from __future__ import annotations

import torch
from torch import Tensor

from nar_scale.objectives import LossTerms
from nar_scale.training.distributed import World


class LossWindow:
    """Sums since the last report, kept on the device so that no step waits for them."""

    def __init__(self) -> None:
        self._steps = 0
        self._sums = self._counts = self._weights = torch.zeros(())
        self._metrics: dict[str, Tensor] = {}

    def add(self, terms: LossTerms) -> None:
        """Add a micro-batch of this rank."""
        self._sums = terms.sums.detach().double() + self._sums.to(terms.sums.device)
        self._weights = terms.weights
        for name, values in terms.metrics.items():
            self._metrics[name] = values.double() + self._metrics.get(name, 0.0)

    def finish_step(self, counts: Tensor) -> None:
        """Add what the global batch of a step counts, float64 `[terms]`."""
        self._counts = counts + self._counts.to(counts.device)
        self._steps += 1

    def reduce(self, world: World, term_names: tuple[str, ...]) -> tuple[int, dict[str, float]]:
        """The steps in the window and their mean losses and metrics over all ranks; empties the window."""
        names = sorted(self._metrics)
        metrics = [self._metrics[name] for name in names]
        flat = world.sum(torch.cat([self._sums, *metrics]))
        means = flat[: len(term_names)] / self._counts.clamp(min=1)
        values = {"loss": float((means * self._weights).sum())}
        if len(term_names) > 1:
            values.update(zip(term_names, means.tolist()))
        for name, (total, count) in zip(names, flat[len(term_names) :].view(-1, 2).tolist()):
            if count:
                values[name] = total / count
        steps = self._steps
        self.__init__()  # type: ignore[misc]
        return steps, values
