"""The end of a job that hangs: the stacks of all ranks in files, one line of log, and exit status 1."""

from __future__ import annotations

import faulthandler
import json
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from nar_scale.cluster.endings import Kind, report
from nar_scale.config import FaultsConfig
from nar_scale.text import integer_ranges
from nar_scale.training.distributed import World
from nar_scale.training.fault_tolerance.activity import STARTING, Activity
from nar_scale.training.fault_tolerance.error_reporting import own_store, report_error_once
from nar_scale.training.rendezvous import host_of

_logger = logging.getLogger(__name__)

_HANGS = "nar_scale/hangs"
_REPORTED = "nar_scale/hang-reported"
# the activities of a step; others, and the first step, may take longer
_ACTIVITIES_OF_A_STEP = ("loading data", "counting the global batch", "forward pass", "backward pass", "optimizer step")
_GRACE_SECONDS = 60.0
_LONGEST_WRITE_SECONDS = 10.0
_NAMED = 4  # ranks whose hosts are looked up


def timeout_beyond_watchdog(faults: FaultsConfig) -> timedelta:
    """How long collectives have to wait so that a watchdog, which knows more, reports a hang before they fail."""
    return timedelta(seconds=max(faults.step_timeout_seconds, faults.long_timeout_seconds) + 2 * _GRACE_SECONDS)


class Watchdog:
    """A thread that ends the process when one activity takes too long, or when another rank's watchdog ends it.

    It waits for no other rank without bound: what it hears from them comes through a thread of its own.

    Each rank writes the stacks of its threads to `stacks/rank-N.txt`; one reports which rank the others wait for. It
    runs within its `with` block.

    Args:
        activity: what this process is doing.
        directory: of the run.
        faults: the timeouts.
    """

    def __init__(self, activity: Activity, world: World, directory: Path, faults: FaultsConfig) -> None:
        self.activity, self.world, self.directory, self.faults = activity, world, directory / "stacks", faults
        self._store = own_store()
        self._interval = min(max(faults.step_timeout_seconds / 20, 0.1), 10.0)
        self._over = threading.Event()
        self._another_hangs = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._listener = threading.Thread(target=self._listen, name="watchdog's listener", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._listener.join(_LONGEST_WRITE_SECONDS)
        faulthandler.cancel_dump_traceback_later()

    def limit(self) -> float:
        """Seconds that the present activity may take; there is no limit to starting up."""
        if self.activity.name == STARTING:
            return math.inf
        short = self.activity.steps > 0 and self.activity.name in _ACTIVITIES_OF_A_STEP
        return self.faults.step_timeout_seconds if short else self.faults.long_timeout_seconds

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            # should a thread hold Python's lock for ever, this one cannot run, but faulthandler's can
            faulthandler.dump_traceback_later(self.faults.long_timeout_seconds + _GRACE_SECONDS, exit=True)
            if self.activity.seconds > self.limit() or self._another_hangs.is_set():
                self._end_process()

    def _listen(self) -> None:
        """Learn from the others' watchdogs, in a thread that may wait for ever where a link is lost silently."""
        try:
            while not self._over.wait(self._interval):
                if self._store.check([_HANGS]):
                    self._another_hangs.set()
                    return
        except RuntimeError:  # the main process is gone, which the next collective will notice
            pass

    def _end_process(self) -> None:
        status = {
            "activity": self.activity.name,
            "seconds": self.activity.seconds,
            "limit": self.limit(),
            "waiting": _is_in_collective(),
        }
        stuck = f"nothing has moved for {status['seconds']:.0f} s in '{self.activity.name}'"
        _done_within(_LONGEST_WRITE_SECONDS, self._write_stacks)  # to a file system that may not answer
        if not _done_within(self._longest_wait(), lambda: self._tell(status)):
            problem = f"{stuck}; the node of rank 0, or the network to it, does not answer"
            report(Kind.HANG, problem)
            _logger.error("train: error: rank %d on %s: %s", self.world.rank, socket.gethostname(), problem)
        os._exit(1)

    def _longest_wait(self) -> float:
        """Seconds after which this rank ends, whether or not the others have answered."""
        return 3 * self._interval + 15

    def _tell(self, status: dict[str, object]) -> None:
        """Tell the others, of which one describes the hang, once."""
        try:
            self._store.set(f"{_HANGS}/{self.world.rank}", json.dumps(status))
            if self._store.add(_HANGS, 1) == 1:
                problem = self._describe(self._statuses())
                report(Kind.HANG, problem)
                report_error_once(problem)
                self._store.set(_REPORTED, "")
            else:
                report(Kind.HANG, "ended with the rank that told of a hang")
                self._wait_for([_REPORTED])
        except RuntimeError:  # who keeps the store has ended
            report(Kind.PEER_LOST, "the first rank has ended")

    def _write_stacks(self) -> None:
        try:
            self.directory.mkdir(exist_ok=True)
            with open(self.directory / f"rank-{self.world.rank}.txt", "w") as file:
                faulthandler.dump_traceback(file)
        except OSError:
            faulthandler.dump_traceback()

    def _wait_for(self, keys: list[str]) -> None:
        deadline = time.monotonic() + 2 * self._interval + 5
        while not self._store.check(keys) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _statuses(self) -> dict[int, dict[str, object]]:
        """What each rank is doing; one that does not answer, because it is stopped altogether, is left out."""
        keys = [f"{_HANGS}/{rank}" for rank in range(self.world.size)]
        self._wait_for(keys)
        return {rank: json.loads(self._store.get(key)) for rank, key in enumerate(keys) if self._store.check([key])}

    def _describe(self, statuses: dict[int, dict[str, object]]) -> str:
        waiting = {rank: status for rank, status in statuses.items() if status["waiting"]}
        culprits = [rank for rank in range(self.world.size) if rank not in waiting]
        here = statuses[self.world.rank]
        what = f"nothing has moved for {here['seconds']:.0f} s in {_activities(statuses)}"
        if waiting and culprits:
            stuck = {rank: statuses[rank] for rank in culprits if rank in statuses}
            where = f"is in {_activities(stuck)}" if stuck else "does not answer"
            seconds = max(float(str(status["seconds"])) for status in waiting.values())
            blocking, blocked = (", ".join(integer_ranges(ranks)) for ranks in (culprits, waiting))
            hosts = ", ".join(sorted({host_of(rank, os.environ) for rank in culprits[:_NAMED]} - {""}))
            what = (
                f"rank {blocking}{f' on {hosts}' if hosts else ''} {where} and has kept rank {blocked} waiting in "
                f"{_activities(waiting)} for {seconds:.0f} s"
            )
        return (
            f"{what}; the stacks of all ranks are in {self.directory}; if it is slow but not stuck, raise "
            "faults.step_timeout_seconds or faults.long_timeout_seconds"
        )


def _done_within(seconds: float, action: Callable[[], None]) -> bool:
    """Whether something came to its end in time; else it is left behind, in its thread."""
    thread = threading.Thread(target=action, name="watchdog's messages", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _activities(statuses: dict[int, dict[str, object]]) -> str:
    return " or ".join(sorted({f"'{status['activity']}'" for status in statuses.values()}))


def _is_in_collective() -> bool:
    """Whether the main thread waits for other ranks, as far as its Python frames show."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    package = str(Path(dist.__file__).parent)
    while frame is not None:
        if frame.f_code.co_filename.startswith(package):
            return True
        frame = frame.f_back
    return False
