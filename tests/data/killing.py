"""Processes that are killed at a chosen change to the file system."""

import os
import signal
from itertools import count

CHANGES = ("replace", "rename", "unlink", "rmdir")


def killed_before(number, action, calls=CHANGES):
    """Do something in a process of its own that SIGKILL ends before its n-th such call; whether it came so far."""
    process = os.fork()
    if process == 0:
        numbers = count(1)
        for name in calls:
            setattr(os, name, _deadly(getattr(os, name), numbers, number))
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def _deadly(call, numbers, number):
    def call_or_die(*arguments, **options):
        if next(numbers) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)

    return call_or_die
