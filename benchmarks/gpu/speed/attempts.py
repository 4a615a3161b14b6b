"""Measurements one after another within a time limit, none of which stops those after it."""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil
import torch

from benchmarks.gpu.stage import Record

_LONGEST_MESSAGE = 400
_LONGEST_START = 60.0  # seconds; more is an error of the clock that the start of a process is taken from


class Attempts:
    """Runs measurements while there is time, and notes those that fail or are left out.

    Args:
        record: where measurements and notes go.
        seconds: the time there is, counted from the start of the process.
        device: where the measurements run; its memory is given back after each.
        rehearsing: on a CPU, where nothing takes as long as it says.

    Attributes:
        failed: whether a measurement has raised an exception.
    """

    def __init__(self, record: Record, seconds: float, device: torch.device, rehearsing: bool):
        self.record, self.device, self.failed = record, device, False
        age = min(max(time.time() - psutil.Process().create_time(), 0.0), _LONGEST_START)
        self._end = time.time() - age + seconds
        self._needed = 0.0 if rehearsing else 1.0

    @property
    def seconds_left(self) -> float:
        """What is left of the time limit."""
        return self._end - time.time()

    def enough_for(self, what: str, seconds: float) -> bool:
        """Whether so many seconds are left; a note says so if not."""
        seconds *= self._needed
        left = self.seconds_left
        if left < seconds:
            self.record.note(f"{what}: left out, as it takes about {seconds:.0f} s and {max(left, 0):.0f} s were left")
        return left >= seconds

    def run(self, what: str, seconds: float, measure: Callable[[], object]) -> bool:
        """Measure if there is time for it.

        Args:
            what: names the measurement in notes.
            seconds: what it takes on one H100.

        Returns:
            whether it was measured.

        Raises:
            RuntimeError: the GPU answers no more, after an illegal access for instance.
        """
        if not self.enough_for(what, seconds):
            return False
        print(f"{what}, with {self.seconds_left:.0f} s left", flush=True)
        try:
            measure()
            measured = True
        except Exception as error:
            traceback.print_exc()
            self.record.note(f"{what}: {describe(error)}")
            self.failed, measured = True, False
        try:
            release_memory(self.device)  # out of the handler, whose traceback holds what has filled the memory
        except RuntimeError as error:
            self.record.note(f"after {what} the GPU answers no more, and the rest is left out: {describe(error)}")
            raise
        return measured


def prepare_rehearsal() -> None:
    """Use one core and no GPU, and let `torch.compile` run the graphs it finds: generating code takes minutes."""
    compile_as_asked: Callable[..., object] = torch.compile
    torch.compile = partial(compile_as_asked, backend="eager")  # type: ignore[assignment]
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)


def describe(error: BaseException) -> str:
    """An exception in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_MESSAGE]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of a device is full, in torch's words or in the trainer's."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error) or "out of GPU" in str(error)


def release_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more, compiled code included.

    Raises:
        RuntimeError: the GPU answers no more.
    """
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def goal(value: float, least: float) -> dict[str, Any]:
    """Extras of a measurement that has a goal: `goal`, and whether it is `reached`."""
    return {"goal": least, "reached": value >= least}
