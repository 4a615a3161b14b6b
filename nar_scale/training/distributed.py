"""This process and its peers, whichever launcher started them, and what they exchange."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed
from torch import Tensor

from nar_scale.cluster.layout import port_of
from nar_scale.errors import UserError
from nar_scale.processes import free_port
from nar_scale.training.first_exchange import first_exchange
from nar_scale.training.rendezvous import StoppedError, is_stopped, meet

Result = TypeVar("Result")
_CONTROL_TIMEOUT = timedelta(hours=6)
_logger = logging.getLogger(__name__)
_TOLD_ATTEMPT = 20  # one a second
_LOOK_UP_SECONDS = 60.0  # where nodes start together, the name of the first may come late


@dataclass(frozen=True)
class World:
    """This process and its peers.

    Attributes:
        rank: number of this process in the job.
        local_rank: number of this process on its node.
        size: processes in the job.
        local_size: processes on this node.
        device: where this process computes.
        control: a gloo group for objects and barriers, whose timeout allows for what the main process does alone.
        sp_group: the consecutive processes that share sequences with this one (sequence parallelism); None if each has
            its own.
    """

    rank: int
    local_rank: int
    size: int
    local_size: int
    device: torch.device
    control: dist.ProcessGroup
    sp_group: dist.ProcessGroup | None = None

    @property
    def control_timeout(self) -> timedelta:
        """How long a group waits for what the main process does alone: six hours, or as long as any other if more."""
        return max(_CONTROL_TIMEOUT, dist.distributed_c10d.default_pg_timeout)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and logs for all."""
        return self.rank == 0

    @property
    def sp_size(self) -> int:
        """Processes that share a sequence (the sequence-parallel size)."""
        return 1 if self.sp_group is None else self.sp_group.size()

    @property
    def sp_rank(self) -> int:
        """Number of this process among those that share its sequences."""
        return self.rank % self.sp_size

    @property
    def dp_size(self) -> int:
        """Parts that a global batch is divided into (the data-parallel size)."""
        return self.size // self.sp_size

    @property
    def dp_rank(self) -> int:
        """Number of the part of the global batch that this process works on."""
        return self.rank // self.sp_size

    def with_sequence_parallel_groups(self, processes: int) -> World:
        """The same world in which consecutive processes share sequences; creates process groups, on all ranks.

        Args:
            processes: how many share a sequence; a divisor of the world's size. 1 for none.
        """
        if processes == 1:
            return self
        group, _ = dist.new_subgroups(processes)
        return replace(self, sp_group=group)

    def set_collective_timeout(self, timeout: timedelta) -> None:
        """Set how long collectives wait for their peers before they fail, in groups that exist and in later ones.

        To be the same on all ranks. Groups do not inherit it, and DeepSpeed makes its own with torch's default: ten
        minutes for NCCL.
        """
        c10d = dist.distributed_c10d
        c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = timeout
        c10d._set_pg_timeout(timeout)
        c10d._set_pg_timeout(self.control_timeout, self.control)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum `values` over all processes, in place; returns them."""
        dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        dist.barrier(self.control)

    def broadcast(self, value: Any) -> Any:
        """The main process's (picklable) value, in every process."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's (picklable) value, by rank, in every process."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values


def map_launcher_environment(environment: MutableMapping[str, str]) -> None:
    """Complete the rank variables that torch expects, from those of the launcher.

    `deepspeed` and torchrun set them; under SLURM's srun they follow from `SLURM_*`; without any launcher the
    process is alone.

    Raises:
        UserError: srun started several tasks but no master address can be found, or RANK is set without the variables
            that belong to it.
    """
    if "RANK" in environment:
        _check_launcher_variables(environment)
        environment.setdefault("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", "1"))
        return
    under_srun = "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))) if under_srun else 1
    environment["RANK"] = environment["SLURM_PROCID"] if under_srun else "0"
    environment["LOCAL_RANK"] = environment.get("SLURM_LOCALID", "0") if under_srun else "0"
    environment["WORLD_SIZE"] = str(tasks)
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", "1"))
    environment["LOCAL_WORLD_SIZE"] = per_node.split("(")[0].split(",")[0] if under_srun else "1"
    if tasks > 1:
        if "MASTER_ADDR" not in environment:
            environment["MASTER_ADDR"] = _first_slurm_host(environment)
        step = environment.get("SLURM_STEP_ID", "0")
        port = port_of(environment.get("SLURM_JOB_ID", ""), int(step) if step.isdecimal() else 0)
        environment.setdefault("MASTER_PORT", str(port))
    else:
        environment.setdefault("MASTER_ADDR", "127.0.0.1")
        environment.setdefault("MASTER_PORT", str(free_port()))


def _check_launcher_variables(environment: Mapping[str, str]) -> None:
    remedy = "start by deepspeed, torchrun or srun, which set them, or unset RANK to train in one process"
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_RANK"):
        if not environment.get(name):
            raise UserError(f"the environment has RANK, but not {name}: {remedy}")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        if not environment[name].isdecimal():
            raise UserError(f"{name} is {environment[name]!r} in the environment, not a number: {remedy}")
    if int(environment["RANK"]) >= int(environment["WORLD_SIZE"]):
        raise UserError(
            f"RANK is {environment['RANK']} in the environment, but WORLD_SIZE {environment['WORLD_SIZE']}: {remedy}"
        )


def set_threads(environment: MutableMapping[str, str]) -> None:
    """Share this node's cores between its processes, unless the user has set OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" in environment and "TORCHELASTIC_RUN_ID" not in environment:
        return
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // int(environment["LOCAL_WORLD_SIZE"])))


def connect() -> World:
    """Join the job: NCCL on GPUs, gloo on CPUs.

    Raises:
        UserError: more processes on this node than GPUs, or the first rank's address is unknown, or its port is taken
            or cannot be reached.
        StoppedError: the run was asked to stop before its ranks had met.
    """
    map_launcher_environment(os.environ)
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        visible = torch.cuda.device_count()
        bound_by_srun = visible == 1 and "SLURM_PROCID" in os.environ
        if local_size > visible and not bound_by_srun:
            raise UserError(
                f"{local_size} processes but {visible} GPU(s) on {socket.gethostname()}; start one process a GPU"
            )
        device = torch.device("cuda", 0 if bound_by_srun else local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        set_threads(os.environ)
    if not dist.is_initialized():
        _rendezvous("nccl" if device.type == "cuda" else "gloo")
    with first_exchange("connecting all of them", dist.get_world_size()):
        control = dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT)
    return World(dist.get_rank(), local_rank, dist.get_world_size(), local_size, device, control)


def _rendezvous(backend: str) -> None:
    """Meet the other ranks at MASTER_ADDR and MASTER_PORT."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    look_up_master(address, int(port))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store, size = meet(os.environ), int(os.environ["WORLD_SIZE"])
        with first_exchange("connecting all of them", size):
            dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=size)
        return
    try:  # where torchrun keeps the store
        dist.init_process_group(backend)
    except dist.DistError:
        raise UserError(
            f"cannot meet the other ranks at port {port} of {address}; see whether the first rank runs there, and "
            "MASTER_ADDR and MASTER_PORT are as it has them"
        ) from None


def look_up_master(address: str, port: int, seconds: float = _LOOK_UP_SECONDS) -> None:
    """Look up where the ranks are to meet, again and again for some seconds.

    Raises:
        UserError: no host of that name is known.
        StoppedError: the stop file has appeared meanwhile.
    """
    attempts = Retrying(
        retry=retry_if_exception_type(socket.gaierror),
        stop=stop_after_delay(seconds),
        wait=wait_fixed(1),
        before_sleep=lambda state: _while_looking_up(address, state.attempt_number),
        reraise=True,
    )
    try:
        attempts(socket.getaddrinfo, address, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # not the name of any host
        raise UserError(
            f"{socket.gethostname()} knows no host of the name {address!r}, where the ranks are to meet: correct "
            "MASTER_ADDR, which is --master_addr of deepspeed and --master-addr of torchrun"
        ) from None


def _while_looking_up(address: str, attempt: int) -> None:
    if is_stopped(os.environ):
        raise StoppedError
    if attempt == _TOLD_ATTEMPT:
        _logger.warning("%s: waiting for the name of rank 0's host, %r, to be known", socket.gethostname(), address)


def disconnect() -> None:
    """Leave the job."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _first_slurm_host(environment: MutableMapping[str, str]) -> str:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        raise UserError(
            f"cannot find the first host of SLURM's nodes {nodes!r}; export MASTER_ADDR in the batch script"
        ) from None


def on_main(world: World, find: Callable[[], Result]) -> Result:
    """The result of a function that only the main process calls, on every rank.

    Raises:
        UserError: on every rank, where the main process raises one.
    """
    problem: UserError | None = None
    found: Any = None
    if world.is_main:
        try:
            found = find()
        except UserError as error:
            problem = error
    problem, found = world.broadcast((problem, found))
    if problem is not None:
        raise problem
    return found


class AllReducedFlags:
    """Sums over the ranks on their way to the host: copied while the step runs, so that reading does not wait for it.

    Args:
        totals: `[n]`, the same on all ranks.
    """

    def __init__(self, totals: Tensor) -> None:
        self._values = totals.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if totals.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> tuple[float, ...]:
        """The sums, the same on all ranks; waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return tuple(self._values.tolist())
