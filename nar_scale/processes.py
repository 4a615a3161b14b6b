"""How processes end: asked to, with a status that says so, or with the one that started them."""

import ctypes
import signal
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
