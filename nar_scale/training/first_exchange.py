"""What ranks that have met exchange first is bounded: where packets get lost, libraries wait for half an hour."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nar_scale.cluster.endings import Kind, report
from nar_scale.training.fault_tolerance.error_reporting import report_error_once

_logger = logging.getLogger(__name__)
_TELL_SECONDS = 20.0
_LONGEST_SECONDS = 120.0
# Gloo connects each rank to each other one after the other: ranks^2 look-ups in the store of rank 0, which has answered
# 19,000 to 25,000 a second to a process beside it on a busy CPU of two cores.
_LOOK_UPS_A_SECOND = 10_000.0


@contextmanager
def first_exchange(what: str, ranks: int) -> Iterator[None]:
    """A `with` block that ends the process where it takes over two minutes and what ranks need to meet.

    The latter grows with the square of their number: 1.6 s for 128, 105 s for 1,024, 28 minutes for 4,096 ranks. After
    20 seconds it says what takes so long.

    Args:
        what: what the block does, for messages.
        ranks: that take part.
    """
    over = threading.Event()

    def watch() -> None:
        if over.wait(_TELL_SECONDS):
            return
        _logger.warning("%s: %s takes long (%.0f s so far)", socket.gethostname(), what, _TELL_SECONDS)
        longest = _LONGEST_SECONDS + ranks**2 / _LOOK_UPS_A_SECOND
        if not over.wait(longest - _TELL_SECONDS):
            _end_process(
                f"the ranks have met, but {what} has not ended in {longest:.0f} s: nodes may be unable to reach each "
                "other at the addresses of their names; choose the network that they share, export "
                "NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0"
            )

    threading.Thread(target=watch, name="first exchange", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _end_process(problem: str) -> None:
    """End this process at once: nothing else wakes it up."""
    report(Kind.HANG, problem)
    report_error_once(problem)
    os._exit(1)
