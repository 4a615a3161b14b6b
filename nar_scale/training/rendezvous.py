"""Where the ranks of a job meet, before they can exchange anything: none waits without saying for whom.

Rank 0 keeps the store that all others connect to. Under SLURM, where it is started with ports of its own to choose
from, it takes the next one where the first is taken, and the others look for it at each: the store says which step of
which job it belongs to.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from nar_scale.cluster.slurm import SlurmJob
from nar_scale.errors import UserError
from nar_scale.processes import STOP_FILE_VARIABLE
from nar_scale.text import integer_ranges

Result = TypeVar("Result")
_logger = logging.getLogger(__name__)
_PORTS = 16
_PORT_TAKEN = ("EADDRINUSE", "ddress already in use")
_TELL_SECONDS = 20.0
_LONGEST_SECONDS = 1800.0
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 15.0
_POLL_SECONDS = 0.2
_JOB, _HERE, _ALL_HERE, _STOP = "nar_scale/job", "nar_scale/here", "nar_scale/all-here", "nar_scale/stop"


class StoppedError(Exception):
    """The run was asked to stop before its ranks had met."""


def meet(environment: Mapping[str, str]) -> dist.Store:
    """Meet the other ranks at MASTER_ADDR and MASTER_PORT; returns the store that all of them are connected to.

    Args:
        environment: with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Raises:
        UserError: the port is taken and there is no other to choose, or the ranks have not met in half an hour.
        StoppedError: the stop file has appeared meanwhile.
    """
    return _Meeting(environment).meet()


class _Meeting:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.rank, self.size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        self.address, self.port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        step = [environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
        under_srun = "SLURM_STEP_ID" in environment
        self.job = ".".join(step) if under_srun else ""
        self.ports = range(self.port, self.port + (_PORTS if under_srun else 1))
        self.start = time.monotonic()
        self.told = 0.0

    def meet(self) -> dist.Store:
        store = self._keep() if self.rank == 0 else self._find()
        store.set(f"{_HERE}/{self.rank}", socket.gethostname())
        while not store.check([_ALL_HERE]):
            if store.check([_STOP]) or is_stopped(self.environment):
                store.set(_STOP, "")
                time.sleep(2 * _POLL_SECONDS)  # while rank 0 is gone, nobody can read it
                raise StoppedError
            if self.rank == 0:
                self._count(store)
            self._check_time("the other ranks")
            time.sleep(_POLL_SECONDS)
        return store

    def _keep(self) -> dist.Store:
        for port in self.ports:
            try:
                store = dist.TCPStore("localhost", port, self.size, is_master=True, wait_for_workers=False)
            except dist.DistError as error:
                if not any(part in str(error) for part in _PORT_TAKEN):
                    raise
                continue
            if port != self.port:
                _logger.info("port %d is taken; the ranks meet at port %d of %s", self.port, port, self.address)
            store.set(_JOB, self.job)
            return store
        raise UserError(
            f"port {self.port} of {self.address}, where the ranks are to meet, is taken, perhaps by another run; give "
            "another by --master_port of deepspeed, --master-port of torchrun, or MASTER_PORT"
        )

    def _find(self) -> dist.Store:
        """The store of rank 0, which may not be there yet, at one of the ports."""
        while True:
            problems = []
            for port in self.ports:
                if is_stopped(self.environment):
                    raise StoppedError
                try:
                    with socket.create_connection((self.address, port), _CONNECT_SECONDS):
                        pass
                except OSError as error:
                    problems.append(error.strerror or str(error))
                    if isinstance(error, TimeoutError):
                        break  # nor would the others answer
                    continue
                store = _in_time(_ANSWER_SECONDS, lambda port=port: self._connect(port))  # type: ignore[misc]
                if store is not None:
                    return store
                problems.append(f"another program listens at port {port}")
            if self.environment.get("LOCAL_RANK", "0") == "0":
                self._tell(f"rank 0 on {self.address}, port {self.port}: {problems[0]}")
            self._check_time(f"rank 0 on {self.address}, port {self.port}: {problems[0]}")
            time.sleep(1)

    def _connect(self, port: int) -> dist.Store | None:
        """The store at a port, if it is that of this job."""
        timeout = timedelta(seconds=_ANSWER_SECONDS)
        try:
            store = dist.TCPStore(
                self.address, port, self.size, is_master=False, timeout=timeout, wait_for_workers=False
            )
            if store.get(_JOB).decode() != self.job:
                return None
        except RuntimeError:
            return None
        store.set_timeout(timedelta(seconds=_LONGEST_SECONDS))
        return store

    def _count(self, store: dist.Store) -> None:
        if store.check([f"{_HERE}/{rank}" for rank in range(self.size)]):
            store.set(_ALL_HERE, "")
        elif self._is_to_tell():
            missing = [rank for rank in range(self.size) if not store.check([f"{_HERE}/{rank}"])]
            hosts = ", ".join(sorted({host_of(rank, self.environment) for rank in missing} - {""}))
            self._tell(f"rank {', '.join(integer_ranges(missing))}{f' on {hosts}' if hosts else ''}")

    def _is_to_tell(self) -> bool:
        return time.monotonic() - max(self.start, self.told) > _TELL_SECONDS

    def _tell(self, whom: str) -> None:
        if self._is_to_tell():
            self.told = time.monotonic()
            seconds = self.told - self.start
            _logger.warning("%s: waiting for %s (%.0f s so far)", socket.gethostname(), whom, seconds)

    def _check_time(self, whom: str) -> None:
        if time.monotonic() - self.start > _LONGEST_SECONDS:
            raise UserError(
                f"{socket.gethostname()}: cannot meet {whom}; see whether they run, and MASTER_ADDR and MASTER_PORT "
                "are the same for all"
            )


def is_stopped(environment: Mapping[str, str]) -> bool:
    """Whether the stop file is there."""
    file = environment.get(STOP_FILE_VARIABLE)
    return bool(file) and os.path.exists(str(file))


def _in_time(seconds: float, find: Callable[[], Result]) -> Result | None:
    """The result of a function; None where it takes longer, as a connection to a program that says nothing does."""
    found: list[Result] = []
    thread = threading.Thread(target=lambda: found.append(find()), name="rendezvous", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def host_of(rank: int, environment: Mapping[str, str]) -> str:
    """Where SLURM has started a rank, tasks being placed in blocks; empty if it does not say."""
    nodes, counts = environment.get("SLURM_STEP_NODELIST", ""), environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    if not nodes or not counts:
        return ""
    try:
        hosts = iter(SlurmJob(environment.get("SLURM_JOB_ID", "")).hosts(nodes))
    except UserError:
        return ""
    for part in counts.split(","):  # such as 8(x3),4
        tasks, _, times = part.partition("(x")
        for _ in range(int(times.removesuffix(")") or 1)):
            host = next(hosts, "")
            if rank < int(tasks):
                return host
            rank -= int(tasks)
    return ""
