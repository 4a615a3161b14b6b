"""Time on a device's own time line, and contenders that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


class Clock:
    """Moments on the time line of a device, none of which makes the host wait for it.

    On a GPU a moment is an event in the current stream: when the device has done what was asked of it before.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []

    def mark(self) -> None:
        """Note a moment."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def intervals(self) -> list[float]:
        """Seconds between each moment and the next; waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return [start.elapsed_time(end) / 1e3 for start, end in zip(self._events, self._events[1:])]
        return [end - start for start, end in zip(self._times, self._times[1:])]


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_calls(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds of one of so many calls in a row, on a device that has nothing else to do."""
    synchronize(device)
    clock = Clock(device)
    clock.mark()
    for _ in range(calls):
        call()
    clock.mark()
    (seconds,) = clock.intervals()
    return seconds / calls


def take_turns(
    contenders: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int, calls: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds of a call of each contender, in each round; a machine that slows down does so for all.

    Args:
        contenders: what is called, by name, warmed up.
        rounds: turns of each, of so many calls in a row; fewer if they take more than `seconds`, but at least one.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    for _ in range(rounds):
        for name, call in contenders.items():
            times[name].append(time_calls(call, calls, device))
        if time.perf_counter() - start > seconds:
            break
    return times


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """The median over rounds of how many times as long the first takes."""
    return statistics.median(one / other for one, other in zip(slower, faster, strict=True))
