"""What is looked at while a run takes its steps."""

from __future__ import annotations

import gc
from contextlib import ExitStack
from typing import Any

import torch

from nar_scale.data import Batch

from . import inside
from .syncs import CudaRecorder, HostRecorder

ON_GPU = torch.cuda.is_available()


class Enough(Exception):
    """What was to be seen has been seen: the run need not save a large model."""


class Observer:
    """Looks at nothing; base of the others.

    A context manager around a run. `after_step` gets the number of each step; `found` is for JSON.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self._entered = ExitStack()

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def after_step(self, step: int) -> None:
        """A step has been taken."""


class Stream(Observer):
    """The tokens and sample ids of each micro-batch, as they are on the device."""

    def __enter__(self) -> Stream:
        self._batches: list[Batch] = []
        self._entered.enter_context(inside.watching_batches(self._batches.append))
        return self

    def after_step(self, step: int) -> None:
        """Fetch what has come."""
        for batch in self._batches:
            self.found.setdefault("devices", []).append(batch.tokens.device.type)
            self.found.setdefault("sample_ids", []).extend(batch.sample_ids.tolist())
            self.found.setdefault("tokens", []).extend(batch.tokens.tolist())
        self._batches.clear()


class Graphs(Observer):
    """How many graphs `torch.compile` has made up to each step."""

    def __enter__(self) -> Graphs:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        self.found["graphs"] = []
        return self

    def after_step(self, step: int) -> None:
        """Count."""
        counters = torch._dynamo.utils.counters
        self.found["graphs"].append(counters["stats"]["unique_graphs"])
        self.found["breaks"] = dict(counters["graph_break"])


class Syncs(Observer):
    """Where the host waits for the device in steps without a report, when all is warm: 3 to 5."""

    FIRST, LAST = 3, 5

    def __enter__(self) -> Syncs:
        self._recorder = CudaRecorder() if ON_GPU else HostRecorder()
        return self

    def after_step(self, step: int) -> None:
        """Begin or end."""
        if step == self.FIRST - 1:
            self._recorder.start()
            self._entered.callback(self._recorder.stop)
        elif step == self.LAST:
            self._entered.close()
            self.found["syncs"] = [[*sync, count] for sync, count in self._recorder.counts.items()]


class Memory(Observer):
    """The most memory in a step without a report (3) and in the last, which is reported (4), in bytes.

    What was there before the run does not count.
    """

    def __enter__(self) -> Memory:
        gc.collect()
        self._live: inside.LiveMemory | None = None
        self._before = torch.cuda.memory_allocated() if ON_GPU else inside.LiveMemory().now
        return self

    def __exit__(self, *_: object) -> None:
        self._end_step()

    def after_step(self, step: int) -> None:
        """Read, and begin anew."""
        peak = self._end_step()
        if step >= 3:
            self.found["peak" if step == 3 else "peak_of_a_report"] = peak - self._before
        if step == 4:
            raise Enough
        self._begin_step()
        if step == 2:
            self.found["between_steps"] = self._now() - self._before

    def _begin_step(self) -> None:
        if ON_GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            gc.collect()
            self._live = inside.LiveMemory()
            self._live.__enter__()

    def _now(self) -> int:
        return torch.cuda.memory_allocated() if self._live is None else self._live.now

    def _end_step(self) -> int:
        if ON_GPU:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        live, self._live = self._live, None
        if live is None:
            return 0
        live.__exit__(None, None, None)
        return live.peak


OBSERVERS = {"nothing": Observer, "stream": Stream, "graphs": Graphs, "syncs": Syncs, "memory": Memory}
