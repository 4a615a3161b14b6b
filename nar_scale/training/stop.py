"""Requests to stop: signals, or a file that appears."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

RESUMABLE_EXIT_STATUS = 85
"""Exit status of a run that was asked to stop, has saved, and can be continued."""

STOP_FILE_VARIABLE = "NAR_SCALE_STOP_FILE"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Remembers that this process was asked to stop.

    The first SIGTERM, SIGINT or SIGUSR1 is remembered; the same one a second time ends the process at once
    (Ctrl-C brings a SIGINT from the terminal and a SIGTERM from the launcher). Where the environment names a
    file in NAR_SCALE_STOP_FILE, its appearance counts as well.

    Args:
        watch_file: whether this process looks for the file; one process of a job is enough.
    """

    def __init__(self, watch_file: bool) -> None:
        self._signalled = False
        file = os.environ.get(STOP_FILE_VARIABLE)
        self._file = Path(file) if file and watch_file else None
        self._before = {number: signal.signal(number, self._remember) for number in _SIGNALS}

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self._signalled or (self._file is not None and self._file.exists())

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        signal.signal(number, signal.SIG_DFL)
