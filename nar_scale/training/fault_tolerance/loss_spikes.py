"""Losses far above those of the steps before."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, pstdev


class SpikeDetector:
    """Compares each loss with those of the steps before.

    Args:
        sigma: standard deviations above their mean from which on a loss is a spike; 0 for never.
        window: how many steps those are.
    """

    def __init__(self, sigma: float, window: int) -> None:
        self.sigma = sigma
        self._losses: deque[float] = deque(maxlen=window)

    def score(self, loss: float) -> float | None:
        """How many standard deviations a loss lies above the mean of those before, if it is a spike; else None.

        The loss is one of those before from then on, unless it is not finite.
        """
        before = list(self._losses)
        if not math.isfinite(loss):
            return None
        self._losses.append(loss)
        if not self.sigma or len(before) < (self._losses.maxlen or 0):
            return None
        # losses that hardly differ are no measure of a jump: a thousandth of the mean is the least deviation
        mean = fmean(before)
        score = (loss - mean) / max(pstdev(before), 1e-3 * abs(mean), 1e-12)
        return score if score >= self.sigma else None

    def reset(self) -> None:
        """Forget all losses, after a roll-back."""
        self._losses.clear()
