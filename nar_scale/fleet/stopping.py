"""Requests to a worker to stop: by a signal, or by a file that a batch script makes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from nar_scale.processes import STOP_FILE_VARIABLE

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(Exception):
    """A worker was asked to stop, has committed what it had made, and given back what it held.

    Args:
        made: results that it has made.
    """

    def __init__(self, made: int) -> None:
        super().__init__(made)
        self.made = made


class StopSignals:
    """Remembers SIGTERM, SIGINT and SIGUSR1 to the end of a `with` block; the same signal again ends the process.

    It is true once the process was asked to stop. Where the environment names a file in NAR_SCALE_STOP_FILE, its
    appearance counts as well. Only the main thread of a process can use the block.
    """

    def __init__(self) -> None:
        self._requested = False
        file = os.environ.get(STOP_FILE_VARIABLE)
        self._file = Path(file) if file else None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self._requested or (self._file is not None and self._file.exists())

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        signal.signal(number, signal.SIG_DFL)
