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
        product_seconds: for a matrix product on the device of this rank.
        link_seconds: for a message to another node and back, over each neighbour in the order of ranks.
        all_reduce_seconds: for the sum of such a message of every rank, on the devices.
        free_memory_gib: of the host.
        free_space_gib: of the file system of the run directory.
    """

    host: str
    rank: int
    product_seconds: float
    link_seconds: tuple[float, ...]
    all_reduce_seconds: float
    free_memory_gib: float
    free_space_gib: float


def check_nodes(world: World, directory: Path) -> list[NodeReport]:
    """Check the nodes of a job of several, and log what they are like; a collective. Empty for a single node.

    Args:
        world: this process and its peers.
        directory: of the run, which exists.

    Raises:
        UserError: on every rank, where a node has another run directory than rank 0; names its host.
    """
    if world.size == world.local_size:
        return []
    start = time.monotonic()
    with first_exchange("the check of the nodes", world.size):
        _check_same_directory(world, directory)
        reports = _measure(world, directory)
    if world.is_main:
        _logger.info("%s; measured in %.1f s", describe_nodes(reports, world.size), time.monotonic() - start)
        for warning in outliers(reports):
            _logger.warning("%s", warning)
    return reports


def _measure(world: World, directory: Path) -> list[NodeReport]:
    """What each node is like; a collective."""
    firsts = [rank for rank, local_rank in enumerate(world.gather(world.local_rank)) if local_rank == 0]
    mine = None
    product = _product_seconds(world.device)
    links = _link_seconds(world, firsts)
    all_reduce = _all_reduce_seconds(world.device)
    if world.local_rank == 0:
        mine = NodeReport(
            host=socket.gethostname(),
            rank=world.rank,
            product_seconds=product,
            link_seconds=links,
            all_reduce_seconds=all_reduce,
            free_memory_gib=psutil.virtual_memory().available / 2**30,
            free_space_gib=shutil.disk_usage(directory).free / 2**30,
        )
    return [report for report in world.gather(mine) if report is not None]


def describe_nodes(reports: Sequence[NodeReport], ranks: int) -> str:
    """The nodes of a job of so many ranks in a line.

    The bandwidth of the all-reduce is that of the bus, 2 (n - 1) / n times the bytes of a message for n ranks, which
    does not depend on n where all links are alike.
    """
    all_reduce = max(report.all_reduce_seconds for report in reports)
    bus = 2 * (ranks - 1) / ranks * _MESSAGE_BYTES / all_reduce / 1e9
    products = [1000 * report.product_seconds for report in reports]
    speeds = [_MESSAGE_BYTES / seconds / 1e9 for report in reports for seconds in report.link_seconds]
    return (
        f"{len(reports)} nodes: a matrix product takes {min(products):.1f} to {max(products):.1f} ms, neighbours "
        f"exchange {min(speeds):.2f} to {max(speeds):.2f} GB/s over the host, an all-reduce of {_MESSAGE_BYTES >> 20} "
        f"MiB over {ranks} ranks takes {1000 * all_reduce:.1f} ms ({bus:.2f} GB/s), free memory is at least "
        f"{min(report.free_memory_gib for report in reports):.1f} GiB, free space of the run directory "
        f"{min(report.free_space_gib for report in reports):.1f} GiB"
    )


def outliers(reports: Sequence[NodeReport]) -> list[str]:
    """A line for each node that is far slower than the median: its device, or all of its links."""
    found = []
    for what, seconds in (
        ("a matrix product", {report.host: report.product_seconds for report in reports}),
        ("a message to its nearest neighbour", {r.host: min(r.link_seconds, default=0.0) for r in reports}),
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


def _all_reduce_seconds(device: torch.device) -> float:
    """The shortest of some sums over all ranks, after one that makes the connections; on all ranks."""
    message = torch.zeros(_MESSAGE_BYTES // 4, device=device)
    seconds = []
    for _ in range(_SUMS + 1):
        start = time.monotonic()
        dist.all_reduce(message)
        message[0].item()  # waits for it
        seconds.append(time.monotonic() - start)
    return min(seconds[1:])


def _link_seconds(world: World, firsts: Sequence[int]) -> tuple[float, ...]:
    """Seconds for a message of this rank, the first of its node, from either neighbour; all pairs at the same time."""
    if world.rank not in firsts:
        return ()
    place = firsts.index(world.rank)
    message = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
    seconds = []
    for even in (True, False):
        lower = place % 2 == (0 if even else 1)
        partner = place + 1 if lower else place - 1
        if not 0 <= partner < len(firsts):
            continue
        for _ in range(2):  # the first makes the connection
            start = time.monotonic()
            if lower:
                dist.send(message, firsts[partner], group=world.control)
                dist.recv(message, firsts[partner], group=world.control)
            else:
                dist.recv(message, firsts[partner], group=world.control)
                dist.send(message, firsts[partner], group=world.control)
        seconds.append((time.monotonic() - start) / 2)
    return tuple(seconds)
