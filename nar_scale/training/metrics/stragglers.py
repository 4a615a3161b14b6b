"""Which rank the others wait for (a straggler)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch

_REPORTS_IN_A_ROW = 3


class OwnTime:
    """Time that a rank takes for its own part of the steps: waiting for data, and forward passes.

    The other parts hold collectives, in which all ranks take as long as the slowest; under ZeRO 3 so do forward passes,
    which hides a part of the differences.

    Args:
        device: where the forward passes run.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def of_host(self) -> Iterator[None]:
        """A `with` block that the host works through."""
        start = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - start

    @contextmanager
    def of_device(self) -> Iterator[None]:
        """A `with` block that the device works through; it is not waited for."""
        if not self._on_gpu:
            with self.of_host():
                yield
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._events.append((start, end))

    def take(self) -> float:
        """Seconds since the last call; waits for what the device has been given so far."""
        if self._events:
            self._events[-1][1].synchronize()
        seconds = self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1000
        self._seconds, self._events = 0.0, []
        return seconds


class StragglerDetector:
    """Finds a rank that is slow in several reports in a row.

    Args:
        ratio: its time over the median from which on it counts as slow.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._slow: int | None = None
        self._in_a_row = 0

    def update(self, seconds: Sequence[float]) -> tuple[dict[str, float], str | None]:
        """Metrics of a report, and once for a rank that stays slow a message about it; else None.

        Args:
            seconds: own time of each rank since the last report.
        """
        middle = median(seconds)
        if len(seconds) < 2 or not middle:
            return {}, None
        slowest = max(range(len(seconds)), key=seconds.__getitem__)
        ratio = seconds[slowest] / middle
        if ratio < self.ratio:
            self._slow, self._in_a_row = None, 0
        else:
            self._in_a_row = self._in_a_row + 1 if slowest == self._slow else 1
            self._slow = slowest
        message = None
        if self._in_a_row == _REPORTS_IN_A_ROW:
            message = (
                f"rank {slowest} is slow: for {_REPORTS_IN_A_ROW} reports its own work has taken {ratio:.1f} times the "
                "median or more, and all others wait for it (faults.straggler_ratio)"
            )
        return {"slowest_rank": slowest, "slowest_rank_ratio": ratio}, message
