"""The lease of a run directory, by which one run at a time trains in it, on whichever machines of a shared file system.

A library's lock does not do this: one of the operating system (flock) does not reach other machines on many shared
file systems, and one that is a mere file (filelock's `SoftFileLock`) outlives a killed process for ever. A lease
expires when its holder no longer renews it.

Each holder has a file of its own, `lease-N.json`, and the highest N holds the directory. A lease is taken over by
creating the file of N + 1, which of several processes at once only one can do.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from nar_scale.errors import UserError
from nar_scale.files import create_atomically
from nar_scale.fleet.holder import Holder

_logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 60.0
_POLL_SECONDS = 0.5
_FILE_NAME = re.compile(r"lease-(\d+)\.json")


def find_holder(directory: Path) -> Holder | None:
    """Who trains in a run directory now, as far as this machine can tell; None where nobody renews the lease."""
    numbers = _numbers(directory)
    path = _file(directory, max(numbers, default=0))
    holder = _read(path)
    if holder is None:
        return None
    runs_here = holder.runs_here()
    if runs_here is None:  # of another machine, whose clock may be another by less than a minute
        with suppress(OSError):
            runs_here = abs(time.time() - path.stat().st_mtime) < 2 * EXPIRY_SECONDS
    return holder if runs_here else None


def find_loss(directory: Path, holder: Holder) -> str | None:
    """The line that says which other run has taken a run directory over from its holder; None if none is known to."""
    with suppress(OSError):
        other = _newest(directory)[1]
        if other not in (None, holder):
            return f"{directory} has been taken over by {other}; this run ends without saving"
    return None


class RunLease:
    """Holds a run directory from `acquire` to the end of a `with` block.

    A thread renews the lease. When it finds that another run has taken the lease over, it calls `on_loss`, once.

    Args:
        directory: of the run, which must exist when the lease is acquired.
        on_loss: called in the thread with a line that names the other run.
        holder: this process.
        heartbeat_seconds: between two renewals.
        expiry_seconds: after which a holder on another machine that has renewed nothing is taken to be gone. Both
            machines' clocks may differ: what counts is how often the observer looks and sees no change, so that a file
            system that stalls for longer costs nobody the lease.
    """

    def __init__(
        self,
        directory: Path,
        on_loss: Callable[[str], None],
        holder: Holder | None = None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        expiry_seconds: float = EXPIRY_SECONDS,
    ) -> None:
        self._directory, self._on_loss = directory, on_loss
        self._holder = holder or Holder.of_this_process()
        self._heartbeat_seconds, self._expiry_seconds = heartbeat_seconds, expiry_seconds
        self._path: Path | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self) -> None:
        """Take the lease and begin to renew it, after `expiry_seconds` if the last holder may be alive elsewhere.

        Raises:
            UserError: another run holds it.
            OSError: the directory cannot be written.
        """
        while self._path is None:
            number, holder = self._newest()
            if holder is not None and not self._is_gone(number, holder):
                raise UserError(
                    f"{self._directory} is in use by {holder}: wait for its end, stop it, or set another "
                    "training.run_directory"
                )
            path = self._file(number + 1)
            create_atomically(path, json.dumps(asdict(self._holder)).encode())
            if self._newest() == (number + 1, self._holder):
                self._path = path
        self._thread.start()
        for earlier in _numbers(self._directory)[:-1]:
            with suppress(OSError):  # it may be another user's
                self._file(earlier).unlink()

    def __enter__(self) -> RunLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._path is None:
            return
        self._over.set()
        self._thread.join()
        with suppress(OSError):
            if _read(self._path) == self._holder:
                self._path.unlink()

    def _is_gone(self, number: int, holder: Holder) -> bool:
        """Whether a run may be taken over from; waits for it where only the lack of renewals can show that."""
        runs_here = holder.runs_here()
        if runs_here is False or self._holder.attempts_since(holder) > 0:
            return True
        if runs_here or self._holder.attempts_since(holder) < 0:
            return False
        _logger.warning(
            "%s was left in use by %s; waiting up to %.0f s to see whether that still runs",
            self._directory,
            holder,
            self._expiry_seconds,
        )
        seen, poll = self._renewed(number), min(_POLL_SECONDS, self._expiry_seconds)
        for _ in range(round(self._expiry_seconds / poll)):  # not by a clock: where files stall, no holder can renew
            time.sleep(poll)
            if self._renewed(number) != seen:  # it was renewed, or is another's, or has been given back
                return self._newest() != (number, holder)
        return True

    def _renew(self) -> None:
        assert self._path is not None
        while not self._over.wait(self._heartbeat_seconds):
            with suppress(OSError):  # the file system may come back
                if problem := find_loss(self._directory, self._holder):
                    self._on_loss(problem)
                    return
                if not self._path.exists():  # somebody has removed the file
                    create_atomically(self._path, json.dumps(asdict(self._holder)).encode())
                os.utime(self._path)

    def _newest(self) -> tuple[int, Holder | None]:
        return _newest(self._directory)

    def _renewed(self, number: int) -> int | None:
        """When a lease was renewed, by the clock of the file system; None if it has been given back."""
        try:
            with open(self._file(number), "rb") as file:  # NFS asks its server anew when a file is opened
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def _file(self, number: int) -> Path:
        return _file(self._directory, number)


def _newest(directory: Path) -> tuple[int, Holder | None]:
    """The highest number of a lease and who holds it; of one that cannot be read, nobody does."""
    number = max(_numbers(directory), default=0)
    holder = _read(_file(directory, number))
    if number and holder is None:  # where files cannot appear whole, it may be being written
        time.sleep(_POLL_SECONDS)
        holder = _read(_file(directory, number))
    return number, holder


def _numbers(directory: Path) -> list[int]:
    names = (_FILE_NAME.fullmatch(name) for name in os.listdir(directory))
    return sorted(int(name[1]) for name in names if name)


def _file(directory: Path, number: int) -> Path:
    return directory / f"lease-{number}.json"


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
