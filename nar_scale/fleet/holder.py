"""Who holds a lease: a process of a host, which others can tell from all later ones."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        host: its name.
        machine: of the running kernel and the process ids that it counts, so that `pid` means something to who has the
            same.
        pid: the process.
        started: seconds between the start of the machine and that of the process, which tell it from a later one of
            the same number.
        job: of SLURM, None if there is none.
        attempt: how often SLURM has put the job back into its queue.
        token: unlike that of any other holder.
    """

    host: str
    machine: str
    pid: int
    started: float
    job: str | None
    attempt: int
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of_this_process(cls, environment: Mapping[str, str] = os.environ) -> Holder:
        """This process as a holder."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_seconds_after_boot(psutil.Process()),
            job=environment.get("SLURM_JOB_ID"),
            attempt=int(environment.get("SLURM_RESTART_COUNT") or 0),
        )

    def __str__(self) -> str:
        job = f" of SLURM job {self.job}, attempt {self.attempt}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"

    def runs_here(self) -> bool | None:
        """Whether the process is alive, if this machine can tell; None for one of another machine."""
        if self.machine != _machine():
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(_seconds_after_boot(process) - self.started) < 1
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:  # it is gone, or the system hides what is another user's
            return None if _has_process(self.pid) else False

    def attempts_since(self, other: Holder) -> int:
        """How many attempts of the same SLURM job this one is after another; 0 for another job."""
        return self.attempt - other.attempt if self.job and self.job == other.job else 0


def _seconds_after_boot(process: psutil.Process) -> float:
    """When a process was started, by a clock that nobody sets."""
    boot = psutil.boot_time()
    return process.create_time() - boot


def _has_process(pid: int) -> bool:
    """Whether a process has this number; other than psutil, which reads /proc, this finds what /proc hides."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _machine() -> str:
    """What tells this machine, since its last start and within its container, from others of the same name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return socket.gethostname()
