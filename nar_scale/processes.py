"""How processes are asked to stop and say so, do not outlive the one that started them, and meet."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

RESUMABLE_EXIT_STATUS = 85
"""Exit status of a process that was asked to stop, has saved what it had, and can be started again to go on."""

STOP_FILE_VARIABLE = "NAR_SCALE_STOP_FILE"
"""The environment variable that names a file whose appearance asks a process to stop."""

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def send_when_parent_ends(number: signal.Signals) -> None:
    """Have Linux send this process a signal when the process that started it ends; other systems do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_until_stopped(command: Sequence[str]) -> int:
    """Run a command that starts processes which heed `NAR_SCALE_STOP_FILE`, and return its exit status.

    SIGINT, as Ctrl-C sends it, SIGTERM, SIGUSR1 and SIGHUP reach this process alone. It asks the others to stop by the
    file and waits for them; asked a second time, it kills them.

    Args:
        command: program and arguments.
    """
    with tempfile.TemporaryDirectory() as directory:
        stop_file = Path(os.environ.get(STOP_FILE_VARIABLE) or Path(directory, "stop"))
        asked_before, started = stop_file.exists(), list[subprocess.Popen[bytes]]()

        def stop(*_: Any) -> None:
            if stop_file.exists():
                for process in started:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
            stop_file.touch()

        for number in _STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it for SIGHUP
                signal.signal(number, stop)
        environment = {**os.environ, STOP_FILE_VARIABLE: str(stop_file)}
        started.append(subprocess.Popen(command, env=environment, start_new_session=True))
        status = started[0].wait()
        if not asked_before:
            stop_file.unlink(missing_ok=True)  # or the next run would end at once
    return status if status >= 0 else 128 - status  # as a shell has it for a process that a signal has ended
