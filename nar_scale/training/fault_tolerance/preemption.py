"""Requests to stop, by a signal or a file: the agreement of all ranks on one, and the deadline for it."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from nar_scale.cluster.endings import Kind, report
from nar_scale.processes import RESUMABLE_EXIT_STATUS, STOP_FILE_VARIABLE
from nar_scale.training.distributed import AllReducedFlags, World
from nar_scale.training.fault_tolerance.activity import STARTING, Activity
from nar_scale.training.fault_tolerance.error_reporting import report_error_once

_logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_POLL_SECONDS = 1.0
_BEGIN, _RESTORE = b"\0", b"\xff"

os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are not its parent's


def exit_on_signals() -> None:
    """Let a signal end this process with the status of a run that can be continued: it has not begun to train.

    Where a batch script asks by a file, a signal is not a request: it ends what is left of a job that has failed.
    """
    if os.environ.get(STOP_FILE_VARIABLE):
        return
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: os._exit(RESUMABLE_EXIT_STATUS))


class StopRequest:
    """Remembers that this process was asked to stop, and ends the process if it does not stop in time.

    From `install` to `restore` the first SIGTERM, SIGINT or SIGUSR1 is remembered; the same one a second time ends the
    process at once (Ctrl-C brings a SIGINT from the terminal and a SIGTERM from the launcher). Where the environment
    names a file in NAR_SCALE_STOP_FILE, its appearance counts as well.

    A thread receives signals also while the main one is blocked where no Python runs, such as in a collective whose
    peers are gone.

    Args:
        watch_file: whether this process looks for the file, tells of the request, and warns if the job ends before the
            deadline; one process of a job is enough.
        activity: what this process is doing.
        deadline_seconds: from the first request to the end of the process; it then exits with status 1, or before it
            has begun to train, when there is nothing to save, with 85.
    """

    def __init__(self, watch_file: bool, activity: Activity, deadline_seconds: float) -> None:
        self.activity, self.deadline_seconds = activity, deadline_seconds
        self._requested, self._is_to_tell = False, watch_file
        file = os.environ.get(STOP_FILE_VARIABLE)
        self._file = Path(file) if file and watch_file else None
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._handlers_before: dict[int, Any] = {}
        self._wakeup_before = -1
        self._thread = threading.Thread(target=self._listen, name="stop", daemon=True)

    def install(self) -> None:
        """Take over the signals, and start the thread."""
        self._handlers_before = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        self._wakeup_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._thread.start()

    def restore(self) -> None:
        """Return the signals to whoever handled them before; there is no deadline any more."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._sender.send(_RESTORE)
        self._thread.join()
        self._sender.close()
        self._receiver.close()

    def request(self) -> None:
        """Ask this process to stop, for a reason of its own."""
        self._requested = True

    def begin_deadline(self) -> None:
        """Begin the deadline, as after a signal: all ranks have agreed to stop, of which only some were asked."""
        self._sender.send(_BEGIN)

    def __bool__(self) -> bool:
        return self._requested or (self._file is not None and self._file.exists())

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        signal.signal(number, signal.SIG_DFL)

    def _listen(self) -> None:
        deadline = None
        received: set[int] = set()
        while True:
            timeout = _POLL_SECONDS
            if deadline is not None:
                timeout = min(timeout, max(deadline - time.monotonic(), 0.0))
            readable, _, _ = select.select([self._receiver], [], [], timeout)
            for byte in self._receiver.recv(64) if readable else b"":
                if bytes([byte]) == _RESTORE:
                    return
                if byte in received:  # the main thread has not come to making this the default
                    os._exit(128 + byte)
                if byte in _SIGNALS:
                    received.add(byte)
                if byte in (*_SIGNALS, *_BEGIN):
                    deadline = deadline or time.monotonic() + self.deadline_seconds
            if deadline is None and self._file is not None and self._file.exists():
                deadline = time.monotonic() + self.deadline_seconds
            if deadline is not None and self._is_to_tell:
                self._is_to_tell = False
                # at once: a launcher that has the same signal may end, and show where, before there is more to tell
                _logger.info("asked to stop: saving as soon as the present step is taken")
                _warn_of_earlier_end(self.deadline_seconds)
            if deadline is not None and time.monotonic() >= deadline:
                self._end()

    def _end(self) -> None:
        activity = self.activity
        if activity.name == STARTING:
            report(Kind.STOPPED, "asked to stop before it had begun to train")
            os._exit(RESUMABLE_EXIT_STATUS)
        problem = (
            f"asked to stop {self.deadline_seconds:.0f} s ago and still {activity.name} for {activity.seconds:.0f} "
            "s; ended, without saving more than the last checkpoint (faults.stop_deadline_seconds)"
        )
        report(Kind.ERROR, problem)
        report_error_once(problem)
        os._exit(1)


class StopAgreement:
    """Requests of single ranks, and whether all have agreed to take no further step.

    A rank cannot stop by itself: the others would wait for it. The requests are summed over
    all ranks, and all act on the same sum.

    Args:
        request: of this rank.

    Attributes:
        agreed: whether all ranks have agreed.
    """

    def __init__(self, request: StopRequest, world: World) -> None:
        self._request, self._world = request, world
        self.agreed = False

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return bool(self._request)

    def request(self) -> None:
        """Ask this rank to stop; the others learn of it from the next sum."""
        self._request.request()

    def poll(self) -> AllReducedFlags:
        """How many ranks were asked to stop; a collective."""
        return AllReducedFlags(self._world.all_reduce(torch.tensor([float(self.requested)], device=self._world.device)))

    def agree(self) -> None:
        """Note that all ranks know of a request, and begin the deadline of this one."""
        self.agreed = True
        self._request.begin_deadline()


def _warn_of_earlier_end(deadline_seconds: float) -> None:
    """Warn if SLURM ends the job before the deadline; its environment says when, but not how early SLURM signals."""
    left = float(os.environ.get("SLURM_JOB_END_TIME") or "inf") - time.time()
    if 0 < left < deadline_seconds:  # one that is past has been put off
        _logger.warning(
            "SLURM ends the job in %.0f s, before faults.stop_deadline_seconds %.0f are over; a checkpoint that takes "
            "longer is lost; next time ask earlier, by more seconds in sbatch --signal=B:USR1@",
            left,
            deadline_seconds,
        )
