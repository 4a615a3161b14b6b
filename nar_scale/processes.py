"""How processes are asked to stop and say so, do not outlive the one that started them, and meet."""

import ctypes
import signal
import socket
import sys

RESUMABLE_EXIT_STATUS = 85
"""Exit status of a process that was asked to stop, has saved what it had, and can be started again to go on."""

STOP_FILE_VARIABLE = "NAR_SCALE_STOP_FILE"
"""The environment variable that names a file whose appearance asks a process to stop."""

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
