"""Sums of losses and metrics between two reports."""

from __future__ import annotations

import torch
from torch import Tensor

from nar_scale.objectives import LossTerms
from nar_scale.training.distributed import World


class MetricAccumulator:
    """Sums of losses and metrics since the last report, kept on the device so that no step waits for them.

    A step that was skipped, because its gradient was not finite, is left out: its loss may be anything.

    Attributes:
        last_loss: this rank's part of the last step's loss, a float64 scalar; the parts of all ranks add up to it.
        steps: steps since the last report, including those skipped.
    """

    def __init__(self, device: torch.device) -> None:
        self.last_loss = torch.zeros((), dtype=torch.float64, device=device)
        self._clear()

    def _clear(self) -> None:
        self.steps = self._applied = 0
        self._counts = self._weights = torch.zeros(())
        self._sums: dict[str, Tensor] = {}
        self._step: dict[str, Tensor] = {}

    def add(self, terms: LossTerms) -> None:
        """Add a micro-batch of this rank."""
        self._weights = terms.weights
        for name, values in {"": terms.sums.detach(), **terms.metrics}.items():
            self._step[name] = values.double() + self._step.get(name, 0.0)

    def finish_step(self, counts: Tensor, applied: bool) -> None:
        """Add what the global batch of a step counts, float64 `[terms]`; leave the step out if it was skipped."""
        self.steps += 1
        self.last_loss = (self._weights * self._step[""] / counts.clamp(min=1)).sum()
        if applied:
            self._applied += 1
            self._counts = counts + self._counts.to(counts.device)
            for name, values in self._step.items():
                self._sums[name] = values + self._sums.get(name, 0.0)
        self._step = {}

    def reduce(
        self, world: World, term_names: tuple[str, ...], own_seconds: float, own_tokens: int
    ) -> tuple[dict[str, float], list[float], int]:
        """Reduce the sums over all ranks, in one message, and empty them.

        Args:
            own_seconds: what this rank took for its own part of the steps.
            own_tokens: tokens of its samples, without padding.

        Returns:
            the mean losses and metrics of the steps, none if all were skipped; the own seconds of each rank; and the
            tokens of all ranks.
        """
        names = sorted(self._sums)
        counts, weights = self._counts, self._weights
        of_ranks = torch.zeros(world.size + 1, dtype=torch.float64)
        of_ranks[world.rank], of_ranks[-1] = own_seconds, own_tokens
        parts = [*(self._sums[name] for name in names), of_ranks.to(world.device)]
        self._clear()
        *sums, of_ranks = world.all_reduce(torch.cat(parts)).split([len(part) for part in parts])
        *seconds, tokens = of_ranks.tolist()
        totals = dict(zip(names, sums))
        if not totals:
            return {}, seconds, int(tokens)
        means = totals.pop("") / counts.clamp(min=1)
        values = {"loss": float((means * weights).sum())}
        if len(term_names) > 1:
            values.update(zip(term_names, means.tolist()))
        for name, (total, count) in ((name, pair.tolist()) for name, pair in totals.items()):
            if count:
                values[name] = total / count
        return values, seconds, int(tokens)
