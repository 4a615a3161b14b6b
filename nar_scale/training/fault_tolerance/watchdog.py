"""The end of a job that hangs: the stacks of all ranks, one line, and exit status 1."""

from __future__ import annotations

import faulthandler
import json
import math
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from nar_scale.config import FaultsConfig
from nar_scale.training.distributed import World
from nar_scale.training.fault_tolerance.activity import STARTING, Phase
from nar_scale.training.fault_tolerance.divergence import as_runs
from nar_scale.training.fault_tolerance.error_reporting import own_store, tell_first

_HANGS = "nar_scale/hangs"
_TOLD = "nar_scale/hang-told"
# the parts of a step; what else there is, and the first step, may take longer
_SHORT = ("loading data", "counting the global batch", "forward pass", "backward pass", "optimizer step")
_GRACE_SECONDS = 60.0


def beyond_all_limits(faults: FaultsConfig) -> timedelta:
    """How long collectives have to wait so that a watchdog, which knows more, speaks before they fail."""
    return timedelta(seconds=max(faults.step_timeout_seconds, faults.long_timeout_seconds) + 2 * _GRACE_SECONDS)


class Watchdog:
    """A thread that ends the process when it is in one phase for too long, or another rank's watchdog barks.

    Each rank writes the stacks of its threads to `stacks/rank-N.txt`; one tells which rank keeps the others waiting.

    Args:
        directory: of the run.
        faults: the limits.
    """

    def __init__(self, phase: Phase, world: World, directory: Path, faults: FaultsConfig) -> None:
        self.phase, self.world, self.directory, self.faults = phase, world, directory / "stacks", faults
        self._store = own_store()
        self._interval = min(max(faults.step_timeout_seconds / 20, 0.1), 10.0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def limit(self) -> float:
        """Seconds that the present phase may take; starting up may take as long as it likes."""
        if self.phase.name == STARTING:
            return math.inf
        short = self.phase.steps > 0 and self.phase.name in _SHORT
        return self.faults.step_timeout_seconds if short else self.faults.long_timeout_seconds

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            # should a thread hold Python's lock for ever, this one cannot run, but faulthandler's can
            faulthandler.dump_traceback_later(self.faults.long_timeout_seconds + _GRACE_SECONDS, exit=True)
            if self.phase.seconds > self.limit() or self._another_barks():
                self._bark()

    def _another_barks(self) -> bool:
        try:
            return self._store.check([_HANGS])
        except RuntimeError:  # the main process is gone, which the next collective will notice
            return False

    def _bark(self) -> None:
        place = {
            "phase": self.phase.name,
            "seconds": self.phase.seconds,
            "limit": self.limit(),
            "waiting": _is_in_collective(),
        }
        self._write_stacks()
        try:
            self._store.set(f"{_HANGS}/{self.world.rank}", json.dumps(place))
            if self._store.add(_HANGS, 1) == 1:
                tell_first(self._describe(self._places()))
                self._store.set(_TOLD, "")
            else:
                self._wait_for([_TOLD])
        except RuntimeError:  # who keeps the store has ended
            pass
        os._exit(1)

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

    def _places(self) -> dict[int, dict[str, object]]:
        """Where each rank is; one that does not answer, because it is stopped altogether, is left out."""
        keys = [f"{_HANGS}/{rank}" for rank in range(self.world.size)]
        self._wait_for(keys)
        return {rank: json.loads(self._store.get(key)) for rank, key in enumerate(keys) if self._store.check([key])}

    def _describe(self, places: dict[int, dict[str, object]]) -> str:
        held_up = {rank: place for rank, place in places.items() if place["waiting"]}
        culprits = [rank for rank in range(self.world.size) if rank not in held_up]
        here = places[self.world.rank]
        what = f"nothing has moved for {here['seconds']:.0f} s in {_phases(places)}"
        if held_up and culprits:
            stuck = {rank: places[rank] for rank in culprits if rank in places}
            where = f"is in {_phases(stuck)}" if stuck else "does not answer"
            what = (
                f"rank {as_runs(culprits)} {where} and has kept rank {as_runs(held_up)} waiting in {_phases(held_up)} "
                f"for {max(float(str(place['seconds'])) for place in held_up.values()):.0f} s"
            )
        return (
            f"{what}; the stacks of all ranks are in {self.directory}; if it is slow but not stuck, raise "
            "faults.step_timeout_seconds or faults.long_timeout_seconds"
        )


def _phases(places: dict[int, dict[str, object]]) -> str:
    return " or ".join(sorted({f"'{place['phase']}'" for place in places.values()}))


def _is_in_collective() -> bool:
    """Whether the main thread waits for other ranks, as far as its Python frames tell."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    package = str(Path(dist.__file__).parent)
    while frame is not None:
        if frame.f_code.co_filename.startswith(package):
            return True
        frame = frame.f_back
    return False
