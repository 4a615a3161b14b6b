"""What every node is asked before the model is built: run directory, free memory and space, speed of device and link.

It takes seconds, and names the node that is to be left out, which a run would show hours later as a slow one.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import statistics
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from nar_scale.config import DataConfig
from nar_scale.errors import UserError
from nar_scale.training.distributed import World, on_main
from nar_scale.training.first_exchange import first_exchange

_logger = logging.getLogger(__name__)
_SLOW = 2.0  # times the median
_NONCE_SECONDS = 10.0
_PRODUCTS = 3
_SUMS = 3
_MESSAGE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class NodeReport:
    """What the first rank of a node has measured.

    Attributes:
        host: its name.
        rank: of the process that has measured.
        devices: those of its ranks, such as `8 x NVIDIA H100 80GB HBM3`.
        product_seconds: for a matrix product on the device of this rank.
        neighbour_seconds: for an all-reduce with each node beside it in the ring of nodes, on the devices.
        all_reduce_seconds: for one over all ranks, on the devices.
        free_memory_gib: of the host.
        free_space_gib: of the file system of the run directory.
        free_cache_gib: of that of the copies of remote shards, those that are there already counted as free; None
            without `data.cache_directory`.
    """

    host: str
    rank: int
    devices: str
    product_seconds: float
    neighbour_seconds: tuple[float, ...]
    all_reduce_seconds: float
    free_memory_gib: float
    free_space_gib: float
    free_cache_gib: float | None = None


def check_nodes(world: World, directory: Path, data: DataConfig) -> list[NodeReport]:
    """Check the nodes of a job of several, and log what they are like; a collective. Empty for a single node.

    Args:
        world: this process and its peers.
        directory: of the run, which exists.
        data: of the run.

    Raises:
        UserError: on every rank, where a node has another run directory than rank 0; names its host.
    """
    if world.size == world.local_size:
        return []
    start = time.monotonic()
    with first_exchange("the check of the nodes", world.size):
        _check_same_directory(world, directory)
        reports = _measure(world, directory, data)
    if world.is_main:
        _logger.info("%s; measured in %.1f s", describe_nodes(reports, world.size), time.monotonic() - start)
        for warning in [*unlike(reports), *short_of_cache(reports, data.cache_gib), *outliers(reports)]:
            _logger.warning("%s", warning)
    return reports


def _measure(world: World, directory: Path, data: DataConfig) -> list[NodeReport]:
    """What each node is like; a collective."""
    firsts = [rank for rank, local_rank in enumerate(world.gather(world.local_rank)) if local_rank == 0]
    mine = None
    product = _product_seconds(world.device)
    neighbours = _neighbour_seconds(world, firsts)
    all_reduce = _all_reduce_seconds(world.device)
    if world.local_rank == 0:
        mine = NodeReport(
            host=socket.gethostname(),
            rank=world.rank,
            devices=f"{world.local_size} x {_device_name(world.device)}",
            product_seconds=product,
            neighbour_seconds=neighbours,
            all_reduce_seconds=all_reduce,
            free_memory_gib=psutil.virtual_memory().available / 2**30,
            free_space_gib=shutil.disk_usage(directory).free / 2**30,
            free_cache_gib=None if data.cache_directory is None else _free_for_cache(Path(data.cache_directory)),
        )
    return [report for report in world.gather(mine) if report is not None]


def describe_nodes(reports: Sequence[NodeReport], ranks: int) -> str:
    """The nodes of a job of so many ranks in a line.

    The bandwidth of an all-reduce is that of the bus, 2 (n - 1) / n times the bytes of a message for n ranks, which
    does not depend on n where all links are alike.
    """
    all_reduce = max(report.all_reduce_seconds for report in reports)
    products = [1000 * report.product_seconds for report in reports]
    scarce = min(reports, key=lambda report: report.free_memory_gib)
    pairs = [_bus_speed(seconds, 2) for report in reports for seconds in report.neighbour_seconds]
    return (
        f"{len(reports)} nodes, the first with {reports[0].devices}: a matrix product takes {min(products):.1f} to "
        f"{max(products):.1f} ms, an all-reduce of {_MESSAGE_BYTES >> 20} MiB has {min(pairs):.2f} to {max(pairs):.2f} "
        f"GB/s between two neighbours and takes {1000 * all_reduce:.1f} ms ({_bus_speed(all_reduce, ranks):.2f} GB/s) "
        f"over {ranks} ranks, free memory is at least {scarce.free_memory_gib:.1f} GiB (on {scarce.host}), free space "
        f"of the run directory {min(report.free_space_gib for report in reports):.1f} GiB"
    )


def _bus_speed(seconds: float, ranks: int) -> float:
    return 2 * (ranks - 1) / ranks * _MESSAGE_BYTES / seconds / 1e9


def unlike(reports: Sequence[NodeReport]) -> list[str]:
    """A line for each node that has other devices than most."""
    usual = statistics.mode(report.devices for report in reports)
    return [
        f"{report.host} has {report.devices}, most nodes have {usual}: the slowest device sets the pace of all; leave "
        f"it out with sbatch --exclude={report.host}"
        for report in reports
        if report.devices != usual
    ]


def short_of_cache(reports: Sequence[NodeReport], cache_gib: float) -> list[str]:
    """A line for each node whose disk cannot hold as many copies of remote shards as the run may keep."""
    return [
        f"the disk of {report.host} has {report.free_cache_gib:.1f} GiB for data.cache_directory, less than "
        f"data.cache_gib ({cache_gib:g}): unless the shards are smaller, free some space or lower data.cache_gib"
        for report in reports
        if report.free_cache_gib is not None and report.free_cache_gib < cache_gib
    ]


def outliers(reports: Sequence[NodeReport]) -> list[str]:
    """A line for each node that is far slower than the median: its device, or its network.

    All ranks of an all-reduce wait for the slowest, so a node that holds it up is found by its neighbours: it is slow
    with both of them, and each of them only with it. Of two nodes none can be found.
    """
    found = []
    for what, seconds in (
        ("a matrix product", {report.host: report.product_seconds for report in reports}),
        ("an all-reduce with either neighbour", {report.host: min(report.neighbour_seconds) for report in reports}),
    ):
        found += _far_above_median(what, seconds)
    return found


def _far_above_median(what: str, seconds: Mapping[str, float]) -> list[str]:
    median = statistics.median_low(seconds.values())
    return [
        f"{host} is slow: {what} takes it {1000 * own:.1f} ms, {own / median:.1f} times the median of all nodes; look "
        f"at it, or leave it out with sbatch --exclude={host}"
        for host, own in seconds.items()
        if median > 0 and own > _SLOW * median
    ]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _free_for_cache(directory: Path) -> float:
    """GiB that copies of shards in a directory can take, which need not exist yet."""
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    copies = sum(path.stat().st_size for path in directory.glob("*") if path.is_file())
    return (shutil.disk_usage(there).free + copies) / 2**30


def _check_same_directory(world: World, directory: Path) -> None:
    """Rank 0 writes what nobody can guess, and all nodes read it."""
    name = f".preflight-{uuid.uuid4().hex}"
    path = directory / on_main(world, lambda: name)
    if world.is_main:
        path.write_text(name)
    world.barrier()
    sees = world.local_rank != 0 or _reads(path)
    answers = world.gather((socket.gethostname(), sees, str(directory.absolute())))
    if world.is_main:
        with suppress(OSError):
            path.unlink()
    if blind := sorted({host for host, seen, _ in answers if not seen}):
        raise UserError(
            f"{', '.join(blind)} does not see what rank 0 on {answers[0][0]} has written to the run directory "
            f"{answers[0][2]}: set training.run_directory to one on a file system that all nodes see"
        )


def _reads(path: Path) -> bool:
    deadline = time.monotonic() + _NONCE_SECONDS
    while True:
        with suppress(OSError):
            os.listdir(path.parent)  # so that a network file system asks its server
            if path.read_text() == path.name:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _product_seconds(device: torch.device) -> float:
    """The shortest of some matrix products, after one that starts everything up."""
    size = 8192 if device.type == "cuda" else 512
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    seconds = []
    for _ in range(_PRODUCTS + 1):
        start = time.monotonic()
        product = matrix @ matrix
        product[0, 0].item()  # waits for it
        seconds.append(time.monotonic() - start)
    return min(seconds[1:])


def _all_reduce_seconds(device: torch.device, group: dist.ProcessGroup | None = None) -> float:
    """The shortest of some sums over all ranks of a group, or all, after one that makes the connections; on each."""
    message = torch.zeros(_MESSAGE_BYTES // 4, device=device)
    seconds = []
    for _ in range(_SUMS + 1):
        start = time.monotonic()
        dist.all_reduce(message, group=group)
        message[0].item()  # waits for it
        seconds.append(time.monotonic() - start)
    return min(seconds[1:])


def _neighbour_seconds(world: World, firsts: Sequence[int]) -> tuple[float, ...]:
    """Seconds for an all-reduce with either neighbour in the ring of nodes; empty unless on the first rank of a node.

    Args:
        world: this process and its peers.
        firsts: the first rank of each node.
    """
    seconds = []
    for pairs in rounds_of_neighbours(len(firsts)):
        for pair in pairs:
            ranks = [firsts[place] for place in pair]
            if world.rank in ranks:
                group = dist.new_group(ranks, use_local_synchronization=True)
                seconds.append(_all_reduce_seconds(world.device, group))
                dist.destroy_process_group(group)
    return tuple(seconds)


def rounds_of_neighbours(nodes: int) -> list[list[tuple[int, int]]]:
    """The pairs of neighbours in a ring of nodes, in rounds in none of which a node has two pairs."""
    ring = [(place, (place + 1) % nodes) for place in range(nodes if nodes > 2 else 1)]
    even = nodes - nodes % 2
    return [ring[0:even:2], ring[1:even:2], ring[even:]]
