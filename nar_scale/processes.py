"""Processes that are started: that they do not outlive this one, and where they meet."""

import ctypes
import signal
import socket
import sys

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
