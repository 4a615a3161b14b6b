"""How many sequences share a forward pass: a fixed number, or what this device does best with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch

from nar_scale.errors import UserError

LARGEST = 4096
_WORTHWHILE = 1.05  # a larger batch must be so much faster
_MEMORY_FRACTION = 0.85  # of a GPU's memory that batches may take
_GROWTH = 4  # of a batch over the largest one that is known to fit, at most


class BatchSize(Protocol):
    """Says how large the next batch may be, and learns from those before."""

    @property
    def next(self) -> int:
        """Sequences in the next batch, at most."""

    def record(self, sequences: int, work: float, seconds: float) -> None:
        """Learn from a batch.

        Args:
            sequences: in it.
            work: tokens that went through the network, padding included.
            seconds: that they took.
        """

    def shrink(self) -> bool:
        """Make batches smaller, as memory ran out; False if that is impossible."""


class FixedBatchSize:
    """The same size each time.

    Args:
        size: sequences, at least 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise UserError("the batch size must be at least 1")
        self.next = size

    def record(self, sequences: int, work: float, seconds: float) -> None:
        """Learn nothing."""

    def shrink(self) -> bool:
        """Never: who has asked for a size gets that, or the error."""
        return False


class MeasuredBatchSize:
    """Doubles the size as long as the network gets more tokens a second through that way; for CPUs.

    The batches that are measured are those of the work itself: nothing is computed in vain.

    Args:
        start: the first size.
    """

    def __init__(self, start: int = 4) -> None:
        self.next = start
        self._rates: dict[int, float] = {}
        self._limit = LARGEST

    def record(self, sequences: int, work: float, seconds: float) -> None:
        """Learn from a batch; one that was not full says nothing."""
        if sequences != self.next or sequences in self._rates:
            return
        self._rates[sequences] = work / max(seconds, 1e-9)
        smaller = self._rates.get(sequences // 2)
        if smaller is not None and self._rates[sequences] < _WORTHWHILE * smaller:
            self._limit = self.next = sequences // 2
        elif 2 * sequences <= self._limit:
            self.next = 2 * sequences

    def shrink(self) -> bool:
        """Halve the size, and never come back to it; False if it is 1."""
        possible = self.next > 1
        self._limit = self.next = max(1, self.next // 2)
        return possible


class MemoryBatchSize:
    """The largest size that fits into the memory of a device, by what the batches before have taken.

    Args:
        used: bytes that were in use at the peak since the last call.
        at_rest: bytes in use without a batch.
        available: bytes of the device.
        start: the first size.
    """

    def __init__(self, used: Callable[[], int], at_rest: int, available: int, start: int = 4) -> None:
        self.next = start
        self._used, self._at_rest = used, at_rest
        self._room = max(0.0, _MEMORY_FRACTION * available - at_rest)
        self._limit, self._largest = LARGEST, 1

    def record(self, sequences: int, work: float, seconds: float) -> None:
        """Learn what a sequence takes; the longest of a part come last, and count."""
        bytes_each = max(1.0, (self._used() - self._at_rest) / sequences)
        fitting = int(self._room / bytes_each)
        self._largest = max(self._largest, sequences)
        self.next = max(1, min(fitting, _GROWTH * self._largest, self._limit))

    def shrink(self) -> bool:
        """Halve the size, and never come back to it; False if it is 1."""
        possible = self.next > 1
        self._limit = self.next = max(1, self.next // 2)
        return possible


def choose_batch_size(asked: int | Literal["auto"], device: torch.device) -> BatchSize:
    """The batch size that was asked for; `auto` goes by memory on a GPU and by measurement elsewhere.

    Args:
        asked: sequences, or `auto`.
        device: of the model, which has been loaded.

    Raises:
        UserError: it is less than 1.
    """
    if asked != "auto":
        return FixedBatchSize(asked)
    if device.type != "cuda":
        return MeasuredBatchSize()

    def used() -> int:
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak

    at_rest = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return MemoryBatchSize(used, at_rest, torch.cuda.mem_get_info(device)[0] + at_rest)
