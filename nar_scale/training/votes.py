"""Numbers that all ranks agreed on before a step, read after it."""

from __future__ import annotations

import torch
from torch import Tensor


class Votes:
    """Sums over the ranks on their way to the host: copied while the step runs, so that reading does not wait for it.

    Args:
        totals: `[n]`, alike on all ranks.
    """

    def __init__(self, totals: Tensor) -> None:
        self._values = totals.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if totals.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> tuple[float, ...]:
        """The sums, alike on all ranks."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return tuple(self._values.tolist())
