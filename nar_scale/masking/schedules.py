"""Masking schedules: how many tokens are hidden at a progress of unmasking, and what their loss weighs.

t in [0, 1] is the progress of unmasking, m(t) the masked fraction with m(0) = 1 and m(1) = 0. With exact-count
masking k = ceil(m(t) n) of n tokens are hidden, so P(k) = t((k-1)/n) - t(k/n), t being the inverse of m, and

    NELBO of the sequence = E_k[ sum of the cross-entropies of the k masked tokens / (k P(k)) ]    in nats.

This is exact for every n and bounded (k >= 1); w(t) = -m'(t)/m(t) of MDLM (arXiv:2406.07524, eq. 10, where the
schedule is the fraction NOT masked) is its limit for long sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from nar_scale.errors import ConfigError

ScheduleName = Literal["linear", "cosine", "uniform_count", "bell"]
_BISECTIONS = 60


class Schedule:
    """A falling masked fraction m(t) with its inverse.

    Args:
        masked_fraction: maps progress, float64 in [0, 1], to the masked fraction, elementwise.
        progress_at: the inverse; found by bisection if not given.

    Raises:
        ConfigError: m does not fall monotonically from 1 to 0.
    """

    def __init__(
        self, masked_fraction: Callable[[Tensor], Tensor], progress_at: Callable[[Tensor], Tensor] | None = None
    ):
        grid = masked_fraction(torch.linspace(0, 1, 257, dtype=torch.float64, device="cpu")).double()
        ends = abs(grid[0] - 1) < 1e-3 and abs(grid[-1]) < 1e-3
        if not ends or not bool((grid.diff() <= 1e-9).all()):
            raise ConfigError(
                "a masking schedule must fall from masked fraction 1 at t = 0 to 0 at t = 1; "
                f"this one goes from {grid[0]:.3g} to {grid[-1]:.3g}" + (" and rises in between" if ends else "")
            )
        self._masked_fraction = masked_fraction
        self._progress_at = progress_at

    def masked_fraction(self, progress: Tensor) -> Tensor:
        """m(t), float64, of the same shape as `progress`."""
        return self._masked_fraction(progress.double()).clamp(0.0, 1.0)

    def progress_at(self, fraction: Tensor) -> Tensor:
        """t(m), float64: the progress at which `fraction` of the tokens are masked."""
        fraction = fraction.double()
        if self._progress_at is not None:
            return self._progress_at(fraction)
        low, high = torch.zeros_like(fraction), torch.ones_like(fraction)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            above = self.masked_fraction(middle) > fraction
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return torch.where(fraction >= 1, 0.0, torch.where(fraction <= 0, 1.0, (low + high) / 2))

    def masked_count(self, progress: Tensor, length: Tensor) -> Tensor:
        """k = ceil(m(t) n) in 1..n, int64; 0 where the length is 0. Shapes broadcast."""
        count = (self.masked_fraction(progress) * length).ceil().long()
        return torch.minimum(count.clamp(min=1), length)

    def count_probability(self, count: Tensor, length: Tensor) -> Tensor:
        """P(k), float64, for uniform progress; 1 <= count <= length."""
        length = length.double()
        return self.progress_at((count - 1) / length) - self.progress_at(count / length)

    def loss_weight(self, count: Tensor, length: Tensor) -> Tensor:
        """1 / (k P(k)), float64: what the cross-entropy of a masked token weighs in the sequence's NELBO."""
        count = count.clamp(min=1)
        return 1.0 / (count * self.count_probability(count, length.clamp(min=1)))

    def continuous_loss_weight(self, progress: Tensor) -> Tensor:
        """w(t) = -m'(t) / m(t), float64: what the cross-entropy of a masked token weighs with independent masking.

        The continuous form of `loss_weight` (MDLM, arXiv:2406.07524, eq. 10), unbounded where m(t) nears 0.

        Raises:
            ConfigError: the schedule has no derivative that torch can compute.
        """
        with torch.inference_mode(False), torch.enable_grad():
            progress = progress.double().clone().detach().requires_grad_()
            fraction = self._masked_fraction(progress)
            if not fraction.requires_grad:
                raise ConfigError("this masking schedule is not differentiable by torch; use masking 'exact'")
            (slope,) = torch.autograd.grad(fraction.sum(), progress)
        return -slope / fraction.detach()


def get_schedule(schedule: ScheduleName | str | Callable[[Tensor], Tensor] | Schedule) -> Schedule:
    """The schedule of that name, or one made from a callable m(t).

    `linear`: m = 1 - t. `cosine`: m = cos(pi t / 2) (MaskGIT, arXiv:2202.04200). `uniform_count`: k is
    uniform over 1..n, which exact-count masking makes of `linear` for every n; it is the same schedule.
    `bell`: the masked fraction has the density Beta(2, 2), 6 m (1 - m), so that few sequences are masked nearly whole
    or hardly at all (arXiv:2605.13026); m = 1/2 - sin(arcsin(2 t - 1) / 3), and t = (1 - m)^2 (1 + 2 m).

    Raises:
        ConfigError: an unknown name, or a callable that does not fall from 1 to 0.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if callable(schedule):
        return Schedule(schedule)
    if schedule in ("linear", "uniform_count"):
        return Schedule(lambda t: 1 - t, lambda m: 1 - m)
    if schedule == "cosine":
        return Schedule(lambda t: torch.cos(t * math.pi / 2), lambda m: torch.arccos(m) * 2 / math.pi)
    if schedule == "bell":
        return Schedule(lambda t: 0.5 - torch.sin(torch.arcsin(2 * t - 1) / 3), lambda m: (1 - m) ** 2 * (1 + 2 * m))
    names = ", ".join(map(repr, get_args(ScheduleName)))
    raise ConfigError(f"unknown schedule {schedule!r}; use {names} or a callable m(t)")
