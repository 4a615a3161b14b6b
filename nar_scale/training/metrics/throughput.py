"""Time and memory that steps take."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from nar_scale.planning.memory_estimate import GIBIBYTE


def memory_usage(device: torch.device) -> dict[str, float]:
    """Memory of this process in GiB, peak and current: of its GPU and of the host, or of the host alone."""
    now = psutil.Process().memory_info().rss / GIBIBYTE
    peak = max(now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIBIBYTE)
    if device.type != "cuda":
        return {"memory_gib": peak, "memory_now_gib": now}
    return {
        "memory_gib": torch.cuda.max_memory_allocated(device) / GIBIBYTE,
        "memory_now_gib": torch.cuda.memory_allocated(device) / GIBIBYTE,
        "host_memory_gib": peak,
        "host_memory_now_gib": now,
    }


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """A `with` block whose seconds are added to those of a name."""
    start = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - start


class Stopwatch:
    """Time since the last lap, and the part of it spent waiting for something."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waiting = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A `with` block in which nothing is computed."""
        start = time.perf_counter()
        yield
        self._waiting += time.perf_counter() - start

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """A `with` block whose time is left out."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap and the fraction spent waiting; starts the next lap."""
        now = time.perf_counter()
        elapsed = max(now - self._start, 1e-9)
        fraction = min(self._waiting / elapsed, 1.0)
        self._start, self._waiting = now, 0.0
        return elapsed, fraction
