"""Requests to stop: signals, or a file that appears."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from nar_scale.training.fault_tolerance.activity import STARTING, Phase
from nar_scale.training.fault_tolerance.error_reporting import tell_first

RESUMABLE_EXIT_STATUS = 85
"""Exit status of a run that was asked to stop, has saved, and can be continued."""

STOP_FILE_VARIABLE = "NAR_SCALE_STOP_FILE"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SECONDS_BETWEEN_LOOKS = 1.0
_BEGIN, _RESTORE = b"\0", b"\xff"

os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are not its parent's


def leave_when_asked() -> None:
    """Let a signal end this process as one that can be continued: it has not begun to train.

    Where a batch script asks by a file, a signal is not a request: it ends what is left of a job that has failed.
    """
    if os.environ.get(STOP_FILE_VARIABLE):
        return
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: os._exit(RESUMABLE_EXIT_STATUS))


class StopRequest:
    """Remembers that this process was asked to stop, and ends it should it not stop in time.

    The first SIGTERM, SIGINT or SIGUSR1 is remembered; the same one a second time ends the process at once
    (Ctrl-C brings a SIGINT from the terminal and a SIGTERM from the launcher). Where the environment names a
    file in NAR_SCALE_STOP_FILE, its appearance counts as well.

    A thread hears of signals also while the main one is held up where no Python runs, such as in a collective whose
    peers are gone.

    Args:
        watch_file: whether this process looks for the file, and warns if the job ends before the deadline; one process
            of a job is enough.
        phase: what this process is doing.
        deadline_seconds: from the first request to the end of the process; it then exits with status 1, or before it
            has begun to train, when there is nothing to save, with 85.
    """

    def __init__(self, watch_file: bool, phase: Phase, deadline_seconds: float) -> None:
        self.phase, self.deadline_seconds = phase, deadline_seconds
        self._signalled, self._is_to_warn = False, watch_file
        file = os.environ.get(STOP_FILE_VARIABLE)
        self._file = Path(file) if file and watch_file else None
        self._before = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        self._heard, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="stop", daemon=True)
        self._thread.start()

    def restore(self) -> None:
        """Give the signals back to whoever handled them before; the process may go on as long as it likes."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._bell.send(_RESTORE)
        self._thread.join()
        self._bell.close()
        self._heard.close()

    def ask(self) -> None:
        """This process has a reason of its own to stop."""
        self._signalled = True

    def begin_deadline(self) -> None:
        """All ranks have agreed to stop, of which only some were asked."""
        self._bell.send(_BEGIN)

    def __bool__(self) -> bool:
        return self._signalled or (self._file is not None and self._file.exists())

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        signal.signal(number, signal.SIG_DFL)

    def _listen(self) -> None:
        deadline = None
        heard: set[int] = set()
        while True:
            patience = _SECONDS_BETWEEN_LOOKS
            if deadline is not None:
                patience = min(patience, max(deadline - time.monotonic(), 0.0))
            readable, _, _ = select.select([self._heard], [], [], patience)
            for byte in self._heard.recv(64) if readable else b"":
                if bytes([byte]) == _RESTORE:
                    return
                if byte in heard:  # the main thread has not come to making this the default
                    os._exit(128 + byte)
                if byte in _SIGNALS:
                    heard.add(byte)
                if byte in (*_SIGNALS, *_BEGIN):
                    deadline = deadline or time.monotonic() + self.deadline_seconds
            if deadline is None and self._file is not None and self._file.exists():
                deadline = time.monotonic() + self.deadline_seconds
            if deadline is not None and self._is_to_warn:
                self._is_to_warn = False
                _warn_of_earlier_end(self.deadline_seconds)
            if deadline is not None and time.monotonic() >= deadline:
                self._end()

    def _end(self) -> None:
        if self.phase.name == STARTING:
            os._exit(RESUMABLE_EXIT_STATUS)
        tell_first(
            f"asked to stop {self.deadline_seconds:.0f} s ago and still {self.phase.name} for {self.phase.seconds:.0f} "
            "s; ended, without saving more than the last checkpoint (faults.stop_deadline_seconds)"
        )
        os._exit(1)


def _warn_of_earlier_end(deadline_seconds: float) -> None:
    """Compare with the end of a SLURM job, which it is told; how long before SLURM asks to stop it is not."""
    left = float(os.environ.get("SLURM_JOB_END_TIME") or "inf") - time.time()
    if 0 < left < deadline_seconds:  # one that is past has been put off
        print(
            f"SLURM ends the job in {left:.0f} s, before faults.stop_deadline_seconds {deadline_seconds:.0f} are over; "
            "a checkpoint that takes longer is lost; next time ask earlier, by more seconds in sbatch --signal=B:USR1@",
            file=sys.stderr,
            flush=True,
        )
